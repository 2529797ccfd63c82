"""A large fleet in one process: the real membership of every node, over links that are calls and are counted.

Time is virtual. Every message is encoded and decoded as on a real link, and counted with the bytes that it
has before TLS. Links open when they are needed and close when they are idle, as ``wire.links`` does it.
"""

import gc
import random
from dataclasses import dataclass

import trio

from edgeorch.config import Config, Discovery, Log
from edgeorch.errors import NodeUnreachableError
from edgeorch.logs import set_up
from edgeorch.membership import ExecutorLoad, Fleet, Membership, Sampler, SelfInfo
from edgeorch.membership.probe import FANOUT
from edgeorch.membership.self_info import INCARNATIONS_PER_BOOT
from edgeorch.membership.table import NEAREST
from edgeorch.model import NodeInfo, PeerState, Sample
from edgeorch.seams import Seams
from edgeorch.wire import From, Handlers, codec, frames
from edgeorch.wire.frames import Kind
from edgeorch.wire.links import IDLE_S
from edgeorch.wire.messages import Digest

WAY_S = 0.001
"""What a message takes."""
KNOWN_S = 4.0
"""In a fleet of 1,000 that has settled, nodes know of each other since half of that on average."""
TLS_HANDSHAKE = 3000
"""Bytes of a mutual TLS 1.3 handshake with this fleet's certificates, both ways."""
LABELS = {"zone": "kitchen", "room": "1"}
DRIVERS = {"native": "1", "container": "27.3.1"}


@dataclass
class Counts:
    """What went over the wire since it was set to zero."""

    messages: int = 0
    bytes: int = 0
    handshakes: int = 0


class Network:
    """Who can be reached where, and the links."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.nodes = {}
        self.at = {}
        self.used = {}
        self.counts = Counts()

    def through_bytes(self, kind, message):
        """The frame as it arrives."""
        data = frames.encode(kind, 1, message)
        self.counts.messages += 1
        self.counts.bytes += len(data)
        return frames.decode(bytes(data[4:]))


class CountedLinks:
    """``LinkControl`` of one node."""

    def __init__(self, network, node):
        self.network, self.node = network, node
        self.on_hello = self.on_up = self.on_down = self.on_barred = None
        self.wanted = {}

    def want(self, node_id, addresses):
        """Remember where it is."""
        self.wanted[node_id] = addresses

    def unwant(self, node_id):
        """Forget it."""
        self.wanted.pop(node_id, None)

    def drop(self, node_id):
        """Close the link."""
        self.network.used.pop(frozenset((self.node.id, node_id)), None)

    def retry(self):
        """Nothing is lost here."""

    def recheck(self):
        """There are no certificates here."""

    def connected(self, node_id):
        """Whether a link is open."""
        used = self.network.used.get(frozenset((self.node.id, node_id)))
        return used is not None and (
            len(self.wanted) <= self.node.config.wire.max_links or trio.current_time() - used < IDLE_S
        )

    async def dial_unknown(self, host, port):
        """Link to who is there."""
        await trio.sleep(2 * WAY_S)
        other = self.network.at.get((host, port))
        if other is None:
            raise NodeUnreachableError("nobody is there", sent=False)
        if other is not self.node and not self.connected(other.id):
            self._open(other)
        return other.id

    async def call(self, node_id, request):
        """Ask, over a link that is opened where there is none."""
        network = self.network
        other = network.nodes[node_id]
        if not self.connected(node_id):
            await trio.sleep(2 * WAY_S)
            if not self.connected(node_id):
                self._open(other)
        network.used[frozenset((self.node.id, node_id))] = trio.current_time()
        asked = codec.body(network.through_bytes(Kind.REQUEST, request))
        await trio.sleep(WAY_S)
        if handler := other.handlers.instant.get(type(request)):
            answer = handler(self.node.as_sender(), asked)
        else:
            answer = await other.handlers.requests[type(request)](self.node.as_sender(), asked)
        came = codec.answer(network.through_bytes(Kind.ANSWER, answer), type(request))
        await trio.sleep(WAY_S)
        return came

    def _open(self, other):
        network, node = self.network, self.node
        network.counts.handshakes += 1
        network.counts.bytes += TLS_HANDSHAKE
        network.used[frozenset((node.id, other.id))] = trio.current_time()
        for near, far in ((node, other), (other, node)):
            hello = far.membership.hello()
            network.through_bytes(Kind.LINK, hello)
            near.links.on_hello(far.as_sender(), hello, None)
            near.links.on_up(far.id)


class InlineSampler(Sampler):
    """Without a thread: the virtual clock would jump while one works."""

    async def refresh(self):
        """Measure in the program's own thread."""
        self._latest = self._machine.measure()
        self._last_ok = trio.current_time()
        await trio.lowlevel.checkpoint()


