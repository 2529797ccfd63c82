"""The first frame each way: who are you, what do you speak, and what is this connection for."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from edgeorch.errors import IdentityError, WireError
from edgeorch.identity import PeerIdentity
from edgeorch.wire import From, codec, frames
from edgeorch.wire.frames import Frame, FrameBuffer, Kind
from edgeorch.wire.messages import Hello, Message, Refused
from edgeorch.wire.transport import DialError, Secured, Transport

HANDSHAKE_S = 5.0
"""From the first packet to the peer's Hello."""
CLOCKS_DIFFER_S = 3600.0
"""Clocks that are this far apart are to blame when one end calls the other's certificate out of date."""


class Connection:
    """Frames over one secured connection.

    Attributes:
        received: bytes of frames that have come so far, before TLS.
    """

    def __init__(self, secured: Secured) -> None:
        self.secured = secured
        self.received = 0
        self._buffer = FrameBuffer()
        self._ready = self._buffer.feed(b"")

    async def receive(self) -> Frame | None:
        """The next frame, None at the end; frames that came together are given without waiting.

        Raises:
            WireError: what came is not a frame.
        """
        while True:
            for frame in self._ready:
                return frame
            try:
                data = await self.secured.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self.received += len(data)
            self._ready = self._buffer.feed(data)

    async def send(self, kind: Kind, number: int, message: Message | None = None) -> None:
        """Send one frame; raises ``DialError`` when the other end is gone, ``WireError`` when too large."""
        await self.send_bytes(frames.encode(kind, number, message))

    async def send_bytes(self, data: bytes | bytearray) -> None:
        """Send encoded frames; raises ``DialError`` when the other end is gone."""
        try:
            await self.secured.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise DialError(f"{self.secured.address} closed the connection", reason="closed") from None

    async def aclose(self) -> None:
        """Close now, without waiting for anything."""
        await trio.aclose_forcefully(self.secured.stream)


@dataclass(frozen=True, eq=False)
class Greeted:
    """A connection whose ends know each other.

    Attributes:
        connection: its frames.
        sender: the other end, as handlers see it.
        identity: what its certificate proves.
        hello: what it says of itself.
        dialled: whether this node opened the connection.
        kind: ``Kind.LINK`` or ``Kind.STREAM``.
    """

    connection: Connection
    sender: From
    identity: PeerIdentity
    hello: Hello
    dialled: bool
    kind: Kind


@asynccontextmanager
async def closed_on_failure(secured: Secured) -> AsyncIterator[None]:
    """Close the connection when the block fails or is cancelled."""
    try:
        yield
    except BaseException:
        await trio.aclose_forcefully(secured.stream)
        raise


def recognise(
    transport: Transport, secured: Secured, own_id: str, expected: str | None, their_time: float = 0.0
) -> PeerIdentity:
    """Who answered a dial.

    Raises:
        DialError: it is oneself, another node than ``expected``, or its certificate is not good.
    """
    identity = _verify(transport, secured, their_time)
    if identity.node_id == own_id:
        raise DialError(f"{secured.address} is this node itself", reason="self")
    if expected is not None and identity.node_id != expected:
        raise DialError(f"{secured.address} is node {identity.node_id}, not {expected}", reason="other_node")
    return identity


async def look(transport: Transport, secured: Secured, ours: Hello, expected: str | None) -> PeerIdentity:
    """Who answered a dial, before anything is said of this node. A wrong date is talked over first.

    Raises:
        DialError: as ``recognise``; with reason ``clock`` where the clocks differ.
    """
    try:
        return recognise(transport, secured, ours.info.id, expected)
    except DialError as error:
        if error.reason != "expired":
            raise
        said = Refused(reason=error.detail, word=error.reason, time=ours.time)
        their_time = await _ask_time(Connection(secured), said)
        return recognise(transport, secured, ours.info.id, expected, their_time)


async def greet(secured: Secured, identity: PeerIdentity, ours: Hello, kind: Kind) -> Greeted:
    """The dialler's side. The connection is closed when this fails.

    Raises:
        DialError: one side refuses the other, or the other went away.
    """
    async with closed_on_failure(secured):
        connection = Connection(secured)
        with contextlib.suppress(DialError):
            # Closed already: what the other end said before, if anything, tells why.
            await connection.send(kind, 0, ours)
        message = _message(await _first(connection, "closed_at_once"))
        if isinstance(message, Refused):
            raise _refused_by(secured, message)
        hello = _check(message, identity, ours)
        return _greeted(connection, identity, hello, dialled=True, kind=kind)


