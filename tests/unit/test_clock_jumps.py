"""Somebody sets the wall clock, and the node is started again: nothing ends early, nothing is forgotten."""

import dataclasses
import itertools

import msgspec
import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.callbacks import Callbacks
from edgeorch.config import Callbacks as Settings
from edgeorch.dispatch import accept
from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.errors import StorageError
from edgeorch.model import NativeService, Task, TaskSpec, ulid
from edgeorch.model import TaskState as T
from edgeorch.seams import Seams, Tick
from edgeorch.store import AuditFilter, DropCallback, TaskFilter
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import FailingStore

DAY = 86_400.0


class JumpingFleet(VirtualFleet):
    """Its wall clocks can be set; ``reboot`` makes the boot clocks worthless too."""

    def __init__(self, folder):
        super().__init__(folder)
        self.off_s = 0.0
        wall = self.seams.wall
        self.seams = dataclasses.replace(self.seams, wall=lambda: wall() + self.off_s, boot=1)

    async def restart(self, node, nursery, *, reboot=False):
        node.crash(host=reboot)
        if reboot:
            began = trio.current_time() - 1.0
            self.seams = dataclasses.replace(
                self.seams, boottime=lambda: trio.current_time() - began, boot=self.seams.boot + 1
            )
            node.seams = self.seams
        node.store = node.store.reopened()
        await nursery.start(node.run)


@pytest.fixture
def fleet(tmp_path):
    return JumpingFleet(tmp_path)


async def submit(node, key="k", *, service_id=False):
    spec = TaskSpec(name="t", service=(NativeService(argv=("true",)),))
    submission = Submission.of(spec, msgspec.json.encode(spec), service_id=service_id)
    (task,) = await node.dispatch.submit([submission], ADMIN, Idempotency(key=key, body=b"1"))
    return task


@pytest.mark.parametrize("days", [1, -1])
async def test_no_timeout_or_deadline_moves(autojump_clock, fleet, nursery, days):
    (a,) = await started(fleet, nursery, "a")
    short = await a.submit("sleep", "60", timeout_s=90)
    late = await a.submit("sleep", "1000", timeout_s=90)
    due = await a.submit("sleep", "1000", deadline_s=120)
    await until(a, due, lambda now: now.state is T.RUNNING)
    await trio.sleep(5)
    fleet.off_s = days * DAY
    await fleet.restart(a, nursery)
    assert (await ended(a, short)).state is T.SUCCEEDED
    began = 0.0
    assert (await ended(a, late)).state is T.TIMED_OUT
    assert trio.current_time() - began == pytest.approx(90, abs=3)
    assert (await ended(a, due)).state is T.TIMED_OUT
    assert trio.current_time() - began == pytest.approx(120, abs=3)


@pytest.mark.parametrize("days", [1, -1])
async def test_a_key_is_kept_for_as_long_as_it_was_promised(
    autojump_clock, fleet, nursery, monkeypatch, days
):
    monkeypatch.setattr(accept, "KEY_LIFE_S", 1000.0)
    (a,) = await started(fleet, nursery, "a")
    first = await submit(a)
    fleet.off_s = days * DAY
    assert (await submit(a)).id == first.id
    await fleet.restart(a, nursery)
    await a.store.prune(0.0)
    assert (await submit(a)).id == first.id
    await trio.sleep(1001)
    assert (await submit(a)).id != first.id


async def test_over_a_restart_of_the_machine_the_wall_clock_decides(
    autojump_clock, fleet, nursery, monkeypatch
):
    monkeypatch.setattr(accept, "KEY_LIFE_S", 1000.0)
    (a,) = await started(fleet, nursery, "a", slots=1)
    await a.submit("sleep", "1000")
    waiting = await a.submit("true", deadline_s=60, placement={"constraints": ["name == nobody"]})
    first = await submit(a)
    await trio.sleep(10)
    await fleet.restart(a, nursery, reboot=True)
    began = trio.current_time()
    assert (await submit(a)).id == first.id
    assert (await ended(a, waiting)).state is T.TIMED_OUT
    assert trio.current_time() - began == pytest.approx(50, abs=3)
    fleet.off_s = 1001.0
    await fleet.restart(a, nursery, reboot=True)
    assert (await submit(a)).id != first.id


async def test_no_service_id_comes_again_with_the_clock_set_back(autojump_clock, fleet, nursery, monkeypatch):
    monkeypatch.setattr(accept, "NUMBERS_AHEAD", 3)
    (a,) = await started(fleet, nursery, "a")
    keys = (str(number) for number in itertools.count())
    found = []
    for off_s in (0.0, -DAY, -2 * DAY):
        fleet.off_s = off_s
        await fleet.restart(a, nursery)
        found += [(await submit(a, next(keys), service_id=True)).service_id for _ in range(8)]
    assert found == sorted(set(found))
    assert found[0] > 1e12, "above those of a database that was restored from a backup"


