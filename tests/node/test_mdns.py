"""mDNS between real processes: over loopback, and between network namespaces on one bridge."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

SCRIPT = Path(__file__).with_name("mdns_node.py")
PATIENCE_S = 20
ONE, TWO, THREE = "1" * 10, "2" * 10, "3" * 10


class Node:
    """A running ``mdns_node.py`` and what it has said."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self._changed = trio.Event()

    async def read(self):
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [json.loads(line) for line in lines]
            before, self._changed = self._changed, trio.Event()
            before.set()

    async def says(self, event, **fields):
        """Wait for a line with these fields."""
        return await self._until(lambda line: {"event": event, **fields}.items() <= line.items())

    async def finds(self, node_id, address):
        """Wait until the node is found with this address first; older ones may follow it for a while."""
        place = [address, 56002]
        return await self._until(
            lambda line: (
                (line["event"], line.get("id")) == ("found", node_id) and line["addresses"][:1] == [place]
            )
        )

    async def _until(self, wanted):
        with trio.fail_after(PATIENCE_S):
            while True:
                for line in self.lines:
                    if wanted(line):
                        return line
                await self._changed.wait()

    def found(self):
        return {line["id"] for line in self.lines if line["event"] == "found"}

    async def stop(self):
        self.process.terminate()
        with trio.fail_after(PATIENCE_S):
            await self.process.wait()


@contextlib.asynccontextmanager
async def processes():
    """Starts nodes; ends what is left of them."""
    nodes = []
    async with trio.open_nursery() as nursery:

        async def start(*arguments, prefix=()):
            command = [*prefix, sys.executable, str(SCRIPT), *arguments]
            node = Node(await trio.lowlevel.open_process(command, stdout=subprocess.PIPE))
            nodes.append(node)
            nursery.start_soon(node.read)
            await node.says("mDNS listens")
            return node

        try:
            yield start
        finally:
            for node in nodes:
                if node.process.poll() is None:
                    node.process.kill()
                    with trio.move_on_after(5, shield=True):
                        await node.process.wait()
            nursery.cancel_scope.cancel()


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def lan():
    """Three namespaces on one bridge, which is in a namespace of its own. Gives their names."""
    name = f"eo{secrets.token_hex(3)}"
    spaces = [f"{name}-{index}" for index in (1, 2, 3)]
    made = []
    try:
        for space in (name, *spaces):
            ip("netns", "add", space)
            made.append(space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "br0", "type", "bridge")
        ip("-n", name, "link", "set", "br0", "up")
        for index, space in enumerate(spaces, 1):
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", f"p{index}", "netns", name)
            ip("-n", name, "link", "set", f"p{index}", "master", "br0", "up")
            ip("-n", space, "addr", "add", f"10.77.0.{index}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
        yield spaces
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True, timeout=20)


def inside(space):
    return ("ip", "netns", "exec", space)


async def test_over_loopback():
    ca = secrets.token_hex(32)
    async with processes() as start:
        one = await start(ONE, "home", ca, "127.0.0.1")
        two = await start(TWO, "home", ca, "127.0.0.2")
        three = await start(THREE, "home", ca, "127.0.0.3")
        for node in (one, two):
            await node.finds(THREE, "127.0.0.3")
        await three.finds(ONE, "127.0.0.1")
        await three.finds(TWO, "127.0.0.2")
        await two.stop()
        for node in (one, three):
            await node.says("withdrawn", id=TWO)


@pytest.mark.root
async def test_three_nodes_find_each_other_and_see_a_goodbye(lan):
    async with processes() as start:
        nodes = [
            await start(node_id, "home", "ca", prefix=inside(space))
            for node_id, space in zip((ONE, TWO, THREE), lan, strict=True)
        ]
        for index, node in enumerate(nodes, 1):
            for other in {1, 2, 3} - {index}:
                await node.finds(str(other) * 10, f"10.77.0.{other}")
        await nodes[1].stop()
        assert nodes[1].process.returncode == 0
        for node in (nodes[0], nodes[2]):
            await node.says("withdrawn", id=TWO)


