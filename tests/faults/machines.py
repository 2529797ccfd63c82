"""Machines of a chaos run: namespaces of their own on one bridge, with a node and a runner as under systemd.

A machine's processes, its network and its /run end with its first process, as in a power failure; its state
folder is a small tmpfs that outlives it. Everything is inside the namespaces of the program itself and ends
with it, whatever happens.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import trio

from edgeorch.client import AsyncClient
from edgeorch.client.endpoint import Endpoint
from edgeorch.errors import EdgeorchError

NET = "10.79.0"
GATEWAY = f"{NET}.254"
NOWHERE = "02:00:00:00:00:99"
"""Nobody's hardware address: what is sent there vanishes, and the sender does not notice."""
STATE_SIZE = "48m"
BACK_S = 60.0
"""A machine must be ready this long after it came back."""
INIT = "mount -t tmpfs tmpfs /run && while :; do sleep 3600 & wait $!; done"


def run(*argv):
    subprocess.run(argv, check=True, capture_output=True, timeout=20, text=True)


def make_bridge():
    """The switch that all machines are plugged into; this program is on it, too."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "br0")
    run("ip", "link", "set", "br0", "up")


class Unit:
    """A service of a machine that is started again when it ends, as with Restart=always."""

    def __init__(self, machine, name, argv):
        self.machine, self.name, self.argv = machine, name, argv
        self.wanted = False
        self.process = None
        self.ends = []
        """Exit codes of ends that nobody had asked for."""

    async def keep(self):
        """Run it while the machine is up and it is wanted."""
        while True:
            if not (self.wanted and self.machine.init is not None):
                await trio.sleep(0.05)
                continue
            enter = ("nsenter", "--target", str(self.machine.init.pid_inside), "--net", "--pid", "--mount")
            with (self.machine.folder / f"{self.name}.log").open("ab") as log:
                self.process = await trio.lowlevel.open_process(
                    [*enter, "--", *self.argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            code = await self.process.wait()
            self.process = None
            if self.wanted and self.machine.init is not None and code not in (0, -signal.SIGKILL, 137):
                self.ends.append(code)
            await trio.sleep(0.5)

    def pid(self):
        """The process itself, below nsenter; None where it does not run."""
        children = first_children(self.process.pid) if self.process else []
        return children[0] if children else None

    def send(self, number):
        if pid := self.pid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGCONT and self.process:
            # nsenter stops with what it waits for, and is not continued with it.
            os.kill(self.process.pid, number)


class Init:
    """A machine's first process."""

    def __init__(self, process, pid_inside):
        self.process, self.pid_inside = process, pid_inside


