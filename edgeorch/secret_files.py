"""Secrets of attempts as files in memory: ``FOLDER/KEY/NAME``, never on a disk, gone with the attempt.

Kept by the runner for native services and by the daemon for containers, each in its own runtime folder.
"""

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from edgeorch.mounts import MEMORY, file_system
from edgeorch.secret import Secret


class SecretFiles:
    """The files below one folder, which is made when it is needed.

    Args:
        folder: nobody else writes into it.

    Attributes:
        missing: why no secret can be kept here, in a sentence; empty where it can.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: set[str] = set()
        """Keys that this process has written: ``sweep`` leaves them alone."""
        kind = file_system(folder)
        where = f"a {kind} file system" if kind else "an unknown file system"
        self.missing = (
            "" if kind in MEMORY else f"secrets are kept in memory only, and {folder} is on {where}"
        )

    def write(self, key: str, secrets: Mapping[str, Secret], mode: int = 0o600) -> Path:
        """Write the files of one attempt; those that are there already are left as they are.

        Args:
            key: of the attempt; a safe file name.
            secrets: by name; safe file names, too.
            mode: of each file.

        Returns:
            The attempt's folder.

        Raises:
            OSError: no room, no permission, or the folder is on a disk.
        """
        if self.missing:
            raise OSError(0, self.missing, str(self._folder))
        self._own.add(key)
        folder = self._folder / key
        for each in (self._folder, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        for name, secret in secrets.items():
            path = folder / name
            if not path.exists():
                _write(path, folder / f".{name}", secret.value, mode)
        return folder

    def remove(self, key: str) -> None:
        """Remove an attempt's files; fine where there are none."""
        shutil.rmtree(self._folder / key, ignore_errors=True)
        self._own.discard(key)

    def sweep(self, keep: Collection[str] = ()) -> None:
        """Remove what earlier processes have left, except for the attempts that still run."""
        with suppress(OSError):
            for entry in list(os.scandir(self._folder)):
                if entry.name not in keep and entry.name not in self._own:
                    self.remove(entry.name)


def _write(path: Path, fresh: Path, data: bytes, mode: int) -> None:
    """Put a whole file in place. On a file system in memory nothing needs to be flushed."""
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        os.fchmod(fd, mode)
    fresh.rename(path)