@pytest.mark.root
async def test_fleets_ignore_each_other(lan):
    async with processes() as start:
        one = await start(ONE, "home", "ca", prefix=inside(lan[0]))
        # The same name with another CA is another fleet.
        two = await start(TWO, "home", "other ca", prefix=inside(lan[1]))
        await one.says("a node of another fleet is on this network", fleet="home", ca="other ca")
        await two.says("a node of another fleet is on this network", fleet="home", ca="ca")
        three = await start(THREE, "home", "ca", prefix=inside(lan[2]))
        await one.finds(THREE, "10.77.0.3")
        await three.finds(ONE, "10.77.0.1")
        assert (one.found(), two.found(), three.found()) == ({THREE}, set(), {ONE})


@pytest.mark.root
async def test_a_changed_address_is_announced_and_used(lan):
    async with processes() as start:
        one = await start(ONE, "home", "ca", prefix=inside(lan[0]))
        two = await start(TWO, "home", "ca", prefix=inside(lan[1]))
        await one.finds(TWO, "10.77.0.2")
        ip("-n", lan[1], "addr", "del", "10.77.0.2/24", "dev", "eth0")
        ip("-n", lan[1], "addr", "add", "10.77.0.22/24", "dev", "eth0")
        await one.finds(TWO, "10.77.0.22")
        # It hears on the new address, too: a node that comes now is found by both.
        three = await start(THREE, "home", "ca", prefix=inside(lan[2]))
        await two.finds(THREE, "10.77.0.3")
        await three.finds(TWO, "10.77.0.22")


@pytest.mark.root
async def test_a_cable_that_was_out_for_a_while(lan):
    async with processes() as start:
        two = await start(TWO, "home", "ca", prefix=inside(lan[1]))
        ip("-n", lan[1], "link", "set", "eth0", "down")
        await two.says("addresses changed", now=[])
        one = await start(ONE, "home", "ca", prefix=inside(lan[0]))
        ip("-n", lan[1], "link", "set", "eth0", "up")
        await one.finds(TWO, "10.77.0.2")
        await two.finds(ONE, "10.77.0.1")


