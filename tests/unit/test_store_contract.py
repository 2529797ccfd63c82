"""What both stores, SQLite and its twin in memory, must do alike."""

import random
import shutil

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeorch.errors import StorageError
from edgeorch.model import (
    Attempt,
    AttemptState,
    Caller,
    Event,
    Offer,
    Run,
    Task,
    TaskState,
    origin_of,
    ulid,
)
from edgeorch.seams import Seams, Tick
from edgeorch.store import (
    Again,
    AuditFilter,
    Callback,
    DropCallback,
    DropRun,
    DropSecrets,
    DropTask,
    EndRun,
    PutAudit,
    PutCallback,
    PutEvent,
    PutKey,
    PutMark,
    PutRun,
    PutSecrets,
    PutTask,
    TaskFilter,
)
from edgeorch.store.sqlite import SqliteStore
from edgeorch.testing.stores import FailingStore, MemoryStore

NOW = 1_800_000_000.0
UP = 50.0
SEAMS = Seams(wall=lambda: NOW, boottime=lambda: UP, rng=random.Random(1), boot=7)
IDS = [ulid(NOW + n, random.Random(n).getrandbits(80), "0123456789") for n in range(6)]


def task(number=0, *, state=TaskState.WAITING, name="job", node=None, owner="ann", parent=None, ended=None):
    attempts = ()
    if node:
        attempts = (Attempt(number=1, node=node, node_name=node, state=AttemptState.RUNNING, offered_at=NOW),)
    return Task(
        id=IDS[number],
        name=name,
        state=state,
        origin="0123456789",
        caller=Caller(token=owner, role="submit"),
        created_at=NOW,
        spec=b"{}",
        ended_at=ended,
        parent=parent,
        attempts=attempts,
    )


def event(number=0, kind="state"):
    return Event(task=IDS[number], at=NOW, type=kind, data={"state": "waiting"})


def run(number=0, attempt=1, accepted=NOW):
    offer = Offer(
        task_id=IDS[number],
        number=attempt,
        origin="o",
        name="job",
        spec=b"{}",
        caller=Caller(token="a", role="submit"),
    )
    return Run(offer=offer, state=AttemptState.RUNNING, accepted_at=accepted)


def key(name="k", body=b"1", expires=NOW + 60, tick=None):
    return PutKey(scope="ann", key=name, body=body, task_ids=(IDS[0],), expires_at=expires, expires_tick=tick)


def callback(name="c", at=NOW):
    return Callback(id=name, task_id=IDS[0], number=1, url="http://x", body=b"{}", created_at=at)


def audit(at=NOW, subject="s", number=0):
    return PutAudit(
        id=ulid(at, number, "0123456789"), at=at, token="ann", via="", action="submit", subject=subject
    )


async def subjects(store, **which):
    return [one.subject for one in await store.audit(AuditFilter(**which))]


class Clocks:
    """Seams whose clocks can be set; a wall clock that jumps every time somebody looks must not matter."""

    def __init__(self):
        self.up, self.off = UP, 0.0
        self.seams = Seams(
            wall=lambda: NOW + self.off, boottime=lambda: self.up, rng=random.Random(1), boot=7
        )


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path, nursery, clocks):
    seams = clocks.seams
    made = MemoryStore(seams) if request.param == "memory" else SqliteStore(tmp_path / "e.db", seams)
    await nursery.start(made.serve)
    return made


async def reopened(store, folder, nursery, seams):
    """The store as the next life of the node finds it."""
    if isinstance(store, MemoryStore):
        store._seams = seams
        return store.reopened()
    shutil.copytree(folder, folder / "copy")
    again = SqliteStore(folder / "copy" / "e.db", seams)
    await nursery.start(again.serve)
    return again


async def test_a_task_is_kept_whole_and_replaced(store):
    first = task(node="n1", parent=IDS[1])
    await store.commit([PutTask(task=first)])
    assert await store.task(IDS[0]) == first
    second = task(state=TaskState.FAILED, ended=NOW)
    await store.commit([PutTask(task=second)])
    assert await store.task(IDS[0]) == second
    assert await store.task(IDS[1]) is None