async def receive_greeting(transport: Transport, secured: Secured, ours: Hello) -> Greeted:
    """The acceptor's side. The connection is closed when this fails.

    Raises:
        DialError: the dialler went away, or was refused and told why.
    """
    async with closed_on_failure(secured):
        connection = Connection(secured)
        # Read before refusing: closing with unread bytes would reset the connection and lose the reason.
        frame = await _first(connection, "closed")
        try:
            message = _message(frame)
            their_time = message.time if isinstance(message, Hello | Refused) else 0.0
            identity = recognise(transport, secured, ours.info.id, None, their_time)
            if isinstance(message, Refused):
                raise _refused_by(secured, message, ours.time)
            hello = _check(message, identity, ours)
            kind = _purpose(frame)
        except DialError as error:
            said = Refused(reason=error.detail, word=error.reason, time=ours.time)
            # Cancelled meanwhile, nobody is left who wants the error.
            await connection.send(Kind.LINK, 0, said)  # noqa: ASYNC120
            raise
        await connection.send(Kind.LINK, 0, ours)
        return _greeted(connection, identity, hello, dialled=False, kind=kind)


async def _ask_time(connection: Connection, said: Refused) -> float:
    """Say why the other end is refused; its answer says what time it is there, 0 where it does not."""
    try:
        await connection.send(Kind.LINK, 0, said)
        message = _message(await _first(connection, "closed"))
    except DialError:
        return 0.0
    return message.time if isinstance(message, Refused) else 0.0


def _refused_by(secured: Secured, said: Refused, our_time: float = 0.0) -> DialError:
    """The other end does not want this node; where only a clock is wrong, it soon may."""
    clock = said.word == "clock" or (
        said.word == "expired" and our_time > 0 and abs(our_time - said.time) > CLOCKS_DIFFER_S
    )
    return DialError(
        f"{secured.address} refuses: {said.reason[:200]}",
        reason="clock" if clock else "refused",
        refused=not clock,
    )


async def _first(connection: Connection, when_closed: str) -> Frame:
    try:
        frame = await connection.receive()
    except WireError as error:
        raise DialError(f"the first frame is no Hello: {error}", reason="no_hello", refused=True) from None
    if frame is None:
        raise DialError(f"{connection.secured.address} closed the connection at once", reason=when_closed)
    return frame


def _greeted(
    connection: Connection, identity: PeerIdentity, hello: Hello, *, dialled: bool, kind: Kind
) -> Greeted:
    sender = From(node_id=identity.node_id, name=hello.info.name, address=connection.secured.address)
    return Greeted(
        connection=connection, sender=sender, identity=identity, hello=hello, dialled=dialled, kind=kind
    )


def _verify(transport: Transport, secured: Secured, their_time: float) -> PeerIdentity:
    try:
        return transport.verify(secured.certificate, their_time)
    except IdentityError as error:
        # A clock may be set right at any moment, without a word to us.
        refused = error.reason != "clock"
        raise DialError(f"{secured.address}: {error}", reason=error.reason, refused=refused) from None


def _message(frame: Frame) -> Message:
    try:
        return codec.body(frame)
    except WireError as error:
        raise DialError(f"the first frame is no Hello: {error}", reason="no_hello", refused=True) from None


def _purpose(frame: Frame) -> Kind:
    if frame.kind not in (Kind.LINK, Kind.STREAM):
        raise DialError(f"a connection of unknown kind {frame.kind}", reason="kind", refused=True)
    return Kind(frame.kind)


def _check(message: Message, identity: PeerIdentity, ours: Hello) -> Hello:
    if not isinstance(message, Hello):
        raise DialError("the first frame is no Hello", reason="no_hello", refused=True)
    theirs = message.info.id
    if theirs != identity.node_id:
        raise DialError(
            f"the certificate is of node {identity.node_id}, the Hello of {theirs[:32]!r}",
            reason="id_mismatch",
            refused=True,
        )
    if message.info.name != identity.name:
        # Tasks are pinned to nodes by name, too.
        raise DialError(
            f"the certificate is of node {identity.name}, the Hello of {message.info.name[:64]!r}",
            reason="id_mismatch",
            refused=True,
        )
    if message.protocol_min > ours.protocol_max or message.protocol_max < ours.protocol_min:
        raise DialError(
            f"node {theirs} speaks protocol {message.protocol_min} to {message.protocol_max}, "
            f"node {ours.info.id} {ours.protocol_min} to {ours.protocol_max}",
            reason="protocol",
            refused=True,
        )
    return message
