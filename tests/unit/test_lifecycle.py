import itertools

import pytest

from edgeorch.lifecycle import (
    ATTEMPT,
    EVENT_OF_STATE,
    TASK,
    AttemptEvent,
    Effect,
    TaskEvent,
    may_retry,
    step_attempt,
    step_task,
    task_event,
)
from edgeorch.model import AttemptState as A
from edgeorch.model import Retry
from edgeorch.model import TaskState as T

TASK_ENDS = {
    TaskEvent.SUCCEED: T.SUCCEEDED,
    TaskEvent.FAIL: T.FAILED,
    TaskEvent.CANCEL: T.CANCELLED,
    TaskEvent.TIME_OUT: T.TIMED_OUT,
    TaskEvent.LOSE: T.LOST,
}
ATTEMPT_ENDS = {
    AttemptEvent.SUCCEED: A.SUCCEEDED,
    AttemptEvent.FAIL: A.FAILED,
    AttemptEvent.CANCEL: A.CANCELLED,
    AttemptEvent.TIME_OUT: A.TIMED_OUT,
    AttemptEvent.LOSE: A.LOST,
    AttemptEvent.REPLACE: A.SUPERSEDED,
}


def expected_task(state, event):
    if state.terminal:
        return None
    if event in TASK_ENDS:
        return TASK_ENDS[event]
    return {
        (T.WAITING, TaskEvent.OFFER): T.PLACING,
        (T.WAITING, TaskEvent.RUN): T.RUNNING,
        (T.PLACING, TaskEvent.RUN): T.RUNNING,
        (T.PLACING, TaskEvent.RETURN): T.WAITING,
        (T.RUNNING, TaskEvent.RETURN): T.WAITING,
    }.get((state, event))


@pytest.mark.parametrize(("state", "event"), list(itertools.product(T, TaskEvent)))
def test_every_task_pair(state, event):
    step = step_task(state, event)
    assert (step and step.state) == expected_task(state, event)
    if step and step.state.terminal:
        assert step.effects == (Effect.RELEASE, Effect.NOTIFY_ENDED)
    if step and step.state is T.WAITING:
        assert Effect.QUEUE in step.effects


def expected_attempt(state, event):
    if state.terminal:
        return None
    if event in ATTEMPT_ENDS:
        return ATTEMPT_ENDS[event]
    return {
        (A.OFFERED, AttemptEvent.REFUSE): A.REFUSED,
        (A.OFFERED, AttemptEvent.ACCEPT): A.PREPARING,
        (A.OFFERED, AttemptEvent.START): A.RUNNING,
        (A.PREPARING, AttemptEvent.START): A.RUNNING,
        (A.PREPARING, AttemptEvent.REFUSE): A.REFUSED,
    }.get((state, event))


@pytest.mark.parametrize(("state", "event"), list(itertools.product(A, AttemptEvent)))
def test_every_attempt_pair(state, event):
    assert step_attempt(state, event) == expected_attempt(state, event)


def test_tables_hold_only_what_is_expected():
    assert all(not state.terminal for state, _ in TASK)
    assert all(not state.terminal for state, _ in ATTEMPT)
    assert set(EVENT_OF_STATE) == set(A) - {A.OFFERED}


@pytest.mark.parametrize(
    ("state", "cause", "on", "retried"),
    [
        (A.LOST, "node_lost", ("node_lost",), True),
        (A.LOST, "node_lost", ("failed",), False),
        (A.SUPERSEDED, "superseded", ("node_lost",), True),
        (A.FAILED, "failed", ("failed",), True),
        (A.FAILED, "failed", ("node_lost", "rejected"), False),
        (A.FAILED, "oom", ("failed",), False),
        (A.FAILED, "oom", ("oom",), True),
        (A.FAILED, "image_unavailable", ("image_unavailable",), True),
        (A.FAILED, "rejected", ("rejected",), True),
        (A.FAILED, "no_program", ("failed",), True),
        (A.TIMED_OUT, "timed_out", ("timed_out",), True),
        (A.TIMED_OUT, "timed_out", ("failed",), False),
    ],
)
def test_retry_rules(state, cause, on, retried):
    assert may_retry(state, cause, Retry(on=on)) is retried
    event = task_event(state, cause, Retry(on=on, max_attempts=2), counted=1, cancelling=False)
    assert (event is TaskEvent.RETURN) is retried


def test_attempts_are_counted():
    retry = Retry(on=("failed",), max_attempts=2)
    assert task_event(A.FAILED, "failed", retry, counted=1, cancelling=False) is TaskEvent.RETURN
    assert task_event(A.FAILED, "failed", retry, counted=2, cancelling=False) is TaskEvent.FAIL


def test_at_most_once_is_never_repeated():
    retry = Retry(on=("failed", "node_lost", "rejected", "timed_out", "oom"), max_attempts=1)
    for state, cause in ((A.FAILED, "failed"), (A.LOST, "node_lost"), (A.TIMED_OUT, "timed_out")):
        assert task_event(state, cause, retry, counted=1, cancelling=False) is not TaskEvent.RETURN


def test_a_refusal_costs_no_attempt():
    retry = Retry(max_attempts=1)
    assert task_event(A.REFUSED, "rejected", retry, counted=0, cancelling=False) is TaskEvent.RETURN


@pytest.mark.parametrize("state", [A.REFUSED, A.FAILED, A.LOST, A.TIMED_OUT, A.CANCELLED, A.SUPERSEDED])
def test_a_task_being_cancelled_ends_cancelled(state):
    assert task_event(state, "failed", Retry(), counted=1, cancelling=True) is TaskEvent.CANCEL


def test_a_service_that_succeeds_while_being_cancelled_has_succeeded():
    assert task_event(A.SUCCEEDED, "", Retry(), counted=1, cancelling=True) is TaskEvent.SUCCEED
