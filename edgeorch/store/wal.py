"""Does the write-ahead log hold transactions that SQLite no longer reads?

SQLite takes the log up to the first frame whose checksum is wrong and says nothing of what follows: after a
power cut that is the transaction that was under way. A damaged block in the middle looks the same, and takes
with it every transaction behind it, although all of them had been confirmed. They can be told apart: as each
transaction is synced before the next is written, a cut leaves at most one commit behind a bad frame.

Formats: sqlite.org/fileformat2.html (the WAL file) and sqlite.org/walformat.html (the wal-index).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_VERSION = 3_007_000
_WORD = 1 << 32
_MAX_FRAME = struct.Struct("=I")
_MAX_FRAME_AT = 16
"""Of the first header in the wal-index, in this machine's byte order."""


_PAGE_SIZE_AT = 16
"""Of a database; 1 stands for 65,536."""


class _Frame(NamedTuple):
    commits: bool
    salts: tuple[int, int]


def unread(path: Path) -> str | None:
    """What is wrong with the log of a database that this process has open; None where nothing is."""
    wal, index = Path(f"{path}-wal"), Path(f"{path}-shm")
    if not wal.exists() or wal.stat().st_size < _HEADER.size + _FRAME.size or not index.exists():
        return None
    with index.open("rb") as file:
        file.seek(_MAX_FRAME_AT)
        data = file.read(_MAX_FRAME.size)
    taken = _MAX_FRAME.unpack(data)[0] if len(data) == _MAX_FRAME.size else 0
    with wal.open("rb") as file:
        header = file.read(_HEADER.size)
    page_size, salts, sound = _header(header)
    if not sound:
        page_size = _page_size_of(path)
    frames = list(_frames(wal, page_size))
    if not sound:
        # It was synced before the first frame was written.
        lost = sum(frame.commits and frame.salts == frames[0].salts for frame in frames)
        return f"the head of its log is damaged: {lost} transactions cannot be read" if lost else None
    # Frames with other salts are left from before the log began anew, and are in the database.
    lost = sum(frame.commits and frame.salts == salts for frame in frames[taken:])
    return f"its log is damaged: {lost} transactions cannot be read" if lost > 1 else None


def _header(data: bytes) -> tuple[int, tuple[int, int], bool]:
    """Page size, salts, and whether the header is what SQLite wrote."""
    magic, version, page_size, _, *salts, first, second = _HEADER.unpack(data)
    order = ">" if magic & 1 else "<"
    sums = [0, 0]
    words = struct.unpack(f"{order}6I", data[:24])
    for even, odd in zip(words[::2], words[1::2], strict=True):
        sums[0] = (sums[0] + even + sums[1]) % _WORD
        sums[1] = (sums[1] + odd + sums[0]) % _WORD
    sound = (magic & ~1, version, sums) == (_MAGIC, _VERSION, [first, second])
    return page_size, (salts[0], salts[1]), sound


def _page_size_of(path: Path) -> int:
    """What the database says, at the same place as in every one; it is open, so it has a sound head."""
    with path.open("rb") as file:
        file.seek(_PAGE_SIZE_AT)
        found = int.from_bytes(file.read(2), "big")
    return 65_536 if found == 1 else max(found, 512)


def _frames(wal: Path, page_size: int) -> Iterator[_Frame]:
    """The heads of all whole frames, in order."""
    size = wal.stat().st_size
    with wal.open("rb") as file:
        for place in range(_HEADER.size, size - _FRAME.size - page_size + 1, _FRAME.size + page_size):
            file.seek(place)
            _, pages, one, other, _, _ = _FRAME.unpack(file.read(_FRAME.size))
            yield _Frame(pages > 0, (one, other))