async def test_listing_filters_and_pages_newest_first(store):
    kept = [
        task(0, name="a", node="n1"),
        task(1, name="b", node="n2", owner="bob", state=TaskState.RUNNING),
        task(2, name="a", parent=IDS[0], state=TaskState.FAILED, ended=NOW),
    ]
    await store.commit([PutTask(task=one) for one in kept])

    async def ids(**which):
        return [IDS.index(one.id) for one in await store.tasks(TaskFilter(**which))]

    assert await ids() == [2, 1, 0]
    assert await ids(name="a") == [2, 0]
    assert await ids(node="n2") == [1]
    assert await ids(owner="ann") == [2, 0]
    assert await ids(parent=IDS[0]) == [2]
    assert await ids(states=(TaskState.RUNNING, TaskState.FAILED)) == [2, 1]
    assert await ids(states=(TaskState.FAILED,), name="b") == []
    assert await ids(limit=2) == [2, 1]
    assert await ids(before=IDS[1]) == [0]
    assert await ids(limit=0) == []


async def test_a_listing_sees_the_newest_attempts_node_only(store):
    first = task(node="n1")
    moved = Attempt(number=2, node="n2", node_name="n2", state=AttemptState.OFFERED, offered_at=NOW)
    both = task()
    await store.commit([PutTask(task=first)])
    await store.commit([PutTask(task=type(both)(**{**_fields(both), "attempts": (*first.attempts, moved)}))])
    assert await store.tasks(TaskFilter(node="n1")) == []
    assert len(await store.tasks(TaskFilter(node="n2"))) == 1


def _fields(struct):
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


async def test_open_tasks_and_children_come_oldest_first(store):
    kept = [
        task(2),
        task(0),
        task(1, state=TaskState.LOST, ended=NOW),
        task(4, parent=IDS[0]),
        task(3, parent=IDS[0]),
    ]
    await store.commit([PutTask(task=one) for one in kept])
    assert [IDS.index(one.id) for one in await store.open_tasks()] == [0, 2, 3, 4]
    assert [IDS.index(one.id) for one in await store.children(IDS[0])] == [3, 4]


async def test_events_are_numbered_in_order_and_a_number_never_comes_again(store):
    await store.commit([PutEvent(event=event(0)), PutTask(task=task(0)), PutEvent(event=event(1))])
    first = await store.events(None, 0, 10)
    assert [(one.seq, IDS.index(one.task)) for one in first] == [(1, 0), (2, 1)]
    assert await store.events(IDS[1], 0, 10) == [first[1]]
    assert await store.events(None, 1, 10) == [first[1]]
    assert await store.events(None, 0, 1) == [first[0]]
    assert await store.events(None, 1 << 70, 10) == []
    await store.commit([DropTask(task_id=IDS[0]), DropTask(task_id=IDS[1])])
    assert await store.events(None, 0, 10) == []
    assert await store.task(IDS[0]) is None
    await store.commit([PutEvent(event=event(2))])
    assert [one.seq for one in await store.events(None, 0, 10)] == [3]


async def test_keys_expire_and_are_told_apart_by_scope(store):
    await store.commit([key(body=b"1")])
    await store.commit([key(body=b"2")])
    assert (await store.key("ann", "k", NOW)).body == b"2"
    assert await store.key("bob", "k", NOW) is None
    assert await store.key("ann", "k", NOW + 60) is None


async def test_audit_records_of_a_release_that_named_none_get_ids(store):
    old = [PutAudit(at=NOW - 10 + n, token="t", via="", action="a", subject=f"old {n}") for n in range(3)]
    await store.commit([*old, audit(NOW, "new")])
    assert await subjects(store) == ["new"]
    assert await store.name_audit("0123456789") == 3
    assert await subjects(store) == ["new", "old 2", "old 1", "old 0"]
    page = await store.audit(AuditFilter(limit=2))
    assert await subjects(store, before=page[-1].id) == ["old 1", "old 0"]
    assert {origin_of(record.id) for record in await store.audit(AuditFilter())} == {"0123456789"}
    assert await store.name_audit("0123456789") == 0


