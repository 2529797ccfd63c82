"""Ids that only grow: whoever lists tasks by id sees them in the order in which they were accepted."""

from edgeorch.model import number_of, ulid_of
from edgeorch.seams import Seams

BITS = 80
"""Below the milliseconds."""


class Ids:
    """Makes the ids of this node's tasks.

    A clock that was set back does not set them back: they go on from the last one, until it has caught up.
    """

    def __init__(self, seams: Seams) -> None:
        self._seams = seams
        self._last = 0

    def above(self, task_id: str) -> None:
        """Go on above an id that is on the disk."""
        self._last = max(self._last, number_of(task_id))

    def new(self, node_id: str) -> str:
        """The next id."""
        now, chance = int(self._seams.wall() * 1000), self._seams.rng.getrandbits(BITS)
        if now > self._last >> BITS:
            self._last = now << BITS | chance
        else:
            # A step by chance too: a store that was restored from a backup must not give out ids again.
            self._last += 1 + (chance >> 16)
        return ulid_of(self._last, node_id)
