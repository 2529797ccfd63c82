"""One connection to a peer that carries requests both ways, many at a time.

No lock, channel or nursery per call: a caller leaves a slot behind and sleeps; one reader fills the slots.
What is alone on the link is sent at once; else one writer sends what has gathered since it last looked.
"""

from collections.abc import Callable
from math import inf

import structlog
import trio

from edgeorch.errors import EdgeorchError, NodeUnreachableError, WireError
from edgeorch.wire import From, Handler, Handlers, InstantHandler, codec, frames
from edgeorch.wire.frames import MAX_FRAME, Frame, Kind
from edgeorch.wire.handshake import Greeted
from edgeorch.wire.messages import TYPES, Failure, Message, Unsupported
from edgeorch.wire.pulse import Pulse

MAX_QUEUED = 1 << 20
"""Bytes that wait to be sent before callers and answers wait for room."""
MAX_INBOUND = 512
"""Requests of one peer that are worked on at a time; more are refused."""
DRAIN_S = 5.0
"""What is in flight on a link that is given up has this long to finish."""

log = structlog.get_logger()


class _Slot:
    """A caller that waits for its answer. ``start``: position of its request in all bytes queued so far."""

    __slots__ = ("answer", "error", "request", "start", "task")

    def __init__(self, request: type[Message], start: int) -> None:
        self.task = trio.lowlevel.current_task()
        self.request = request
        self.start = start
        self.answer: Message | None = None
        self.error: EdgeorchError | None = None


