"""Plans that are on their way to a disk that refuses them, or that something overtakes meanwhile."""

from functools import partial

import msgspec
import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.callbacks import Callbacks
from edgeorch.errors import StorageError
from edgeorch.model import AttemptState as A
from edgeorch.model import TaskState as T
from edgeorch.store import PutRun
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import FailingStore


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


async def node_on_bad_disk(fleet, nursery, **how):
    node = fleet.add("a", **how)
    node.store = FailingStore(node.store)
    await nursery.start(node.host.run)
    await nursery.start(node.run)
    return node


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_waiting_task_whose_start_here_the_disk_refused_is_tried_again(
    autojump_clock, fleet, nursery, cancelled
):
    a = await node_on_bad_disk(fleet, nursery, slots=1)
    first = await a.submit("sleep", "5")
    waiting = await a.submit("true", retry={"max_attempts": 1})
    a.store.failing = True
    await trio.sleep(20)
    if cancelled:
        with pytest.raises(StorageError):
            await a.dispatch.cancel(waiting.id, ADMIN)
    a.store.failing = False
    began = trio.current_time()
    assert (await ended(a, waiting)).state is (T.CANCELLED if cancelled else T.SUCCEEDED)
    assert trio.current_time() - began < 60
    task = await a.store.task(waiting.id)
    assert [one.state for one in task.attempts if one.state is not A.REFUSED] == [A.SUCCEEDED][cancelled:]
    assert (await ended(a, first)).state is T.SUCCEEDED
    assert a.executor.slots.used == 0
    assert not a.dispatch.ledger.open


async def test_a_parent_whose_children_the_disk_refused_is_tried_again(autojump_clock, fleet, nursery):
    a = await node_on_bad_disk(fleet, nursery)
    parent = await a.submit("true", placement={"mode": "spread", "count": 2})
    assert parent.state is T.WAITING
    a.store.failing = True
    await started(fleet, nursery, "b")
    await trio.sleep(20)
    assert a.dispatch.ledger.open.keys() == {parent.id}
    a.store.failing = False
    began = trio.current_time()
    assert (await ended(a, parent)).state is T.SUCCEEDED
    assert trio.current_time() - began < 60
    children = await a.dispatch.children(parent.id, ADMIN)
    assert len(children) == 2
    known = {parent.id, *(child.id for child in children)}
    assert {event.task for event in await a.store.events(None, 0, 1000)} == known


async def test_a_parent_whose_children_the_disk_refused_tells_its_start_once(
    autojump_clock, fleet, nursery, monkeypatch
):
    """Each refused try left a callback of its own, with a number and a key of its own."""
    a = fleet.add("a")
    a.store = FailingStore(a.store)
    a.notes = Callbacks(a.store, a.config.callbacks, a.seams, lambda _: "", lambda *_args, **_how: "")
    told = []

    async def send(callback):
        told.append((callback.id, msgspec.json.decode(callback.body)["event"]))

    monkeypatch.setattr(a.notes, "_send", send)
    await nursery.start(a.host.run)
    await nursery.start(a.run)
    await nursery.start(a.notes.run)
    spread = {"mode": "spread", "count": 2}
    parent = await a.submit("true", placement=spread, callback_url="http://receiver/")
    a.store.failing = True
    await started(fleet, nursery, "b")
    await trio.sleep(20)
    with pytest.raises(StorageError):
        await a.submit("true", placement=spread, callback_url="http://receiver/")
    a.store.failing = False
    assert (await ended(a, parent)).state is T.SUCCEEDED
    await trio.sleep(5)
    assert [event for _, event in told] == ["started", "ended"]
    assert not a.notes._made, "or the outbox is read again and again"
    assert not a.notes._since


