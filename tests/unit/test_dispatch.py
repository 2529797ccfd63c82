"""Dispatch and executor of several nodes in one program, on MockClock, with the in-memory twins."""

import dataclasses

import msgspec
import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.callbacks import Callbacks
from edgeorch.dispatch import accept
from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.errors import (
    ConstraintError,
    InvalidRequestError,
    KeyReusedError,
    NodeUnreachableError,
    NotFoundError,
    OriginUnreachableError,
    PolicyError,
    StorageError,
)
from edgeorch.model import AttemptState as A
from edgeorch.model import Caller, Exit, NativeService, Offer, PeerState, Resources, TaskSpec
from edgeorch.model import TaskState as T
from edgeorch.store import AuditFilter, PutAudit, PutRun, PutTask, TaskFilter
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import FailingStore
from edgeorch.wire.messages import RunState


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


def attempts(task):
    return [(one.node_name, one.state) for one in task.attempts]


async def test_a_task_runs_here(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("print", "hello")
    assert task.state is T.PLACING
    task = await ended(a, task)
    assert (task.state, task.exit_code, attempts(task)) == (T.SUCCEEDED, 0, [("a", A.SUCCEEDED)])
    assert await a.store.task(task.id) == task
    assert await a.store.runs() == []
    assert a.executor.slots.used == 0
    assert task.id not in a.dispatch.ledger.open


async def test_of_two_records_that_reach_the_disk_together_callers_see_the_newer(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "100")
    await until(a, task, lambda now: now.state is T.RUNNING)
    ledger = a.dispatch.ledger
    entry, commit, overtaken = ledger.open[task.id], a.store.commit_both, trio.Event()
    pauses = iter([overtaken.wait, trio.lowlevel.checkpoint])

    async def slowly(changes, runs=()):
        await commit(changes, runs)
        await next(pauses)()

    monkeypatch.setattr(a.store, "commit_both", slowly)
    entry.update(reason="older")
    nursery.start_soon(ledger.commit, entry, ledger.state_changes(entry))
    await trio.testing.wait_all_tasks_blocked()
    entry.update(reason="newer")
    await ledger.commit(entry, ledger.state_changes(entry))
    overtaken.set()
    await trio.testing.wait_all_tasks_blocked()
    assert entry.saved.reason == "newer"
    monkeypatch.undo()


async def test_a_task_stays_in_memory_until_its_end_is_on_disk(autojump_clock, fleet, nursery, monkeypatch):
    """Else a report that comes meanwhile builds on the record from before the end."""
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "100")
    await until(a, task, lambda now: now.state is T.RUNNING)
    ledger = a.dispatch.ledger
    entry, commit = ledger.open[task.id], a.store.commit_both
    first, second = waiting = trio.Event(), trio.Event()
    order = iter(waiting)

    async def slowly(changes, runs=()):
        await next(order).wait()
        await commit(changes, runs)

    monkeypatch.setattr(a.store, "commit_both", slowly)
    entry.update(reason="on its way")
    nursery.start_soon(ledger.commit, entry, ledger.state_changes(entry))
    await trio.testing.wait_all_tasks_blocked()
    run = RunState(
        key=f"{task.id}.1", state=A.SUCCEEDED, driver="native", sequence=99, exit=Exit(exit_code=0)
    )
    nursery.start_soon(ledger.take_report, a.id, run)
    await trio.testing.wait_all_tasks_blocked()
    first.set()
    await trio.testing.wait_all_tasks_blocked()
    assert task.id in ledger.open
    second.set()
    await trio.testing.wait_all_tasks_blocked()
    assert task.id not in ledger.open
    assert (await a.store.task(task.id)).state is T.SUCCEEDED
    monkeypatch.undo()


async def test_a_report_is_not_acknowledged_because_an_earlier_try_was_cut(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "100")
    await until(a, task, lambda now: now.state is T.RUNNING)
    ledger, commit, never = a.dispatch.ledger, a.store.commit_both, trio.Event()

    async def stuck(changes, runs=()):
        await never.wait()

    run = RunState(
        key=f"{task.id}.1", state=A.SUCCEEDED, driver="native", sequence=99, exit=Exit(exit_code=0)
    )
    monkeypatch.setattr(a.store, "commit_both", stuck)
    with trio.move_on_after(5):
        await ledger.take_report(a.id, run)
    assert (await a.store.task(task.id)).state is T.RUNNING
    monkeypatch.setattr(a.store, "commit_both", commit)
    assert await ledger.take_report(a.id, run)
    assert (await a.store.task(task.id)).state is T.SUCCEEDED
    assert task.id not in ledger.open


