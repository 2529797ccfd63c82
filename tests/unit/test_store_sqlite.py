"""What only the store on disk does: durability, sharing a flush, full disks, damage, other releases."""

import os
import random
import shutil
import sqlite3
import stat
from contextlib import asynccontextmanager, closing

import msgspec
import pytest
import trio
import trio.testing

from edgeorch.errors import StartError, StorageError
from edgeorch.model import AttemptState, Caller, Event, Offer, Run, Task, TaskState, ulid
from edgeorch.seams import Seams, Tick
from edgeorch.store import (
    AuditFilter,
    DropTask,
    PutAudit,
    PutEvent,
    PutRun,
    PutSecrets,
    PutTask,
    TaskFilter,
    migrations,
)
from edgeorch.store import sqlite as sqlite_store
from edgeorch.store.connection import PAGE_BYTES
from edgeorch.store.sqlite import SqliteStore

NOW = 1_800_000_000.0
ID = ulid(NOW, random.Random(1).getrandbits(80), "0123456789")
DRAINED = PutAudit(id=ulid(2.0, 1, "0123456789"), at=2.0, token="t", via="", action="drain", subject="n")
CALLER = Caller(token="ann", role="submit")


def task(number=0, *, spec=b"{}", state=TaskState.WAITING):
    task_id = ulid(NOW + number, random.Random(number).getrandbits(80), "0123456789")
    return Task(
        id=task_id,
        name="job",
        state=state,
        origin="o",
        caller=CALLER,
        created_at=NOW,
        spec=spec,
        ended_at=None,
    )


def put(*numbers, **more):
    return [PutTask(task=task(number, **more)) for number in numbers]


def event(number=0):
    return PutEvent(event=Event(task=task(number).id, at=NOW, type="state", data={"text": "x" * 200}))


def run():
    offer = Offer(task_id=ID, number=1, origin="o", name="job", spec=b"{}", caller=CALLER)
    return Run(offer=offer, state=AttemptState.RUNNING, accepted_at=NOW)


@asynccontextmanager
async def opened(path, now=NOW):
    store = SqliteStore(path, Seams(wall=lambda: now))
    async with trio.open_nursery() as nursery:
        await nursery.start(store.serve)
        yield store
        nursery.cancel_scope.cancel()


async def gathered(*calls):
    """Each call's result or exception, all in flight together."""
    results = [None] * len(calls)

    async def one(index, call):
        try:
            results[index] = await call()
        except StorageError as error:
            results[index] = error

    async with trio.open_nursery() as nursery:
        for index, call in enumerate(calls):
            nursery.start_soon(one, index, call)
    return results


async def newest(store):
    """The number of the newest event."""
    return (await store.events(None, 0, 10_000))[-1].seq


def committing(store, *changes):
    return lambda: store.commit(changes)


async def test_everything_is_there_after_a_restart(tmp_path):
    path = tmp_path / "state" / "edgeorch.db"
    async with opened(path) as store:
        await store.commit_both([*put(0), event()], [PutRun(run=run())])
        first = (store.store_id, store.boot)
    assert sorted(file.name for file in path.parent.iterdir()) == ["edgeorch.db", "edgeorch.db.lock"]
    async with opened(path) as store:
        assert await store.task(task().id) == task()
        assert await store.runs() == [run()]
        assert len(await store.events(None, 0, 10)) == 1
        assert (store.store_id, store.boot) == (first[0], first[1] + 1)
        assert store.set_aside is None


async def test_a_commit_that_returned_survives_a_sudden_end(tmp_path):
    path, copy = tmp_path / "e.db", tmp_path / "copy" / "e.db"
    copy.parent.mkdir()
    async with opened(path) as store:
        await store.commit(put(0))
        # What a kill leaves on disk: the file and its log, without the clean-up of a normal end.
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    async with opened(copy) as store:
        assert await store.task(task().id) == task()
        assert store.set_aside is None


async def test_nobody_else_may_read_the_files(tmp_path):
    path = tmp_path / "state" / "e.db"
    async with opened(path) as store:
        await store.commit(put(0))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("e.db", "e.db-wal", "e.db-shm", "e.db.lock"), 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_calls_in_flight_share_transactions(tmp_path):
    async with opened(tmp_path / "e.db") as store:
        await gathered(*(committing(store, *put(n), event(n)) for n in range(64)))
        assert [one.seq for one in await store.events(None, 0, 100)] == list(range(1, 65))
        assert len(await store.tasks(TaskFilter())) == 64
        statistics = store.statistics()
        assert statistics.commits == 64
        assert statistics.transactions <= 8
        assert (statistics.failures, statistics.waiting) == (0, 0)


