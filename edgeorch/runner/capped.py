"""One output stream on disk that never grows past its cap and never fails its writer.

The file ``PATH`` keeps the first ``max_bytes``; then a visible marker follows, and what comes after is
dropped except for its end, which is kept in memory and put into ``PATH.tail`` by ``close``. So offsets into
``PATH`` stay true, and the last lines, which say why a service failed, are there too. ``PATH.tail`` is one
line of text, ``dropped N``, and then the kept bytes.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

TAIL_BYTES = 65_536
_FIRST = b"dropped "


def tail_of(path: str | Path) -> str:
    """Where the end of a capped stream is kept."""
    return f"{path}.tail"


def read_tail(path: str | Path) -> tuple[int, bytes]:
    """(bytes dropped, the last of them) of the stream at ``path``; (0, b"") where nothing was dropped.

    Raises:
        OSError: the file is there but cannot be read.
    """
    try:
        with open(tail_of(path), "rb", buffering=0) as file:
            first, _, kept = file.readall().partition(b"\n")
    except FileNotFoundError:
        return 0, b""
    number = first.removeprefix(_FIRST)
    return (int(number), kept) if number.isdigit() else (0, b"")


class CappedFile:
    """An append-only file with a cap. Blocks like a file does; used by one thread at a time.

    A disk that is full or failing ends the kept part just as the cap does, and the marker says so.

    Attributes:
        kept: bytes of the stream in the file, without the marker.
        dropped: bytes of the stream after them.
    """

    def __init__(
        self,
        path: str | Path,
        max_bytes: int,
        *,
        resume: bool = False,
        lazy: bool = False,
        tail_bytes: int = TAIL_BYTES,
        mode: int = 0o640,
    ) -> None:
        """Make the file, or with ``resume`` go on at the end of the one that is there.

        With ``lazy``, for a place where nothing is yet, the first byte makes it: most services print nothing
        on one of their streams, and a file costs more than all else that is done for it.

        Raises:
            OSError: the file cannot be opened. With ``lazy`` that is taken like a failing disk.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._tail_bytes = tail_bytes
        self._mode = mode
        self._ring = bytearray()
        self._marker = b""
        self.kept = self.dropped = 0
        self._full = False
        self._fd = -1
        if lazy:
            return
        self._open(0 if resume else os.O_TRUNC)
        if resume:
            self._take_up(os.fstat(self._fd).st_size)
        else:
            with suppress(OSError):
                os.unlink(tail_of(path))

    def _open(self, more: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags | more, self._mode)

    def _take_up(self, size: int) -> None:
        """Find out where an earlier writer stopped. More than the cap means that its marker follows."""
        self.kept = min(size, self._max_bytes)
        with suppress(OSError):
            self.dropped, tail = read_tail(self.path)
            self._ring += tail
        self._full = size > self._max_bytes or os.path.lexists(tail_of(self.path))

    @property
    def received(self) -> int:
        """Bytes written so far, kept or not: where a writer that starts again has to go on."""
        return self.kept + self.dropped

    def write(self, data: bytes) -> None:
        """Keep what fits. Never raises for a full or failing disk."""
        rest = memoryview(data)
        if not self._full:
            room = self._max_bytes - self.kept
            fits, why = self._append(rest[:room])
            self.kept += fits
            rest = rest[fits:]
            if not rest:
                return
            self._end(why or f"output limit of {self._max_bytes} bytes reached")
        self.dropped += len(rest)
        self._ring += rest[-self._tail_bytes :] if self._tail_bytes else b""
        if len(self._ring) > 2 * self._tail_bytes:
            del self._ring[: -self._tail_bytes]

    def _append(self, data: memoryview) -> tuple[int, str]:
        """Bytes written, and why not all of them."""
        done = 0
        while done < len(data):
            try:
                if self._fd < 0:
                    self._open(os.O_TRUNC)
                done += os.write(self._fd, data[done:])
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                return done, "disk full" if full else f"disk error: {error.strerror}"
        return done, ""

    def _end(self, why: str) -> None:
        self._full = True
        self._marker = f"\n[edgeorch: {why}, the rest was dropped except its end]\n".encode()
        self._save_tail()
        self._write_marker()

    def _write_marker(self) -> None:
        done, _ = self._append(memoryview(self._marker))
        self._marker = self._marker[done:]

    def _save_tail(self) -> None:
        target = tail_of(self.path)
        temporary = f"{target}.new"
        tail = bytes(self._ring[-self._tail_bytes :]) if self._tail_bytes else b""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with suppress(OSError):
            with open(temporary, "wb", opener=lambda name, _flags: os.open(name, flags, self._mode)) as file:
                file.write(_FIRST + b"%d\n" % self.dropped + tail)
            os.replace(temporary, target)
            return
        with suppress(OSError):
            os.unlink(temporary)

    def close(self) -> None:
        """Write what is still owed (the marker, the end) as far as the disk allows. May be called twice."""
        if self._full:
            self._full = False
            self._write_marker()
            self._save_tail()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
