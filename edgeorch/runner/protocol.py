"""What daemon and runner say to each other: a 4-byte big-endian length, then one MessagePack message.

The daemon sends requests with an ``id``; the runner answers with the same ``id`` and pushes ``Exited`` to
every connected daemon. The first frame on a connection is the runner's ``Welcome``.
"""

from collections.abc import Iterator
from typing import Generic, TypeAlias, TypeVar

import msgspec

from edgeorch.secret import Secret

MAX_FRAME = 4 << 20
"""Bytes. Linux takes at most 2 MiB of arguments and environment together, so every valid start fits."""
UNASKED = 0
"""The number of a ``Failed`` that refuses the connection, and of requests whose answer nobody reads."""
LIST_CHUNK = 1000
"""Attempts per ``Listed`` frame, so that a long list stays far below ``MAX_FRAME``."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages; unknown fields are ignored so that versions may differ over an upgrade."""


class Ended(_Message, frozen=True, kw_only=True):
    """How an attempt ended; the fields are those of ``model.Exit``."""

    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    reason: str = ""
    silent: bool = False


# From the daemon


class Start(_Message, frozen=True, kw_only=True):
    """Start a program; the answer is ``Started`` or ``Failed``. A known key is answered as the first time."""

    id: int
    key: str
    argv: tuple[str, ...]
    env: dict[str, str]
    output_max: int
    lease_s: float | None = None
    cpus: float = 0.0
    memory: int = 0
    secrets: dict[str, Secret] = {}
    """Become files in memory, and are in no other place."""
    most: int | None = None
    """Unless None: start it once fewer attempts than this run, and not before those that wait already. For a
    runner that ``queues``; the newest ``most`` counts."""


class Withdraw(_Message, frozen=True, kw_only=True):
    """Start it no more if it still waits; answered with ``Done`` or, too late for that, with ``Started``."""

    id: int
    key: str


class Stop(_Message, frozen=True, kw_only=True):
    """SIGTERM, ``grace_s``, SIGKILL; answered with ``Done`` when nothing of the attempt is left."""

    id: int
    key: str
    grace_s: float


class Forget(_Message, frozen=True, kw_only=True):
    """End the attempt at once if it runs, drop its exit and work folder; ``Done`` if it has a number."""

    id: int
    key: str


class Renew(_Message, frozen=True, kw_only=True):
    """Key to seconds from now. Not answered."""

    leases: dict[str, float]


class List(_Message, frozen=True, kw_only=True):
    """Ask for all known attempts; answered with one or more ``Listed``."""

    id: int


# From the runner


class Welcome(_Message, frozen=True, kw_only=True):
    """Who the runner is.

    ``limits`` says what it can limit and by what: of ``cgroup:memory``, ``cgroup:cpus``, ``rlimit:memory``,
    ``cgroup:processes``, ``rlimit:processes``; ``isolation`` what keeps services out of each other's folders:
    ``landlock`` or ``none``.
    """

    pid: int
    uid: int
    version: str
    work_dir: str
    limits: tuple[str, ...] = ()
    isolation: str = "none"
    no_secrets: str = "the runner's release knows no secrets"
    """Why services cannot be given secrets; empty where they can."""
    queues: bool = False
    """Whether it knows ``Start.most`` and ``Withdraw``."""


class Started(_Message, frozen=True, kw_only=True):
    """The attempt is known; ``folder`` holds stdout, stderr and work."""

    id: int
    folder: str


class Failed(_Message, frozen=True, kw_only=True):
    """The request was refused; the fields are those of ``DriverError``."""

    id: int
    reason: str
    detail: str
    hint: str = ""


class Done(_Message, frozen=True, kw_only=True):
    """The request was carried out."""

    id: int


class Known(_Message, frozen=True, kw_only=True):
    """One attempt in a list; ``ended`` is None while it runs."""

    key: str
    folder: str
    ended: Ended | None = None


class Listed(_Message, frozen=True, kw_only=True):
    """A part of the list; ``more`` says that another part follows."""

    id: int
    attempts: tuple[Known, ...]
    more: bool = False


class Exited(_Message, frozen=True, kw_only=True):
    """An attempt has ended, with everything it had started."""

    key: str
    ended: Ended


Request: TypeAlias = Start | Withdraw | Stop | Forget | Renew | List
Reply: TypeAlias = Welcome | Started | Failed | Done | Listed | Exited

_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


class FrameError(Exception):
    """The bytes are not a frame of this protocol; the connection cannot be used further."""


def encode(message: Request | Reply) -> bytes:
    """One frame.

    Raises:
        FrameError: the message is larger than ``MAX_FRAME``.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise FrameError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return len(body).to_bytes(4, "big") + body


class Inbox(Generic[M]):
    """Turns received bytes into messages, in whatever pieces they come."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Every message that is complete now.

        Raises:
            FrameError: a frame is too large or cannot be decoded.
        """
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME:
                raise FrameError(f"a frame of {size} bytes is over the limit of {MAX_FRAME}")
            if len(self._buffer) < 4 + size:
                return
            body = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            try:
                yield self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                raise FrameError(f"not a message: {error}") from None


def requests() -> Inbox[Request]:
    """What a runner reads."""
    return Inbox(msgspec.msgpack.Decoder(Request))


def replies() -> Inbox[Reply]:
    """What a daemon reads."""
    return Inbox(msgspec.msgpack.Decoder(Reply))
