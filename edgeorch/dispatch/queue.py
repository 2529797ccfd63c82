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
from edgeorch.model import TaskSpec
from edgeorch.scheduler import driver_of

Line: TypeAlias = tuple[int, int, str, Entry]
"""Urgency, how often it was passed over, id (which grows with time), entry: the least is the first."""


def shape_of(spec: TaskSpec) -> str:
    """Equal for specs that fit the same nodes."""
    drivers = [driver_of(service) for service in spec.service]
    # Interned: a deep queue has few shapes.
    return sys.intern(msgspec.json.encode((drivers, spec.placement, spec.resources)).decode())


class Queue:
    """Waiting tasks. An entry that is no longer wanted is skipped, not searched for."""

    def __init__(self) -> None:
        self._shapes: dict[str, list[Line]] = {}
        self._queued: set[str] = set()

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._queued

    def push(self, entry: Entry) -> None:
        """Add a task; a second time changes nothing."""
        if entry.task.id in self._queued:
            return
        self._queued.add(entry.task.id)
        line = (-entry.task.priority, entry.passed_over, entry.task.id, entry)
        heapq.heappush(self._shapes.setdefault(entry.shape, []), line)

    def remove(self, task_id: str) -> None:
        """The task waits no more."""
        self._queued.discard(task_id)

    def shapes(self) -> list[str]:
        """All shapes, the one with the most urgent task first."""
        alive = [(heap[0][:3], shape) for shape, heap in self._shapes.items() if heap]
        return [shape for _, shape in sorted(alive)]

    def ahead(self, shape: str, priority: int) -> bool:
        """Whether a task of this shape waits that a newcomer of this priority must not overtake."""
        return any(-urgency >= priority and task in self._queued for urgency, _, task, _ in self._top(shape))

    def drain(self, shape: str) -> Iterator[Entry]:
        """Take entries of a shape, most urgent first; push back what finds no place."""
        heap = self._shapes.get(shape, [])
        while heap:
            *_, task_id, entry = heapq.heappop(heap)
            if task_id in self._queued and not entry.task.state.terminal:
                self._queued.discard(task_id)
                yield entry
        self._shapes.pop(shape, None)

    def _top(self, shape: str) -> list[Line]:
        heap = self._shapes.get(shape, [])
        while heap and heap[0][2] not in self._queued:
            heapq.heappop(heap)
        return heap[:1]
