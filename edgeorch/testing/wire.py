"""A network in memory: ``Peers`` for any number of nodes in one Trio program, without sockets or threads.

Every message is encoded and decoded as on a real link. A handler runs in its caller's task, so that a call
that is cancelled or out of time cancels the handler too, as a real link does.
"""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import trio

from edgeorch.errors import NodeUnreachableError, WireError
from edgeorch.identity import PeerIdentity
from edgeorch.model import NodeInfo
from edgeorch.wire import From, Handlers, codec, frames, streams
from edgeorch.wire.frames import Frame, Kind
from edgeorch.wire.handshake import HANDSHAKE_S
from edgeorch.wire.link import at_once, contained
from edgeorch.wire.messages import TYPES, Hello, Message, Unsupported
from edgeorch.wire.transport import DialError

Pair = frozenset[str]


class Network:
    """What the nodes are attached to, and what goes wrong between them.

    Args:
        rng: delays and losses.
        mesh: every node has a link to every other; without it only where one wants or dials the other.

    Attributes:
        delay_s: the shortest and longest time that a message takes.
    """

    def __init__(self, rng: random.Random, *, mesh: bool = True) -> None:
        self.mesh = mesh
        self.delay_s = (0.0, 0.0)
        self.nodes: dict[str, TwinPeers] = {}
        self._rng = rng
        self._links: set[Pair] = set()
        self._parted: set[Pair] = set()
        self._faults: dict[tuple[str, str], tuple[float, float]] = {}
        self._under_way: set[tuple[Pair, trio.CancelScope]] = set()

    def peers(
        self, node_id: str, handlers: Handlers | None = None, hello: Callable[[], Hello] | None = None
    ) -> "TwinPeers":
        """The node's end of the network; made and attached at the first call.

        Args:
            node_id: who this is.
            handlers: what it answers; may be filled in later.
            hello: what it says of itself; its addresses are where it can be dialled.
        """
        if node_id not in self.nodes:
            address = f"10.0.0.{len(self.nodes) + 1}"
            info = NodeInfo(id=node_id, name=node_id, fleet="test", version="0", addresses=(address,))
            twin = TwinPeers(self, node_id, handlers or Handlers(), hello or (lambda: Hello(info=info)))
            self.nodes[node_id] = twin
            self.settle()
        return self.nodes[node_id]

    def partition(self, one: str, other: str) -> None:
        """What they send each other vanishes, and neither notices."""
        self._parted.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        """End a partition; what vanished stays lost."""
        self._parted.discard(frozenset((one, other)))
        self.settle()

    def crash(self, node_id: str) -> None:
        """The node's process is gone: its connections close, its calls and those to it fail."""
        self.nodes[node_id].running = False
        for pair in [pair for pair in self._links if node_id in pair]:
            self.cut(pair, node_id)

    def restart(self, node_id: str) -> None:
        """The node is back."""
        self.nodes[node_id].running = True
        self.settle()

    def fault(self, sender: str, receiver: str, *, drop: float = 0.0, duplicate: float = 0.0) -> None:
        """Lose or repeat messages on their way from one node to another; probabilities.

        Only requests are repeated. TLS does neither: this stands for links that break and callers that retry.
        """
        self._faults[sender, receiver] = (drop, duplicate)

    # For the nodes

    def linked(self, one: str, other: str) -> bool:
        """Whether they have a link, also one whose messages vanish."""
        return frozenset((one, other)) in self._links

    def at(self, host: str, port: int) -> str | None:
        """The running node that listens there."""
        for node_id, twin in self.nodes.items():
            if twin.running:
                info = twin.hello().info
                if host in info.addresses and port == info.wire_port:
                    return node_id
        return None

    def reachable(self, one: str, other: str) -> bool:
        """Whether a dial would succeed."""
        both = one != other and self.nodes[one].running and self.nodes[other].running
        return both and frozenset((one, other)) not in self._parted

    def link(self, one: str, other: str) -> None:
        """Link two nodes, unless they are."""
        pair = frozenset((one, other))
        if pair not in self._links:
            self._links.add(pair)
            self.nodes[one].tell_up(self.nodes[other])
            self.nodes[other].tell_up(self.nodes[one])

    def cut(self, pair: Pair, closed_by: str) -> None:
        """End a link; the other end hears of it unless messages vanish."""
        if pair not in self._links:
            return
        self._links.discard(pair)
        for there, scope in list(self._under_way):
            if there == pair:
                scope.cancel()
        for node_id in pair - {closed_by}:
            self.nodes[node_id].tell_down(closed_by)

    def settle(self) -> None:
        """Link all that should be and can be."""
        for one, twin in self.nodes.items():
            for other in self.nodes:
                places = twin.wanted.get(other, ())
                # The dearest question comes last: all nodes of a large fleet settle again and again.
                if not (self.mesh or places) or self.linked(one, other) or not self.reachable(one, other):
                    continue
                if self.mesh or any(self.at(*place) == other for place in places):
                    self.link(one, other)

    async def travel(self, sender: str, receiver: str) -> None:
        """Take a message's time; for ever where it is lost."""
        await trio.sleep(self._rng.uniform(*self.delay_s))
        drop, _ = self._faults.get((sender, receiver), (0.0, 0.0))
        if not self.reachable(sender, receiver) or self._rng.random() < drop:
            await trio.sleep_forever()

    def repeats(self, sender: str, receiver: str) -> bool:
        """Whether this request arrives twice."""
        _, duplicate = self._faults.get((sender, receiver), (0.0, 0.0))
        return self._rng.random() < duplicate

    @contextmanager
    def using(self, one: str, other: str) -> Iterator[None]:
        """What happens over a link; fails with ``NodeUnreachableError`` when the link breaks."""
        pair = frozenset((one, other))
        if pair not in self._links:
            raise NodeUnreachableError(f"no link to node {other}", sent=False)
        with trio.CancelScope() as scope:
            self._under_way.add((pair, scope))
            try:
                yield
            finally:
                self._under_way.discard((pair, scope))
        if scope.cancelled_caught:
            raise NodeUnreachableError(f"the link to node {other} broke")