class Link:
    """A link after its greeting; ``run`` carries it.

    Attributes:
        greeted: who is at the other end.
        draining: no more requests start on it; it closes when those in flight are done.
        ended: why it ended; empty while it works.
        lost: it ended, and neither side meant it to.
        on_draining: called once when it starts to drain, also when the peer asks for it.
        on_ended: called once when it has ended, unless this node stops.
        since, used: Trio's clock when it was made and when the last request started.
    """

    def __init__(self, greeted: Greeted, handlers: Handlers, pulse: Pulse) -> None:
        self.greeted = greeted
        self.peer = greeted.sender
        self.draining = False
        self.ended = ""
        self.lost = False
        self.on_draining: Callable[[Link], None] = lambda _: None
        self.on_ended: Callable[[Link], None] = lambda _: None
        self.since = self.used = trio.current_time()
        self.calls = self.served = self.late = 0
        self._connection = greeted.connection
        self._stream = greeted.connection.secured.stream
        self._handlers = handlers
        self._pulse = pulse
        self._first_beat = pulse.beat()
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._out = bytearray()
        self._taken = 0
        """Bytes that the writer has handed to TLS so far."""
        self._writer: trio.lowlevel.Task | None = None
        """The writer while it sleeps."""
        self._room = trio.lowlevel.ParkingLot()
        self._pending: dict[int, _Slot] = {}
        self._inbound: dict[int, trio.CancelScope] = {}
        self._number = 0
        self._told = self._heard = False
        """Whether GOAWAY was sent and received."""

    @property
    def idle(self) -> bool:
        """Whether no request is under way in either direction."""
        return not self._pending and not self._inbound

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return len(self._out)

    @property
    def sent(self) -> int:
        """Bytes of frames handed to TLS so far."""
        return self._taken

    @property
    def received(self) -> int:
        """Bytes of frames that have come so far, the greeting included."""
        return self._connection.received

    async def run(self) -> None:
        """Carry the link until it ends; ``ended`` then says why. Never raises what the peer sent."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._write)
                    if self._told:
                        self._nursery.start_soon(self._drain_deadline)
                    await self._read(self._nursery)
        finally:
            if self.ended:
                # Before its callers go on, so that nobody sends them here again.
                self.on_ended(self)
            self.close("this node stops")
            self._fail_pending()
            await self._connection.aclose()

    def close(self, why: str, *, lost: bool = False) -> None:
        """End the link now; the first reason is kept."""
        if not self.ended:
            self.ended = why
            self.lost = lost and not self.draining
            self._scope.cancel()

    def drain(self) -> None:
        """Start no more requests here; close when both ends have finished theirs, or after ``DRAIN_S``."""
        if self._told or self.ended:
            return
        self.draining = self._told = True
        self._queue(Kind.GOAWAY, 0)
        if self._nursery is not None:
            self._nursery.start_soon(self._drain_deadline)
        self.on_draining(self)

    async def call(self, request: Message) -> Message:
        """Send a request and wait for the answer; see ``Peers.call``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(self._out) >= MAX_QUEUED:
            await self._wait_for_room()
        if self.ended or self.draining:
            raise NodeUnreachableError(self._broken(), sent=False)
        self.used = trio.current_time()
        left_s = trio.current_effective_deadline() - self.used
        self._number = number = self._number + 1
        slot, alone = _Slot(type(request), self._taken + len(self._out)), not self._pending
        self._queue(Kind.REQUEST, number, request, left_s, at_once=alone)
        self._pending[number] = slot
        self.calls += 1

        def give_up(_: object) -> trio.lowlevel.Abort:
            del self._pending[number]
            self._queue(Kind.CANCEL, number)
            self._finish_drain()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)
        if slot.error is not None:
            raise slot.error
        assert slot.answer is not None  # noqa: S101  a slot is filled before its task is woken
        return slot.answer

    # Sending

    def _queue(
        self,
        kind: Kind,
        number: int,
        message: Message | None = None,
        left_s: float = inf,
        *,
        at_once: bool = False,
    ) -> None:
        if self.ended:
            return
        frames.append(self._out, kind, number, message, left_s)
        # What the socket has no room for is the writer's.
        if self._writer is not None and not (at_once and self._push()):
            trio.lowlevel.reschedule(self._writer)
            self._writer = None

    def _push(self) -> bool:
        """Hand TLS all that is queued; whether the socket has taken it. The writer finds out what broke."""
        data, self._out = self._out, bytearray()
        self._taken += len(data)
        try:
            return self._stream.send_now(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False

    async def _wait_for_room(self) -> None:
        while len(self._out) >= MAX_QUEUED and not self.ended:
            await self._room.park()

    async def _write(self) -> None:
        try:
            while True:
                if not self._out:
                    await self._wait_for_bytes()
                if not self._push():
                    await self._stream.drain()
                self._room.unpark_all()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("the connection broke", lost=True)

    async def _wait_for_bytes(self) -> None:
        def stop(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        self._finish_drain()
        await trio.lowlevel.wait_task_rescheduled(stop)

    # Receiving

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while (frame := await self._connection.receive()) is not None:
                kind = frame.kind
                if kind == Kind.ANSWER:
                    self._take_answer(frame)
                elif kind == Kind.REQUEST:
                    self._take_request(frame, nursery)
                elif kind == Kind.CANCEL:
                    if scope := self._inbound.get(frame.id):
                        scope.cancel()
                elif kind == Kind.GOAWAY:
                    self._heard = True
                    self.drain()
                    self._finish_drain()
                if len(self._out) > 2 * MAX_QUEUED + MAX_FRAME:
                    self.close("the peer sends but does not read", lost=True)
            self.close("the peer closed the connection", lost=True)
        except WireError as error:
            log.warning("bad frame from a peer, link closed", peer=self.peer.node_id, reason=str(error))
            self.close(f"bad frame: {error}", lost=True)

    def _take_answer(self, frame: Frame) -> None:
        slot = self._pending.pop(frame.id, None)
        if slot is None:
            self.late += 1
            return
        try:
            slot.answer = codec.answer(frame, slot.request)
        except EdgeorchError as error:
            slot.error = error
        trio.lowlevel.reschedule(slot.task)
        self._finish_drain()

    def _take_request(self, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.id in self._inbound:
            raise WireError(f"request number {frame.id} is already in use")
        self.served += 1
        self.used = trio.current_time()
        kind = TYPES.get(frame.type, Message)
        handler, instant = self._handlers.requests.get(kind), self._handlers.instant.get(kind)
        if instant is not None:
            self._answer(frame.id, at_once(instant, self.peer, frame), at_once=True)
            self._finish_drain()
        elif handler is None:
            self._answer(frame.id, Unsupported(type=frame.type[:128]))
        elif len(self._inbound) >= MAX_INBOUND:
            detail = f"{MAX_INBOUND} requests are under way here"
            self._answer(frame.id, Failure(slug="too-many-requests", detail=detail))
        else:
            try:
                message = codec.body(frame)
            except WireError as error:
                self._answer(frame.id, codec.as_failure(error))
                return
            left_s = frames.time_left(frame) - self._pulse.unread_s(self._first_beat)
            if left_s <= 0:
                # Its handler may do what cannot be undone before it waits for the first time.
                detail = f"{frame.type} was out of time when it was read"
                self._answer(frame.id, Failure(slug="unavailable", detail=detail))
                return
            scope = self._inbound[frame.id] = trio.CancelScope(deadline=self.used + left_s)
            nursery.start_soon(self._handle, frame.id, handler, message, scope)

    async def _handle(self, number: int, handler: Handler, message: Message, scope: trio.CancelScope) -> None:
        try:
            with scope:
                reply = await contained(handler, self.peer, message)
                if len(self._out) >= MAX_QUEUED:
                    await self._wait_for_room()
                self._answer(number, reply)
                return
            if trio.current_time() >= scope.deadline:
                detail = f"{type(message).__name__} ran out of time"
                self._answer(number, Failure(slug="unavailable", detail=detail))
        finally:
            del self._inbound[number]
            self._finish_drain()

    def _answer(self, number: int, reply: Message, *, at_once: bool = False) -> None:
        try:
            self._queue(Kind.ANSWER, number, reply, at_once=at_once)
        except WireError as error:
            self._queue(Kind.ANSWER, number, codec.as_failure(error))

    # Ending

    def _finish_drain(self) -> None:
        """Close once nobody needs the link: both ends have said so, and the last byte is out."""
        if self._told and self._heard and self.idle and not self._out and self._writer is not None:
            self.close("given up")

    async def _drain_deadline(self) -> None:
        await trio.sleep(DRAIN_S)
        self.close("given up with requests in flight")

    def _fail_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for slot in pending.values():
            slot.error = NodeUnreachableError(self._broken(), sent=slot.start < self._taken)
            trio.lowlevel.reschedule(slot.task)
        self._room.unpark_all()

    def _broken(self) -> str:
        return f"no link to node {self.peer.node_id}: {self.ended or 'given up'}"


async def contained(handler: Handler, peer: From, message: Message) -> Message:
    """What the handler answers; its failure is an answer too, so that one request cannot end the link."""
    try:
        return await handler(peer, message)
    except EdgeorchError as error:
        return codec.as_failure(error)
    except Exception:  # noqa: BLE001  the node goes on, and its log has it
        return _failed(peer, type(message).__name__)


def at_once(handler: InstantHandler, peer: From, frame: Frame) -> Message:
    """The same of a handler that does not wait."""
    try:
        return handler(peer, codec.body(frame))
    except EdgeorchError as error:
        return codec.as_failure(error)
    except Exception:  # noqa: BLE001  the node goes on, and its log has it
        return _failed(peer, frame.type)


def _failed(peer: From, request: str) -> Failure:
    log.exception("a request from a peer failed", request=request, peer=peer.node_id)  # noqa: LOG004  called in one
    return Failure(slug="error", detail=f"{request} failed on the node; its log says why")
