"""Frames: a 4-byte big-endian length, then one MessagePack array ``[kind, id, left_s, type, body]``.

The body's MessagePack object sits inside the array, so a frame is encoded in one pass and decoded in two: the
envelope here, the body once its type is known (``codec``). Extra array elements are ignored.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from math import inf

import msgspec

from edgeorch.errors import WireError
from edgeorch.wire.messages import Message

MAX_FRAME = 1 << 20
"""Bytes of one frame after its length; also bounds what a peer can make us keep."""

BAD_DATA = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""All that msgspec raises for bad bytes; deep nesting ends at the interpreter's own recursion limit."""

_LENGTH = struct.Struct(">I")
_NIL = msgspec.Raw(b"\xc0")


class Kind(IntEnum):
    """What a frame is for. A kind that is not listed here is ignored: a newer peer may send it."""

    LINK = 0
    """``Hello`` or ``Refused``: the connection carries requests both ways."""
    STREAM = 1
    """``Hello``: the connection carries one request and its items."""
    REQUEST = 2
    ANSWER = 3
    CANCEL = 4
    """The caller of this request has gone."""
    GOAWAY = 5
    """The sender makes no more requests on this link."""
    ITEM = 6
    END = 7
    """End of a stream, with a ``Failure`` where it failed."""


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One decoded envelope. ``left_s``: seconds that a request may take; None: no limit."""

    kind: int
    id: int = 0
    left_s: float | None = None
    type: str = ""
    body: msgspec.Raw = _NIL


_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()


def append(
    buffer: bytearray, kind: Kind, number: int, message: Message | None = None, left_s: float = inf
) -> None:
    """Append one frame to ``buffer``.

    Raises:
        WireError: the message is larger than a frame may be; ``buffer`` is as before.
    """
    start = len(buffer)
    name = "" if message is None else type(message).__name__
    buffer += b"\0\0\0\0"
    try:
        left = None if left_s == inf else left_s
        _encoder.encode_into((int(kind), number, left, name, message), buffer, -1)
    except BaseException:
        del buffer[start:]
        raise
    size = len(buffer) - start - 4
    if size > MAX_FRAME:
        del buffer[start:]
        raise WireError(f"{name} has {size} bytes, a frame may have {MAX_FRAME}")
    _LENGTH.pack_into(buffer, start, size)


def encode(kind: Kind, number: int, message: Message | None = None, left_s: float = inf) -> bytearray:
    """One frame as bytes; see ``append``."""
    buffer = bytearray()
    append(buffer, kind, number, message, left_s)
    return buffer


class FrameBuffer:
    """Cuts a byte stream into frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._need = 4

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """Take bytes, give the frames that are now complete; to be exhausted before the next call.

        Raises:
            WireError: the bytes are not frames; the connection cannot be used any more.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return
            data, self._rest = self._rest, bytearray()
        view = memoryview(data)
        position, end = 0, len(data)
        while position + 4 <= end:
            (size,) = _LENGTH.unpack_from(view, position)
            if not 0 < size <= MAX_FRAME:
                raise WireError(f"a frame of {size} bytes, allowed are 1 to {MAX_FRAME}")
            after = position + 4 + size
            if after > end:
                self._keep(view[position:], 4 + size)
                return
            yield decode(view[position + 4 : after])
            position = after
        if position < end:
            self._keep(view[position:], 4)

    def _keep(self, view: memoryview, need: int) -> None:
        self._rest, self._need = bytearray(view), need


def decode(data: bytes | memoryview) -> Frame:
    """One envelope.

    Raises:
        WireError: it is not one.
    """
    try:
        return _decoder.decode(data)
    except BAD_DATA as error:
        raise WireError(f"a frame cannot be read: {error}") from None


def time_left(frame: Frame) -> float:
    """Seconds that a request may take, never NaN or negative."""
    if frame.left_s is None:
        return inf
    return frame.left_s if frame.left_s > 0 else 0.0