class Machine:
    """One machine with its node; ``number`` is the last part of its address."""

    def __init__(self, folder, number, authority, tokens, token):
        self.name, self.number, self.host = f"m{number}", number, f"{NET}.{number}"
        self.folder = folder / self.name
        self.state = self.folder / "state"
        self.id = ""
        self.init = None
        self.cuts = Counter()
        """How many faults keep a machine from hearing this one."""
        authority.issue(self.name, [self.host]).write(self.folder)
        (self.folder / "tokens.toml").write_bytes(tokens)
        self.id = (self.folder / "node_id").read_text().strip()
        self.state.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={STATE_SIZE},mode=700", "tmpfs", str(self.state))
        endpoint = Endpoint(f"https://{self.host}:56001", token, str(self.folder / "pki" / "ca.pem"))
        self.client = AsyncClient(endpoint=endpoint)
        runner = ("--socket", "/run/runner.sock", "--work-dir", str(self.state / "tasks"), "--grace-s", "2")
        self.runner = Unit(self, "runner", [sys.executable, "-m", "edgeorch.runner", *runner])
        config = self.folder / "edgeorch.toml"
        self.node = Unit(self, "node", [sys.executable, "-m", "edgeorch", "node", "--config", str(config)])

    def configure(self, seeds, extra):
        (self.folder / "edgeorch.toml").write_text(
            f'[node]\nstate_dir="{self.state}"\nrun_dir="/run/edgeorch"\n'
            f"[discovery]\nmdns=false\nseeds=[{', '.join(f'{seed!r}' for seed in seeds)}]\n"
            f'[runner]\nsocket="/run/runner.sock"\n[executor]\ndrivers=["native"]\nslots=4\n'
            f'[policy]\nnative="any"\n{extra}'
        )

    async def boot(self):
        """Switch it on."""
        spaces = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        with (self.folder / "init.log").open("ab") as log:
            process = await trio.lowlevel.open_process(["unshare", *spaces, "sh", "-c", INIT], stderr=log)
        with trio.fail_after(20):
            # Its first child's own first child sleeps, so /run is mounted.
            while not (children := first_children(process.pid)) or not first_children(children[0]):  # noqa: ASYNC110
                await trio.sleep(0.01)
        inside = str(children[0])
        port = f"port{self.number}"
        # The kernel takes its time to remove what a dead machine was plugged in with.
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "link", "delete", port)
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", inside)
        run("ip", "link", "set", port, "master", "br0", "up")
        self.init = Init(process, children[0])
        for command in ("link set lo up", f"addr add {self.host}/24 dev eth0", "link set eth0 up"):
            self._ip(*command.split())
        for other in +self.cuts:
            self._deaf(other, True)
        self.runner.wanted = self.node.wanted = True

    async def power_off(self):
        """Everything on it ends between two instructions."""
        init, self.init = self.init, None
        self.runner.wanted = self.node.wanted = False
        os.kill(init.pid_inside, signal.SIGKILL)
        await init.process.wait()

    async def ready(self):
        """Whether its node says so in time."""
        with trio.move_on_after(BACK_S):
            while True:
                with trio.move_on_after(5), contextlib.suppress(EdgeorchError):
                    await self.client.ready()
                    return True
                await trio.sleep(0.1)
        return False

    def processes(self):
        """Ids of everything that runs there."""
        space = Path(f"/proc/{self.init.pid_inside}/ns/pid").readlink()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "ns/pid").readlink() == space and (entry / "cmdline").read_bytes():
                        yield int(entry.name)

    def services(self):
        """Ids of the processes of services: what is left without node, runner and init."""
        own = {
            self.node.pid(),
            self.runner.pid(),
            self.init.pid_inside,
            *first_children(self.init.pid_inside),
        }
        return [pid for pid in self.processes() if pid not in own]

    def freeze(self, number):
        """SIGSTOP or SIGCONT for everything on it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGCONT:
            os.kill(self.init.process.pid, number)
            for unit in (self.node, self.runner):
                unit.send(number)

    def kill_runner(self):
        """The runner crashes, and systemd ends what is left in its unit."""
        services = self.services()
        self.runner.send(signal.SIGKILL)
        for pid in services:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cut(self, other):
        """Nothing that it sends reaches the other one."""
        self.cuts[other] += 1
        self._deaf(other, True)

    def heal(self, other):
        self.cuts[other] -= 1
        if not self.cuts[other]:
            self._deaf(other, False)

    def _deaf(self, other, on):
        if self.init is None:
            return
        with contextlib.suppress(subprocess.CalledProcessError):  # the machine may be going down
            if on:
                self._ip(*f"neigh replace {other.host} lladdr {NOWHERE} dev eth0 nud permanent".split())
            else:
                self._ip(*f"neigh del {other.host} dev eth0".split())

    def _ip(self, *arguments):
        run("nsenter", "--target", str(self.init.pid_inside), "--net", "ip", *arguments)

    def fill_disk(self):
        """Not one byte is left in its state folder."""
        with (self.state / "filling").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass

    def clear_disk(self):
        (self.state / "filling").unlink(missing_ok=True)


def first_children(pid):
    """Ids of a process's children."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
