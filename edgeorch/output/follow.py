"""Read what an attempt printed, and follow it while it prints."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import structlog
import trio

from edgeorch.errors import StorageError
from edgeorch.output.watcher import Changes, Watcher
from edgeorch.runner.capped import read_tail

log = structlog.get_logger()
T = TypeVar("T")

Stream: TypeAlias = Literal["stdout", "stderr"]
Piece: TypeAlias = tuple[Stream, int, bytes]
"""Stream, offset of the first byte in the stream as kept, bytes."""

CHUNK = 32_768
_reading = trio.CapacityLimiter(4)
"""Threads that read output files; each read is short."""


@asynccontextmanager
async def follow(
    paths: Mapping[Stream, Path],
    *,
    watcher: Watcher,
    ended: trio.Event | None = None,
    offset: int = 0,
    tail_lines: int | None = None,
) -> AsyncIterator[AsyncIterator[Piece]]:
    """What the streams hold and, until the attempt has ended, what is added to them.

    A missing file counts as empty until it appears. The iterator ends when everything has been given.

    Args:
        paths: the file of each wanted stream; all in one folder.
        watcher: tells about changes; not used without ``ended``.
        ended: set when the attempt has ended and its files are complete. None: only what is there now.
        offset: of the first byte, in every wanted stream.
        tail_lines: only the last lines of each stream as it is now, and what follows.

    Yields:
        An iterator of pieces of at most 64 KiB.

    Raises:
        StorageError: from the iterator, when a file is there and cannot be read.
    """
    folder = next(iter(paths.values())).parent if paths else Path()
    with watcher.watch(folder) as changes:
        async with aclosing(_pieces(paths, changes, ended, offset, tail_lines)) as pieces:
            yield pieces


async def _pieces(
    paths: Mapping[Stream, Path],
    changes: Changes,
    ended: trio.Event | None,
    offset: int,
    tail_lines: int | None,
) -> AsyncGenerator[Piece, None]:
    offsets = dict.fromkeys(paths, offset)
    if tail_lines is not None:
        whole = ended is None or ended.is_set()
        starts = await _in_thread(
            lambda: {name: _start(path, tail_lines, final=whole) for name, path in paths.items()}
        )
        offsets = {name: max(offset, start) for name, start in starts.items()}
    while True:
        changes.clear()
        final = ended is None or ended.is_set()
        found = await _in_thread(lambda: _read_all(paths, offsets, final=final))  # noqa: B023  called at once
        for name, at, data in found:
            yield name, at, data
            offsets[name] = at + len(data)
        if not found:
            if ended is None or final:
                return
            await _first_of(changes.wait, ended.wait)


async def _in_thread(read: Callable[[], T]) -> T:
    try:
        return await trio.to_thread.run_sync(read, limiter=_reading)
    except OSError as error:
        raise StorageError(f"output cannot be read: {error.filename}: {error.strerror}") from error


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    async def one(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(one, wait)


def _read_all(paths: Mapping[Stream, Path], offsets: Mapping[Stream, int], *, final: bool) -> list[Piece]:
    found = [(name, offsets[name], _read(path, offsets[name], final=final)) for name, path in paths.items()]
    return [piece for piece in found if piece[2]]


def _read(path: Path, offset: int, *, final: bool) -> bytes:
    """At most a chunk of the stream as kept; the end that the cap cut off only when nothing more comes."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            # A caller may ask for a place that no file can have, where seek fails.
            if offset < size:
                file.seek(offset)
                return file.read(CHUNK)
            if not final:
                return b""
    except FileNotFoundError:
        return b""
    at = max(offset - size, 0)
    return read_tail(path)[1][at : at + CHUNK]


def _start(path: Path, lines: int, *, final: bool) -> int:
    """Offset of the last ``lines`` lines of the stream as kept; a last line without its end counts."""
    end = read_tail(path)[1] if final else b""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            total = size + len(end)
            if lines <= 0:
                return total
            for at, block in _backwards(file, size, end):
                found = len(block)
                while (found := block.rfind(b"\n", 0, found)) >= 0:
                    if at + found == total - 1:
                        continue
                    lines -= 1
                    if lines == 0:
                        return at + found + 1
    except FileNotFoundError:
        pass
    return 0


def _backwards(file: FileIO, size: int, end: bytes) -> Iterator[tuple[int, bytes]]:
    """Blocks (offset, bytes) of the stream as kept, the last one first."""
    yield size, end
    for at in range((size - 1) // CHUNK * CHUNK, -1, -CHUNK):
        file.seek(at)
        yield at, file.read(min(CHUNK, size - at))


async def tails(paths: Sequence[str | Path], max_bytes: int) -> list[bytes]:
    """The last bytes of ended streams as kept. Empty, with a log line, where they cannot be read."""

    def read() -> list[bytes | OSError]:
        return [_tail(path, max_bytes) for path in paths]

    found = await trio.to_thread.run_sync(read, limiter=_reading)
    return [_or_nothing(path, each) for path, each in zip(paths, found, strict=True)]


def _or_nothing(path: str | Path, found: bytes | OSError) -> bytes:
    if isinstance(found, bytes):
        return found
    log.warning("the end of an output was not kept", path=str(path), reason=found.strerror)
    return b""


def _tail(path: str | Path, max_bytes: int) -> bytes | OSError:
    try:
        end = read_tail(path)[1]
        with suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:  # noqa: PTH123  or a text
            file.seek(max(os.fstat(file.fileno()).st_size - max_bytes, 0))
            end = file.read(max_bytes) + end
    except OSError as error:
        return error
    return end[-max_bytes:] if max_bytes else b""
