"""A node that was restored from a backup learns from the others what had ended meanwhile."""

import trio

from edgeorch.model import AttemptState as A
from edgeorch.model import PeerState
from edgeorch.model import TaskState as T
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import MemoryStore


async def up(nursery, *nodes):
    """Start the nodes; what is started there is noted in ``node.starts``."""
    for node in nodes:
        node.starts = []
        note(node)
        await nursery.start(node.host.run)
        await nursery.start(node.run)


def note(node):
    plain = node.host.begin

    def begin(driver, launch, steps):
        node.starts.append(launch.key)
        return plain(driver, launch, steps)

    node.host.begin = begin


async def ended(node, task):
    return await node.dispatch.wait(task.id, ADMIN, 5_000)


def older(store):
    """A backup: what is written to the store from now on is not in it."""
    return store.reopened()


async def test_what_had_ended_is_not_run_again(autojump_clock, tmp_path, nursery):
    fleet = VirtualFleet(tmp_path)
    a, b = fleet.add("a"), fleet.add("b")
    await up(nursery, a, b)
    running = await a.submit("sleep", "30", placement={"node": "b"}, retry={"max_attempts": 3})
    once = await a.submit("sleep", "30", placement={"node": "b"}, retry={"max_attempts": 1})
    failing = await a.submit("exit", "7", placement={"node": "b", "self": False})
    await trio.sleep(5)
    assert (await ended(a, failing)).state is T.FAILED
    backup = older(a.store)
    for task in (running, once):
        assert (await ended(a, task)).state is T.SUCCEEDED
    await trio.sleep(5)
    assert await b.store.runs() == []
    a.crash()
    a.store = backup
    await nursery.start(a.run)
    fleet.set_state(a.id, PeerState.ALIVE)
    for task in (running, once):
        found = await ended(a, task)
        assert found.state is T.SUCCEEDED
        assert [(one.number, one.state) for one in found.attempts] == [(1, A.SUCCEEDED)]
    assert sorted(b.starts) == sorted(f"{task.id}.1" for task in (running, once, failing))
    assert a.starts == []


async def test_an_attempt_that_the_backup_does_not_know_is_taken_up(autojump_clock, tmp_path, nursery):
    fleet = VirtualFleet(tmp_path)
    a, b = fleet.add("a", slots=1), fleet.add("b", slots=1)
    b.refuse = "not yet"
    await up(nursery, a, b)
    await a.submit("sleep", "100", placement={"node": "a"})
    waiting = await a.submit("true", placement={"self": False}, retry={"max_attempts": 1})
    await trio.sleep(5)
    backup = older(a.store)
    b.refuse = ""
    assert (await ended(a, waiting)).state is T.SUCCEEDED
    await trio.sleep(5)
    a.crash()
    a.store = backup
    b.crash()
    await nursery.start(a.run)
    await trio.sleep(20)
    # Found again only after it had been looked for; everything that waits is asked about then.
    await nursery.start(b.run)
    for node in (a, b):
        fleet.set_state(node.id, PeerState.ALIVE)
    found = await ended(a, waiting)
    assert found.state is T.SUCCEEDED
    assert b.starts == [f"{waiting.id}.{found.current.number}"]


async def test_what_ended_long_ago_is_forgotten(autojump_clock, tmp_path, nursery):
    fleet = VirtualFleet(tmp_path)
    a, b = fleet.add("a"), fleet.add("b")
    await up(nursery, a, b)
    task = await a.submit("true", placement={"node": "b"})
    await ended(a, task)
    await trio.sleep(5)
    assert [run.state for run in await b.store.ended_runs([task.id])] == [A.SUCCEEDED]
    assert isinstance(b.store, MemoryStore)
    await b.store.prune(60.0)
    assert len(await b.store.ended_runs([task.id])) == 1
    await b.store.prune(-1.0)
    assert await b.store.ended_runs([task.id]) == []
