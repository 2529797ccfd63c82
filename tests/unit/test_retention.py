"""Forgetting: what goes, what stays, and that trouble with one does not keep the other."""

import os
import random
from types import SimpleNamespace

import pytest
import trio

from edgeorch.config import Store
from edgeorch.dispatch.retention import EVERY_S, Retention
from edgeorch.model import Caller, Task, TaskState, ulid
from edgeorch.seams import Seams
from edgeorch.store import PutTask
from edgeorch.testing.stores import FailingStore, MemoryStore

NOW = 1_800_000_000.0
DAY = 86_400.0


class World:
    """A store, a folder of attempts, and the part that cleans both."""

    def __init__(self, folder, *, max_bytes=1 << 30, failing=False):
        self.now, self.off = NOW, 0.0
        self.seams = Seams(
            wall=lambda: self.now + self.off, boottime=lambda: self.now, rng=random.Random(1), boot=1
        )
        self.store = FailingStore(MemoryStore(self.seams), failing=failing)
        self.folder = folder
        self.lives = {}
        ledger = SimpleNamespace(seams=self.seams, store=self.store, recent={})
        executor = SimpleNamespace(lives=lambda: self.lives)
        settings = Store(retention_s=DAY, retention_bytes=max_bytes)
        self.retention = Retention(settings, ledger, executor, [folder, folder, folder / "missing"])

    async def ended(self, *, days_ago):
        """A task that ended then, with its output; the key of its attempt."""
        at = self.now = NOW - days_ago * DAY
        task_id = ulid(at, self.seams.rng.getrandbits(80), "0123456789")
        task = Task(
            id=task_id,
            name="t",
            state=TaskState.SUCCEEDED,
            origin="0123456789",
            caller=Caller(token="t", role="admin"),
            created_at=at,
            spec=b"{}",
            ended_at=at,
        )
        await self.store._inner.commit([PutTask(task=task)])
        self.now = NOW
        return self.output(task_id, at)

    def output(self, task_id, at):
        place = self.folder / f"{task_id}.1"
        place.mkdir()
        (place / "stdout").write_bytes(b"x" * 100_000)
        for path in (place / "stdout", place):
            os.utime(path, (at, at))
        return place.name

    def left(self):
        return {entry.name for entry in self.folder.iterdir()}

    async def known(self, key):
        return await self.store.task(key.partition(".")[0]) is not None


async def test_what_is_old_goes_with_its_output(tmp_path):
    world = World(tmp_path)
    old, new = await world.ended(days_ago=2), await world.ended(days_ago=0.5)
    (tmp_path / "notes").write_text("not ours")
    await world.retention.clean()
    assert world.left() == {new, "notes"}
    assert (await world.known(old), await world.known(new)) == (False, True)


@pytest.mark.parametrize("years", [-56, -1 / 365, 1 / 365, 70])
async def test_a_clock_that_is_set_costs_nobody_a_result(tmp_path, years):
    world = World(tmp_path)
    old, new = await world.ended(days_ago=2), await world.ended(days_ago=0.5)
    stray = world.output(ulid(NOW, world.seams.rng.getrandbits(80), "0123456789"), NOW - DAY / 2)
    world.off = years * 365 * DAY
    await world.retention.clean()
    assert (await world.known(old), await world.known(new)) == (False, True)
    assert new in world.left()
    world.now += 2.5 * DAY
    await world.retention.clean()
    assert world.left() == set()
    assert (await world.known(new), stray in world.left()) == (False, False)


async def test_output_that_no_task_tells_of_goes_by_its_own_age(tmp_path):
    world = World(tmp_path)
    ages = {0.5: True, 2: False, -0.5: True, -2: False}
    keys = {
        age: world.output(ulid(NOW + age, world.seams.rng.getrandbits(80), "0123456789"), NOW - age * DAY)
        for age in ages
    }
    await world.retention.clean()
    assert {age: key in world.left() for age, key in keys.items()} == ages


async def test_output_above_the_limit_goes_oldest_first_and_its_task_stays(tmp_path):
    world = World(tmp_path, max_bytes=250_000)
    keys = [await world.ended(days_ago=days) for days in (0.4, 0.3, 0.2, 0.1)]
    await world.retention.clean()
    assert world.left() == set(keys[2:])
    assert all([await world.known(key) for key in keys])


async def test_what_lives_is_kept_however_old_and_large(tmp_path):
    world = World(tmp_path, max_bytes=1)
    key = await world.ended(days_ago=9)
    world.lives[key] = object()
    await world.retention.clean()
    assert world.left() == {key}


async def test_a_full_disk_keeps_tasks_and_still_loses_output(tmp_path):
    world = World(tmp_path, failing=True)
    key = await world.ended(days_ago=2)
    await world.retention.clean()
    assert (world.left(), await world.known(key)) == (set(), True)


async def test_a_folder_that_cannot_be_read_ends_nothing(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    folder = tmp_path / "tasks"
    folder.mkdir()
    world = World(folder)
    world.retention.roots = (blocked, folder)
    await world.ended(days_ago=2)
    await world.retention.clean()
    assert world.left() == set()


async def test_it_cleans_about_every_ten_minutes(tmp_path, nursery, autojump_clock, monkeypatch):
    world = World(tmp_path)
    rounds = []

    async def clean():
        rounds.append(trio.current_time())

    monkeypatch.setattr(world.retention, "clean", clean)
    begin = trio.current_time()
    await nursery.start(world.retention.run)
    await trio.sleep(EVERY_S * 10)
    nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in zip([begin, *rounds], rounds, strict=False)]
    assert 8 <= len(gaps) <= 12
    assert all(gap == pytest.approx(EVERY_S, rel=0.21) for gap in gaps)
    assert len(set(gaps)) > 1
