"""Folders of attempts that have left nothing in them, and that later attempts get.

Most short services print nothing and write nothing. To make their two folders, and to remove them, costs more
than all else that the runner does for them: the disk finds, fills and frees an inode and a block each time.
To move both at once takes a tenth of that, and nothing is left behind that somebody has to clean up later.

Whoever has had a folder must not reach into it any more, nor find anything of it changed. So the caller gives
those only of which no process is left, and here it is compared with one that nobody has had: mode, owner,
flags (chattr(1)), content, size, and extended attributes, of which it must have none.
"""

import fcntl
import os
import struct

MOST = 32
_GET_FLAGS = 2 << 30 | struct.calcsize("l") << 16 | ord("f") << 8 | 1
"""FS_IOC_GETFLAGS, ioctl_iflags(2). Where the number is another one, nothing is spared."""


class Spares:
    """Folders with an empty ``work/`` in them, below one that is the runner's own.

    Args:
        path: that folder, on the file system of the attempts' folders.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: list[str] = []
        self._count = 0
        self._usable = True
        self._empty: tuple[object, ...] | None = None
        """What a folder looks like that nobody has had."""

    def clear(self) -> None:
        """Remove what an earlier runner has left, of which nobody knows who had it."""
        if os.path.lexists(self._path):
            try:
                for name in os.listdir(self._path):
                    os.rmdir(f"{self._path}/{name}/work")
                    os.rmdir(f"{self._path}/{name}")
                os.rmdir(self._path)
            except OSError:
                self._usable = False

    def take(self, folder: str) -> bool:
        """Move one to a place where nothing is; False where there is none, or something is there."""
        if not self._names:
            return False
        try:
            os.rename(f"{self._path}/{self._names.pop()}", folder)
        except OSError:
            return False
        return True

    def put(self, folder: str) -> bool:
        """Keep a folder that nobody uses; False where it is not as it was, or there are enough."""
        if not self._usable or len(self._names) >= MOST:
            return False
        name = str(self._count)
        try:
            if self._empty is None:
                self._usable = False  # unless all of this goes well
                os.mkdir(self._path)
                self._empty = _look(self._path, [])
                self._usable = self._empty is not None
            above, work = _look(folder, ["work"]), _look(f"{folder}/work", [])
            # File systems count something in a folder as part of its size, or not.
            if work is None or work != self._empty or above is None or above[1:] != work[1:]:
                return False
            os.rename(folder, f"{self._path}/{name}")
        except OSError:
            return False
        self._names.append(name)
        self._count += 1
        return True


def _look(path: str, content: list[str]) -> tuple[object, ...] | None:
    """In what folders with the same content may differ; None where it has other content, or attributes.

    Raises:
        OSError: it cannot be opened, or has no flags that could be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.listdir(fd) != content or os.listxattr(fd):
            return None
        flags = fcntl.ioctl(fd, _GET_FLAGS, bytes(struct.calcsize("l")))
        found = os.fstat(fd)
        return found.st_size, found.st_mode, found.st_uid, found.st_gid, flags
    finally:
        os.close(fd)
