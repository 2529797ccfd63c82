"""How long things take, counted by length: what ``/metrics`` shows as histograms."""

import time
from bisect import bisect_left

BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(60.0, 600.0),
)
"""Upper ends of the buckets in seconds: from a rank to a service that runs for minutes."""

clock = time.perf_counter
"""When something begins, for ``Histogram.since``."""


class Histogram:
    """Counts of lengths of time.

    Attributes:
        counts: one for each of ``BOUNDS`` and one for what took longer.
        total: seconds of all together.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def since(self, begun: float) -> None:
        """What began then (``clock()``) is done."""
        seconds = clock() - begun
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
