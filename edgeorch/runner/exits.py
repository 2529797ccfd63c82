"""How attempts ended, kept until they are forgotten: one file for all, a JSON line for each change.

A file for each attempt would cost a new inode each time, which is most of the work for a short service. The
last line of a key counts; one without ``ended`` says that the attempt is forgotten. A line that a full disk
or a crash has cut is skipped. Nothing is flushed: after a power cut no attempt runs anyway.
"""

import os
from contextlib import suppress

import msgspec

from edgeorch.runner.protocol import Ended

SPARE = 256 << 10
"""Bytes of lines that count no more before the file is written anew."""
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    key: str
    ended: Ended | None = None


_encoder = msgspec.json.Encoder()


class Exits:
    """The exits in one file.

    Attributes:
        known: those that are not forgotten, by the attempt's key.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self._most = SPARE
        self._whole = True
        """Whether the file has all that it should."""
        self._unwritten: list[_Line] = []
        self.known: dict[str, Ended] = {}

    def load(self) -> None:
        """Take up what an earlier runner has kept."""
        try:
            with open(self._path, "rb") as file:
                lines = file.read().split(b"\n")
        except OSError:
            return
        for text in filter(None, lines):
            try:
                line = msgspec.json.decode(text, type=_Line)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                continue
            if line.ended is None:
                self.known.pop(line.key, None)
            else:
                self.known[line.key] = line.ended

    def keep(self, key: str, ended: Ended) -> None:
        """Know from now on how an attempt ended; on disk with the next ``write``."""
        self.known[key] = ended
        self._unwritten.append(_Line(key, ended))

    def drop(self, key: str) -> None:
        """Forget it; on disk with the next ``write``."""
        self.known.pop(key, None)
        self._unwritten.append(_Line(key))

    def write(self) -> None:
        """Bring the file up to date. What a full disk does not take is written later or, at worst, never."""
        if not self._unwritten:
            return
        # It begins with the end of a line, so that what came before, cut or not, spoils nothing.
        data = b"\n" + _encoder.encode_lines(self._unwritten)
        self._unwritten.clear()
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, _FLAGS, 0o666)
                self._size = os.fstat(self._fd).st_size
            self._whole &= os.write(self._fd, data) == len(data)
        except OSError:
            self._whole = False
        self._size += len(data)
        if self._size > self._most or not self._whole:
            self.rewrite()

    def rewrite(self) -> None:
        """Put a file in place that has only what is known."""
        data = _encoder.encode_lines([_Line(key, ended) for key, ended in self.known.items()])
        fresh = f"{self._path}.new"
        self._unwritten.clear()
        self._whole = False
        try:
            fd = os.open(fresh, _FLAGS | os.O_TRUNC, 0o666)
        except OSError:
            return
        with suppress(OSError):
            if os.write(fd, data) == len(data):
                os.rename(fresh, self._path)
                self._whole = True
        if not self._whole:
            os.close(fd)
            with suppress(OSError):
                os.unlink(fresh)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._most = fd, len(data), 2 * len(data) + SPARE
