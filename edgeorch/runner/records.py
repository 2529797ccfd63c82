"""The attempts' folders: ``WORK/KEY/`` holds ``stdout``, ``stderr``, ``work/`` and, once ended, ``exit``.

A folder with ``work/`` and no readable ``exit`` belongs to an attempt that ran when the last runner died.
Folders with neither are not the runner's.
"""

import contextlib
import os
import select
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgeorch.runner import spawn, tree
from edgeorch.runner.protocol import Ended

_LOST = Ended(cause="node_lost", reason="the runner that ran it has died, and the service with it")
_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
_ROUNDS = 10
_ROUND_MS = 500


class Records:
    """What the runner keeps on disk. Writes are not flushed: after a power cut nothing of it runs anyway."""

    def __init__(self, root: Path) -> None:
        self._root = root
        shared = root.stat().st_mode & stat.S_ISGID
        # A setgid work folder is one whose group is the daemon's other user, which reads and removes output.
        self.umask = 0o007 if shared else 0o077

    def folder(self, key: str) -> Path:
        """The attempt's folder.

        Raises:
            SpawnError: the key is no safe file name.
        """
        if not key or len(key) > 128 or not _KEY.issuperset(key) or not key[0].isalnum():
            raise spawn.SpawnError("invalid_service", f"{key[:128]!r} is not the key of an attempt")
        return self._root / key

    def create(self, key: str) -> Path:
        """Make the folders.

        Raises:
            OSError: disk full, no permission.
        """
        folder = self.folder(key)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        (folder / "work").mkdir()
        return folder

    def discard(self, key: str) -> None:
        """Remove the folder of an attempt that could not be started."""
        folder = self.folder(key)
        for name in ("stdout", "stderr"):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (folder / "work" / "secrets").unlink(missing_ok=True)
            (folder / "work").rmdir()
            folder.rmdir()

    def close(self, key: str, ended: Ended) -> None:
        """Keep how the attempt ended. A full disk loses this record with the next restart of the runner."""
        with contextlib.suppress(OSError):
            (self.folder(key) / "exit").write_bytes(msgspec.msgpack.encode(ended))

    def forget(self, key: str) -> list[Path]:
        """Drop work folder and exit; what is left for a slower way, in the order in which it must go."""
        folder = self.folder(key)
        try:
            (folder / "work").rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return [folder / "work", folder / "exit"]
        (folder / "exit").unlink(missing_ok=True)
        return []

    def recover(self) -> Iterator[tuple[str, Ended]]:
        """Every attempt of earlier runners that is not forgotten; what still runs of them is ended first."""
        lost: list[str] = []
        for entry in os.scandir(self._root):
            if not entry.is_dir(follow_symlinks=False):
                continue
            folder = Path(entry.path)
            try:
                yield entry.name, msgspec.msgpack.decode((folder / "exit").read_bytes(), type=Ended)
            except (OSError, msgspec.DecodeError, RecursionError):
                # A folder that this user may not enter is the daemon's, of a container.
                with contextlib.suppress(PermissionError):
                    if (folder / "work").is_dir():
                        lost.append(entry.name)
        _end_leftovers({spawn.marker(self._root / key / "work") for key in lost})
        for key in lost:
            self.close(key, _LOST)
            yield key, _LOST


def _end_leftovers(markers: set[bytes]) -> None:
    """SIGKILL all processes with one of these lines in their environment, and their descendants."""
    for _ in range(_ROUNDS if markers else 0):
        table = tree.snapshot()
        found = {pid for pid in table if tree.environment(pid) & markers}
        while more := {each.pid for each in table.values() if each.parent in found} - found:
            found |= more
        processes = [table[pid] for pid in found if not table[pid].dead and pid != os.getpid()]
        if not processes:
            return
        poll = select.poll()
        fds = []
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                fds.append(os.pidfd_open(process.pid))
                poll.register(fds[-1], select.POLLIN)
        tree.send(processes, signal.SIGKILL)
        poll.poll(_ROUND_MS)
        for fd in fds:
            os.close(fd)
