"""A disk that hangs: what the store says meanwhile, and when the node ends."""

import threading

import pytest
import trio
from structlog.testing import capture_logs

from edgeorch.errors import StorageError
from edgeorch.store import AuditFilter, PutAudit, sqlite
from edgeorch.store.sqlite import SqliteStore
from edgeorch.store.stall import STALLED_S, Progress, StallWatch

AUDIT = PutAudit(id="x", at=1.0, token="t", via="", action="drain", subject="kitchen")


async def test_what_is_not_asked_for_does_not_stall(autojump_clock):
    work = Progress()
    await trio.sleep(100)
    assert work.still_s == 0
    work.asked()
    await trio.sleep(2)
    work.asked()
    await trio.sleep(1)
    assert work.still_s == 3
    work.answered()
    assert work.still_s == 0
    await trio.sleep(4)
    assert work.still_s == 4
    work.answered()
    await trio.sleep(100)
    assert work.still_s == 0


class EndedError(Exception):
    """The node would have ended."""


def end(why):
    raise EndedError(why)


async def test_a_disk_that_comes_back_in_time_ends_nothing(nursery, autojump_clock):
    work = Progress()
    await nursery.start(StallWatch(lambda: work.still_s, 300, end).run)
    with capture_logs() as said:
        for pause in (STALLED_S - 1, 299, 20):
            work.asked()
            await trio.sleep(pause)
            work.answered()
            await trio.sleep(2)
    assert [line["event"] for line in said] == ["the store stalls", "the store goes on"] * 2
    nursery.cancel_scope.cancel()


async def test_a_disk_that_does_not_come_back_ends_the_node(autojump_clock):
    work = Progress()
    began = trio.current_time()
    with pytest.RaisesGroup(pytest.RaisesExc(EndedError, match="stalled for 30. s")):
        async with trio.open_nursery() as nursery:
            await nursery.start(StallWatch(lambda: work.still_s, 300, end).run)
            work.asked()
            await trio.sleep_forever()
    assert 300 <= trio.current_time() - began <= 302


async def test_a_machine_that_was_paused_itself_is_given_a_second_look(nursery, autojump_clock):
    work = Progress()
    await nursery.start(StallWatch(lambda: work.still_s, 300, end).run)
    work.asked()
    await trio.testing.wait_all_tasks_blocked()
    autojump_clock.jump(5000)
    nursery.start_soon(trio.testing.wait_all_tasks_blocked)
    await trio.testing.wait_all_tasks_blocked()
    work.answered()
    await trio.sleep(10)
    nursery.cancel_scope.cancel()


async def test_the_store_says_that_it_stalls_and_takes_nothing_more(tmp_path, nursery, monkeypatch):
    hang, hanging = threading.Event(), threading.Event()
    apply = sqlite._apply

    def hanging_apply(*arguments, **how):
        hanging.set()
        hang.wait(60)
        return apply(*arguments, **how)

    monkeypatch.setattr(sqlite, "_apply", hanging_apply)
    monkeypatch.setattr(sqlite, "STALLED_S", 1e-9)
    store = SqliteStore(tmp_path / "edgeorch.db")
    await nursery.start(store.serve)
    done = trio.Event()

    async def hang_on():
        await store.commit([AUDIT])
        done.set()

    try:
        assert (store.problem, store.still_s) == ("", 0)
        nursery.start_soon(hang_on)
        await trio.to_thread.run_sync(hanging.wait)
        assert store.problem == "store stalled 0 s"
        with pytest.raises(StorageError, match="store stalled"):
            await store.commit([AUDIT])
        # A reader is not held up by the disk's writes.
        assert await store.audit(AuditFilter()) == []
        assert store.problem
    finally:
        hang.set()
    await done.wait()
    assert store.problem == ""
    await store.commit([AUDIT])
    assert len(await store.audit(AuditFilter())) == 2
    nursery.cancel_scope.cancel()