async def test_within_one_boot_of_the_machine_keys_expire_by_its_clock(store):
    await store.commit([key("same", expires=NOW - 1, tick=Tick(7, 51)), key("over", tick=Tick(7, 50))])
    await store.commit([key("other", tick=Tick(8, 1)), key("nameless", expires=NOW - 1, tick=Tick(0, 99))])
    days = NOW + 9e5
    assert await store.key("ann", "same", days, Tick(7, 50)) is not None
    assert await store.key("ann", "same", 0.0, Tick(7, 51)) is None
    assert await store.key("ann", "other", NOW, Tick(7, 50)) is not None
    assert await store.key("ann", "other", days, Tick(7, 0)) is None
    assert await store.key("ann", "nameless", NOW, Tick(0, 50)) is None
    await store.prune(0.0)
    found = [await store.key("ann", name, 0.0, Tick(7, 0)) for name in ("same", "other", "over", "nameless")]
    assert [one is not None for one in found] == [True, True, False, False]


async def test_a_mark_only_grows_and_counts_from_the_next_start_on(store, tmp_path, nursery, clocks):
    assert store.marks == {}
    await store.commit([PutMark(name="n", number=5), PutMark(name="m", number=1)])
    await store.commit([PutMark(name="n", number=4)])
    assert store.marks == {}
    again = await reopened(store, tmp_path, nursery, clocks.seams)
    assert again.marks == {"n": 5, "m": 1}


async def test_the_outbox_keeps_its_order_whatever_the_clock_says(store):
    for name, at in (("c", NOW), ("a", NOW - 86_400), ("b", NOW + 1)):
        await store.commit([PutCallback(callback=callback(name, at))])
    assert [one.id for one in await store.callbacks()] == ["c", "a", "b"]
    await store.commit([DropCallback(id="c"), DropCallback(id="unknown")])
    assert [one.id for one in await store.callbacks()] == ["a", "b"]


async def test_sealed_secrets_are_kept_until_they_or_their_task_are_dropped(store):
    kept = [PutSecrets(task_id=IDS[n], sealed=b"sealed %d" % n) for n in range(3)]
    await store.commit([*(PutTask(task=task(n)) for n in range(3)), *kept])
    assert await store.secrets(IDS[1]) == b"sealed 1"
    assert await store.sealed() == kept
    await store.commit([DropSecrets(task_id=IDS[0]), DropTask(task_id=IDS[1])])
    assert [await store.secrets(one) for one in IDS[:3]] == [None, None, b"sealed 2"]


async def test_prune_drops_secrets_that_an_older_release_has_left_behind(store):
    await store.commit(
        [
            PutTask(task=task(0)),
            PutTask(task=task(1, state=TaskState.FAILED, ended=NOW + 100)),
            *(PutSecrets(task_id=IDS[n], sealed=b"s") for n in range(3)),
        ]
    )
    await store.prune(0.0)
    assert [one.task_id for one in await store.sealed()] == [IDS[0]]


async def test_audit_is_newest_first_and_pages(store):
    three = audit(NOW + 1, "three")
    await store.commit([three, audit(subject="one"), audit(subject="two", number=1)])
    assert await subjects(store) == ["three", "two", "one"]
    assert await subjects(store, limit=1) == ["three"]
    assert await subjects(store, before=three.id) == ["two", "one"]
    assert await subjects(store, since=NOW + 0.5) == ["three"]
    assert await subjects(store, since=NOW, before=three.id, limit=1) == ["two"]
    assert (await store.audit(AuditFilter()))[0] == three


