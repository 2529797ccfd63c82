"""How often a task reaches the disk on its way, and that what is written together still holds."""

import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.dispatch import ledger
from edgeorch.errors import StorageError
from edgeorch.executor.life import SHORT_S
from edgeorch.model import AttemptState as A
from edgeorch.model import TaskState as T
from edgeorch.store import DropRun, EndRun, PutEvent, PutRun, PutTask
from edgeorch.testing.fleet import VirtualFleet


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


@pytest.fixture
def written(monkeypatch):
    """Watches a node's store: gives the list of its transactions from now on."""

    def watch(node, before=trio.lowlevel.checkpoint):
        transactions, commit = [], node.store.commit_both

        async def noted(changes, runs=()):
            transactions.append([*changes, *runs])
            await before()
            return await commit(changes, runs)

        monkeypatch.setattr(node.store, "commit_both", noted)
        return transactions

    return watch


def states(changes):
    return [one.event.data["state"] for one in changes if isinstance(one, PutEvent)]


async def test_a_short_task_is_written_twice(autojump_clock, fleet, nursery, written):
    (a,) = await started(fleet, nursery, "a")
    transactions = written(a)
    task = await ended(a, await a.submit("true", callback_url="http://x.example/"))
    begin, end = transactions
    # Over in a moment: no run has a row beside its task's.
    assert [type(one) for one in begin if isinstance(one, PutTask | PutRun)] == [PutTask]
    assert [type(one) for one in end if isinstance(one, PutTask | DropRun)] == [PutTask]
    # Nothing is lost of the story: it ran, then it ended.
    assert states(end) == ["running", "running", "succeeded", "succeeded"]
    assert [kind for _, kind, _ in a.notes.sent] == ["started", "ended"]
    assert task.attempts[0].started_at is not None


async def test_a_short_task_on_another_node_tells_of_its_start_too(autojump_clock, fleet, nursery, written):
    a, b = await started(fleet, nursery, "a", "b")
    at_origin, at_target = written(a), written(b)
    task = await a.submit("true", placement={"node": "b"}, callback_url="http://x.example/")
    task = await ended(a, task)
    assert [kind for _, kind, _ in a.notes.sent] == ["started", "ended"]
    assert task.attempts[0].started_at is not None
    await trio.sleep(1)
    accepted, end = at_origin
    assert states(accepted) == ["placing", "offered"]
    assert states(end) == ["preparing", "running", "running", "succeeded", "succeeded"]
    assert [type(one) for one in end if not isinstance(one, PutEvent)] == [PutTask]
    # Accepted; acknowledged.
    assert [type(*each) for each in at_target] == [PutRun, EndRun]


async def test_only_of_what_was_printed_the_end_is_read(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    read, read_tails = [], b.executor.read_tails

    async def noted(paths, limit):
        read.append(paths)
        return await read_tails(paths, limit)

    b.executor.read_tails = noted
    await ended(a, await a.submit("true", placement={"node": "b"}))
    assert read == []
    task = await ended(a, await a.submit("print-error", "why", ";", "exit", "1", placement={"node": "b"}))
    assert (len(read), task.stderr_tail) == (1, b"why\n")


async def test_ends_that_come_together_are_written_together(autojump_clock, fleet, nursery, written):
    a, b = await started(fleet, nursery, "a", "b", slots=8)
    transactions = written(b)
    tasks = [await a.submit("true", placement={"node": "b"}) for _ in range(4)]
    for task in tasks:
        await ended(a, task)
    await trio.sleep(1)
    assert [len(each) for each in transactions if isinstance(each[0], EndRun)] == [4]
    assert await b.store.runs() == []
    assert b.host.services == {}


async def test_a_service_that_stays_is_told_to_run(autojump_clock, fleet, nursery, written):
    (a,) = await started(fleet, nursery, "a")
    transactions = written(a)
    task = await a.submit("sleep", "100")
    running = await until(a, task, lambda now: now.state is T.RUNNING)
    assert trio.current_time() - running.created_at + 1e9 == pytest.approx(SHORT_S, abs=0.01)
    assert any(isinstance(one, PutRun) and one.run.state is A.RUNNING for one in transactions[-1])
    await ended(a, task)
    assert any(isinstance(one, DropRun) for one in transactions[-1])


@pytest.mark.parametrize("host", [False, True], ids=["the node crashes", "its machine crashes"])
async def test_a_service_of_a_moment_is_known_by_its_task(autojump_clock, fleet, nursery, host):
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "20", retry={"max_attempts": 1})
    await trio.sleep(SHORT_S / 2)
    assert await a.store.runs() == []
    a.crash(host=host)
    a.store = a.store.reopened()
    await nursery.start(a.run)
    if not host:
        await until(a, task, lambda now: now.state is T.RUNNING)
        assert len(await a.store.runs()) == 1
    done = await ended(a, task)
    assert (done.state, len(done.attempts)) == ((T.LOST if host else T.SUCCEEDED), 1)
    assert await a.store.runs() == []
    await trio.sleep(1)
    assert a.host.services == {}


