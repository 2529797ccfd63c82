"""An open task in its origin's memory, of which there may be a hundred thousand."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec
import trio

from edgeorch.model import Attempt, Peer, Task, TaskSpec
from edgeorch.store import TaskChange
from edgeorch.timing import clock

LASTING_S = 60.0
"""A refusal by policy or driver is believed for this long: somebody may change the node's settings."""
PAST_S = 2.0
"""A refusal for want of room is believed for this long where no newer sample comes."""

NONE: Mapping[Any, Any] = MappingProxyType({})
"""What most tasks have of most things, shared by all of them."""


def _none() -> Mapping[Any, Any]:
    return NONE


@dataclass(slots=True)
class Refused:
    """A node's refusal in this round.

    ``lasting`` ones (policy, driver) hold for a while. Others hold until a newer sample of the node, but for
    ``pause_s`` in any case: of what samples do not show.
    """

    reason: str
    at: float
    lasting: bool
    pause_s: float = 0.0


@dataclass(eq=False, slots=True)
class Entry:
    """A task that has not ended, and what is known of it beside its record.

    Attributes:
        task: the record as it should be on disk.
        saved: the record as it is on disk: what callers are told.
        shape: see ``queue``.
        expires: boot time when the newest attempt's lease runs out at the origin; infinite for local ones.
        unreachable_at: boot time when an at-most-once attempt's lease ran out.
        deadline: boot time when the task must have ended.
        offering: whether an offer is under way: its target may not know the attempt yet.
        queued: whether it is in the queue.
        refused: by node id, since the last attempt that counted.
        passed_over: how often it was refused when its turn came; see ``queue``.
        unsaved: changes that the disk did not take; they go with the next commit.
        put_off: changes that may wait a moment: they go with the next commit, or with those of many others.
        children: states of the children of a parent.
        sequences: attempt number to the newest report's number.
        began: when it came into memory, on the clock of ``timing``.
        revision, saved_revision: how often ``task`` was changed, and of which of these ``saved`` is.
    """

    task: Task
    shape: str
    deadline: float
    saved: Task
    expires: float = math.inf
    unreachable_at: float | None = None
    offering: bool = False
    queued: bool = False
    refused: Mapping[str, Refused] = field(default_factory=_none)
    passed_over: int = 0
    unsaved: Sequence[TaskChange] = ()
    put_off: Sequence[TaskChange] = ()
    children: Mapping[str, bool] = field(default_factory=_none)
    sequences: Mapping[int, int] = field(default_factory=_none)
    revision: int = 0
    saved_revision: int = 0
    began: float = field(default_factory=clock)
    _changed: trio.Event | None = None

    @property
    def spec(self) -> TaskSpec:
        """The decoded spec; only those needed lately are kept, because they are larger than all else."""
        return _decoded(self.task.spec)

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the task; replaced by a new event each time."""
        if self._changed is None:
            self._changed = trio.Event()
        return self._changed

    def signal(self) -> None:
        """Wake whoever waits for a change of this task."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    @property
    def at_most_once(self) -> bool:
        """Whether the task may only be tried once."""
        return self.spec.retry.max_attempts == 1

    def refusal_of(self, peer: Peer, now: float) -> str:
        """What the node said of this task, while that is worth believing; empty where there is nothing."""
        refused = self.refused.get(peer.info.id)
        if refused is None:
            return ""
        age = now - refused.at
        past = age >= refused.pause_s and (peer.sample_at > refused.at or age > PAST_S)
        over = age > LASTING_S if refused.lasting else past
        if over:
            self.refused = {node: kept for node, kept in self.refused.items() if kept is not refused}
            return ""
        return f"refused: {refused.reason}"

    def attempt(self, number: int) -> Attempt | None:
        """The attempt with this number."""
        return next((one for one in reversed(self.task.attempts) if one.number == number), None)

    def next_number(self) -> int:
        """The number of the next attempt; it only grows."""
        return max((one.number for one in self.task.attempts), default=0) + 1

    def update(self, **fields: object) -> None:
        """Change the task's record in memory."""
        self.revision += 1
        self.task = msgspec.structs.replace(self.task, **fields)


@functools.lru_cache(maxsize=1024)
def _decoded(spec: bytes) -> TaskSpec:
    return msgspec.json.decode(spec, type=TaskSpec)
