"""A fleet in memory: real Membership objects over links, a LAN and machines that a test can break."""

import random
from dataclasses import dataclass, field

import trio

from edgeorch.config import Config, Discovery, Wire
from edgeorch.config import Membership as Times
from edgeorch.errors import IdentityError, NodeUnreachableError
from edgeorch.membership import ExecutorLoad, Fleet, Membership, Sampler, SelfInfo
from edgeorch.membership.self_info import INCARNATIONS_PER_BOOT
from edgeorch.model import NodeInfo, PeerState, Sample
from edgeorch.seams import Seams
from edgeorch.testing.discovery import FakeLan
from edgeorch.wire import From, Handlers

PORT = 56002
RTT = 0.002
DIAL_S = 5.0


def node_info(node_id="a" * 10, **fields):
    given = {"name": f"n-{node_id}", "fleet": "home", "version": "1", "addresses": ("10.0.0.1",)}
    return NodeInfo(id=node_id, **(given | fields))


def sample(**fields):
    given = {
        "at": 0.0,
        "cpu_busy": 0.1,
        "cpu_mhz": 2000.0,
        "cpus": 4,
        "load1": 0.4,
        "memory_total": 1 << 33,
        "memory_available": 1 << 32,
        "disk_free": 1 << 34,
        "slots": 8,
        "slots_used": 0,
    }
    return Sample(**(given | fields))


class Machine:
    def __init__(self):
        self.next = sample()

    def measure(self):
        return self.next


class Watch:
    """In place of AddressWatch."""

    def __init__(self, *addresses):
        self.addresses = addresses
        self.changed = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()

    def move(self, *addresses):
        self.addresses = addresses
        before, self.changed = self.changed, trio.Event()
        before.set()


class InlineSampler(Sampler):
    """Without a thread: the mock clock would jump while one works."""

    async def refresh(self):
        self._latest = self._machine.measure()
        self._last_ok = trio.current_time()
        await trio.lowlevel.checkpoint()


class Lists:
    """In place of Identity's revocation list; a list is its number in ASCII."""

    def __init__(self):
        self.crl_number = 0
        self.asked = 0

    @property
    def crl_pem(self):
        self.asked += 1
        return str(self.crl_number).encode()

    def take_crl(self, pem):
        if not pem.isdigit():
            raise IdentityError("not a list of this fleet")
        newer = int(pem) > self.crl_number
        self.crl_number = max(self.crl_number, int(pem))
        return newer


@dataclass
class World:
    """Wires between nodes. ``frozen`` hosts complete connections but answer nothing."""

    nodes: dict = field(default_factory=dict)
    links: dict = field(default_factory=dict)
    frozen: set = field(default_factory=set)
    cut: set = field(default_factory=set)
    lan: FakeLan = field(default_factory=FakeLan)
    dials: int = 0

    def at(self, host, port):
        for node in self.nodes.values():
            if node.running and host in node.watch.addresses and port == node.self_info.info.wire_port:
                return node
        return None

    def silent(self, one, other):
        return bool({one, other} & self.frozen) or frozenset((one, other)) in self.cut

    def break_links(self, node_id, why):
        for pair in [pair for pair in self.links if node_id in pair]:
            self.links.pop(pair).set()
            for end in pair - {node_id}:
                self.nodes[end].links.on_down(node_id, why)


