"""The folders of attempts: where they are, and removing them safely, oldest first."""

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import structlog
import trio

from edgeorch.output.follow import Stream

log = structlog.get_logger()

STREAMS: tuple[Stream, ...] = get_args(Stream)
_KEY = re.compile(r"[0-9a-hjkmnp-tv-z]{26}-[0-9a-hjkmnp-tv-z]{10}\.[0-9]{1,9}")
_REMOVING = ".removing-"
_cleaning = trio.CapacityLimiter(1)
"""The thread that removes folders."""


def folder_of(tasks: Path, key: str) -> Path:
    """The folder of an attempt.

    Raises:
        ValueError: the text is not a key, and would lead elsewhere.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not TASKID.NUMBER")
    return tasks / key


def streams_of(folder: Path) -> dict[Stream, Path]:
    """The output files in an attempt's folder."""
    return {name: folder / name for name in STREAMS}


@dataclass(frozen=True)
class Folder:
    """What a sweep looks at: disk space in bytes, newest change in seconds since the epoch."""

    key: str
    size: int
    changed: float


@dataclass(frozen=True)
class Swept:
    """What a sweep did: keys removed, keys that could not be, bytes on disk before and after."""

    removed: tuple[str, ...]
    failed: tuple[str, ...]
    before: int
    after: int


def choose(
    folders: Iterable[Folder], keep: Collection[str], max_bytes: int, old: Callable[[Folder], bool]
) -> list[str]:
    """Which folders go: all that are old, then those that changed longest ago until the rest fits.

    Args:
        folders: all there are.
        keep: keys that stay whatever they cost.
        max_bytes: of all folders together.
        old: whether nobody needs it any more.
    """
    gone = []
    left = sorted(folders, key=lambda folder: (folder.changed, folder.key))
    total = sum(folder.size for folder in left)
    for folder in left:
        if folder.key not in keep and (old(folder) or total > max_bytes):
            gone.append(folder.key)
            total -= folder.size
    return gone


async def sweep(
    tasks: Path, *, keep: Collection[str], max_bytes: int, old: Callable[[Folder], bool] = lambda _: False
) -> Swept:
    """Remove folders by ``choose``, and what an earlier removal left behind. Other entries are left alone."""
    return await trio.to_thread.run_sync(_sweep, tasks, frozenset(keep), max_bytes, old, limiter=_cleaning)


async def keys_in(tasks: Path) -> list[str]:
    """Whose folders are there."""
    return await trio.to_thread.run_sync(
        lambda: [name for name in _names(tasks) if _KEY.fullmatch(name)], limiter=_cleaning
    )


async def remove(folder: Path) -> bool:
    """Remove an attempt's folder whatever is in it, without following links; whether it is gone."""
    return await trio.to_thread.run_sync(_remove, folder, limiter=_cleaning)


def _names(tasks: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in tasks.iterdir())
    except FileNotFoundError:
        return []


def _sweep(tasks: Path, keep: frozenset[str], max_bytes: int, old: Callable[[Folder], bool]) -> Swept:
    names = _names(tasks)
    for name in names:
        if name.startswith(_REMOVING):
            _delete(tasks / name, again=True)
        elif _KEY.fullmatch(name) and name not in keep:
            _remove_work(tasks / name)
    folders = [_look(tasks / name) for name in names if _KEY.fullmatch(name)]
    sizes = {folder.key: folder.size for folder in folders}
    chosen = choose(folders, keep, max_bytes, old)
    removed = tuple(key for key in chosen if _remove(tasks / key))
    before = sum(sizes.values())
    after = before - sum(sizes[key] for key in removed)
    return Swept(removed, tuple(key for key in chosen if key not in removed), before, after)


def _look(folder: Path) -> Folder:
    size, changed = 0, 0.0
    for parent, folders, files in os.walk(folder):
        for name in (".", *files, *folders):
            with suppress(OSError):  # it may end while we look
                found = Path(parent, name).lstat()
                size += found.st_blocks * 512
                if parent == str(folder):
                    changed = max(changed, found.st_mtime)
    return Folder(folder.name, size, changed)


def _remove(folder: Path) -> bool:
    # Under another name first: half a folder must not be taken for a whole one.
    return _move_and_delete(folder, folder.with_name(f"{_REMOVING}{folder.name}"))


def _remove_work(folder: Path) -> None:
    """Remove what the runner could not remove when its service had ended: root's files from a container."""
    work = folder / "work"
    if os.path.lexists(work):
        _move_and_delete(work, folder.with_name(f"{_REMOVING}{folder.name}.work"))


def _move_and_delete(folder: Path, doomed: Path) -> bool:
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        pass  # gone, or left half removed
    except OSError as error:
        log.warning("an attempt's folder cannot be removed", folder=str(folder), reason=error.strerror)
        return False
    return _delete(doomed)


def _delete(folder: Path, *, again: bool = False) -> bool:
    with suppress(OSError):
        folder.unlink()  # a link or a file in place of the folder
    # rmtree holds on to each folder it is in, so a link swapped in does not lead it astray.
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        # A service may leave folders that even their owner cannot enter.
        _open_up(folder)
        for parent, folders, _files in os.walk(folder):
            for name in folders:
                _open_up(Path(parent, name))
        shutil.rmtree(folder, ignore_errors=True)
    gone = not os.path.lexists(folder)
    if not gone and not again:
        # With root's rights, edgeorch.tmpfiles does it.
        log.warning("another user's files are left to systemd-tmpfiles", folder=str(folder))
    return gone


def _open_up(folder: Path) -> None:
    """Let the owner into a folder; a link in its place is not followed."""
    with suppress(OSError):
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            Path(f"/proc/self/fd/{fd}").chmod(0o700)
        finally:
            os.close(fd)