async def test_audit_is_forgotten_by_age_and_size(store, clocks):
    kept = [audit(NOW + n, str(n)) for n in range(4)]
    for record in kept:
        await store.commit([record])
        clocks.up += 1
        clocks.off = random.Random(record.subject).uniform(-1e9, 1e9)
    size = len(msgspec.msgpack.encode(kept[0]))
    await store.prune(0.0)
    assert await subjects(store) == ["3", "2", "1", "0"]
    await store.prune_audit(3.5, 1 << 30)
    assert await subjects(store) == ["3", "2", "1"]
    await store.prune_audit(100, 2 * size)
    assert await subjects(store) == ["3", "2"]
    await store.prune_audit(100, size - 1)
    assert await subjects(store) == []
    await store.commit(kept[:2])
    await store.prune_audit(-1, 1 << 30)
    assert await subjects(store) == []


async def test_runs_come_in_their_order_whatever_the_clock_said_and_are_forgotten(store):
    await store.commit_runs([PutRun(run=run(1, accepted=NOW + 1)), PutRun(run=run(0))])
    await store.commit_runs([PutRun(run=run(1, accepted=NOW + 1))])
    assert await store.runs() == [run(1, accepted=NOW + 1), run(0)]
    assert await store.run(run(0).offer.key) == run(0)
    await store.commit_runs([DropRun(key=run(0).offer.key)])
    assert await store.run(run(0).offer.key) is None
    assert store.boot == 1
    assert store.store_id


async def test_of_an_acknowledged_run_its_end_is_kept(store, clocks):
    ended = msgspec.structs.replace(run(0), state=AttemptState.SUCCEEDED, ended_at=NOW + 5)
    await store.commit_runs([PutRun(run=run(0)), PutRun(run=run(1))])
    await store.commit_runs([EndRun(run=ended)])
    assert await store.runs() == [run(1)]
    (kept,) = await store.ended_runs([IDS[0], IDS[1]])
    assert (kept.state, kept.ended_at, kept.handle, kept.offer.spec) == (ended.state, NOW + 5, None, b"")
    assert kept.offer.key == run(0).offer.key
    clocks.up += 10
    clocks.off = -1e9
    await store.prune(11.0)
    assert len(await store.ended_runs([IDS[0]])) == 1
    await store.prune(9.0)
    assert await store.ended_runs([IDS[0]]) == []


async def test_one_transaction_spans_both_sides(store):
    await store.commit_both([PutTask(task=task()), PutEvent(event=event())], [PutRun(run=run())])
    assert [one.seq for one in await store.events(None, 0, 10)] == [1]
    assert await store.task(IDS[0]) == task()
    assert await store.runs() == [run()]


async def test_prune_forgets_what_is_old_and_keeps_what_is_open(store, clocks):
    def failed(number, parent=None):
        return PutTask(task=task(number, state=TaskState.FAILED, ended=NOW, parent=parent))

    await store.commit(
        [
            PutTask(task=task(2)),
            *(PutEvent(event=event(n)) for n in range(6)),
            key("old", expires=NOW),
            key("new", expires=NOW + 1),
            failed(5, parent=IDS[0]),
        ]
    )
    clocks.up += 1
    # A child stays while its parent does, so that the parent can still name it.
    await store.commit([failed(0), failed(3, parent=IDS[1]), failed(4, parent=IDS[2])])
    clocks.up += 100
    await store.commit([failed(1)])
    clocks.up += 50
    # A late result changes the row of a task that has ended, not when it did.
    await store.commit([failed(0)])
    assert await store.prune(152.0) == []
    assert await store.prune(100.0) == [IDS[5], IDS[0]]
    assert [one.id for one in await store.tasks(TaskFilter())] == [IDS[4], IDS[3], IDS[2], IDS[1]]
    assert [one.task for one in await store.events(None, 0, 10)] == [IDS[1], IDS[2], IDS[3], IDS[4]]
    assert await store.key("ann", "old", NOW - 1) is None
    assert await store.key("ann", "new", NOW) is not None
    assert await store.prune(100.0) == []