class FakeLinks:
    """LinkControl over a World."""

    def __init__(self, world, node):
        self.world, self.node = world, node
        self.on_hello = self.on_up = self.on_down = None
        self.wanted = {}
        self.dropped = []
        self.rechecks = self.retries = 0

    def want(self, node_id, addresses):
        self.wanted[node_id] = tuple(addresses)

    def unwant(self, node_id):
        self.wanted.pop(node_id, None)
        self.drop(node_id)

    def drop(self, node_id):
        self.dropped.append(node_id)
        if (broken := self.world.links.pop(frozenset((self.node.id, node_id)), None)) is not None:
            broken.set()

    def retry(self):
        self.retries += 1

    def recheck(self):
        self.rechecks += 1

    def connected(self, node_id):
        return frozenset((self.node.id, node_id)) in self.world.links

    async def dial_unknown(self, host, port):
        world = self.world
        world.dials += 1
        other = world.at(host, port)
        await trio.sleep(RTT)
        if other is None:
            raise NodeUnreachableError(f"{host} port {port}: Connection refused", sent=False)
        if other is self.node:
            return self.node.id
        if world.silent(self.node.id, other.id):
            await trio.sleep(DIAL_S)
            raise NodeUnreachableError("no answer in 5 s", sent=False)
        pair = frozenset((self.node.id, other.id))
        if pair not in world.links:
            world.links[pair] = trio.Event()
            for near, far in ((self.node, other), (other, self.node)):
                hello = far.membership.hello()
                near.links.on_hello(far.as_sender(), hello, None)
                near.links.on_up(far.id)
        return other.id

    async def call(self, node_id, request):
        broken = self.world.links.get(frozenset((self.node.id, node_id)))
        if broken is None:
            # Links above ``max_links`` open when they are needed.
            for address in self.wanted.get(node_id, ()):
                if await self.dial_unknown(*address) == node_id:
                    return await self.call(node_id, request)
            raise NodeUnreachableError(f"no link to {node_id}", sent=False)
        answer = None
        async with trio.open_nursery() as nursery:

            async def exchange():
                nonlocal answer
                await trio.sleep(RTT / 2)
                if self.world.silent(self.node.id, node_id):
                    await trio.sleep_forever()
                other = self.world.nodes[node_id]
                if handler := other.handlers.instant.get(type(request)):
                    answer = handler(self.node.as_sender(), request)
                else:
                    answer = await other.handlers.requests[type(request)](self.node.as_sender(), request)
                await trio.sleep(RTT / 2)
                nursery.cancel_scope.cancel()

            nursery.start_soon(exchange)
            await broken.wait()
            nursery.cancel_scope.cancel()
        if answer is None:
            raise NodeUnreachableError(f"the link to {node_id} broke")
        return answer

    async def redial(self):
        """What the real links do for wanted peers."""
        while True:
            await trio.sleep(0.5)
            for node_id, addresses in list(self.wanted.items()):
                if len(self.wanted) > self.node.config.wire.max_links or self.connected(node_id):
                    continue
                for host, port in addresses:
                    try:
                        with trio.move_on_after(1):
                            await self.dial_unknown(host, port)
                            break
                    except NodeUnreachableError:
                        continue


class VirtualNode:
    """One node of the world; ``start`` runs it in a nursery, ``kill`` ends it without a word."""

    def __init__(
        self, world, node_id, address, *, boot=1, seeds=(), mdns=False, max_links=64, times=None, **info
    ):
        self.world, self.id = world, node_id
        self.config = Config(
            discovery=Discovery(mdns=mdns, seeds=tuple(seeds)),
            membership=times or Times(),
            wire=Wire(max_links=max_links),
        )
        self.watch = Watch(address)
        facts = {"store_id": f"s-{node_id}", "boot": boot, "incarnation": boot * INCARNATIONS_PER_BOOT}
        self.self_info = SelfInfo(node_info(node_id, **(facts | {"addresses": (address,)} | info)))
        self.seams = Seams(wall=trio.current_time, rng=random.Random(node_id))
        self.machine, self.lists, self.handlers = Machine(), Lists(), Handlers()
        self.links = FakeLinks(world, self)
        self.load = ExecutorLoad(slots=8)
        self.membership = Membership(
            self.config,
            self.self_info,
            self.links,
            self.handlers,
            revocations=self.lists,
            sampler=InlineSampler(self.machine, lambda: self.load, self.seams),
            watch=self.watch,
            fleet=Fleet(self.self_info.info.fleet, "ca"),
            seams=self.seams,
            discovery=world.lan.discovery,
        )
        self.table = self.membership.table
        self.running = False
        self.scope = trio.CancelScope()
        world.nodes[node_id] = self

    def as_sender(self):
        return From(node_id=self.id, name=self.self_info.info.name, address=self.watch.addresses[0])

    async def start(self, nursery):
        self.running = True
        await nursery.start(self._run)
        self.membership.announce()
        return self

    async def _run(self, task_status):
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.membership.run)
                nursery.start_soon(self.links.redial)
                task_status.started()

    def kill(self, why="connection reset"):
        """SIGKILL: the kernel closes its connections, nobody says goodbye."""
        self.running = False
        self.scope.cancel()
        self.world.break_links(self.id, why)

    async def stop(self):
        await self.membership.say_goodbye()
        self.running = False
        self.scope.cancel()
        for pair in [pair for pair in self.world.links if self.id in pair]:
            self.world.links.pop(pair).set()

    async def until(self, node_id, *states, patience_s=60):
        """Wait until the peer has one of these states; returns the time that it took."""
        began = trio.current_time()
        with trio.fail_after(patience_s):
            while (peer := self.table.get(node_id)) is None or peer.state not in states:
                await self.table.changed.wait()
        return trio.current_time() - began

    async def sees(self, *node_ids):
        for node_id in node_ids:
            await self.until(node_id, PeerState.ALIVE)


async def fleet(nursery, world, count, **options):
    """``count`` nodes, each seeded with the first, that all see each other."""
    nodes = []
    for index in range(count):
        node_id = f"{index:010d}"
        options_here = dict(options)
        if index:
            options_here["seeds"] = ("10.0.0.1",)
        node = VirtualNode(world, node_id, f"10.0.{index // 250}.{index % 250 + 1}", **options_here)
        nodes.append(await node.start(nursery))
    for node in nodes:
        await node.sees(*(other.id for other in nodes if other is not node))
    return nodes