async def test_a_transaction_that_accepts_a_task_changes_few_pages(tmp_path):
    """Each of them goes to the log whole, and to the disk before the answer."""
    path, count, frame = tmp_path / "e.db", 20, 24 + PAGE_BYTES
    async with opened(path) as store:
        sizes = []
        for number in range(2 * count):
            record = PutAudit(id=task(number).id, at=NOW, token="ann", action="submit", subject="s")
            await store.commit([*put(number), event(number), record])
            sizes.append(path.with_name("e.db-wal").stat().st_size)
        assert (sizes[-1] - sizes[count - 1]) / frame / count < 9


async def test_no_number_of_an_event_comes_again(tmp_path):
    path, numbers = tmp_path / "e.db", []

    def older_release():
        with closing(sqlite3.connect(path)) as connection, connection:
            body = msgspec.msgpack.encode(event().event)
            made = connection.execute("INSERT INTO events (task, body) VALUES (?, ?)", (task().id, body))
            numbers.append(made.lastrowid)
            connection.execute("DELETE FROM events")

    async def forgotten(store):
        await store.commit([event()])
        numbers.append(await newest(store))
        await store.commit([DropTask(task_id=task().id)])

    async with opened(path) as store:
        store._database.writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        with pytest.raises(StorageError):
            await store.commit([event(), *put(5, spec=b"x" * 200_000)])
        await forgotten(store)
    older_release()
    async with opened(path) as store:
        await forgotten(store)
        await store.commit([event(0)] * 3000)
        await forgotten(store)
    async with opened(path) as store:
        await forgotten(store)
    older_release()
    assert numbers == sorted(set(numbers)), "each above the one before"
    assert len(numbers) == 6


async def test_a_call_that_cannot_be_stored_does_not_fail_the_others(tmp_path):
    async with opened(tmp_path / "e.db") as store:
        store._database.writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        calls = [committing(store, *put(n), event(n)) for n in range(10)]
        calls[5] = committing(store, event(5), *put(5, spec=b"x" * 200_000))
        results = await gathered(*calls)
        assert [n for n, result in enumerate(results) if isinstance(result, StorageError)] == [5]
        assert len(await store.tasks(TaskFilter())) == 9
        assert len(await store.events(None, 0, 100)) == 9
        assert store.statistics().failures == 1


async def test_a_full_disk_fails_commits_and_ends_when_there_is_space_again(tmp_path):
    async with opened(tmp_path / "e.db") as store:
        await store.commit(put(0))
        (pages,) = store._database.writer.execute("PRAGMA page_count").fetchone()
        store._database.writer.execute(f"PRAGMA max_page_count = {pages + 4}")
        with pytest.raises(StorageError, match="the disk is full") as caught:
            await store.commit([*put(1), *put(2, spec=b"x" * 100_000)])
        assert caught.value.status == 507
        assert caught.value.hint
        assert await store.task(task(1).id) is None
        # A small one still fits, also beside a large one in the same transaction.
        small, large = await gathered(
            committing(store, *put(3)), committing(store, *put(4, spec=b"x" * 100_000))
        )
        assert small is None
        assert isinstance(large, StorageError)
        store._database.writer.execute("PRAGMA max_page_count = 1000000")
        await store.commit(put(1, spec=b"x" * 100_000))
        assert len(await store.tasks(TaskFilter())) == 3


async def test_a_locked_database_fails_the_commit_and_recovers(tmp_path):
    path = tmp_path / "e.db"
    async with opened(path) as store:
        store._database.writer.execute("PRAGMA busy_timeout = 1")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another program holds the database"):
                await store.commit(put(0))
        await store.commit(put(0))


async def test_a_cancelled_commit_is_whole_or_absent_and_later_ones_go_on(tmp_path):
    async with opened(tmp_path / "e.db") as store:
        for number in range(20):
            with trio.move_on_after(0):
                await store.commit([*put(number), event(number)])
        await store.commit(put(100))
        kept = {one.id for one in await store.tasks(TaskFilter())}
        assert {one.task for one in await store.events(None, 0, 100)} == kept - {task(100).id}


async def test_commits_go_on_while_much_of_the_audit_trail_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_store, "_PRUNE_STEP", 10)
    monkeypatch.setattr(sqlite_store, "_LOOK_STEP", 10)
    order = []

    async def prune():
        await store.prune_audit(1e9, 0)
        order.append("forgotten")

    async with opened(tmp_path / "e.db") as store:
        await store.commit([DRAINED] * 300)
        before = store.statistics().commits
        async with trio.open_nursery() as both:
            both.start_soon(prune)
            await trio.testing.wait_all_tasks_blocked()
            await store.commit(put(1))
            order.append("committed")
        assert order == ["committed", "forgotten"]
        assert store.statistics().commits == before + 300 // 10 + 1
        assert await store.audit(AuditFilter()) == []


