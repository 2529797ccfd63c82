"""A container's output stream to the two capped files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgeorch.runner.capped import CappedFile

_HEADER = 8
_STDERR = 2


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


def copy(stream: Stream, stdout: Path, stderr: Path, *, max_bytes: int, tty: bool, again: bool) -> None:
    """Write a stream into the files until it ends.

    Args:
        stream: what the Engine sends.
        stdout: capped file.
        stderr: capped file.
        max_bytes: cap of each file.
        tty: the stream is not multiplexed.
        again: the stream starts with the container's first byte although the files hold some of it; what they
            hold is skipped.

    Raises:
        OSError: a file cannot be opened.
    """
    demux = Demux(tty=tty)
    files = {
        1: CappedFile(stdout, max_bytes, resume=again),
        _STDERR: CappedFile(stderr, max_bytes, resume=again),
    }
    skip = {number: file.received for number, file in files.items()}
    try:
        while data := stream.read():
            for number, piece in demux.feed(data):
                skipped = min(skip[number], len(piece))
                skip[number] -= skipped
                if skipped < len(piece):
                    files[number].write(bytes(piece[skipped:]))
    finally:
        for file in files.values():
            file.close()