async def test_the_best_node_runs_it(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.95
    task = await ended(a, await a.submit("sleep", "3", ";", "exit", "4"))
    assert (task.state, task.exit_code, attempts(task)) == (T.FAILED, 4, [("b", A.FAILED)])
    assert "4" in task.reason
    await trio.sleep(1)
    assert await b.store.runs() == []


async def test_a_refusal_goes_to_the_next_best_and_costs_no_attempt(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.95
    b.rules.refuse = "policy.native is off"
    task = await ended(a, await a.submit("true", retry={"max_attempts": 1}))
    assert attempts(task) == [("b", A.REFUSED), ("a", A.SUCCEEDED)]
    assert "policy.native" in task.attempts[0].reason
    # The refusal said how the node is now; nobody waits for its next probe to know.
    assert a.membership.told.keys() == {b.id}


async def test_an_offer_that_never_left_goes_to_the_next_best(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.95
    fleet.network.crash(b.id)
    task = await ended(a, await a.submit("true", retry={"max_attempts": 1}))
    assert attempts(task) == [("b", A.REFUSED), ("a", A.SUCCEEDED)]


async def test_a_task_waits_and_says_why_then_runs_when_a_slot_is_free(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    first = await a.submit("sleep", "5")
    second = await a.submit("true")
    assert second.state is T.WAITING
    assert "all 1 slots are in use" in second.reason
    await ended(a, first)
    assert (await ended(a, second)).state is T.SUCCEEDED


async def test_the_next_of_a_line_that_moves_is_not_written_once_more(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a", slots=1)
    explained = []
    why_none = a.dispatch.view.why_none
    monkeypatch.setattr(
        a.dispatch.view, "why_none", lambda entry: explained.append(entry.task.id) or why_none(entry)
    )
    tasks = [await a.submit("sleep", "0.4") for _ in range(12)]
    slow = [await a.submit("sleep", "10") for _ in range(2)]
    await ended(a, tasks[-1])
    assert explained == [tasks[1].id]  # which had no reason before
    assert "others of its kind" in a.dispatch.ledger.open[slow[1].id].task.reason
    await trio.sleep(6)
    assert "all 1 slots are in use" in a.dispatch.ledger.open[slow[1].id].task.reason


async def test_no_place_is_looked_for_behind_one_of_the_same_batch_that_found_none(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a", slots=2)
    looked = []
    best = a.dispatch.view.best
    monkeypatch.setattr(a.dispatch.view, "best", lambda entry: looked.append(entry.shape) or best(entry))
    one = TaskSpec(name="one", service=(NativeService(argv=("sleep", "4")),))
    other = msgspec.structs.replace(one, resources=Resources(cpus=1))
    batch = [Submission.of(spec, msgspec.json.encode(spec)) for spec in (*5 * [one], other)]
    tasks = await a.dispatch.submit(batch, ADMIN)
    # For the first three of a kind and the other; once more for the first of each kind when they wait.
    assert len(looked) == 4 + 2
    assert ["in use" in task.reason for task in tasks] == [False, False, True, False, False, True]
    assert "others of its kind" in tasks[4].reason
    assert [(await ended(a, task)).state for task in tasks] == [T.SUCCEEDED] * 6


async def test_a_node_alone_looks_once_for_each_slot_that_is_freed(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a", slots=1)
    tasks = [await a.submit("sleep", "0.3") for _ in range(5)]
    await trio.sleep(0.1)
    looked = []
    best = a.dispatch.view.best
    monkeypatch.setattr(a.dispatch.view, "best", lambda entry: looked.append(entry.task.id) or best(entry))
    await ended(a, tasks[-1])
    assert looked == [task.id for task in tasks[1:]]


async def test_what_waits_runs_as_soon_as_something_ends_elsewhere(autojump_clock, fleet, nursery):
    """No sample is waited for: the report of the end tells of the free slot."""
    a, _ = await started(fleet, nursery, "a", "b", slots=1)
    longer = await a.submit("sleep", "100", placement={"node": "a"})
    shorter = await a.submit("sleep", "4.5", placement={"node": "b"})
    await until(a, shorter, lambda now: now.state is T.RUNNING)
    waiting = await a.submit("print", "hello")
    assert waiting.state is T.WAITING
    assert (await ended(a, shorter)).state is T.SUCCEEDED
    begun = trio.current_time()
    assert (await ended(a, waiting)).attempts[-1].node_name == "b"
    assert trio.current_time() - begun < 1.0
    assert a.dispatch.ledger.open[longer.id].task.state is T.RUNNING


async def test_the_answer_to_an_offer_brings_a_sample_with_the_attempt_in_it(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "4.5", placement={"node": "b"})
    await until(a, task, lambda now: now.state is T.RUNNING)
    assert a.membership.told[b.id].slots_used == 1


async def test_a_task_without_a_matching_node_runs_when_one_joins(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("true", placement={"constraints": ["name == b"]})
    assert task.state is T.WAITING
    assert "constraint not met: name == b" in task.reason
    await trio.sleep(30)
    await started(fleet, nursery, "b")
    assert attempts(await ended(a, task)) == [("b", A.SUCCEEDED)]


async def test_urgent_tasks_go_first(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    await a.submit("sleep", "5")
    tasks = [await a.submit("sleep", "1", priority=number) for number in (10, 90, 50)]
    done = [await ended(a, task) for task in tasks]
    by_start = sorted(done, key=lambda task: task.attempts[0].started_at)
    assert [task.priority for task in by_start] == [90, 50, 10]


async def test_a_newcomer_does_not_overtake_its_like(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    running = await a.submit("sleep", "5")
    waiting = await a.submit("sleep", "1")
    await until(a, running, lambda now: now.state.terminal)
    newcomer = await a.submit("sleep", "1")
    first, second = await ended(a, waiting), await ended(a, newcomer)
    assert first.attempts[0].started_at < second.attempts[0].started_at


async def test_a_newcomer_behind_its_like_costs_no_look_at_the_fleet(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    running, looks = await a.submit("sleep", "1"), a.dispatch.view.took
    tasks = [await a.submit("sleep", "0.1")]
    await trio.testing.wait_all_tasks_blocked()
    before = sum(looks.counts)
    tasks += [await a.submit("sleep", "0.1") for _ in range(5)]
    await trio.testing.wait_all_tasks_blocked()
    assert sum(looks.counts) == before
    tasks.append(await a.submit("sleep", "0.1", priority=90))
    await trio.testing.wait_all_tasks_blocked()
    assert sum(looks.counts) > before
    await until(a, running, lambda now: now.state.terminal)
    assert {(await ended(a, task)).state for task in tasks} == {T.SUCCEEDED}


async def test_what_came_while_the_line_before_it_was_placed_is_placed_too(
    autojump_clock, fleet, nursery, monkeypatch
):
    """It was planned behind another, which has left the queue by the time it is on the disk."""
    (a,) = await started(fleet, nursery, "a", slots=2)
    running = [await a.submit("sleep", "1") for _ in range(2)]
    first, commit = await a.submit("sleep", "50"), a.store.commit_both

    async def slowly(changes, runs=()):
        if any(isinstance(one, PutAudit) for one in changes):
            await trio.sleep(2)
        return await commit(changes, runs)

    monkeypatch.setattr(a.store, "commit_both", slowly)
    late = await a.submit("sleep", "1")
    assert late.state is T.WAITING
    await trio.testing.wait_all_tasks_blocked()
    assert (await ended(a, late)).attempts[0].started_at - late.created_at < 2.5
    assert a.dispatch.ledger.open[first.id].task.state is T.RUNNING
    assert running
    monkeypatch.undo()


async def test_cancel_while_waiting(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    await a.submit("sleep", "100")
    task = await a.submit("true")
    assert (await a.dispatch.cancel(task.id, ADMIN)).state is T.CANCELLED
    assert len(a.dispatch.ledger.queue) == 0


@pytest.mark.parametrize("where", ["a", "b"])
async def test_cancel_while_running(autojump_clock, fleet, nursery, where):
    a, _ = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1000", placement={"node": where})
    await until(a, task, lambda now: now.state is T.RUNNING)
    first = await a.dispatch.cancel(task.id, ADMIN)
    again = await a.dispatch.cancel(task.id, ADMIN)
    assert first.cancelling
    assert again.id == task.id
    task = await ended(a, task)
    assert (task.state, attempts(task)) == (T.CANCELLED, [(where, A.CANCELLED)])


async def test_a_service_that_ignores_sigterm_is_killed(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("ignore-term", ";", "hang")
    await until(a, task, lambda now: now.state is T.RUNNING)
    start = trio.current_time()
    await a.dispatch.cancel(task.id, ADMIN)
    assert (await ended(a, task)).state is T.CANCELLED
    assert trio.current_time() - start == pytest.approx(10, abs=1)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_an_attempt_runs_out_of_time(autojump_clock, fleet, nursery, where):
    a, _ = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1000", timeout_s=20, placement={"node": where})
    start = trio.current_time()
    task = await ended(a, task)
    assert (task.state, attempts(task)) == (T.TIMED_OUT, [(where, A.TIMED_OUT)])
    assert trio.current_time() - start == pytest.approx(20, abs=2)


async def test_the_deadline_ends_every_task(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a", slots=1)
    running = await a.submit("sleep", "1000", deadline_s=30)
    waiting = await a.submit("sleep", "1000", deadline_s=40)
    for task, seconds in ((running, 30), (waiting, 40)):
        done = await ended(a, task)
        assert done.state is T.TIMED_OUT
        assert done.ended_at - done.created_at == pytest.approx(seconds, abs=3)
    await trio.sleep(30)
    assert a.executor.slots.used == 0
    assert a.dispatch.ledger.open == {}


async def test_a_task_past_its_deadline_on_a_vanished_node_is_not_kept_in_memory(
    autojump_clock, fleet, nursery
):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1000", deadline_s=8, placement={"node": "b"}, retry={"max_attempts": 1})
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash(host=True)
    assert (await ended(a, task)).state is T.TIMED_OUT
    await trio.sleep(200)
    assert a.dispatch.ledger.open == {}
    assert attempts(await a.store.task(task.id)) == [("b", A.LOST)]


async def test_a_lost_node_is_replaced_after_the_lease(autojump_clock, fleet, nursery):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    a.me.cpu_busy = c.me.cpu_busy = 0.9
    task = await a.submit("sleep", "60")
    await until(a, task, lambda now: now.state is T.RUNNING)
    start = trio.current_time()
    b.crash(host=True)
    task = await until(a, task, lambda now: len(now.attempts) == 2)
    assert 10 <= trio.current_time() - start <= 16
    task = await ended(a, task)
    assert task.state is T.SUCCEEDED
    assert attempts(task)[0] == ("b", A.LOST)
    assert task.attempts[1].node_name != "b"


async def test_an_at_most_once_task_is_never_replaced(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.9
    task = await a.submit("sleep", "60", retry={"max_attempts": 1})
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash(host=True)
    task = await until(a, task, lambda now: "unreachable since" in now.reason)
    assert task.state is T.RUNNING
    start = trio.current_time()
    task = await ended(a, task)
    assert (task.state, attempts(task)) == (T.LOST, [("b", A.LOST)])
    assert trio.current_time() - start == pytest.approx(3600, abs=10)


async def test_a_target_may_be_heard_while_its_silence_is_written(
    autojump_clock, fleet, nursery, monkeypatch
):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.9
    task = await a.submit("sleep", "60", retry={"max_attempts": 1})
    await until(a, task, lambda now: now.state is T.RUNNING)
    ledger, commit, heard = a.dispatch.ledger, a.dispatch.ledger.commit, []

    async def slow_commit(entry, *rest):
        await commit(entry, *rest)
        if entry.unreachable_at is not None:
            a.dispatch.leases.extend(entry)
            heard.append(entry)

    monkeypatch.setattr(ledger, "commit", slow_commit)
    b.crash(host=True)
    await trio.sleep(30)
    assert heard
    assert (await a.store.task(task.id)).state is T.RUNNING


async def test_why_a_task_has_ended_stays_when_its_lost_target_comes_back(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit(
        *("sleep", "200"),
        placement={"node": "b"},
        retry={"max_attempts": 1},
        on_disconnect="keep",
        deadline_s=60,
    )
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash()
    await until(a, task, lambda now: "unreachable since" in now.reason)
    assert (await ended(a, task)).reason == "not done within deadline_s = 60"
    b.store = b.store.reopened()
    await nursery.start(b.run)
    fleet.set_state(b.id, PeerState.ALIVE)
    await trio.sleep(100)
    found = await a.store.task(task.id)
    assert (found.reason, attempts(found)) == ("not done within deadline_s = 60", [("b", A.TIMED_OUT)])


async def test_a_cut_off_target_ends_the_attempt_and_its_late_result_is_superseded(
    autojump_clock, fleet, nursery
):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    a.me.cpu_busy = c.me.cpu_busy = 0.9
    task = await a.submit("sleep", "100")
    await until(a, task, lambda now: now.state is T.RUNNING)
    for other in (a, c):
        fleet.network.partition(b.id, other.id)
    fleet.set_state(b.id, PeerState.DEAD)
    start = trio.current_time()
    await b.executor.lives()[f"{task.id}.1"].ended.wait()
    assert trio.current_time() - start <= 12
    task = await until(a, task, lambda now: len(now.attempts) == 2 and now.state is T.RUNNING)
    for other in (a, c):
        fleet.network.heal(b.id, other.id)
    fleet.set_state(b.id, PeerState.ALIVE)
    task = await ended(a, task)
    assert task.state is T.SUCCEEDED
    assert task.attempts[0].state in (A.LOST, A.SUPERSEDED)
    assert await b.store.runs() == []


async def test_keep_lets_a_cut_off_attempt_finish(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit(
        "sleep", "40", placement={"node": "b"}, on_disconnect="keep", retry={"max_attempts": 1}
    )
    await until(a, task, lambda now: now.state is T.RUNNING)
    fleet.network.partition(a.id, b.id)
    fleet.set_state(b.id, PeerState.DEAD, seen_by=a.id)
    fleet.set_state(a.id, PeerState.DEAD, seen_by=b.id)
    await trio.sleep(60)
    fleet.network.heal(a.id, b.id)
    fleet.set_state(b.id, PeerState.ALIVE, seen_by=a.id)
    fleet.set_state(a.id, PeerState.ALIVE, seen_by=b.id)
    task = await ended(a, task)
    assert (task.state, attempts(task)) == (T.SUCCEEDED, [("b", A.SUCCEEDED)])


async def test_an_origin_that_has_long_been_away_is_told_soon_after_it_is_back(
    autojump_clock, fleet, nursery, monkeypatch
):
    a, b = await started(fleet, nursery, "a", "b")
    report, away = b.dispatch.reporter.report, True

    async def refused(*what):
        await trio.lowlevel.checkpoint()
        if away:
            raise NodeUnreachableError("no link")
        return await report(*what)

    monkeypatch.setattr(b.dispatch.reporter, "report", refused)
    await a.submit("sleep", "5", placement={"node": "b"}, retry={"max_attempts": 1})
    await trio.sleep(1)
    fleet.set_state(a.id, PeerState.DEAD, seen_by=b.id)
    await trio.sleep(300)
    away = False
    fleet.set_state(a.id, PeerState.ALIVE, seen_by=b.id)
    assert b.executor.lives()
    await trio.sleep(3)
    assert not b.executor.lives()


async def test_the_origin_restarts_and_its_tasks_go_on(autojump_clock, fleet, nursery):
    a, _ = await started(fleet, nursery, "a", "b", slots=1)
    here = await a.submit("sleep", "20", placement={"node": "a"}, retry={"max_attempts": 1})
    there = await a.submit("sleep", "20", placement={"node": "b"}, retry={"max_attempts": 1})
    waiting = await a.submit("true", placement={"node": "a"})
    await until(a, there, lambda now: now.state is T.RUNNING)
    await until(a, here, lambda now: now.state is T.RUNNING)
    a.crash()
    await trio.sleep(5)
    a.store = a.store.reopened()
    await nursery.start(a.run)
    fleet.set_state(a.id, PeerState.ALIVE)
    for task, name in ((here, "a"), (there, "b"), (waiting, "a")):
        done = await ended(a, task)
        assert (done.state, attempts(done)) == (T.SUCCEEDED, [(name, A.SUCCEEDED)])
    await trio.sleep(1)
    assert a.host.services == {}


async def test_a_result_waits_for_its_origin(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "8", placement={"node": "b"}, on_disconnect="keep")
    await until(a, task, lambda now: now.state is T.RUNNING)
    a.crash()
    await trio.sleep(1000)
    assert len(await b.store.runs()) == 1
    a.store = a.store.reopened()
    await nursery.start(a.run)
    fleet.set_state(a.id, PeerState.ALIVE)
    task = await ended(a, task)
    assert attempts(task) == [("b", A.SUCCEEDED)]
    await trio.sleep(60)
    assert await b.store.runs() == []


async def test_the_targets_daemon_restarts_and_adopts(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "30", placement={"node": "b"}, retry={"max_attempts": 1})
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash()
    await trio.sleep(3)
    b.store = b.store.reopened()
    await nursery.start(b.run)
    fleet.set_state(b.id, PeerState.ALIVE)
    task = await ended(a, task)
    assert (task.state, attempts(task)) == (T.SUCCEEDED, [("b", A.SUCCEEDED)])


async def test_a_target_that_comes_back_without_the_attempt_is_replaced_at_once(
    autojump_clock, fleet, nursery
):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    a.me.cpu_busy = c.me.cpu_busy = 0.9
    task = await a.submit("sleep", "30")
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash(host=True)
    await trio.sleep(1)
    b.store = b.store.reopened()
    start = trio.current_time()
    await nursery.start(b.run)
    fleet.set_state(b.id, PeerState.ALIVE)
    task = await until(a, task, lambda now: len(now.attempts) == 2)
    assert trio.current_time() - start < 5
    assert (await ended(a, task)).state is T.SUCCEEDED


async def test_a_failed_service_is_retried_where_the_task_says_so(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("exit", "1", retry={"max_attempts": 3, "on": ["failed"], "backoff_s": 2})
    task = await ended(a, task)
    assert (task.state, len(task.attempts)) == (T.FAILED, 3)
    assert [one.number for one in task.attempts] == [1, 2, 3]


async def test_a_missing_program_ends_with_a_reason(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    task = await ended(a, await a.submit("no-such-program"))
    assert task.state is T.FAILED
    assert "no-such-program" in task.reason


async def test_all_runs_on_every_live_node(autojump_clock, fleet, nursery):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    c.crash()
    parent = await a.submit("sleep", "2", placement={"mode": "all"}, callback_url="http://x.example/")
    parent = await ended(a, parent)
    children = await b.dispatch.children(parent.id, ADMIN)
    assert parent.state is T.SUCCEEDED
    assert parent.attempts == ()
    assert sorted(attempts(child)[0] for child in children) == [("a", A.SUCCEEDED), ("b", A.SUCCEEDED)]
    assert [sent[1:] for sent in a.notes.sent] == [("started", "running"), ("ended", "succeeded")]


async def test_spread_waits_for_enough_nodes(autojump_clock, fleet, nursery):
    a, _ = await started(fleet, nursery, "a", "b")
    parent = await a.submit("exit", "3", placement={"mode": "spread", "count": 3})
    assert parent.state is T.WAITING
    assert "2 of 3 nodes are free" in parent.reason
    await started(fleet, nursery, "c")
    parent = await ended(a, parent)
    children = await a.dispatch.children(parent.id, ADMIN)
    assert (parent.state, parent.exit_code) == (T.FAILED, 3)
    assert len({child.attempts[0].node for child in children}) == 3


async def test_cancelling_a_parent_cancels_its_children(autojump_clock, fleet, nursery):
    a, _ = await started(fleet, nursery, "a", "b")
    parent = await a.submit("sleep", "1000", placement={"mode": "all"})
    await trio.sleep(1)
    await a.dispatch.cancel(parent.id, ADMIN)
    assert (await ended(a, parent)).state is T.CANCELLED
    assert {child.state for child in await a.dispatch.children(parent.id, ADMIN)} == {T.CANCELLED}


async def test_a_parent_is_cancelled_whole_although_the_disk_refuses(autojump_clock, fleet, nursery):
    a, _ = fleet.add("a"), fleet.add("b")
    a.store = store = FailingStore(a.store)
    for node in fleet.nodes.values():
        await nursery.start(node.host.run)
        await nursery.start(node.run)
    parent = await a.submit("sleep", "1000", placement={"mode": "all"})
    await trio.sleep(1)
    store.failing = True
    with pytest.raises(StorageError):
        await a.dispatch.cancel(parent.id, ADMIN)
    await trio.sleep(20)
    hosts = [node.host for node in fleet.nodes.values()]
    assert all(one.end is not None for host in hosts for one in host.services.values())
    store.failing = False
    began = trio.current_time()
    assert (await ended(a, parent)).state is T.CANCELLED
    assert trio.current_time() - began < 60
    assert {child.state for child in await a.dispatch.children(parent.id, ADMIN)} == {T.CANCELLED}
    assert len(await store.audit(AuditFilter())) == 2


async def test_cancelling_a_parent_that_is_out_of_time_does_not_change_why_it_ended(
    autojump_clock, fleet, nursery
):
    a = fleet.add("a")
    a.store = store = FailingStore(a.store)
    await nursery.start(a.host.run)
    await nursery.start(a.run)
    parent = await a.submit("sleep", "1000", placement={"mode": "all"}, deadline_s=10)
    await trio.sleep(5)
    store.failing = True
    await trio.sleep(10)
    await a.dispatch.cancel(parent.id, ADMIN)
    store.failing = False
    parent = await ended(a, parent)
    assert (parent.state, parent.reason) == (T.TIMED_OUT, "not done within deadline_s = 10")


async def test_a_parent_whose_cancellation_was_cut_by_a_crash_is_cancelled_whole(
    autojump_clock, fleet, nursery
):
    a, b = await started(fleet, nursery, "a", "b")
    parent = await a.submit("sleep", "1000", placement={"mode": "all"})
    await trio.sleep(1)
    entry = a.dispatch.ledger.open[parent.id]
    await a.store.commit([PutTask(task=msgspec.structs.replace(entry.task, cancelling=True))])
    a.crash()
    a.store = a.store.reopened()
    await nursery.start(a.run)
    assert (await ended(a, parent)).state is T.CANCELLED
    assert {child.state for child in await b.dispatch.children(parent.id, ADMIN)} == {T.CANCELLED}


async def test_a_parent_ends_although_the_disk_refused_the_end_of_its_last_child(
    autojump_clock, fleet, nursery, monkeypatch
):
    a = fleet.add("a")
    a.store = store = FailingStore(a.store)
    await nursery.start(a.host.run)
    await nursery.start(a.run)
    parent = await a.submit("sleep", "1000", placement={"mode": "all"}, deadline_s=4000)
    await trio.sleep(1)
    (child,) = await a.dispatch.children(parent.id, ADMIN)
    store.failing = True
    with pytest.raises(StorageError):
        await a.dispatch.cancel(child.id, ADMIN)
    await trio.sleep(10)
    unreadable, children = True, store.children

    async def read(parent_id):
        if unreadable:
            raise StorageError("input/output error")
        return await children(parent_id)

    monkeypatch.setattr(store, "children", read)
    store.failing = False
    await trio.sleep(10)
    assert (await a.dispatch.task(parent.id, ADMIN)).state is T.RUNNING
    unreadable = False
    began = trio.current_time()
    assert (await ended(a, parent)).state is T.FAILED
    assert trio.current_time() - began < 60


async def test_self_and_node(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    b.me.cpu_busy = 0.9
    assert attempts(await ended(a, await a.submit("true"))) == [("a", A.SUCCEEDED)]
    task = await ended(a, await a.submit("true", placement={"self": False}))
    assert attempts(task) == [("b", A.SUCCEEDED)]
    task = await ended(a, await a.submit("true", placement={"node": b.id}))
    assert attempts(task) == [("b", A.SUCCEEDED)]


async def test_a_burst_is_spread_although_samples_are_old(autojump_clock, fleet, nursery):
    a, _ = await started(fleet, nursery, "a", "b", slots=4)
    tasks = [await a.submit("sleep", "5") for _ in range(8)]
    done = [await ended(a, task) for task in tasks]
    assert sorted(attempts(task)[-1][0] for task in done) == ["a"] * 4 + ["b"] * 4


async def test_drained_nodes_get_nothing(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.9
    await a.dispatch.change_node("b", "drain", ADMIN)
    assert b.me.info.state == "draining"
    assert attempts(await ended(a, await a.submit("true"))) == [("a", A.SUCCEEDED)]
    await a.dispatch.change_node("b", "resume", ADMIN)
    assert attempts(await ended(a, await a.submit("true"))) == [("b", A.SUCCEEDED)]


async def submit_with_key(node, key, body=b"1", token="t"):
    spec = TaskSpec(name="x", service=(NativeService(argv=("true",)),))
    submission = Submission(spec=spec, raw=msgspec.json.encode(spec))
    caller = Caller(token=token, role="submit")
    return await node.dispatch.submit([submission], caller, Idempotency(key=key, body=body))


async def test_the_same_key_is_the_same_task(autojump_clock, fleet, nursery, monkeypatch):
    monkeypatch.setattr(accept, "KEY_LIFE_S", 100.0)
    (a,) = await started(fleet, nursery, "a")
    found = []

    async def one():
        found.extend(await submit_with_key(a, "k"))

    async with trio.open_nursery() as inner:
        for _ in range(5):
            inner.start_soon(one)
    assert len({task.id for task in found}) == 1
    with pytest.raises(KeyReusedError):
        await submit_with_key(a, "k", b"2")
    (other,) = await submit_with_key(a, "k", token="u")
    assert other.id != found[0].id
    await trio.sleep(101)
    (later,) = await submit_with_key(a, "k")
    assert later.id != found[0].id


async def test_any_node_answers_for_any_task(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await ended(b, await a.submit("true"))
    assert task.state is T.SUCCEEDED
    assert (await b.dispatch.task(task.id, ADMIN)).id == task.id
    page = await b.dispatch.tasks(TaskFilter(), ADMIN, local=False)
    assert [found.id for found in page.tasks] == [task.id]
    a.crash()
    with pytest.raises(OriginUnreachableError):
        await b.dispatch.task(task.id, ADMIN)
    page = await b.dispatch.tasks(TaskFilter(), ADMIN, local=False)
    assert page.unreachable == ("a",)


async def test_tokens_see_their_own_tasks(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    mine, other = (Caller(token=name, role="submit") for name in ("me", "you"))
    reader = Caller(token="r", role="read")
    task = await a.submit("true", caller=mine)
    for node in (a, b):
        assert (await node.dispatch.task(task.id, mine)).id == task.id
        assert (await node.dispatch.task(task.id, reader)).id == task.id
        with pytest.raises(NotFoundError):
            await node.dispatch.task(task.id, other)
        with pytest.raises(NotFoundError):
            await node.dispatch.cancel(task.id, other)
        assert (await node.dispatch.tasks(TaskFilter(), other, local=False)).tasks == ()


async def test_unknown_tasks(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    for text in ("", "x", "../etc", "0" * 26 + "-" + a.id):
        with pytest.raises(NotFoundError):
            await a.dispatch.task(text, ADMIN)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"placement": {"constraints": ["arch ="]}}, ConstraintError, "arch ="),
        ({"placement": {"count": 2}}, InvalidRequestError, "placement.count"),
        ({"placement": {"mode": "all", "node": "a"}}, InvalidRequestError, "placement.node"),
        ({"callback_url": "ftp://x"}, InvalidRequestError, "callback_url"),
        ({"callback_url": "http://x/\x7f"}, InvalidRequestError, "callback_url must be printable"),
        ({"callback_url": "http://127.0.0.1/"}, PolicyError, "policy.callbacks"),
        ({"callback_url": "http://localhost./"}, PolicyError, "a loopback address"),
        ({"callback_url": "http://0xa9fea9fe/"}, PolicyError, "169.254.169.254"),
        ({"callback_url": "http://u:p@x/"}, InvalidRequestError, "password"),
        ({"name": "a\nb"}, InvalidRequestError, "name"),
        ({"service": ({"driver": "native", "argv": [""]},)}, InvalidRequestError, "argv[0]"),
        ({"service": ({"driver": "native", "argv": ["a\0b"]},)}, InvalidRequestError, "NUL"),
        (
            {"service": ({"driver": "native", "argv": ["a"], "env": {"EDGEORCH_X": ""}},)},
            InvalidRequestError,
            "set by edgeorch",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_kept(fleet, nursery, fields, error, says):
    (a,) = await started(fleet, nursery, "a")
    with pytest.raises(error, match=None) as caught:
        await a.submit("true", **fields)
    assert says in str(caught.value)
    assert await a.store.open_tasks() == []


async def test_policy_refuses_at_the_door(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    a.rules.refuse = "policy.native is off"
    with pytest.raises(PolicyError):
        await a.submit("true")


async def test_a_full_disk_accepts_nothing_and_loses_nothing(autojump_clock, fleet, nursery):
    a = fleet.add("a")
    a.store = store = FailingStore(a.store)
    await nursery.start(a.host.run)
    await nursery.start(a.run)
    running = await a.submit("sleep", "5")
    await until(a, running, lambda now: now.state is T.RUNNING)
    store.failing = True
    with pytest.raises(StorageError):
        await a.submit("true")
    assert a.executor.slots.used == 1
    assert len(a.dispatch.ledger.open) == 1
    await trio.sleep(20)
    store.failing = False
    assert (await ended(a, running)).state is T.SUCCEEDED
    assert (await ended(a, await a.submit("true"))).state is T.SUCCEEDED
    assert a.executor.slots.used == 0


@pytest.mark.parametrize("at", range(1, 9))
async def test_a_commit_that_fails_once_loses_nothing(autojump_clock, fleet, nursery, at):
    a, b = fleet.add("a"), fleet.add("b")
    for node in (a, b):
        node.store = FailingStore(node.store, fail_at=(at,))
        await nursery.start(node.host.run)
        await nursery.start(node.run)
    a.me.cpu_busy = 0.9
    tasks = []
    for _ in range(3):
        try:
            tasks.append(await a.submit("sleep", "1"))
        except StorageError:
            continue
    for task in tasks:
        assert (await ended(a, task)).state is T.SUCCEEDED
    await trio.sleep(60)
    for node in (a, b):
        assert node.executor.slots.used == 0
        assert await node.store.runs() == []
        assert node.dispatch.ledger.open == {}


async def test_events_tell_the_whole_story_and_resume(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.9
    task = await a.submit("sleep", "2")
    for node in (a, b):
        async with node.dispatch.events(task.id, ADMIN, 0) as events:
            story = [event async for event in events]
        states = [event.data["state"] for event in story if event.type == "state"]
        assert states == ["placing", "running", "succeeded"]
        async with node.dispatch.events(task.id, ADMIN, story[2].seq) as events:
            assert [event.seq async for event in events] == [event.seq for event in story[3:]]


async def test_what_a_later_release_has_started_is_adopted_and_ended_by_this_one(
    autojump_clock, fleet, nursery
):
    a, b = await started(fleet, nursery, "a", "b")
    tasks = [await a.submit("sleep", seconds, placement={"node": "b"}) for seconds in ("60", "1000")]
    for task in tasks:
        await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash()
    for run in await b.store.runs():
        spec = run.offer.spec.replace(b'{"name"', b'{"mood":"calm","name"')
        assert spec != run.offer.spec
        offer = msgspec.structs.replace(run.offer, spec=spec)
        await b.store.commit_runs([PutRun(run=msgspec.structs.replace(run, offer=offer))])
    await trio.sleep(1)
    await nursery.start(b.run)
    assert b.executor.slots.used == 2
    done = await ended(a, tasks[0])
    assert (done.state, attempts(done)) == (T.SUCCEEDED, [("b", A.SUCCEEDED)])
    await a.dispatch.cancel(tasks[1].id, ADMIN)
    assert (await ended(a, tasks[1])).state is T.CANCELLED
    assert b.executor.slots.used == 0


async def test_an_offer_whose_origin_goes_away_while_it_is_written_is_started_all_the_same(
    autojump_clock, fleet, nursery
):
    (a,) = await started(fleet, nursery, "a")
    writing, may_go_on = trio.Event(), trio.Event()
    commit_runs = a.store.commit_runs

    async def slowly(changes):
        writing.set()
        await may_go_on.wait()
        await commit_runs(changes)

    a.store.commit_runs = slowly
    spec = TaskSpec(name="task", service=(NativeService(argv=("sleep", "3")),))
    offer = Offer(
        task_id="t-b", number=1, origin="b" * 10, name="task", spec=msgspec.json.encode(spec), caller=ADMIN
    )
    async with trio.open_nursery() as link:
        link.start_soon(a.executor.accept, offer, {})
        await writing.wait()
        link.cancel_scope.cancel()
    assert [state.state for state in await a.executor.find(["t-b"])] == [A.PREPARING]
    a.store.commit_runs = commit_runs
    may_go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert a.executor.lives()["t-b.1"].run.state is A.RUNNING
    assert (await a.executor.accept(offer, {})).accepted
    await trio.sleep(10)
    assert a.executor.slots.used == 0


async def test_an_end_that_a_full_disk_refused_is_written_once_there_is_room(autojump_clock, fleet, nursery):
    a = fleet.add("a", slots=1)
    inner = a.store
    a.store = store = FailingStore(inner)
    await nursery.start(a.host.run)
    await nursery.start(a.run)
    await a.submit("sleep", "100")
    waiting = await a.submit("true", deadline_s=10)
    await trio.sleep(5)
    store.failing = True
    await trio.sleep(20)
    assert (await inner.task(waiting.id)).state is T.WAITING
    store.failing = False
    await trio.sleep(2)
    assert (await inner.task(waiting.id)).state is T.TIMED_OUT
    assert waiting.id not in a.dispatch.ledger.open


async def test_a_callback_that_a_full_disk_refused_goes_out_once_there_is_room(
    autojump_clock, fleet, nursery, monkeypatch
):
    a = fleet.add("a")
    a.store = store = FailingStore(a.store)
    a.notes = callbacks = Callbacks(a.store, a.config.callbacks, a.seams, lambda _: "", lambda _: "")
    sent = []

    async def send(callback):
        sent.append(msgspec.json.decode(callback.body)["event"])

    monkeypatch.setattr(callbacks, "_send", send)
    await nursery.start(a.host.run)
    await nursery.start(callbacks.run)
    await nursery.start(a.run)
    task = await a.submit("sleep", "10", callback_url="http://receiver/")
    await trio.sleep(5)
    store.failing = True
    await trio.sleep(20)
    store.failing = False
    assert (await ended(a, task)).state is T.SUCCEEDED
    await trio.sleep(1)
    assert sent == ["started", "ended"]


async def test_a_clock_that_was_set_back_gives_no_task_more_time(autojump_clock, tmp_path, nursery):
    off_s = 0.0
    fleet = VirtualFleet(tmp_path)
    fleet.seams = dataclasses.replace(fleet.seams, wall=lambda: 1e9 + trio.current_time() + off_s)
    (a,) = await started(fleet, nursery, "a", slots=1)
    await a.submit("sleep", "1000")
    waiting = await a.submit("true", deadline_s=60)
    a.crash()
    off_s = -86_400.0
    a.store = a.store.reopened()
    await nursery.start(a.run)
    began = trio.current_time()
    assert (await ended(a, waiting)).state is T.TIMED_OUT
    assert trio.current_time() - began < 65


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_that_jumps_changes_no_timeout_lease_or_deadline(
    autojump_clock, tmp_path, nursery, days
):
    off_s = 0.0
    fleet = VirtualFleet(tmp_path)
    fleet.seams = dataclasses.replace(fleet.seams, wall=lambda: 1e9 + trio.current_time() + off_s)
    a, b = await started(fleet, nursery, "a", "b", slots=3)
    here = await a.submit("sleep", "60", timeout_s=90, placement={"node": "a"})
    there = await a.submit("sleep", "60", timeout_s=90, placement={"node": "b"})
    late = await a.submit("sleep", "1000", timeout_s=90, placement={"node": "b"})
    due = await a.submit("sleep", "1000", deadline_s=120, placement={"node": "a"})
    await trio.sleep(5)
    off_s = days * 86_400.0
    began = trio.current_time()
    assert [(await ended(a, task)).state for task in (here, there)] == [T.SUCCEEDED, T.SUCCEEDED]
    assert trio.current_time() - began == pytest.approx(55, abs=2)
    assert (await ended(a, late)).state is T.TIMED_OUT
    assert trio.current_time() - began == pytest.approx(85, abs=2)
    assert (await ended(a, due)).state is T.TIMED_OUT
    assert trio.current_time() - began == pytest.approx(115, abs=2)
    assert [len((await a.store.task(task.id)).attempts) for task in (here, there)] == [1, 1]
    assert b.host.services == {}


async def test_each_of_many_waiting_tasks_ends_at_its_own_deadline(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    nowhere = {"constraints": ["name == nobody"]}
    begun = trio.current_time()
    tasks = [await a.submit("true", placement=nowhere, deadline_s=seconds) for seconds in (40, 5, 20)]
    for index in (1, 2, 0):
        assert (await ended(a, tasks[index])).state is T.TIMED_OUT
    assert 40 <= trio.current_time() - begun <= 42
    later = await a.submit("true", placement=nowhere, deadline_s=5)
    assert (await ended(a, later)).state is T.TIMED_OUT


async def test_waiting_tasks_of_one_kind_share_what_they_have_in_common(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    made = [await a.submit("true", placement={"constraints": ["name == nobody"]}) for _ in range(2)]
    one, other = (a.dispatch.ledger.open[task.id].task for task in made)
    assert one.spec is other.spec
    assert one.caller is other.caller
    assert not a.dispatch.ledger.watched