class Machine:
    """Always the same."""

    def measure(self):
        """A sample as long as real ones."""
        return Sample(
            at=trio.current_time() + 1.7e9,
            cpu_busy=0.12345,
            cpu_mhz=2450.0,
            cpus=4,
            load1=0.43,
            memory_total=1 << 33,
            memory_available=1 << 32,
            disk_free=1 << 34,
            slots=0,
            slots_used=0,
        )


class Watch:
    """One address that never changes."""

    def __init__(self, address):
        self.addresses = (address,)
        self.changed = trio.Event()

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        """Nothing to watch."""
        task_status.started()


class GrownMembership(Membership):
    """One that may know others from the start."""

    def know(self, info, spoke, known, now):
        """As if that node had spoken at ``spoke``, and others had heard it ``known`` seconds ago."""
        self.table.heard(info, None, spoke, address=info.addresses[0])
        self.table.told(
            Digest(id=info.id, state=PeerState.ALIVE, incarnation=info.incarnation, age_s=known), now
        )
        self._wanted[info.id] = info
        self._links.want(info.id, [(info.addresses[0], info.wire_port)])


class VirtualNode:
    """One node's membership."""

    def __init__(self, network, number, *, seeds=()):
        self.id = f"{number:010d}"
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self.watch = Watch(address)
        self.config = Config(discovery=Discovery(mdns=False, seeds=tuple(seeds)))
        info = NodeInfo(
            id=self.id,
            name=f"node-{number:05d}",
            fleet="home",
            version="1.0.0",
            cpus=4,
            memory=1 << 33,
            drivers=DRIVERS,
            labels=LABELS,
            addresses=(address,),
            store_id=f"{number:032x}",
            boot=3,
            incarnation=3 * INCARNATIONS_PER_BOOT,
            cert_expires_at=1.8e9,
        )
        self.self_info, self.handlers = SelfInfo(info), Handlers()
        self.seams = Seams(wall=trio.current_time, rng=random.Random(network.rng.random()))
        self.links = CountedLinks(network, self)
        self.membership = GrownMembership(
            self.config,
            self.self_info,
            self.links,
            self.handlers,
            revocations=NoList(),
            sampler=InlineSampler(Machine(), lambda: ExecutorLoad(slots=8), self.seams),
            watch=self.watch,
            fleet=Fleet("home", "ca"),
            seams=self.seams,
        )
        network.nodes[self.id] = self
        network.at[address, info.wire_port] = self

    def as_sender(self):
        """How others see it."""
        info = self.self_info.info
        return From(node_id=self.id, name=info.name, address=self.watch.addresses[0])


class NoList:
    """No revocation list."""

    crl_number = 0
    crl_pem = b""

    def take_crl(self, _pem):
        """There is none."""
        return False


async def grown(network, count, nursery):
    """A fleet whose nodes have known each other for minutes, some by links and the others by word.

    What is there by then is frozen, as a node does it when it is ready: else each collection would look
    through the tables of all nodes, and a real one has only its own.
    """
    set_up(Log(level="error"))
    gc.disable()
    nodes = [VirtualNode(network, number) for number in range(1, count + 1)]
    for node in nodes:
        await nursery.start(node.membership.run)
    now, rng = trio.current_time(), network.rng
    spoke = {node.id: [] for node in nodes}
    for number, node in enumerate(nodes):
        for other in nodes[:number]:
            near = rng.random() * count < NEAREST
            at = now - (rng.uniform(0, NEAREST / (2 * FANOUT)) if near else rng.uniform(IDLE_S, 2 * IDLE_S))
            network.used[frozenset((node.id, other.id))] = at
            spoke[node.id].append((at, other.id))
            spoke[other.id].append((at, node.id))
    for node in nodes:
        for at, other in sorted(spoke[node.id]):
            info = network.nodes[other].self_info.info
            node.membership.know(info, at, rng.uniform(0, KNOWN_S), now)
    gc.collect()
    gc.freeze()
    gc.enable()
    return nodes


def alive(node, other):
    """Whether one sees the other alive."""
    peer = node.membership.table.get(other.id)
    return peer is not None and peer.state is PeerState.ALIVE
