"""Keeps services out of each other's folders by Landlock, where the kernel has it.

Protocol: kernel.org, Documentation/userspace-api/landlock.rst; landlock_restrict_self(2). Restrictions belong
to a thread and to what it starts, so a thread of its own takes them on and starts the service; no other
program has to be executed in between. They also keep the service from tracing what is not its own, and from
Linux 6.12 on from signalling it: the runner and other services, which have the same user.

Landlock allows and never forbids, and what it allows for a folder holds for all below. So a folder is closed
by allowing everything beside the path that leads to it. Services make nothing in the folders of that path
itself (in the unit: root's), and what others make there later stays closed to those that run already. Listing
is left alone, as nobody could list ``/`` otherwise: names can be seen, contents not. Nor does Landlock know
chmod(2) and chown(2).
"""

import _thread
import ctypes
import errno
import os
import re
import select
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same numbers on every architecture that has them (asm-generic/unistd.h)."""
_VERSION = 1
_PATH_BENEATH = 1
_SCOPE_SIGNAL = 2
_PR_SET_NO_NEW_PRIVS = 38
_OLDEST = 2
"""ABI of Linux 5.19: the first one that lets programs move files from folder to folder."""
_SCOPED = 6
"""ABI of Linux 6.12: the first one that keeps signals in."""
_ON_FILES = 0b100_0000_0000_0111
"""EXECUTE, WRITE_FILE, READ_FILE and TRUNCATE: what can be allowed for something that is not a folder."""
_RIGHTS = {2: 0x3FFF, 3: 0x7FFF}
"""All rights of an ABI (linux/landlock.h); 5 adds ioctl of devices, which has nothing to do with folders."""
_READ_DIR = 1 << 3
_MOUNTS = "/proc/self/mountinfo"
_MADE = 64
"""Rulesets that are kept: a hundred rules are most of what it costs to keep a service apart."""

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# Numbers and pointers alike, in full width.
_syscall.argtypes = (ctypes.c_long, *4 * (ctypes.c_void_p,))
_add_rule = ctypes.PyDLL(None)["syscall"]
"""For what is called a hundred times for each service: without argument types and without letting others run.
Its numbers are 32 bits wide."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


class Landlock:
    """What services of this runner may reach.

    Args:
        closed: folders that exist, of which a service sees its own work folder only.

    Attributes:
        abi: version of the kernel's Landlock; 0: it has none.
        missing: why nothing can be closed here; empty where it can.
    """

    def __init__(self, closed: Collection[Path]) -> None:
        self._closed = {folder.resolve() for folder in closed}
        self._leading = sorted({above for folder in self._closed for above in folder.parents})
        self._changes: list[int] = []
        self._kept: list[_PathBeneath] = []
        self._references: list[object] = []
        self._mounts: list[str] = []
        self._made: dict[tuple[object, ...], int] = {}
        """Rulesets by the inodes of a service's own folders, those used last at the end."""
        self._mounted = select.poll()
        self.abi = 0
        self.missing = ""
        try:
            self.abi = _call(_CREATE_RULESET, None, 0, _VERSION)
            if self.abi < _OLDEST:
                self.missing = f"Landlock of this kernel is too old (version {self.abi}, needs {_OLDEST})"
                return
            # Tells once of each change of the mounts (proc(5)).
            self._mounted.register(os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC), select.POLLPRI)
            self._rights = _RIGHTS[min(self.abi, max(_RIGHTS))] & ~_READ_DIR
            # Version and rules may be there where the last step is forbidden.
            self.within((str(next(iter(self._closed))),), lambda: 0)
        except OSError as error:
            self.missing = f"this kernel has no Landlock for us: {error.strerror}"

    def within(self, own: Collection[str], start: Callable[[], int]) -> int:
        """Call ``start`` in a thread that sees of the closed folders only ``own``; what it returns.

        Raises:
            OSError: the restrictions cannot be had, or what ``start`` raises.
        """
        ruleset = self._ruleset(own)
        results: list[int] = []
        errors: list[Exception] = []
        # Without what ``threading.Thread`` adds, which is most of its cost.
        running = _thread.allocate_lock()
        running.acquire()

        def run() -> None:
            try:
                # Unprivileged threads need it; where it fails the next line does.
                _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                _call(_RESTRICT_SELF, ruleset)
                results.append(start())
            except (OSError, ValueError) as error:  # what posix_spawn raises
                errors.append(error)
            finally:
                running.release()

        try:
            _thread.start_new_thread(run, ())
            running.acquire()
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        if errors:
            raise errors[0]
        return results[0]

    def _ruleset(self, own: Collection[str]) -> int:
        """A ruleset for these folders, which may be the one that was made when they were used before.

        A ruleset that is kept keeps the inodes of its rules, so nothing else gets their numbers. Only what is
        unmounted leaves a rule without effect behind.
        """
        self._refresh()
        if self._mounted.poll(0):
            self._forget()
        which = tuple(_inode(path) for path in own)
        ruleset = self._made.pop(which, -1)
        if ruleset < 0:
            ruleset = self._make((*self._mounts, *own))
        self._made[which] = ruleset
        if len(self._made) > _MADE:
            os.close(self._made.pop(next(iter(self._made))))
        return ruleset

    def _forget(self) -> None:
        for ruleset in self._made.values():
            os.close(ruleset)
        self._made.clear()

    def _make(self, paths: Collection[str]) -> int:
        size = ctypes.sizeof(_Ruleset) if self.abi >= _SCOPED else ctypes.sizeof(ctypes.c_uint64)
        ruleset = _call(_CREATE_RULESET, ctypes.byref(_Ruleset(self._rights, 0, _SCOPE_SIGNAL)), size)
        try:
            for rule in self._references:
                if _add_rule(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) < 0:
                    _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule)
            for path in paths:
                with suppress(FileNotFoundError):
                    rule = self._rule(path)
                    try:
                        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule))
                    finally:
                        os.close(rule.fd)
        except OSError:
            os.close(ruleset)
            raise
        return ruleset

    def _refresh(self) -> None:
        """Look again at what lies beside the closed folders, where that has changed."""
        changes = [os.stat(folder).st_mtime_ns for folder in self._leading]
        if changes == self._changes:
            return
        self._forget()
        for rule in self._kept:
            os.close(rule.fd)
        self._kept, self._mounts = [], []
        mounts = _mount_points()
        for path in self._beside():
            # A descriptor would keep a file system from being unmounted.
            if path in mounts:
                self._mounts.append(path)
            else:
                with suppress(FileNotFoundError):
                    self._kept.append(self._rule(path))
        self._references = [ctypes.byref(rule) for rule in self._kept]
        self._changes = changes

    def _beside(self) -> Iterator[str]:
        above = {str(folder) for folder in self._leading}
        closed = {str(folder) for folder in self._closed}
        for folder in above:
            if any(Path(folder).is_relative_to(other) for other in self._closed):
                continue
            for entry in os.scandir(folder):
                # Where a link leads to is allowed or closed by itself.
                if not entry.is_symlink() and entry.path not in above and entry.path not in closed:
                    yield entry.path

    def _rule(self, path: str) -> _PathBeneath:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        folder = (os.fstat(fd).st_mode & 0o170000) == 0o040000
        return _PathBeneath(self._rights if folder else self._rights & _ON_FILES, fd)


def _inode(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _mount_points() -> set[str]:
    """Paths of all mounts; a space in one is written as its octal number (proc(5), mountinfo)."""
    lines = Path(_MOUNTS).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return {re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines}


def _call(number: int, first: object, second: object = 0, third: object = 0) -> int:
    result: int = _syscall(number, first, second, third, 0)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
