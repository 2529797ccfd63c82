"""Did this node run all the time, or were there pauses in which its sockets filled?

What a stopped process, or a machine that was frozen or suspended, finds in its sockets may be as old as the
pause, and whoever has sent it may have given up long ago. The time that a request may take is counted by the
receiver, since clocks differ; so a pause is taken off it.
"""

import math
from collections.abc import Callable
from typing import NoReturn

import trio

EVERY_S = 1.0
LATE_S = 1.0
"""A busy machine is not a pause."""
FRESH_S = 1.0
"""What is read so soon after a pause may have come before its end."""


class Pulse:
    """Notices pauses by the time between two beats.

    Args:
        clock: one that goes on while the machine is suspended.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()
        self._resumed = -math.inf
        self._paused_s = 0.0

    async def run(self) -> NoReturn:
        """Beat until cancelled."""
        while True:
            self.beat()
            await trio.sleep(EVERY_S)

    def beat(self) -> float:
        """This node runs; what its clock says."""
        now = self._clock()
        gap = now - self._last
        if gap > EVERY_S + LATE_S:
            self._resumed, self._paused_s = now, gap
        self._last = now
        return now

    def unread_s(self, since: float) -> float:
        """Seconds for which what is read now may have lain there.

        Args:
            since: the beat before which nothing can have come.
        """
        fresh = self.beat() - self._resumed < FRESH_S
        return self._paused_s if fresh and since < self._resumed else 0.0