@pytest.mark.parametrize("years", [-56, 0, 70])
async def test_no_wall_clock_makes_a_store_forget_early_or_never(store, tmp_path, nursery, clocks, years):
    day = 86_400.0
    ended = [PutTask(task=task(n, state=TaskState.FAILED, ended=NOW)) for n in range(2)]
    await store.commit([ended[0]])
    clocks.up += day
    clocks.off = years * 365 * day
    assert await store.prune(2 * day) == []
    await store.commit([ended[1]])
    store = await reopened(store, tmp_path, nursery, clocks.seams)
    clocks.off = 0.0
    clocks.up += 0.9 * day
    assert await store.prune(2 * day) == []
    assert await store.fresh([f"{one}.1" for one in IDS[:3]], 2 * day) == {f"{IDS[0]}.1", f"{IDS[1]}.1"}
    clocks.up += 0.2 * day
    assert await store.fresh([f"{one}.1" for one in IDS[:3]], 2 * day) == {f"{IDS[1]}.1"}
    assert await store.prune(2 * day) == [IDS[0]]


async def test_attempts_are_fresh_while_anything_tells_of_them(store):
    await store.commit([PutTask(task=task(0)), PutTask(task=task(1, state=TaskState.FAILED, ended=NOW))])
    await store.commit_runs([PutRun(run=run(2)), EndRun(run=run(3, attempt=2))])
    keys = [f"{one}.{number}" for one in IDS for number in (1, 2)]
    everyone = {f"{IDS[0]}.1", f"{IDS[0]}.2", f"{IDS[1]}.1", f"{IDS[1]}.2", f"{IDS[2]}.1", f"{IDS[3]}.2"}
    assert await store.fresh(keys, 1.0) == everyone
    assert await store.fresh([*keys, "x", "x.y", ""] * 90, -1.0) == {
        f"{IDS[0]}.1",
        f"{IDS[0]}.2",
        f"{IDS[2]}.1",
    }


async def test_what_cannot_be_stored_fails_alone_and_leaves_nothing(store):
    huge = Event(task=IDS[0], at=NOW, type="state", data={"n": 1 << 70})
    with pytest.raises((OverflowError, StorageError)):
        await store.commit([PutTask(task=task()), PutEvent(event=huge)])
    assert await store.task(IDS[0]) is None
    await store.commit([PutTask(task=task())])
    assert await store.task(IDS[0]) == task()


async def test_what_may_have_been_appended_is_not_appended_twice(store):
    first, second = PutEvent(event=event(0)), PutEvent(event=event(1))
    done, more = (PutAudit(id=IDS[n], at=NOW, token="ann", action="cancel", subject="s") for n in range(2))
    await store.commit([first, done])
    await store.commit([Again(change=each) for each in (first, second, done, more)])
    await store.commit([first])  # one that was never under way may well be alike
    assert [one.task for one in await store.events(None, 0, 10)] == [IDS[0], IDS[1], IDS[0]]
    assert [one.id for one in await store.audit(AuditFilter())] == [IDS[1], IDS[0]]


async def test_an_empty_commit_is_a_checkpoint(store):
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.commit([])
    assert scope.cancelled_caught


async def test_a_failing_store_keeps_nothing_of_a_failed_commit(store):
    failing = FailingStore(store, fail_at=[2])
    await failing.commit([PutTask(task=task(0))])
    with pytest.raises(StorageError, match="commit 2"):
        await failing.commit_both([PutTask(task=task(1))], [PutRun(run=run())])
    await failing.commit_runs([PutRun(run=run())])
    assert [one.id for one in await failing.open_tasks()] == [IDS[0]]
    failing.failing = True
    with pytest.raises(StorageError):
        await failing.prune(0.0)
    with pytest.raises(StorageError):
        await failing.prune_audit(0.0, 1)
    failing.failing = False
    assert await failing.prune(0.0) == []
    assert (failing.store_id, failing.boot, failing.commits) == (store.store_id, store.boot, 6)


async def test_the_memory_twin_can_be_opened_again():
    first = MemoryStore(SEAMS)
    await first.commit([PutTask(task=task()), PutEvent(event=event())])
    second = first.reopened()
    await second.commit([DropTask(task_id=IDS[0])])
    assert (second.boot, second.store_id) == (2, first.store_id)
    assert await first.task(IDS[0]) == task()
    assert await second.task(IDS[0]) is None
    await second.commit([PutEvent(event=event())])
    assert [one.seq for one in await second.events(None, 0, 10)] == [2]


