"""A small epoll loop whose clock also runs while the machine sleeps."""

import ctypes
import heapq
import itertools
import os
import select
import signal
import sys
import time
from collections.abc import Callable

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

_libc = ctypes.CDLL(None, use_errno=True)
_TFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # TFD_CLOEXEC and TFD_NONBLOCK are defined as these
_TFD_TIMER_ABSTIME = 1
_SFD_FLAGS = _TFD_FLAGS  # and SFD_CLOEXEC and SFD_NONBLOCK, too
_SIGSET_SIZE = 128
_SIGINFO_SIZE = 128
_MOST_EVENTS = 64
"""In one round. Those that are left are first in the next."""
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_DUMPABLE = 4


class _ItimerSpec(ctypes.Structure):
    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def forbid_tracing() -> None:
    """Keep processes of the same user, our services, from tracing this one (prctl(2), PR_SET_DUMPABLE)."""
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def now() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Loop:
    """Calls back on readiness of descriptors, at times, and on signals; one thread, no reentrancy.

    Callbacks must tolerate a call without cause: a descriptor may be closed and its number used again within
    one round.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._stopped = False
        # timerfd(2) because epoll's own timeout stands still while the machine sleeps, and leases must not.
        self._timer = _libc.timerfd_create(time.CLOCK_BOOTTIME, _TFD_FLAGS)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create(CLOCK_BOOTTIME)")
        self.watch(self._timer, READABLE, self._on_timer)
        self._on_signal: dict[int, Callable[[], None]] = {}
        self._signals = -1

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call ``callback(events)`` while the descriptor is ready; replaces an earlier watch."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching; the descriptor is to be closed now, which takes it out of the kernel's set."""
        del self._ready[fd]

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Call once at ``when`` (as ``now()``). Not cancellable: the callback looks what still holds."""
        heapq.heappush(self._timers, (when, next(self._sequence), callback))
        if self._timers[0][0] == when:
            self._arm()

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call from the loop after the signal, which stays blocked in this process (signalfd(2))."""
        self._on_signal[number] = callback
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
        mask = (ctypes.c_ubyte * _SIGSET_SIZE)()
        for each in self._on_signal:
            _libc.sigaddset(mask, each)
        fd = _libc.signalfd(self._signals, mask, _SFD_FLAGS)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "signalfd")
        if self._signals < 0:
            self._signals = fd
            self.watch(fd, READABLE, self._on_signals)

    def stop(self) -> None:
        """Leave ``run`` after the current round."""
        self._stopped = True

    def run(self, after_round: Callable[[], None]) -> None:
        """Serve until stopped; ``after_round`` follows each round of callbacks."""
        while not self._stopped:
            for fd, events in self._epoll.poll(-1, _MOST_EVENTS):
                callback = self._ready.get(fd)
                if callback is not None:
                    callback(events)
            after_round()

    def _arm(self) -> None:
        spec = _ItimerSpec()
        # Never zero, which would disarm.
        nanoseconds = max(1, int(self._timers[0][0] * 1e9)) if self._timers else 0
        spec.value[:] = divmod(nanoseconds, 1_000_000_000)
        _libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)

    def _on_timer(self, _events: int) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        present = now()
        while self._timers and self._timers[0][0] <= present:
            heapq.heappop(self._timers)[2]()
        self._arm()

    def _on_signals(self, _events: int) -> None:
        try:
            data = os.read(self._signals, _SIGINFO_SIZE * 16)
        except BlockingIOError:
            return
        for at in range(0, len(data), _SIGINFO_SIZE):
            # ssi_signo comes first.
            self._on_signal[int.from_bytes(data[at : at + 4], sys.byteorder)]()