FORGER = """
import socket, sys, random, zeroconf
from zeroconf import ServiceInfo, Zeroconf
rng = random.Random(1)
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.3"))
for size in range(0, 600, 3):
    out.sendto(rng.randbytes(size), ("224.0.0.251", 5353))
    out.sendto(b"\\0\\0\\x84\\0\\0\\0\\0\\1\\0\\0\\0\\0" + rng.randbytes(size), ("224.0.0.251", 5353))
kind = "_edgeorch._tcp.local."
zc = Zeroconf(interfaces=["10.77.0.3"])
def forge(name, address, **fields):
    server = name.replace(" ", "") + ".local."
    return ServiceInfo(kind, f"{name}.{kind}", server=server, parsed_addresses=[address], **fields)
ours = {"fleet": "home", "ca": "ca"}
forged = [
    forge("not an id.", "10.77.0.90", port=1, properties=ours),
    forge("4444444444", "10.77.0.91", port=1, properties={b"fleet": b"\\xff\\xfe", b"ca": b"\\0"}),
    forge("5555555555", "10.77.0.92", port=0, properties=ours),
    forge("6666666666", "10.77.0.93", port=56002, properties=ours),
    forge("7777777777", "127.0.0.1", port=56002, properties=ours),
]
for info in forged:
    zc.register_service(info, cooperating_responders=True)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.root
async def test_forgers_and_noise_do_no_harm(lan):
    async with processes() as start:
        one = await start(ONE, "home", "ca", prefix=inside(lan[0]))
        forger = await trio.lowlevel.open_process(
            [*inside(lan[2]), sys.executable, "-c", FORGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            # What could be true is reported as an address to try, and nothing else is.
            await one.finds("6" * 10, "10.77.0.93")
            with trio.fail_after(PATIENCE_S):
                said = b""
                while said != b"done\n":
                    piece = await forger.stdout.receive_some()
                    assert piece, said
                    said += piece
            two = await start(TWO, "home", "ca", prefix=inside(lan[1]))
            await one.finds(TWO, "10.77.0.2")
            await two.finds(ONE, "10.77.0.1")
        finally:
            forger.kill()
            with trio.move_on_after(PATIENCE_S, shield=True):
                await forger.wait()
                await forger.stdin.aclose()
                await forger.stdout.aclose()
        lines = [line for line in one.lines if line["event"] == "found"]
        assert all(line["addresses"] for line in lines if line["id"] != "7" * 10)
        assert one.found() <= {TWO, "6" * 10, "7" * 10}
        # Loopback of another machine would be this one.
        assert all(line["addresses"] == [] for line in lines if line["id"] == "7" * 10)


BUS = """<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow own="*"/><allow receive_sender="*"/></policy>
</busconfig>"""


@contextlib.asynccontextmanager
async def avahi(space, folder):
    """An avahi daemon of its own in a namespace; gives the environment for avahi-browse."""
    bus = folder / "bus"
    (folder / "bus.conf").write_text(BUS.format(path=bus))
    (folder / "avahi.conf").write_text("[server]\nuse-ipv6=no\nallow-interfaces=eth0\n")
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
    # `ip netns exec` gives a mount namespace of its own, so the pid file collides with nobody's.
    private = "mkdir -p /run/avahi-daemon && mount -t tmpfs none /run/avahi-daemon"
    server = f"avahi-daemon --no-drop-root --no-chroot --no-rlimits -f {folder}/avahi.conf"
    commands = (
        [
            "dbus-daemon",
            f"--config-file={folder / 'bus.conf'}",
            "--nofork",
            "--nopidfile",
            "--print-address=1",
        ],
        [
            *inside(space),
            "sh",
            "-c",
            f"{private} && exec {server} 2>&1",
        ],
    )
    started = []
    try:
        for command, sign in zip(commands, (b"unix:", b"Server startup complete"), strict=True):
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=env)
            started.append(process)
            said = b""
            with trio.fail_after(PATIENCE_S):
                while sign not in said:
                    data = await process.stdout.receive_some()
                    assert data, said.decode()
                    said += data
        yield env
    finally:
        for process in reversed(started):
            process.terminate()
            with trio.move_on_after(5, shield=True):
                await process.wait()
            await process.stdout.aclose()


@pytest.mark.root
@pytest.mark.skipif(
    not all(map(shutil.which, ("avahi-browse", "avahi-daemon", "dbus-daemon"))),
    reason="no avahi: apt-get install avahi-utils",
)
async def test_ordinary_browsers_see_the_nodes(lan, tmp_path):
    async with processes() as start:
        one = await start(ONE, "home", "ca", prefix=inside(lan[0]))
        await start(TWO, "home", "ca", prefix=inside(lan[1]))
        await one.finds(TWO, "10.77.0.2")
        async with avahi(lan[2], tmp_path) as env:
            browse = [
                *inside(lan[2]),
                "avahi-browse",
                "--parsable",
                "--resolve",
                "--terminate",
                "_edgeorch._tcp",
            ]
            with trio.fail_after(PATIENCE_S):
                done = await trio.run_process(browse, capture_stdout=True, env=env)
    rows = [row.split(";") for row in done.stdout.decode().splitlines() if row.startswith("=")]
    assert {(row[3], row[7], row[8]) for row in rows} == {
        (ONE, "10.77.0.1", "56002"),
        (TWO, "10.77.0.2", "56002"),
    }
    texts = next(row[9] for row in rows if row[3] == ONE)
    for text in (f'"id={ONE}"', f'"name=name-{ONE}"', '"fleet=home"', '"ca=ca"', '"version=1.2.3"'):
        assert text in texts