NUMBERS = st.integers(0, len(IDS) - 1)
TIMES = st.sampled_from([NOW - 2, NOW - 1, NOW, NOW + 1])
TASKS = st.builds(
    task,
    NUMBERS,
    state=st.sampled_from(TaskState),
    name=st.sampled_from(["a", "b"]),
    node=st.sampled_from([None, "n1", "n2"]),
    owner=st.sampled_from(["ann", "bob"]),
    parent=st.sampled_from([None, *IDS]),
    ended=st.none() | TIMES,
)
CHANGES = st.one_of(
    TASKS.map(lambda one: PutTask(task=one)),
    NUMBERS.map(lambda n: DropTask(task_id=IDS[n])),
    NUMBERS.map(lambda n: PutEvent(event=event(n))),
    st.builds(key, st.sampled_from("kl"), st.binary(max_size=2), TIMES),
    st.builds(callback, st.sampled_from("cd"), TIMES).map(lambda one: PutCallback(callback=one)),
    st.sampled_from("cd").map(lambda name: DropCallback(id=name)),
    st.builds(audit, TIMES, st.sampled_from("xy"), st.integers(0, 1 << 40)),
    NUMBERS.map(lambda n: PutSecrets(task_id=IDS[n], sealed=bytes([n]))),
    NUMBERS.map(lambda n: DropSecrets(task_id=IDS[n])),
)
RUN_CHANGES = st.one_of(
    st.builds(run, NUMBERS, st.integers(1, 2), TIMES).map(lambda one: PutRun(run=one)),
    NUMBERS.map(lambda n: DropRun(key=f"{IDS[n]}.1")),
    st.builds(run, NUMBERS, st.integers(1, 2), TIMES).map(lambda one: EndRun(run=one)),
)
FILTERS = st.builds(
    TaskFilter,
    states=st.lists(st.sampled_from(TaskState), max_size=3).map(tuple),
    name=st.sampled_from([None, "a"]),
    node=st.sampled_from([None, "n1"]),
    parent=st.sampled_from([None, IDS[0]]),
    owner=st.sampled_from([None, "ann"]),
    before=st.sampled_from([None, IDS[3]]),
    limit=st.integers(0, 4),
)
STEPS = st.lists(
    st.tuples(st.lists(CHANGES, max_size=4), st.lists(RUN_CHANGES, max_size=2))
    | st.sampled_from([-1.0, 0.0]),
    min_size=1,
    max_size=8,
)


async def everything(store, which):
    found = [await store.task(task_id) for task_id in IDS]
    found += [await store.tasks(which), await store.open_tasks(), await store.children(IDS[0])]
    found += [await store.events(None, 0, 100), await store.events(IDS[0], 1, 2), await store.callbacks()]
    found += [await store.key("ann", name, NOW) for name in "kl"]
    found += [await store.secrets(IDS[0]), await store.sealed()]
    found += [await store.ended_runs(IDS[:2]), await store.ended_runs([])]
    found += [await store.fresh([f"{one}.{number}" for one in IDS for number in (1, 2)], 0.0)]
    return [*found, await store.audit(AuditFilter()), await store.runs(), await store.run(f"{IDS[0]}.1")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, which=FILTERS)
def test_the_twins_agree(tmp_path_factory, steps, which):
    path = tmp_path_factory.mktemp("twin") / "e.db"

    async def compare():
        memory, disk = MemoryStore(SEAMS), SqliteStore(path, SEAMS)
        async with trio.open_nursery() as nursery:
            await nursery.start(disk.serve)
            for step in steps:
                answers = [
                    await (one.prune(step) if isinstance(step, float) else one.commit_both(*step))
                    for one in (memory, disk)
                ]
                assert answers[0] == answers[1]
            assert await everything(memory, which) == await everything(disk, which)
            nursery.cancel_scope.cancel()

    trio.run(compare)