class TwinPeers:
    """One node's ``Peers``, with the same callbacks and controls as ``wire.links.Links``.

    ``run`` is needed only for the callbacks.
    """

    def __init__(
        self, network: Network, node_id: str, handlers: Handlers, hello: Callable[[], Hello]
    ) -> None:
        self.on_hello: Callable[[From, Hello, PeerIdentity], None] = lambda *_: None
        self.on_up: Callable[[str], None] = lambda _: None
        self.on_down: Callable[[str, str], None] = lambda *_: None
        self.on_barred: Callable[[str, str], None] = lambda *_: None
        self.handlers = handlers
        self.hello = hello
        self.node_id = node_id
        self.running = True
        self.wanted: dict[str, tuple[tuple[str, int], ...]] = {}
        self.calls = 0
        self._network = network
        self._news: list[Callable[[], None]] = []
        self._told = trio.Event()

    def begin(self) -> None:
        """A new life of the node: it wants no links yet, and what its last life was not told is forgotten."""
        self.wanted.clear()
        self._news.clear()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Call the callbacks as links come and go."""
        task_status.started()
        while True:
            while self._news:
                self._news.pop(0)()
            self._told = trio.Event()
            await self._told.wait()

    def want(self, node_id: str, addresses: Sequence[tuple[str, int]]) -> None:
        """Keep a link to this node, once it is at one of these addresses."""
        if node_id != self.node_id:
            self.wanted[node_id] = tuple(addresses)
            self._network.settle()

    def unwant(self, node_id: str) -> None:
        """Give the node up."""
        self.wanted.pop(node_id, None)
        self._network.cut(frozenset((self.node_id, node_id)), self.node_id)

    def drop(self, node_id: str) -> None:
        """Cut the link; it comes back when the node can be dialled."""
        self._network.cut(frozenset((self.node_id, node_id)), self.node_id)
        self._network.settle()

    def recheck(self) -> None:
        """There are no certificates here."""

    async def dial_unknown(self, host: str, port: int) -> str:
        """Link to whoever is there; see ``Links.dial_unknown``."""
        await trio.lowlevel.checkpoint()
        node_id = self._network.at(host, port)
        if node_id == self.node_id:
            return node_id
        if node_id is None:
            raise DialError(f"{host} port {port}: Connection refused", reason="unreachable")
        if not self._network.reachable(self.node_id, node_id):
            await trio.sleep(HANDSHAKE_S)
            raise DialError(f"{host} port {port}: no answer in {HANDSHAKE_S:.0f} s", reason="slow")
        self._network.link(self.node_id, node_id)
        return node_id

    async def call(self, node_id: str, request: Message) -> Any:  # noqa: ANN401  the request's answer type
        """See ``Peers.call``."""
        await trio.lowlevel.checkpoint()
        sent = _through_bytes(Kind.REQUEST, request)
        self.calls += 1
        with self._network.using(self.node_id, node_id):
            await self._network.travel(self.node_id, node_id)
            target = self._network.nodes[node_id]
            reply = await target.answer(self, sent)
            if self._network.repeats(self.node_id, node_id):
                await target.answer(self, sent)
            await self._network.travel(node_id, self.node_id)
        return codec.answer(_through_bytes(Kind.ANSWER, reply), type(request))

    @asynccontextmanager
    async def stream(self, node_id: str, request: Message) -> AsyncIterator[AsyncIterator[Message]]:
        """See ``Peers.stream``."""
        await trio.lowlevel.checkpoint()
        sent = _through_bytes(Kind.REQUEST, request)
        with self._network.using(self.node_id, node_id):
            pass
        # Like TCP's buffers: the handler is a little ahead of its reader, and no more.
        outlet, inlet = trio.open_memory_channel[Frame](4)
        target = self._network.nodes[node_id]
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.feed, self, sent, outlet)
            try:
                yield _TwinReceiver(inlet, node_id)
            except Exception as error:  # noqa: BLE001  raised below, where the nursery cannot wrap it
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def connected(self, node_id: str) -> bool:
        """Whether there is a link, as far as this node knows."""
        return self._network.linked(self.node_id, node_id)

    def statistics(self) -> Mapping[str, Any]:
        """Counts."""
        links = sum(self.connected(other) for other in self._network.nodes)
        return {"links": links, "calls": self.calls}

    # For the other end

    def origin(self) -> From:
        """How this node is named to handlers."""
        info = self.hello().info
        return From(node_id=self.node_id, name=info.name, address=next(iter(info.addresses), ""))

    async def answer(self, caller: "TwinPeers", frame: Frame) -> Message:
        """Answer a request as ``Link`` does."""
        kind = TYPES.get(frame.type, Message)
        if (instant := self.handlers.instant.get(kind)) is not None:
            return at_once(instant, caller.origin(), frame)
        handler = self.handlers.requests.get(kind)
        if handler is None:
            return Unsupported(type=frame.type)
        try:
            message = codec.body(frame)
        except WireError as error:
            return codec.as_failure(error)
        return await contained(handler, caller.origin(), message)

    async def feed(self, caller: "TwinPeers", frame: Frame, outlet: trio.MemorySendChannel[Frame]) -> None:
        """Answer a stream as ``streams.serve`` does."""
        sender = _TwinSender(self._network, self.node_id, caller.node_id, outlet)
        try:
            with self._network.using(caller.node_id, self.node_id), outlet:
                end = await streams.respond(caller.origin(), self.handlers, frame, sender)
                await outlet.send(_through_bytes(Kind.END, end))
        except (NodeUnreachableError, trio.BrokenResourceError):
            # Closing the outlet has told the reader.
            return

    def tell_up(self, other: "TwinPeers") -> None:
        """A link is up: say so from ``run``."""

        def tell() -> None:
            hello = other.hello()
            self.on_hello(other.origin(), hello, _identity(hello))
            self.on_up(other.node_id)

        self._news.append(tell)
        self._told.set()

    def tell_down(self, node_id: str) -> None:
        """A link was lost: say so from ``run``."""
        self._news.append(lambda: self.on_down(node_id, "the peer closed the connection"))
        self._told.set()


class _TwinSender:
    def __init__(
        self, network: Network, node_id: str, receiver: str, outlet: trio.MemorySendChannel[Frame]
    ) -> None:
        self._network = network
        self._ends = (node_id, receiver)
        self._outlet = outlet

    async def send(self, message: Message) -> None:
        frame = _through_bytes(Kind.ITEM, message)
        await self._network.travel(*self._ends)
        try:
            await self._outlet.send(frame)
        except trio.BrokenResourceError:
            raise NodeUnreachableError("the receiver is gone") from None


class _TwinReceiver:
    def __init__(self, inlet: trio.MemoryReceiveChannel[Frame], node_id: str) -> None:
        self._inlet = inlet
        self._node_id = node_id
        self._ended = False

    def __aiter__(self) -> "_TwinReceiver":
        return self

    async def __anext__(self) -> Message:
        if self._ended:
            raise StopAsyncIteration
        try:
            frame = await self._inlet.receive()
        except trio.EndOfChannel:
            self._ended = True
            raise NodeUnreachableError(f"the stream from node {self._node_id} broke off") from None
        self._ended = frame.kind == Kind.END
        if frame.type:
            return codec.good(frame)
        raise StopAsyncIteration


def _through_bytes(kind: Kind, message: Message | None) -> Frame:
    return frames.decode(bytes(frames.encode(kind, 1, message)[4:]))


def _identity(hello: Hello) -> PeerIdentity:
    return PeerIdentity(
        node_id=hello.info.id,
        name=hello.info.name,
        fleet=hello.info.fleet,
        not_before=0.0,
        not_after=4e9,
        serial=1,
    )