@pytest.mark.parametrize("why", ["cancel", "deadline"])
async def test_what_ends_while_its_start_is_written_is_not_left_running(
    autojump_clock, fleet, nursery, monkeypatch, why
):
    (a,) = await started(fleet, nursery, "a", slots=1)
    await a.submit("sleep", "5")
    waiting = await a.submit("sleep", "4000", deadline_s=20)
    commit, writing, written = a.store.commit_both, trio.Event(), trio.Event()

    async def slow(tasks, runs):
        if any(isinstance(change, PutRun) and change.run.offer.task_id == waiting.id for change in runs):
            writing.set()
            await written.wait()
        return await commit(tasks, runs)

    monkeypatch.setattr(a.store, "commit_both", slow)
    await writing.wait()
    if why == "cancel":
        await a.dispatch.cancel(waiting.id, ADMIN)
    else:
        await until(a, waiting, lambda now: now.state is T.TIMED_OUT)
    began = trio.current_time()
    written.set()
    task = await ended(a, waiting)
    assert task.state is (T.CANCELLED if why == "cancel" else T.TIMED_OUT)
    await trio.sleep(30)
    assert trio.current_time() - began < 60
    assert a.executor.slots.used == 0
    assert not a.dispatch.ledger.open


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_offer_that_is_longer_on_its_way_to_the_disk_than_a_lease(
    autojump_clock, fleet, nursery, monkeypatch, cancelled
):
    """Its lease began when it was planned: it was given up, sent all the same, and ran twice at once."""
    a, b = await started(fleet, nursery, "a", "b")
    commit, writing, written = a.store.commit_both, trio.Event(), trio.Event()

    async def slow(tasks, runs):
        if not writing.is_set():
            writing.set()
            await written.wait()
        return await commit(tasks, runs)

    monkeypatch.setattr(a.store, "commit_both", slow)
    nursery.start_soon(partial(a.submit, "true", placement={"node": "b"}))
    await writing.wait()
    (entry,) = a.dispatch.ledger.open.values()
    await trio.sleep(30)
    if cancelled:
        nursery.start_soon(a.dispatch.cancel, entry.task.id, ADMIN)
        await trio.sleep(1)
    written.set()
    task = await ended(a, entry.task)
    assert task.state is (T.CANCELLED if cancelled else T.SUCCEEDED)
    assert [one.state for one in task.attempts] == [A.REFUSED if cancelled else A.SUCCEEDED]
    assert len(b.executor.drivers["native"].started) == (0 if cancelled else 1)


async def test_a_task_that_found_a_place_is_not_placed_again_by_what_is_late(autojump_clock, fleet, nursery):
    """The end of the attempt before, late on its way to the disk, queued it once more."""
    (a,) = await started(fleet, nursery, "a")
    task = await a.submit("sleep", "5")
    a.dispatch.placer.enqueue(a.dispatch.ledger.open[task.id])
    assert [one.state for one in (await ended(a, task)).attempts] == [A.SUCCEEDED]


async def test_a_target_whose_disk_refuses_is_not_asked_all_the_time(autojump_clock, fleet, nursery):
    """Each refusal brings a fresh sample: two waiting tasks woke each other for as long as it lasted."""
    (a,) = await started(fleet, nursery, "a")
    b = fleet.add("b")
    b.store = FailingStore(b.store, failing=True)
    await nursery.start(b.host.run)
    await nursery.start(b.run)
    tasks = [await a.submit("true", placement={"node": "b"}) for _ in range(2)]
    await trio.sleep(60)
    assert [(await a.store.task(task.id)).attempts[-1].number < 20 for task in tasks] == [True, True]
    b.store.failing = False
    began = trio.current_time()
    for task in tasks:
        assert (await ended(a, task)).state is T.SUCCEEDED
    assert trio.current_time() - began < 10


async def test_what_waits_for_the_disk_of_its_target_longer_than_its_lease_is_not_started(
    autojump_clock, fleet, nursery, monkeypatch
):
    a, b = await started(fleet, nursery, "a", "b")
    commit, slow = b.store.commit_runs, iter([20.0])

    async def later(changes):
        await trio.sleep(next(slow, 0.0))
        await commit(changes)

    begin, begun = b.host.begin, []
    monkeypatch.setattr(b.host, "begin", lambda *what: begun.append(what[1].key) or begin(*what))
    monkeypatch.setattr(b.store, "commit_runs", later)
    a.me.cpu_busy = 0.95
    task = await a.submit("sleep", "100")
    began = await until(a, task, lambda now: now.state is T.RUNNING and len(now.attempts) == 2)
    assert trio.current_time() < 20
    assert began.attempts[0].state is A.LOST
    assert (await ended(a, task)).state is T.SUCCEEDED
    assert begun == [f"{task.id}.2"]