async def test_a_lease_that_is_renewed_at_once_delays_no_word_of_the_start(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "100", placement={"node": "b"})
    await trio.sleep(SHORT_S / 2)
    (life,) = b.executor.lives().values()
    assert life.begun.is_set()
    life.renewed(b.executor.seams.boottime())
    with trio.fail_after(1):
        await until(a, task, lambda now: now.state is T.RUNNING)


async def test_waiting_tasks_are_placed_in_one_transaction(autojump_clock, fleet, nursery, written):
    (a,) = await started(fleet, nursery, "a", slots=4)
    held = [await a.submit("sleep", "10") for _ in range(4)]
    waiting = [await a.submit("sleep", "10") for _ in range(8)]
    await until(a, held[-1], lambda now: now.state is T.RUNNING)
    transactions = written(a)
    for task in waiting:
        await ended(a, task)
    placed = [states(each).count("placing") for each in transactions]
    assert sum(placed) == 8
    assert max(placed) > 1


async def test_one_plan_that_cannot_be_stored_does_not_hold_up_the_others(
    autojump_clock, fleet, nursery, monkeypatch
):
    (a,) = await started(fleet, nursery, "a", slots=2)
    held = [await a.submit("sleep", "10") for _ in range(2)]
    bad, good = await a.submit("true", name="bad"), await a.submit("true", name="good")
    commit = a.store.commit_both

    async def picky(changes, runs=()):
        placed = [one.task for one in changes if isinstance(one, PutTask) and one.task.state is T.PLACING]
        if any(task.name == "bad" for task in placed):
            await trio.lowlevel.checkpoint()
            raise StorageError("this row is too much")
        return await commit(changes, runs)

    monkeypatch.setattr(a.store, "commit_both", picky)
    assert (await ended(a, good)).state is T.SUCCEEDED
    assert (await a.dispatch.reader.local(bad.id, bad.caller)).state is T.WAITING
    monkeypatch.undo()
    assert (await ended(a, bad)).state is T.SUCCEEDED
    assert [(await ended(a, task)).state for task in held] == [T.SUCCEEDED] * 2


async def test_cancelled_while_its_place_is_written_down(autojump_clock, fleet, nursery, written):
    (a,) = await started(fleet, nursery, "a", slots=1)
    held = await a.submit("sleep", "10")
    task = await a.submit("sleep", "1000")
    go_on = trio.Event()

    async def slowly():
        if a.dispatch.ledger.open[task.id].task.state is T.PLACING:
            await go_on.wait()
        await trio.lowlevel.checkpoint()

    written(a, before=slowly)
    await trio.sleep(11)
    nursery.start_soon(a.dispatch.cancel, task.id, task.caller)
    await trio.testing.wait_all_tasks_blocked()
    go_on.set()
    assert (await ended(a, task)).state is T.CANCELLED
    assert trio.current_time() < 20
    assert (await ended(a, held)).state is T.SUCCEEDED


async def test_who_waits_for_a_batch_reads_nothing_from_the_disk(autojump_clock, fleet, nursery, monkeypatch):
    (a,) = await started(fleet, nursery, "a")
    monkeypatch.setattr(ledger, "RECENT", 8)
    tasks = [await a.submit("true") for _ in range(10)]
    await trio.sleep(10)
    asked, read = [], a.store.task

    async def noted(task_id):
        asked.append(task_id)
        return await read(task_id)

    monkeypatch.setattr(a.store, "task", noted)
    assert {(await ended(a, task)).state for task in tasks} == {T.SUCCEEDED}
    assert asked == [task.id for task in tasks[:2]]
    a.dispatch.ledger.recent.clear()  # as retention does, which may have forgotten the task
    await ended(a, tasks[-1])
    assert asked[2:] == [tasks[-1].id]
