"""A container's output stream to the two capped files."""

import codecs
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgeorch.runner.capped import CappedFile

_HEADER = 8
_STDERR = 2
_CHUNK = 65_536
_EACH_BYTE = "edgeorch-each-byte"


class Source(enum.Enum):
    """What a stream starts with."""

    START = "the container's first byte, and the files are new"
    REPLAY = "the container's first byte, which the files may hold already"
    JSON_REPLAY = "the same out of a json-file log, where a byte that is not UTF-8 has become U+FFFD"
    NOW = "what follows the files' content"


class Stream(Protocol):
    """Bytes from the Engine; ``close`` may be called from another thread and ends a blocked ``read``."""

    def read(self) -> bytes:
        """What is there, at least one byte; empty at the end."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Demux:
    """Takes the Engine's multiplexed stream apart.

    Each piece is eight bytes of header (stream number, three zeros, length in 32 bits, big-endian), then that
    many bytes: docs.docker.com/engine/api, "Stream format" of ContainerAttach. With a terminal the stream is
    plain and all stdout.
    """

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._header = bytearray()
        self._left = 0
        self._number = 1

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        """Pieces of stdout (1) and stderr (2), in order."""
        rest = memoryview(data)
        if self._tty:
            yield 1, rest
            return
        while rest:
            if self._left:
                piece, rest = rest[: self._left], rest[self._left :]
                self._left -= len(piece)
                yield self._number, piece
                continue
            wanted = _HEADER - len(self._header)
            self._header += rest[:wanted]
            rest = rest[wanted:]
            if len(self._header) == _HEADER:
                self._number = _STDERR if self._header[0] == _STDERR else 1
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()


def copy(stream: Stream, stdout: Path, stderr: Path, *, max_bytes: int, tty: bool, source: Source) -> None:
    """Write a stream into the two capped files until it ends; what they hold already is skipped.

    Raises:
        OSError: a file cannot be opened or read.
    """
    demux = Demux(tty=tty)
    resume = source is not Source.START
    files = {
        1: CappedFile(stdout, max_bytes, resume=resume),
        _STDERR: CappedFile(stderr, max_bytes, resume=resume),
    }
    try:
        skip = {number: _to_skip(file, source) for number, file in files.items()}
        while data := stream.read():
            for number, piece in demux.feed(data):
                skipped = min(skip[number], len(piece))
                skip[number] -= skipped
                if skipped < len(piece):
                    files[number].write(bytes(piece[skipped:]))
    finally:
        for file in files.values():
            file.close()


def _to_skip(file: CappedFile, source: Source) -> int:
    if source is Source.REPLAY:
        return file.received
    if source is Source.JSON_REPLAY:
        return _json_length(Path(file.path), file.kept) + file.dropped
    return 0


def _json_length(path: Path, length: int) -> int:
    """How many bytes the first ``length`` bytes of a file have in a json-file log."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors=_EACH_BYTE)
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(min(length, _CHUNK)):
            length -= len(chunk)
            total += len(decoder.decode(chunk).encode())
    pending, _ = decoder.getstate()  # a character that the file's end cuts
    return total + len(pending)


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Go's way: one U+FFFD for each bad byte, where Python makes one for several."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)