async def test_what_was_queued_is_written_before_the_end_and_later_calls_are_refused(tmp_path):
    path = tmp_path / "e.db"
    store = SqliteStore(path)
    with pytest.raises(StorageError):
        await store.task("x")
    async with trio.open_nursery() as nursery, trio.open_nursery() as serving:
        await serving.start(store.serve)
        for number in range(5):
            nursery.start_soon(store.commit, put(number))
        await trio.testing.wait_all_tasks_blocked()
        serving.cancel_scope.cancel()
    with pytest.raises(StorageError, match="stopping"):
        await store.commit(put(9))
    with pytest.raises(StorageError, match="stopping"):
        await store.runs()
    async with opened(path) as again:
        assert len(await again.tasks(TaskFilter())) == 5


async def test_two_nodes_cannot_share_a_database(tmp_path):
    async with opened(tmp_path / "e.db"):
        await refused(tmp_path / "e.db", "another node uses")


async def _open_and_close(path):
    async with opened(path):
        pass


async def refused(path, match):
    with pytest.RaisesGroup(pytest.RaisesExc(StartError, match=match)):
        await _open_and_close(path)


async def test_a_folder_that_cannot_be_made_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").touch()
    await refused(tmp_path / "file" / "e.db", "file")


async def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "e.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious (x)")
    before = path.read_bytes()
    await refused(path, "belongs to another program")
    assert path.read_bytes()[100:] == before[100:]


async def test_a_newer_release_is_followed_while_it_only_added(tmp_path):
    path = tmp_path / "e.db"
    await _open_and_close(path)
    newer = migrations.Step(
        number=99, compatible=1, sql="ALTER TABLE tasks ADD COLUMN mood TEXT; CREATE TABLE more (x)"
    )
    _migrate(path, newer)
    async with opened(path) as store:
        await store.commit(put(0))
        assert await store.task(task().id) == task()
    _migrate(path, like(newer, number=100, compatible=100, sql="SELECT 1"))
    await refused(path, "written by a newer release")


async def test_a_database_of_the_first_release_is_taken_over_and_given_back(tmp_path):
    path = tmp_path / "e.db"
    record = PutAudit(id=ulid(2.0, 1, "0123456789"), at=2.0, token="ann", via="", action="drain", subject="s")

    def first_release():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            migrations.migrate(connection, migrations.STEPS[:1])
            body = msgspec.msgpack.encode({"at": 1.0, "token": "t", "via": "", "action": "a", "subject": "s"})
            connection.execute("INSERT INTO audit (at, body) VALUES (?, ?)", (1.0, body))
            old = {"scope": "ann", "key": "k", "body": b"1", "task_ids": [task().id], "expires_at": NOW + 1}
            connection.execute(
                "INSERT OR IGNORE INTO keys (scope, key, expires_at, body) VALUES (?, ?, ?, ?)",
                ("ann", "k", NOW + 1, msgspec.msgpack.encode(old)),
            )
            return connection.execute("SELECT COUNT(*) FROM audit").fetchone()[0]

    assert first_release() == 1
    async with opened(path) as store:
        assert (await store.key("ann", "k", NOW, Tick(1, 1.0))).body == b"1"
        assert await store.key("ann", "k", NOW + 1, Tick(1, 1.0)) is None
        await store.commit([record, PutTask(task=task()), PutSecrets(task_id=task().id, sealed=b"s")])
        assert await store.audit(AuditFilter()) == [record]
    assert first_release() == 3
    async with opened(path) as store:
        assert await store.audit(AuditFilter()) == [record]
        assert await store.secrets(task().id) == b"s"
        assert await store.name_audit("0123456789") == 2
        assert [one.at for one in await store.audit(AuditFilter())] == [2.0, 1.0, 1.0]
        await store.prune_audit(NOW - 1.5, 1 << 20)
        assert [one.at for one in await store.audit(AuditFilter())] == [2.0, 1.0], "in the order they came"
    assert first_release() == 3


