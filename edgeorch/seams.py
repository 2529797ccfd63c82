"""What a test replaces: wall time, boot time and randomness. Waiting itself is Trio's, with its MockClock.

Somebody may set the wall clock at any time. So what counts how long something takes notes a ``Tick`` beside
the time that people read: within one boot of the machine that decides, over restarts of the node too.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> int:
    """Which boot of the machine this is; 0 where the kernel does not tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return int(text.replace("-", "")[:15], 16)
    except (OSError, ValueError):
        return 0


class Tick(msgspec.Struct, frozen=True, array_like=True):
    """A moment on the clock that nobody sets, as it is stored.

    Attributes:
        boot: which boot of the machine; a number that fits into a column of SQLite.
        at: seconds on ``Seams.boottime``.
    """

    boot: int
    at: float


@dataclass(frozen=True)
class Seams:
    """Sources of time and chance, handed to every part that needs them.

    Attributes:
        wall: seconds since the epoch; only for what people read and for certificates.
        boottime: seconds on a clock that also runs while the machine sleeps; leases use it.
        rng: jitter, sampling and ids.
        boot: which boot of the machine this is; 0: nobody knows.
    """

    wall: Callable[[], float] = time.time
    boottime: Callable[[], float] = _boottime
    rng: random.Random = field(default_factory=random.SystemRandom)
    boot: int = field(default_factory=_boot)

    def tick(self, after: float = 0.0) -> Tick:
        """Now, or so many seconds later."""
        return Tick(self.boot, self.boottime() + after)

    def age(self, wall: float, tick: Tick | None) -> float:
        """Seconds since a moment that was noted on both clocks; never negative.

        Of another boot, or of a release that noted no tick, the wall clock has to be believed.
        """
        if tick is not None and self.boot and tick.boot == self.boot:
            return max(self.boottime() - tick.at, 0.0)
        return max(self.wall() - wall, 0.0)
