"""What a test replaces: wall time, boot time and randomness. Waiting itself is Trio's, with its MockClock."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Seams:
    """Sources of time and chance, handed to every part that needs them.

    Attributes:
        wall: seconds since the epoch; only for what people read and for certificates.
        boottime: seconds on a clock that also runs while the machine sleeps; leases use it.
        rng: jitter, sampling and ids.
    """

    wall: Callable[[], float] = time.time
    boottime: Callable[[], float] = _boottime
    rng: random.Random = field(default_factory=random.SystemRandom)
