"""The state machines of a task and an attempt: pure, one table each, every (state, event) pair decided.

A table maps (state, event) to the next state and the effects that the caller carries out. A pair that is not
in the table is ``None``: the event comes too late or out of order and is ignored. Nothing leaves a terminal
state.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from edgeorch.model import AttemptState, Retry, TaskState

T = TaskState
A = AttemptState


class AttemptEvent(enum.StrEnum):
    """What can happen to an attempt, as its origin sees it."""

    REFUSE = "refuse"
    """The target said no, or the offer certainly never left: the attempt costs nothing."""
    ACCEPT = "accept"
    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    """The target has ended it on request."""
    TIME_OUT = "time_out"
    LOSE = "lose"
    """The lease ran out, or the target does not know it any more."""
    REPLACE = "replace"
    """The origin has given up on it while it may still run."""


class TaskEvent(enum.StrEnum):
    """What can happen to a task."""

    OFFER = "offer"
    """An attempt was made and is on disk; its offer goes out."""
    RETURN = "return"
    """The attempt was refused, or ended in a way that the retry rules allow to repeat."""
    RUN = "run"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    TIME_OUT = "time_out"
    LOSE = "lose"


class Effect(enum.StrEnum):
    """What the caller does after a change of state, in this order."""

    RELEASE = "release"
    """Give back what was reserved on the target in this node's books."""
    QUEUE = "queue"
    """Look for a node again."""
    NOTIFY_STARTED = "notify_started"
    NOTIFY_ENDED = "notify_ended"


@dataclass(frozen=True)
class Step:
    """The next state of a task and what has to be done."""

    state: TaskState
    effects: tuple[Effect, ...] = ()


_ENDS: Mapping[TaskEvent, TaskState] = {
    TaskEvent.SUCCEED: T.SUCCEEDED,
    TaskEvent.FAIL: T.FAILED,
    TaskEvent.CANCEL: T.CANCELLED,
    TaskEvent.TIME_OUT: T.TIMED_OUT,
    TaskEvent.LOSE: T.LOST,
}

TASK: Mapping[tuple[TaskState, TaskEvent], Step] = {
    (T.WAITING, TaskEvent.OFFER): Step(T.PLACING),
    # A report may overtake the answer to its offer, so an attempt can run before it was "accepted".
    (T.WAITING, TaskEvent.RUN): Step(T.RUNNING, (Effect.NOTIFY_STARTED,)),
    (T.PLACING, TaskEvent.RUN): Step(T.RUNNING, (Effect.NOTIFY_STARTED,)),
    (T.PLACING, TaskEvent.RETURN): Step(T.WAITING, (Effect.RELEASE, Effect.QUEUE)),
    (T.RUNNING, TaskEvent.RETURN): Step(T.WAITING, (Effect.RELEASE, Effect.QUEUE)),
    **{
        (state, event): Step(end, (Effect.RELEASE, Effect.NOTIFY_ENDED))
        for state in (T.WAITING, T.PLACING, T.RUNNING)
        for event, end in _ENDS.items()
    },
}

ATTEMPT: Mapping[tuple[AttemptState, AttemptEvent], AttemptState] = {
    (A.OFFERED, AttemptEvent.REFUSE): A.REFUSED,
    (A.OFFERED, AttemptEvent.ACCEPT): A.PREPARING,
    (A.OFFERED, AttemptEvent.START): A.RUNNING,
    (A.PREPARING, AttemptEvent.START): A.RUNNING,
    # Its own origin's disk did not take it, so it was not started.
    (A.PREPARING, AttemptEvent.REFUSE): A.REFUSED,
    **{
        (state, event): end
        for state in (A.OFFERED, A.PREPARING, A.RUNNING)
        for event, end in {
            AttemptEvent.SUCCEED: A.SUCCEEDED,
            AttemptEvent.FAIL: A.FAILED,
            AttemptEvent.CANCEL: A.CANCELLED,
            AttemptEvent.TIME_OUT: A.TIMED_OUT,
            AttemptEvent.LOSE: A.LOST,
            AttemptEvent.REPLACE: A.SUPERSEDED,
        }.items()
    },
}

EVENT_OF_STATE: Mapping[AttemptState, AttemptEvent] = {
    A.REFUSED: AttemptEvent.REFUSE,
    A.PREPARING: AttemptEvent.ACCEPT,
    A.RUNNING: AttemptEvent.START,
    A.SUCCEEDED: AttemptEvent.SUCCEED,
    A.FAILED: AttemptEvent.FAIL,
    A.CANCELLED: AttemptEvent.CANCEL,
    A.TIMED_OUT: AttemptEvent.TIME_OUT,
    A.LOST: AttemptEvent.LOSE,
    A.SUPERSEDED: AttemptEvent.REPLACE,
}


def step_task(state: TaskState, event: TaskEvent) -> Step | None:
    """The task's next state and effects, or None where the event changes nothing."""
    return TASK.get((state, event))


def step_attempt(state: AttemptState, event: AttemptEvent) -> AttemptState | None:
    """The attempt's next state, or None where the event changes nothing."""
    return ATTEMPT.get((state, event))


def task_event(
    attempt: AttemptState, cause: str, retry: Retry, *, counted: int, cancelling: bool
) -> TaskEvent | None:
    """What the newest attempt's new state means for its task.

    Args:
        attempt: the attempt's new state.
        cause: ``Attempt.cause`` of an ended attempt.
        retry: the task's rules.
        counted: attempts so far that count (all but refused ones), this one included.
        cancelling: somebody has asked to cancel the task.
    """
    if not attempt.terminal or attempt is A.SUCCEEDED:
        return {A.RUNNING: TaskEvent.RUN, A.SUCCEEDED: TaskEvent.SUCCEED}.get(attempt)
    if cancelling or attempt is A.CANCELLED:
        return TaskEvent.CANCEL
    if attempt is A.REFUSED:
        return TaskEvent.RETURN
    if counted < retry.max_attempts and may_retry(attempt, cause, retry):
        return TaskEvent.RETURN
    return {A.TIMED_OUT: TaskEvent.TIME_OUT, A.LOST: TaskEvent.LOSE, A.SUPERSEDED: TaskEvent.LOSE}.get(
        attempt, TaskEvent.FAIL
    )


def may_retry(attempt: AttemptState, cause: str, retry: Retry) -> bool:
    """Whether the rules name the way this attempt ended."""
    if attempt in (A.LOST, A.SUPERSEDED):
        return "node_lost" in retry.on
    if attempt is A.TIMED_OUT:
        return "timed_out" in retry.on
    if cause in ("oom", "image_unavailable", "node_lost", "rejected"):
        return cause in retry.on
    return "failed" in retry.on