async def test_ends_of_an_older_release_that_its_clock_had_wrong_are_neither_early_nor_for_ever(tmp_path):
    path, day = tmp_path / "e.db", 86_400.0
    tasks = [(0, NOW - 3 * day), (1, NOW), (2, NOW + 70 * 365 * day)]

    def older_release(row, at):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE tasks SET ended_at = ? WHERE id = ?", (at, task(row).id))
            connection.execute("DELETE FROM meta WHERE name = 'clock'")

    async with opened(path) as store:
        for number, at in tasks:
            ended = msgspec.structs.replace(task(number), state=TaskState.FAILED, ended_at=at)
            await store.commit([PutTask(task=ended)])
    for number, at in tasks:
        older_release(number, at)
    async with opened(path) as store:
        assert await store.prune(2 * day) == [task(0).id]
        assert await store.prune(day) == []
        assert await store.prune(-1) == [task(1).id, task(2).id]


async def test_an_upgrade_with_a_clock_in_the_far_future_forgets_nothing_at_once(tmp_path):
    path, day = tmp_path / "e.db", 86_400.0
    async with opened(path) as store:
        ended = msgspec.structs.replace(task(), state=TaskState.FAILED, ended_at=NOW)
        await store.commit([PutTask(task=ended)])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 'damaged' WHERE name = 'clock'")
    async with opened(path, NOW + 70 * 365 * day) as store:
        assert await store.prune(1.1 * day) == []
        assert await store.prune(0.9 * day) == [task().id]


def like(step, **changes):
    return migrations.Step(**{**vars(step), **changes})


def _migrate(path, step):
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (seen,) = connection.execute("PRAGMA user_version").fetchone()
        filler = (step,) * (seen + 1)  # migrate() takes the steps after the newest one seen
        migrations.migrate(connection, filler)


# Damage


async def filled(path, count=300):
    async with opened(path) as store:
        await store.commit([*put(*range(count)), *(event(n) for n in range(count))])
        await store.commit_runs([PutRun(run=run())])
        await store.commit([PutSecrets(task_id=task().id, sealed=b"sealed"), DRAINED])
        return store.store_id


def page_of(path, table):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY pageno", (table,)
        ).fetchall()[3][0]


async def test_a_damaged_page_costs_its_own_rows_only(tmp_path):
    path = tmp_path / "e.db"
    store_id = await filled(path)
    page = page_of(path, "tasks")
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(os.urandom(PAGE_BYTES))
    damaged = path.read_bytes()
    async with opened(path) as store:
        assert store.set_aside.name == "e.db.corrupt-20270115T080000Z"
        assert store.set_aside.read_bytes() == damaged
        left = await store.tasks(TaskFilter(limit=1000))
        assert 270 <= len(left) < 300
        assert await store.runs() == [run()]
        assert await store.secrets(task().id) == b"sealed"
        assert await store.audit(AuditFilter()) == [DRAINED]
        assert len(await store.events(None, 0, 1000)) == 300
        assert (store.store_id, store.boot) == (store_id, 2)
        await store.commit([event()])
        assert await newest(store) > 300
    async with opened(path) as store:
        assert store.set_aside is None
        assert len(await store.tasks(TaskFilter(limit=1000))) == len(left)


