"""A disk that neither works nor fails: how long a thread of the store has not moved on, and what then.

A worn SD card can hold an fsync for seconds, now and then for good. The node's loop goes on meanwhile, so
this is not the watchdog's business.
"""

from collections.abc import Callable
from typing import NoReturn

import structlog
import trio

log = structlog.get_logger()

STALLED_S = 5.0
"""A store that has not moved on for this long is out of order; a slow card takes a second or two."""
LOOK_EVERY_S = 1.0


class Progress:
    """Whether a thread that works off requests still gets on with them."""

    def __init__(self) -> None:
        self._waiting = 0
        self._since = 0.0

    def asked(self) -> None:
        """The thread has one more thing to do."""
        if not self._waiting:
            self._since = trio.current_time()
        self._waiting += 1

    def answered(self, count: int = 1) -> None:
        """It has done this many, well or not."""
        self._waiting -= count
        self._since = trio.current_time()

    @property
    def still_s(self) -> float:
        """Seconds without progress; 0 where nothing is to be done."""
        return trio.current_time() - self._since if self._waiting else 0.0


class StallWatch:
    """Says when the store stalls and goes on, and ends the node when that takes too long.

    Args:
        still_s: seconds for which the store has not moved on.
        limit_s: ``store.stall_limit_s``.
        end: ends the node at once. Nothing can be put in order first: that would need the disk.
    """

    def __init__(self, still_s: Callable[[], float], limit_s: float, end: Callable[[str], object]) -> None:
        self._still_s = still_s
        self._limit_s = limit_s
        self._end = end

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Watch until cancelled."""
        task_status.started()
        said, over = False, False
        while True:
            still = self._still_s()
            if still < STALLED_S:
                if said:
                    log.warning("the store goes on")
                said = over = False
            elif not said:
                log.error("the store stalls", seconds=round(still), limit_s=self._limit_s)
                said = True
            # Twice: a machine that was paused itself finds its disk well at the second look.
            if still >= self._limit_s and over:
                self._end(f"the store stalled for {still:.0f} s (store.stall_limit_s)")
            over = still >= self._limit_s
            await trio.sleep(LOOK_EVERY_S)
