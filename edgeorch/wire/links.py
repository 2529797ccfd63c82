"""The links to all peers, by node id: the real ``Peers``."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import structlog
import trio

from edgeorch.errors import IdentityError, NodeUnreachableError
from edgeorch.identity import PeerIdentity
from edgeorch.wire import From, Handlers, streams
from edgeorch.wire.dialler import Address, Dialler, reach
from edgeorch.wire.frames import Kind
from edgeorch.wire.handshake import HANDSHAKE_S, Greeted, greet, receive_greeting
from edgeorch.wire.link import Link
from edgeorch.wire.messages import Hello, Message
from edgeorch.wire.pulse import Pulse
from edgeorch.wire.transport import DialError, Secured, Transport

IDLE_S = 60.0
"""A link that was opened on demand is closed after this time without a request."""
CROSSING_S = 2 * HANDSHAKE_S
"""Two dials that crossed are finished within this time of each other."""

log = structlog.get_logger()


class Links:
    """Holds a link to each wanted peer while ``run`` runs, dialled by either side.

    Attributes:
        on_hello: called for each new link with who it is; membership learns from it.
        on_up: called with the node id when there is a link and was none.
        on_down: called with the node id and the reason when a link was lost that nobody meant to close.
        on_barred: called with the node id and the reason when a node that was linked is one of the fleet no
            more: its certificate was revoked.
    """

    def __init__(
        self,
        transport: Transport,
        hello: Callable[[], Hello],
        handlers: Handlers,
        *,
        max_links: int,
        rng: random.Random,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.on_hello: Callable[[From, Hello, PeerIdentity], None] = lambda *_: None
        self.on_up: Callable[[str], None] = lambda _: None
        self.on_down: Callable[[str, str], None] = lambda *_: None
        self.on_barred: Callable[[str, str], None] = lambda *_: None
        self._transport = transport
        self._hello = hello
        self._handlers = handlers
        self._max_links = max_links
        self._rng = rng
        self._pulse = Pulse(clock)
        self._nursery: trio.Nursery | None = None
        self._links: dict[str, Link] = {}
        """The link that new requests use."""
        self._open: set[Link] = set()
        self._streams: set[Greeted] = set()
        self._certificates: dict[str, bytes] = {}
        """What each wanted node has shown last, also while there is no link to it."""
        self._diallers: dict[str, Dialler] = {}
        self._greeting: dict[str, trio.Event] = {}
        """Peers that this node has sent a Hello to; the event is set at the outcome."""
        self._counts: Counter[str] = Counter()

    @property
    def nursery(self) -> trio.Nursery:
        """Where accepted connections live, so that they outlive the listener; only while ``run`` runs."""
        if self._nursery is None:
            raise RuntimeError("Links.run is not running")
        return self._nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the links until cancelled, then close them all."""
        try:
            async with trio.open_nursery() as self._nursery:
                for dialler in self._diallers.values():
                    self._nursery.start_soon(dialler.run)
                self._nursery.start_soon(self._pulse.run)
                task_status.started()
                await self._close_idle()
        finally:
            self._nursery = None

    # Who is wanted

    def want(self, node_id: str, addresses: Sequence[Address]) -> None:
        """Keep a link to this node; again with other addresses when it moves."""
        dialler = self._diallers.get(node_id)
        if dialler is not None:
            dialler.move(addresses)
            return
        if node_id == self._hello().info.id:
            return
        dialler = self._diallers[node_id] = Dialler(
            node_id,
            addresses,
            dial=self._dial,
            linked=self.connected,
            on_demand=lambda: len(self._diallers) > self._max_links,
            rng=self._rng,
        )
        if self._nursery is not None:
            self._nursery.start_soon(dialler.run)

    def unwant(self, node_id: str) -> None:
        """Give up the node; what is in flight may finish."""
        self._certificates.pop(node_id, None)
        dialler = self._diallers.pop(node_id, None)
        if dialler is not None:
            dialler.stop()
        if link := self._links.get(node_id):
            link.drain()

    def drop(self, node_id: str, why: str = "the node does not answer") -> None:
        """Cut every connection to a node that was found frozen; it is dialled again. No ``on_down``."""
        for link in [link for link in self._open if link.peer.node_id == node_id]:
            link.close(why)
        for stream in [stream for stream in self._streams if stream.sender.node_id == node_id]:
            self.nursery.start_soon(stream.connection.aclose)

    def recheck(self) -> None:
        """Certificates or the revocation list changed: cut who is revoked, dial who was refused before.

        A link whose certificate is not accepted any more for another reason (its CA was dropped, it has been
        renewed since) is replaced by a new one, over which the peer shows what it has now; what is in flight
        on the old one may finish.
        """
        for node_id, certificate in list(self._certificates.items()):
            if error := self._refusal(certificate):
                log.warning("a node is refused now", peer=node_id, reason=error.reason)
                if error.reason == "revoked":
                    self.drop(node_id, error.detail)
                    self.on_barred(node_id, error.detail)
        for link in list(self._open):
            if self._refusal(link.greeted.connection.secured.certificate):
                link.drain()
        for dialler in self._diallers.values():
            if dialler.state == "refused":
                dialler.wake()

    def retry(self) -> None:
        """This machine's network is another now: dial every lost node at once."""
        for dialler in self._diallers.values():
            if dialler.state in ("lost", "refused"):
                dialler.retry()

    def _refusal(self, certificate: bytes) -> IdentityError | None:
        try:
            self._transport.verify(certificate)
        except IdentityError as error:
            return error
        return None

    async def dial_unknown(self, host: str, port: int) -> str:
        """Dial an address whose node is not known yet; a link to it is kept as if it had dialled.

        Returns:
            The node's id; one's own where the address leads back here, and then there is no link.

        Raises:
            DialError: a ``NodeUnreachableError`` with a reason word.
        """
        try:
            with trio.fail_after(HANDSHAKE_S):
                return await self._open_link(((host, port),), None)
        except trio.TooSlowError:
            raise DialError(f"{host} port {port}: no answer in {HANDSHAKE_S:.0f} s", reason="slow") from None
        except DialError as error:
            if error.reason == "self":
                return self._hello().info.id
            raise

    async def accept(self, stream: trio.SocketStream) -> None:
        """Carry a connection that came in, to its end.

        Raises:
            DialError: it did not get past the greeting.
        """
        try:
            with trio.fail_after(HANDSHAKE_S):
                secured = await self._transport.accept(stream)
                greeted = await receive_greeting(self._transport, secured, self._hello())
        except trio.TooSlowError:
            raise DialError(f"no greeting within {HANDSHAKE_S:.0f} s", reason="slow") from None
        self._counts["accepted"] += 1
        if greeted.kind == Kind.LINK:
            await self._carry(self._adopt(greeted))
            return
        self._streams.add(greeted)
        try:
            await streams.serve(greeted, self._handlers)
        finally:
            self._streams.discard(greeted)

    # Asking

    async def call(self, node_id: str, request: Message) -> Any:  # noqa: ANN401  the request's answer type
        """See ``Peers.call``."""
        while True:
            link = await self._link(node_id)
            try:
                return await link.call(request)
            except NodeUnreachableError as error:
                # It never left, and the link has a successor: no attempt is lost by asking again.
                if error.sent or not (link.draining and not link.lost):
                    raise

    @asynccontextmanager
    async def stream(self, node_id: str, request: Message) -> AsyncIterator[AsyncIterator[Message]]:
        """See ``Peers.stream``."""
        with trio.move_on_after(HANDSHAKE_S) as scope:
            ours = self._hello()
            secured, identity = await reach(self._transport, self._addresses(node_id), ours, node_id)
            greeted = await greet(secured, identity, ours, Kind.STREAM)
        if scope.cancelled_caught:
            raise DialError(f"node {node_id}: no answer in {HANDSHAKE_S:.0f} s", reason="slow")
        self._streams.add(greeted)
        self._counts["streams"] += 1
        try:
            receiver = streams.Receiver(greeted)
            await receiver.ask(request)
            yield receiver
        finally:
            self._streams.discard(greeted)
            await greeted.connection.aclose()

    def connected(self, node_id: str) -> bool:
        """Whether a link is up now."""
        return node_id in self._links

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``: totals since the start, and what is open now."""
        states = Counter(dialler.state for dialler in self._diallers.values())
        totals = Counter(self._counts)
        for link in self._open:
            _count(totals, link)
        return {
            **{name: totals[name] for name in ("accepted", "dialled", "dial_failures", "streams")},
            **{name: totals[name] for name in ("calls", "served", "late_answers")},
            **{f"{name}_bytes_total": totals[f"{name}_bytes"] for name in ("sent", "received")},
            "links": len(self._links),
            "open_streams": len(self._streams),
            "queued_bytes": sum(link.queued for link in self._open),
            "peers": {state: states[state] for state in ("idle", "connecting", "up", "lost", "refused")},
        }

    # Getting links

    async def _link(self, node_id: str) -> Link:
        while (link := self._links.get(node_id)) is None:
            dialler = self._diallers.get(node_id)
            if dialler is None:
                raise NodeUnreachableError(f"node {node_id} is not known here", sent=False)
            await dialler.ready()
        return link

    def _addresses(self, node_id: str) -> Sequence[Address]:
        """Where to dial for a stream: where the link leads, else where the node is said to be."""
        dialler = self._diallers.get(node_id)
        known = dialler.addresses if dialler else ()
        link = self._links.get(node_id)
        if link is None:
            if dialler is not None and dialler.state in ("lost", "refused"):
                raise NodeUnreachableError(f"node {node_id} is {dialler.state}: {dialler.reason}", sent=False)
            return known
        proven = (link.peer.address, link.greeted.hello.info.wire_port)
        return (proven, *(address for address in known if address != proven))

    async def _dial(self, node_id: str, addresses: Sequence[Address]) -> None:
        await self._open_link(addresses, node_id)

    async def _open_link(self, addresses: Sequence[Address], expected: str | None) -> str:
        ours = self._hello()
        self._counts["dialled"] += 1
        try:
            secured, identity = await reach(self._transport, addresses, ours, expected)
            node_id = identity.node_id
            if node_id in self._greeting or self.connected(node_id):
                await self._leave_to_other(secured, node_id)
                return node_id
            outcome = self._greeting[node_id] = trio.Event()
            try:
                greeted = await greet(secured, identity, ours, Kind.LINK)
            finally:
                del self._greeting[node_id]
                outcome.set()
        except DialError:
            self._counts["dial_failures"] += 1
            raise
        self.nursery.start_soon(self._carry, self._adopt(greeted))
        return node_id

    async def _leave_to_other(self, secured: Secured, node_id: str) -> None:
        """Another dial to the node was first. Nothing was said on this one: its other end forgets it."""
        await trio.aclose_forcefully(secured.stream)
        if (outcome := self._greeting.get(node_id)) is not None:
            await outcome.wait()
            if not self.connected(node_id):
                raise DialError(f"another dial to node {node_id} failed", reason="crossed")

    def _adopt(self, greeted: Greeted) -> Link:
        link = Link(greeted, self._handlers, self._pulse)
        link.on_draining, link.on_ended = self._retire, self._bury
        node_id = greeted.sender.node_id
        self._certificates[node_id] = greeted.connection.secured.certificate
        self._open.add(link)
        before = self._links.get(node_id)
        if before is None or self._replaces(link, before):
            self._links[node_id] = link
        self.on_hello(greeted.sender, greeted.hello, greeted.identity)
        if before is None:
            self.on_up(node_id)
            self._wake(node_id)
        elif self._links[node_id] is link:
            before.drain()
        else:
            link.drain()
        return link

    def _replaces(self, new: Link, old: Link) -> bool:
        """Which of two links stays; both ends must come to the same answer.

        Nodes dial only while they have no link. So a dial long after the old link was made, or one of a later
        life of the peer, says that the old one is dead at the other end, even if nobody told us. Otherwise
        two dials crossed, and the one of the lower id stays.
        """
        if new.greeted.hello.info.boot != old.greeted.hello.info.boot or new.since - old.since > CROSSING_S:
            return True
        if new.greeted.dialled == old.greeted.dialled:
            return True
        return new.greeted.dialled == (self._hello().info.id < new.peer.node_id)

    def _retire(self, link: Link) -> None:
        """No more requests go over this link."""
        if self._links.get(link.peer.node_id) is link:
            del self._links[link.peer.node_id]
            self._wake(link.peer.node_id)

    async def _carry(self, link: Link) -> None:
        """Run a link; what goes wrong with it ends this one connection."""
        try:
            await link.run()
        except Exception:
            log.exception("a link failed", peer=link.peer.node_id)
            link.lost = True
            self._bury(link)
        finally:
            self._open.discard(link)
            _count(self._counts, link)

    def _bury(self, link: Link) -> None:
        """The link has ended, meant or not."""
        node_id = link.peer.node_id
        if self._links.get(node_id) is not link:
            return
        del self._links[node_id]
        if dialler := self._diallers.get(node_id):
            dialler.lost(link.ended)
        if link.lost:
            self.on_down(node_id, link.ended)

    def _wake(self, node_id: str) -> None:
        if dialler := self._diallers.get(node_id):
            dialler.wake()

    async def _close_idle(self) -> NoReturn:
        while True:
            await trio.sleep(IDLE_S / 4)
            if len(self._diallers) > self._max_links:
                for link in list(self._links.values()):
                    if link.idle and trio.current_time() - link.used > IDLE_S:
                        link.drain()


def _count(totals: Counter[str], link: Link) -> None:
    totals.update(
        calls=link.calls,
        served=link.served,
        late_answers=link.late,
        sent_bytes=link.sent,
        received_bytes=link.received,
    )