@pytest.mark.parametrize("how", ["header", "empty", "half", "no file"])
async def test_a_lost_file_is_set_aside_and_never_silently_replaced(tmp_path, how):
    path = tmp_path / "e.db"
    await filled(path)
    whole = path.read_bytes()
    if how == "header":
        path.write_bytes(b"\0" * 4096 + whole[4096:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.unlink()
        path.with_name("e.db-wal").write_bytes(b"log")
    async with opened(path) as store:
        assert store.set_aside is not None
        kept = [file.name for file in tmp_path.iterdir() if ".corrupt-" in file.name]
        assert any(name.startswith(store.set_aside.name) for name in kept)
        await store.commit(put(1))
        await store.commit([event()])
        assert await newest(store) > 300


async def test_a_row_that_cannot_be_decoded_is_left_out_of_the_new_file(tmp_path):
    path = tmp_path / "e.db"
    await filled(path, 3)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE tasks SET body = x'c1' WHERE id = ?", (task(1).id,))
    async with opened(path) as store:
        assert store.set_aside is not None
        assert {one.id for one in await store.open_tasks()} == {task(0).id, task(2).id}


async def test_a_row_damaged_while_running_is_an_error_alone_and_left_out_of_lists(tmp_path):
    path = tmp_path / "e.db"
    async with opened(path) as store:
        await store.commit(put(0, 1))
        store._database.writer.execute("UPDATE tasks SET body = x'c1' WHERE id = ?", (task(1).id,))
        with pytest.raises(StorageError, match="cannot be read"):
            await store.task(task(1).id)
        assert await store.tasks(TaskFilter()) == [task(0)]


async def test_a_start_cut_short_while_files_change_places_is_finished_by_the_next(tmp_path):
    path = tmp_path / "e.db"
    await filled(path, 3)
    path.rename(f"{path}.carried")
    path.write_bytes(b"damaged")
    path.with_name("e.db-wal").write_bytes(b"old log")
    path.with_name("e.db.new").write_bytes(b"half written")
    async with opened(path) as store:
        assert store.set_aside.read_bytes() == b"damaged"
        assert len(await store.tasks(TaskFilter())) == 3
    assert {file.name for file in tmp_path.iterdir()} == {
        "e.db",
        "e.db.lock",
        store.set_aside.name,
        f"{store.set_aside.name}-wal",
    }


async def test_bytes_flipped_anywhere_never_crash_a_start(tmp_path):
    path = tmp_path / "e.db"
    await filled(path, 60)
    whole = path.read_bytes()
    rng, refusals = random.Random(7), 0
    for number in range(25):
        bad = bytearray(whole)
        for _ in range(20):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        copy = tmp_path / f"copy{number}.db"
        copy.write_bytes(bad)
        try:
            async with opened(copy) as store:
                await store.tasks(TaskFilter(limit=1000))
                await store.commit(put(1000))
        except* (StartError, StorageError):
            refusals += 1
    assert refusals < 25


FRAME = 24 + PAGE_BYTES


async def killed(path, target, count=20):
    """The files as a ``kill -9`` leaves them: every transaction is in the log."""
    async with opened(path) as store:
        for number in range(count):
            await store.commit(put(number))
        for name in ("e.db", "e.db-wal"):
            (target / name).write_bytes(path.with_name(name).read_bytes())
    wal = target / "e.db-wal"
    frames = (wal.stat().st_size - 32) // FRAME
    assert frames >= count
    return target / "e.db", wal, frames


def flip(file, place):
    with file.open("r+b") as opened_file:
        opened_file.seek(place)
        byte = opened_file.read(1)[0]
        opened_file.seek(place)
        opened_file.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize("where", ["header", "middle", "salt"])
async def test_a_damaged_log_is_told_and_what_is_before_the_damage_is_kept(tmp_path, where):
    (tmp_path / "old").mkdir()
    path, wal, frames = await killed(tmp_path / "old" / "e.db", tmp_path)
    middle = 32 + FRAME * (frames // 2)
    flip(wal, {"header": 17, "middle": middle + 1000, "salt": middle + 8}[where])
    async with opened(path) as store:
        assert store.set_aside is not None
        left = len(await store.tasks(TaskFilter(limit=100)))
        assert left == 0 if where == "header" else 0 < left < 20
    assert store.set_aside.with_name(f"{store.set_aside.name}-wal").exists()


@pytest.mark.parametrize("torn", ["last", "cut"])
async def test_a_transaction_that_a_power_cut_tore_is_no_damage(tmp_path, torn):
    (tmp_path / "old").mkdir()
    path, wal, frames = await killed(tmp_path / "old" / "e.db", tmp_path)
    if torn == "last":
        flip(wal, 32 + FRAME * (frames - 1) + 1000)
    else:
        wal.write_bytes(wal.read_bytes()[:-2000])
    async with opened(path) as store:
        assert store.set_aside is None
        assert len(await store.tasks(TaskFilter(limit=100))) == 19


@pytest.mark.parametrize("size", [512, 4096, 65_536])
async def test_a_database_of_an_older_release_keeps_its_pages(tmp_path, size):
    path = tmp_path / "old" / "e.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {size}")
        connection.execute("VACUUM")
    async with opened(path) as store:
        for number in range(20):
            await store.commit(put(number))
        for name in ("e.db", "e.db-wal"):
            (tmp_path / name).write_bytes(path.with_name(name).read_bytes())
    assert path.stat().st_size % size == 0
    flip(tmp_path / "e.db-wal", 17)
    async with opened(tmp_path / "e.db") as store:
        assert store.set_aside is not None


async def test_what_is_left_of_an_older_log_is_no_damage(tmp_path):
    path = tmp_path / "e.db"
    async with opened(path) as store:
        for number in range(20):
            await store.commit(put(number))
        store._database.writer.execute("PRAGMA wal_checkpoint(RESTART)")
        await store.commit(put(20))
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("e.db", "e.db-wal"):
            (copy / name).write_bytes(path.with_name(name).read_bytes())
    async with opened(copy / "e.db") as store:
        assert store.set_aside is None
        assert len(await store.tasks(TaskFilter(limit=100))) == 21
