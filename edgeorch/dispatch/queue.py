"""Tasks that wait for a node: by priority, then age, within groups that any node treats alike.

Tasks of one shape (drivers, placement, resources) can run on the same nodes, so where the first of a shape
finds no place the rest need not be tried: a deep queue costs no more than a shallow one. Policies may treat
tasks of one shape differently: one that nodes have refused goes behind those that were refused less often.
"""

import heapq
import sys
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from edgeorch.dispatch.entry import Entry
from edgeorch.model import TaskSpec, TaskState
from edgeorch.scheduler import driver_of

Line: TypeAlias = tuple[int, int, str, Entry]
"""Urgency, how often it was passed over, id (which grows with time), entry: the least is the first."""


def shape_of(spec: TaskSpec) -> str:
    """Equal for specs that fit the same nodes."""
    drivers = [driver_of(service) for service in spec.service]
    # Interned: a deep queue has few shapes. Not every release can run what has secrets.
    what = (drivers, spec.placement, spec.resources, bool(spec.secrets))
    return sys.intern(msgspec.json.encode(what).decode())


class Queue:
    """Waiting tasks. An entry that is no longer wanted is skipped, not searched for."""

    def __init__(self) -> None:
        self._shapes: dict[str, list[Line]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, entry: Entry) -> None:
        """Add a task; a second time changes nothing."""
        if entry.queued:
            return
        entry.queued = True
        self._count += 1
        line = (-entry.task.priority, entry.passed_over, entry.task.id, entry)
        heapq.heappush(self._shapes.setdefault(entry.shape, []), line)

    def remove(self, entry: Entry) -> None:
        """The task waits no more."""
        self._count -= entry.queued
        entry.queued = False

    def shapes(self) -> list[str]:
        """All shapes, the one with the most urgent task first."""
        alive = [(heap[0][:3], shape) for shape, heap in self._shapes.items() if heap]
        return [shape for _, shape in sorted(alive)]

    def ahead(self, shape: str, priority: int) -> bool:
        """Whether a task of this shape waits that a newcomer of this priority must not overtake."""
        return any(-urgency >= priority for urgency, *_ in self._top(shape))

    def hopeful(self, entry: Entry) -> bool:
        """Whether an entry that was just pushed may find a place before anything else changes.

        Not behind one that nobody has refused: that one was looked at since the last change, or will be.
        """
        first = self._top(entry.shape)[0][3]
        return first is entry or bool(first.refused)

    def drain(self, shape: str) -> Iterator[Entry]:
        """Take entries of a shape, most urgent first; push back what finds no place."""
        heap = self._shapes.get(shape, [])
        while heap:
            *_, entry = heapq.heappop(heap)
            if entry.queued:
                self.remove(entry)
                # What put it here may have been slower than another way to the same end: it may be placed.
                if entry.task.state is TaskState.WAITING:
                    yield entry
        self._shapes.pop(shape, None)

    def _top(self, shape: str) -> list[Line]:
        heap = self._shapes.get(shape, [])
        while heap and not heap[0][3].queued:
            heapq.heappop(heap)
        return heap[:1]