async def test_a_number_whose_mark_the_disk_refused_is_marked_with_the_next(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    a.store = FailingStore(a.store)
    a.crash()
    await nursery.start(a.run)
    a.store.failing = True
    with pytest.raises(StorageError):
        await submit(a, service_id=True)
    a.store.failing = False
    given = (await submit(a, service_id=True)).service_id
    reopened = a.store._inner.reopened()
    assert reopened.marks["service_id"] >= given


@pytest.mark.parametrize("days", [1, -1])
async def test_pages_keep_the_order_of_acceptance_and_lose_and_repeat_nothing(
    autojump_clock, fleet, nursery, days
):
    (a,) = await started(fleet, nursery, "a")
    keys = (str(number) for number in itertools.count())
    made = [(await submit(a, next(keys))).id for _ in range(7)]
    fleet.off_s = days * DAY
    made += [(await submit(a, next(keys))).id for _ in range(7)]
    first = await a.dispatch.tasks(TaskFilter(limit=5), ADMIN, local=False)
    first_audit = await a.dispatch.audited(AuditFilter(limit=5), ADMIN, local=False)
    fleet.off_s = -days * DAY
    await fleet.restart(a, nursery)
    later = [(await submit(a, next(keys))).id for _ in range(7)]
    found = [task.id for task in first.tasks]
    seen = [record.subject for record in first_audit.records]
    while len(found) < len(made):
        page = await a.dispatch.tasks(TaskFilter(limit=5, before=found[-1]), ADMIN, local=False)
        found += [task.id for task in page.tasks]
    before = first_audit.records[-1].id
    while len(seen) < len(made):
        records = await a.dispatch.audited(AuditFilter(limit=5, before=before), ADMIN, local=False)
        seen += [record.subject for record in records.records]
        before = records.records[-1].id
    assert found[::-1] == seen[::-1] == made
    whole = await a.dispatch.tasks(TaskFilter(limit=100), ADMIN, local=False)
    assert [task.id for task in whole.tasks][::-1] == made + later
    trail = await a.dispatch.audited(AuditFilter(limit=100), ADMIN, local=False)
    assert [record.subject for record in trail.records][::-1] == made + later


def test_ages():
    now = {"wall": 1000.0, "up": 50.0}
    seams = Seams(wall=lambda: now["wall"], boottime=lambda: now["up"], boot=7)
    noted = (now["wall"], seams.tick())
    now.update(wall=90_000.0, up=60.0)
    assert seams.age(*noted) == 10.0
    assert seams.age(noted[0], Tick(8, 49.0)) == 89_000.0, "another boot of the machine"
    assert seams.age(noted[0], None) == 89_000.0, "noted by an older release"
    now.update(wall=0.0)
    assert seams.age(noted[0], None) == 0.0, "never negative"
    nameless = dataclasses.replace(seams, boot=0)
    assert nameless.age(1.0, Tick(0, 1.0)) == 0.0, "where the kernel tells no boot, the wall clock decides"


def test_the_kernel_names_this_boot():
    assert 0 < Seams().boot < 1 << 63
    assert Seams().boot == Seams().boot


async def test_no_callback_has_the_key_of_an_earlier_one(autojump_clock, fleet, nursery):
    """A receiver drops what it has had: after a restart the next number was one above those that waited."""
    a = fleet.add("a")
    spec = TaskSpec(name="t", service=(NativeService(argv=("true",)),), callback_url="http://receiver/")

    def life():
        return Callbacks(a.store, Settings(), fleet.seams, lambda _: "", lambda *_args, **_how: "")

    async def make(notes, task, kind):
        changes = notes.changes(task, spec, kind)
        await a.store.commit(changes)
        return changes[0].callback.id

    first, other = (
        Task(
            id=ulid(1e9 + n, fleet.rng.getrandbits(80), a.id),
            name="t",
            state=T.RUNNING,
            origin=a.id,
            caller=ADMIN,
            created_at=1e9,
            spec=msgspec.json.encode(spec),
        )
        for n in range(2)
    )
    notes = life()
    await make(notes, other, "started")
    told = await make(notes, first, "started")
    await a.store.commit([DropCallback(id=told)])
    fleet.off_s = -DAY
    a.store = a.store.reopened()
    notes = life()
    await nursery.start(notes.run)
    assert await make(notes, first, "ended") > told
