"""A request on a connection of its own, answered by many messages; TCP holds the sender back."""

import structlog
import trio

from edgeorch.errors import EdgeorchError, NodeUnreachableError, WireError
from edgeorch.wire import From, Handlers, Sender, codec, frames
from edgeorch.wire.frames import Frame, Kind
from edgeorch.wire.handshake import HANDSHAKE_S, Connection, Greeted
from edgeorch.wire.messages import TYPES, Failure, Message, Unsupported

log = structlog.get_logger()


class Receiver:
    """The asking side: iterate to receive. Used in one task only."""

    def __init__(self, greeted: Greeted) -> None:
        self._connection = greeted.connection
        self._node_id = greeted.sender.node_id
        self._ended = False

    async def ask(self, request: Message) -> None:
        """Send the request; the caller's deadline travels along."""
        left_s = trio.current_effective_deadline() - trio.current_time()
        await self._connection.send_bytes(frames.encode(Kind.REQUEST, 1, request, left_s))

    def __aiter__(self) -> "Receiver":
        return self

    async def __anext__(self) -> Message:
        """The next message.

        Raises:
            NodeUnreachableError: the connection broke before the end.
            EdgeorchError: what the peer answered, as its own type.
            UnsupportedMessageError: the peer does not know this request.
        """
        while not self._ended:
            frame = await self._connection.receive()
            if frame is None:
                self._ended = True
                raise NodeUnreachableError(f"the stream from node {self._node_id} broke off")
            if frame.kind not in (Kind.ITEM, Kind.END):
                continue
            self._ended = frame.kind == Kind.END
            if not frame.type:
                continue
            return codec.good(frame)
        raise StopAsyncIteration


class _Sender:
    """The answering side of one stream; see ``wire.Sender``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = trio.Lock()

    async def send(self, message: Message) -> None:
        async with self._lock:
            await self._connection.send(Kind.ITEM, 1, message)

    async def end(self, message: Message | None) -> None:
        async with self._lock:
            await self._connection.send(Kind.END, 1, message)


async def serve(greeted: Greeted, handlers: Handlers) -> None:
    """Answer the one request of a stream connection; returns when either side has ended it."""
    connection = greeted.connection
    sender = _Sender(connection)
    try:
        frame = None
        with trio.move_on_after(HANDSHAKE_S):
            frame = await connection.receive()
        if frame is None:
            return
        end: Message | None = Failure(slug="unavailable", detail=f"{frame.type[:64]} ran out of time")
        gone = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, connection, nursery.cancel_scope)
            with trio.move_on_after(frames.time_left(frame)):
                end = await respond(greeted.sender, handlers, frame, sender)
            gone = False
            nursery.cancel_scope.cancel()
        if not gone:
            await sender.end(end)
    except (WireError, NodeUnreachableError) as error:
        log.debug("stream ended early", peer=greeted.sender.node_id, reason=str(error))
    finally:
        await connection.aclose()


async def _watch(connection: Connection, scope: trio.CancelScope) -> None:
    """Stop the handler when the receiver goes: it may have nothing to send for hours."""
    try:
        while await connection.receive() is not None:
            pass
    except WireError as error:
        log.warning("bad frame on a stream, closed", address=connection.secured.address, reason=str(error))
    scope.cancel()


async def respond(peer: From, handlers: Handlers, frame: Frame, sender: Sender) -> Message | None:
    """Run the handler; its failure is the stream's end, so that it cannot end more than this stream."""
    handler = handlers.streams.get(TYPES.get(frame.type, Message))
    if handler is None:
        return Unsupported(type=frame.type[:128])
    try:
        await handler(peer, codec.body(frame), sender)
    except EdgeorchError as error:
        return codec.as_failure(error)
    except Exception:
        log.exception("a stream to a peer failed", request=frame.type[:64], peer=peer.node_id)
        return Failure(slug="error", detail=f"{frame.type[:64]} failed on the node; its log says why")
    return None
