"""Learn from the kernel when files in a folder change: one inotify instance for the node (inotify(7)).

Where the kernel refuses (no inotify, ``fs.inotify.max_user_watches`` used up, the folder not there yet) a
follower looks every 0.2 s instead.
"""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import trio

log = structlog.get_logger()

POLL_S = 0.2

_MODIFY, _CLOSE_WRITE, _MOVED_TO, _CREATE, _IGNORED, _ONLYDIR = 0x2, 0x8, 0x80, 0x100, 0x8000, 0x1000000
_HEADER = struct.Struct("iIII")
"""Watch number, mask, cookie, length of the name that follows."""
_BUFFER = 65_536

_libc = ctypes.CDLL(None, use_errno=True)


class Changes:
    """What one follower waits on. Call ``clear``, look at the files, then ``wait``: nothing is missed."""

    def __init__(self, watcher: "Watcher", folder: Path) -> None:
        self._watcher = watcher
        self._event = trio.Event()
        self.folder = folder
        self.number: int | None = None

    def clear(self) -> None:
        """Forget what happened so far."""
        if self._event.is_set():
            self._event = trio.Event()

    def poke(self) -> None:
        """Something happened."""
        self._event.set()

    async def wait(self) -> None:
        """Return when something may have changed since ``clear``."""
        if self.number is not None:
            await self._event.wait()
        elif self._watcher.attach(self):
            await trio.lowlevel.checkpoint()  # what happened before the kernel was asked has not been told
        else:
            with trio.move_on_after(POLL_S):
                await self._event.wait()


class Watcher:
    """Tells followers when files in their folders change. Without ``run`` every follower looks by itself."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._waiting: dict[int, set[Changes]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pass on the kernel's events until cancelled."""
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            log.warning("no inotify, followers of output poll", reason=os.strerror(ctypes.get_errno()))
            task_status.started()
            await trio.sleep_forever()
        self._fd = fd
        try:
            task_status.started()
            while True:
                await trio.lowlevel.wait_readable(fd)
                self._pass_on(os.read(fd, _BUFFER))
        finally:
            self._fd = None
            for number in list(self._waiting):
                self._detach(number)
            trio.lowlevel.notify_closing(fd)
            os.close(fd)

    @contextmanager
    def watch(self, folder: Path) -> Iterator[Changes]:
        """Changes of the files directly in ``folder``, which need not exist yet."""
        changes = Changes(self, folder)
        self.attach(changes)
        try:
            yield changes
        finally:
            number = changes.number
            if number is not None:
                self._waiting[number].discard(changes)
                if not self._waiting[number] and self._fd is not None:
                    del self._waiting[number]
                    _libc.inotify_rm_watch(self._fd, number)

    def attach(self, changes: Changes) -> bool:
        """Ask the kernel to report on the follower's folder; whether it does."""
        if self._fd is None:
            return False
        mask = _MODIFY | _CLOSE_WRITE | _MOVED_TO | _CREATE | _ONLYDIR
        # The kernel gives the same number for the same folder, so followers of one attempt share it.
        number = _libc.inotify_add_watch(self._fd, os.fsencode(changes.folder), mask)
        if number < 0:
            return False
        changes.number = number
        self._waiting.setdefault(number, set()).add(changes)
        return True

    def _pass_on(self, buffer: bytes) -> None:
        at = 0
        while at < len(buffer):
            number, mask, _cookie, length = _HEADER.unpack_from(buffer, at)
            at += _HEADER.size + length
            if mask & _IGNORED:
                self._detach(number)
            # Number -1: the queue ran over and events were lost, so everybody looks.
            told = [number] if number >= 0 else list(self._waiting)
            for one in told:
                for changes in self._waiting.get(one, ()):
                    changes.poke()

    def _detach(self, number: int) -> None:
        """The folder is gone, or the instance: its followers go on by themselves."""
        for changes in self._waiting.pop(number, ()):
            changes.number = None
            changes.poke()
