"""The attempts' folders: ``WORK/KEY/`` holds ``work/`` and, once there is output, ``stdout`` and ``stderr``.

An attempt that is forgotten leaves its output; where there is none, its folder may become another's. How they
ended is in ``WORK/.exits``. A folder with ``work/`` and without an exit belongs to an attempt that ran when
the last runner died. Folders with neither are not the runner's. Earlier releases kept the exit in
``WORK/KEY/exit``, from where it is taken up.
"""

import contextlib
import os
import re
import select
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgeorch.runner import spawn, tree
from edgeorch.runner.capped import tail_of
from edgeorch.runner.exits import Exits
from edgeorch.runner.protocol import Ended
from edgeorch.runner.spares import Spares

_LOST = Ended(cause="node_lost", reason="the runner that ran it has died, and the service with it")
_KEY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}")
_ROUNDS = 10
_ROUND_MS = 500


class Records:
    """What the runner keeps on disk.

    Attributes:
        umask: for all that it makes.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        shared = root.stat().st_mode & stat.S_ISGID
        # A setgid work folder is one whose group is the daemon's other user, which reads and removes output.
        self.umask = 0o007 if shared else 0o077
        self._exits = Exits(f"{root}/.exits")
        self._spares = Spares(f"{root}/.spare")

    def folder(self, key: str) -> str:
        """The attempt's folder.

        Raises:
            SpawnError: the key is no safe file name.
        """
        if not _KEY.fullmatch(key):
            raise spawn.SpawnError("invalid_service", f"{key[:128]!r} is not the key of an attempt")
        return f"{self._root}/{key}"

    def create(self, folder: str) -> str:
        """Make the folders; the working folder. Output of an earlier attempt with the same key goes.

        Raises:
            OSError: disk full, no permission.
        """
        work = f"{folder}/work"
        if self._spares.take(folder):
            return work
        try:
            os.mkdir(folder)
        except FileExistsError:
            os.mkdir(work)
            _remove_output(folder)
        else:
            os.mkdir(work)
        return work

    def discard(self, folder: str) -> None:
        """Remove the folder of an attempt that could not be started."""
        _remove_output(folder)
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/work/secrets")
            os.rmdir(f"{folder}/work")
            os.rmdir(folder)

    def close(self, key: str, ended: Ended) -> None:
        """Know how the attempt ended, until it is forgotten."""
        self._exits.keep(key, ended)

    def write(self) -> None:
        """Put on disk what has changed. What a full disk does not take is lost with the next restart."""
        self._exits.write()

    def clear(self, key: str, *, deserted: bool = False) -> str:
        """Remove the working folder; its name where it is not empty, which takes longer than one can wait.

        Args:
            key: of the attempt.
            deserted: nothing runs any more that could reach into its folders: where there is no output and
                nothing else in them, they become those of a later attempt.
        """
        if deserted and self._spares.put(f"{self._root}/{key}"):
            return ""
        work = f"{self._root}/{key}/work"
        try:
            os.rmdir(work)
        except FileNotFoundError:
            pass
        except OSError:
            return work
        return ""

    def forget(self, key: str) -> None:
        """Drop the exit. Last of all, so that an attempt which is still half there is forgotten once more."""
        self._exits.drop(key)

    def recover(self) -> Mapping[str, Ended]:
        """Every attempt of earlier runners that is not forgotten; what still runs of them is ended first."""
        self._exits.load()
        self._spares.clear()
        lost: list[str] = []
        for entry in os.scandir(self._root):
            if entry.name in self._exits.known or not _has_work(entry):
                continue
            try:
                with open(f"{entry.path}/exit", "rb") as file:
                    self.close(entry.name, msgspec.msgpack.decode(file.read(), type=Ended))
            except (OSError, msgspec.DecodeError, RecursionError):
                lost.append(entry.name)
        _end_leftovers({spawn.marker(f"{self._root}/{key}/work") for key in lost})
        for key in lost:
            self.close(key, _LOST)
        self._exits.write()
        return self._exits.known


def _has_work(entry: "os.DirEntry[str]") -> bool:
    """Whether it is an attempt's. A folder that this user may not enter is the daemon's, of a container."""
    return entry.is_dir(follow_symlinks=False) and os.path.isdir(f"{entry.path}/work")


def _remove_output(folder: str) -> None:
    for name in ("stdout", "stderr"):
        for file in (f"{folder}/{name}", tail_of(f"{folder}/{name}")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)


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
