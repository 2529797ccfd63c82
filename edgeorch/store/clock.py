"""The clock by which a store forgets. Nobody sets it, so what it keeps is kept for as long as was promised.

It begins with the wall clock and goes on by the boot clock, over restarts of the node too. While the machine
was off only the wall clock can tell how long, and it may be wrong by decades (a board without a battery boots
in 1970): then at most a day is believed.
"""

from typing import NamedTuple

import msgspec

from edgeorch.seams import Seams, Tick

AWAY_S = 86_400.0
"""How far one restart of the machine may move the clock."""


class Noted(NamedTuple):
    """What is on disk: the store's time, and what the other clocks said then."""

    at: float
    wall: float
    tick: Tick | None = None


class StoreClock:
    """Seconds since the epoch, as far as the store could count them itself."""

    def __init__(self, seams: Seams, noted: Noted | None) -> None:
        self._seams = seams
        self._zero = _resumed(seams, noted) - seams.boottime()

    def now(self) -> float:
        """The time; it never goes back."""
        return self._zero + self._seams.boottime()

    def note(self) -> bytes:
        """What the next life goes on from."""
        return msgspec.msgpack.encode(Noted(self.now(), self._seams.wall(), self._seams.tick()))


def noted(note: object, newest_end: float | None, wall: float) -> Noted | None:
    """What ``StoreClock.note`` has left.

    Args:
        note: as it was read, or None in a database that an older release wrote.
        newest_end: when, by the wall clock of that release, the last task had ended.
        wall: the wall clock now.
    """
    if isinstance(note, bytes):
        try:
            return msgspec.msgpack.decode(note, type=Noted)
        except msgspec.MsgspecError:
            pass
    if newest_end is None:
        return None
    last = min(newest_end, wall)
    return Noted(last, last)


def _resumed(seams: Seams, last: Noted | None) -> float:
    if last is None:
        return seams.wall()
    away = seams.age(last.wall, last.tick)
    same_boot = last.tick is not None and seams.boot and last.tick.boot == seams.boot
    return last.at + (away if same_boot else min(away, AWAY_S))
