"""What a remote attempt writes later than it happens: crashes before that, and disks that refuse it."""

import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.errors import StorageError
from edgeorch.model import AttemptState as A
from edgeorch.model import PeerState
from edgeorch.model import TaskState as T
from edgeorch.store import AuditFilter, EndRun, PutRun
from edgeorch.testing.drivers import ScriptedDriver
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import MemoryStore


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


async def again(fleet, nursery, node):
    """Start a node that has crashed."""
    await nursery.start(node.run)
    fleet.set_state(node.id, PeerState.ALIVE)


async def end_of(node, task):
    """How a node remembers the acknowledged end of the task's attempts."""
    return [run.state for run in await node.store.ended_runs([task.id])]


async def test_target_dies_after_the_origin_has_the_end(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("exit", "3", placement={"node": "b"}, retry={"max_attempts": 3})
    assert (await ended(a, task)).state is T.FAILED
    await trio.testing.wait_all_tasks_blocked()
    assert [run.state for run in await b.store.runs()] == [A.PREPARING]
    b.crash()
    await again(fleet, nursery, b)
    await trio.sleep(5)
    assert await end_of(b, task) == [A.FAILED]
    assert await b.store.runs() == []
    assert b.host.services == {}
    (attempt,) = (await a.dispatch.reader.local(task.id, task.caller)).attempts
    assert (attempt.state, attempt.exit_code) == (A.FAILED, 3)


async def test_target_dies_with_an_end_that_nobody_has(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1", ";", "exit", "3", placement={"node": "b"})
    await trio.sleep(0.99)
    fleet.network.partition(a.id, b.id)
    await trio.sleep(0.02)
    b.crash()
    assert [run.state for run in await b.store.runs()] == [A.RUNNING]
    fleet.network.heal(a.id, b.id)
    await again(fleet, nursery, b)
    (attempt,) = (await ended(a, task)).attempts
    assert (attempt.state, attempt.exit_code) == (A.FAILED, 3)


async def test_an_end_is_kept_where_the_origin_cannot_take_it(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1", ";", "exit", "3", placement={"node": "b"})
    await trio.sleep(0.99)
    fleet.network.partition(a.id, b.id)
    await trio.sleep(0.5)
    (run,) = await b.store.runs()
    assert (run.state, run.exit.exit_code) == (A.FAILED, 3)
    # Not even the driver has to know it now.
    b.host.services.clear()
    b.crash()
    fleet.network.heal(a.id, b.id)
    await again(fleet, nursery, b)
    (attempt,) = (await ended(a, task)).attempts
    assert (attempt.state, attempt.exit_code) == (A.FAILED, 3)


async def test_that_a_service_runs_is_on_the_disk_before_it_is_told(autojump_clock, fleet, nursery):
    """Else its loss after a power cut would have a number that the origin has seen already."""
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "100", placement={"node": "b"}, retry={"max_attempts": 1})
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash(host=True)
    b.host.services.clear()
    await again(fleet, nursery, b)
    assert (await ended(a, task)).state is T.LOST
    assert trio.current_time() < 5


@pytest.mark.parametrize(
    ("argv", "fields", "state"),
    [
        (("sleep", "10"), {"timeout_s": 1}, A.TIMED_OUT),
        (("fail-start", "no_program"), {}, A.FAILED),
    ],
)
async def test_what_a_driver_cannot_tell_again_is_written_at_once(
    autojump_clock, fleet, nursery, monkeypatch, argv, fields, state
):
    a, b = await started(fleet, nursery, "a", "b")

    async def prepare(*_arguments):
        await trio.sleep(0.5)

    monkeypatch.setattr(ScriptedDriver, "prepare", prepare)
    task = await a.submit(*argv, placement={"node": "b"}, retry={"max_attempts": 1}, **fields)
    await trio.sleep(0.4)
    fleet.network.partition(a.id, b.id)
    await trio.sleep(0.01 + (1.1 if fields else 0.1))
    (run,) = await b.store.runs()
    assert run.state is state
    b.crash()
    fleet.network.heal(a.id, b.id)
    await again(fleet, nursery, b)
    assert (await ended(a, task)).current.state is state


async def test_origin_dies_before_it_has_written_that_a_node_took_the_task(autojump_clock, fleet, nursery):
    a, _b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "10", placement={"node": "b"}, retry={"max_attempts": 1})
    await trio.sleep(0.01)
    assert a.dispatch.ledger.open[task.id].task.current.state is A.PREPARING
    assert (await a.store.task(task.id)).current.state is A.OFFERED
    a.crash()
    await again(fleet, nursery, a)
    found = await ended(a, task)
    assert [(one.number, one.state) for one in found.attempts] == [(1, A.SUCCEEDED)]


async def test_origin_dies_and_the_node_that_took_the_task_has_lost_its_disk(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    placement = {"node": "b"}
    once = await a.submit("sleep", "10", placement=placement, retry={"max_attempts": 1})
    often = await a.submit("sleep", "10", placement=placement)
    await trio.sleep(0.01)
    for task in (once, often):
        assert (await a.store.task(task.id)).current.state is A.OFFERED
    a.crash()
    b.crash(host=True)
    b.host.services.clear()
    b.store = MemoryStore(fleet.seams, store_id="new")
    await again(fleet, nursery, b)
    await again(fleet, nursery, a)
    assert (await ended(a, once)).state is T.LOST
    assert (await ended(a, often)).state is T.SUCCEEDED


@pytest.fixture
def slow_start(monkeypatch):
    """Services take 5 s to be prepared."""

    async def prepare(*_arguments):
        await trio.sleep(5)

    monkeypatch.setattr(ScriptedDriver, "prepare", prepare)


async def test_a_placement_is_written_soon_where_nothing_else_happens(
    autojump_clock, fleet, nursery, slow_start, monkeypatch
):
    a, _ = await started(fleet, nursery, "a", "b", slots=8)
    tasks = [await a.submit("true", placement={"node": "b"}) for _ in range(4)]
    commits, commit = [], a.store.commit_both

    async def noted(changes, runs=()):
        commits.append(changes)
        return await commit(changes, runs)

    monkeypatch.setattr(a.store, "commit_both", noted)
    for task in tasks:
        await until(a, task, lambda now: now.current.state is A.PREPARING)
        assert (await a.store.task(task.id)).current.state is A.PREPARING
    assert trio.current_time() < 0.5
    assert len(commits) == 1
    monkeypatch.undo()
    events = [event.data["state"] for event in await a.store.events(tasks[0].id, 0, 100)]
    assert events == ["placing", "offered", "preparing"]


async def test_who_waits_for_a_placement_learns_it_at_once(autojump_clock, fleet, nursery, slow_start):
    a, _ = await started(fleet, nursery, "a", "b")
    task = await a.submit("true", placement={"node": "b"})
    assert (await a.dispatch.wait_placed(task.id, 3)).current.state is A.PREPARING
    assert trio.current_time() < 0.01
    assert (await a.store.task(task.id)).current.state is A.PREPARING
    assert not a.dispatch.placer.awaited


async def test_a_placement_that_the_disk_refuses_is_written_later(
    autojump_clock, fleet, nursery, slow_start, monkeypatch
):
    a, _ = await started(fleet, nursery, "a", "b")
    task = await a.submit("true", placement={"node": "b"})

    async def full(*_arguments):
        await trio.lowlevel.checkpoint()
        raise StorageError("the disk is full")

    monkeypatch.setattr(a.store, "commit_both", full)
    await trio.sleep(0.5)
    monkeypatch.undo()
    assert (await a.store.task(task.id)).current.state is A.OFFERED
    await trio.sleep(2)
    assert (await a.store.task(task.id)).current.state is A.PREPARING


async def test_ends_that_a_full_disk_refuses_are_written_when_it_has_room(
    autojump_clock, fleet, nursery, monkeypatch
):
    a, b = await started(fleet, nursery, "a", "b")
    tasks = [await a.submit("sleep", "1", placement={"node": "b"}) for _ in range(3)]
    await trio.sleep(0.5)
    bad, commit_runs = tasks[1].id, b.store.commit_runs

    async def picky(changes):
        await trio.lowlevel.checkpoint()
        if any(one.run.offer.task_id == bad for one in changes if isinstance(one, EndRun | PutRun)):
            raise StorageError("this row is too much")
        await commit_runs(changes)

    monkeypatch.setattr(b.store, "commit_runs", picky)
    for task in tasks:
        assert (await ended(a, task)).state is T.SUCCEEDED
    await trio.sleep(1)
    # One that cannot be written holds up no others, and keeps its exit.
    assert [run.offer.task_id for run in await b.store.runs()] == [bad]
    assert list(b.host.services) == [f"{bad}.1"]
    monkeypatch.undo()
    await trio.sleep(60)
    assert await b.store.runs() == []
    assert b.host.services == {}
    assert [await end_of(b, task) for task in tasks] == [[A.SUCCEEDED]] * 3


async def test_what_was_written_although_its_caller_had_gone_is_not_written_again(
    autojump_clock, fleet, nursery, monkeypatch
):
    """A peer's report or a person's request that is cut off goes on to the disk."""
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "100")
    await until(a, task, lambda now: now.state is T.RUNNING)
    plain = a.store.commit_both

    async def cut_off(changes, runs=()):
        await plain(changes, runs)
        scope.cancel()
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope, monkeypatch.context() as patch:
        patch.setattr(a.store, "commit_both", cut_off)
        await a.dispatch.cancel(task.id, ADMIN)
    assert scope.cancelled_caught
    await ended(a, task)
    told = [one.data["reason"] for one in await a.store.events(task.id, 0, 100) if one.type == "state"]
    assert told.count("being cancelled") == 1
    assert [one.action for one in await a.store.audit(AuditFilter())] == ["cancel", "submit"]
