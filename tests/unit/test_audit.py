"""Who did what, over several nodes on MockClock: recorded once, with what was done, and read anywhere."""

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from virtual_steps import ended, started

from edgeorch.dispatch import audit
from edgeorch.dispatch.audit import OTHERS, SOURCES, WINDOW_S
from edgeorch.errors import ForbiddenError, StorageError
from edgeorch.model import Caller, PeerState, origin_of
from edgeorch.model import TaskState as T
from edgeorch.store import AuditFilter, PutAudit
from edgeorch.testing.fleet import VirtualFleet
from edgeorch.testing.stores import FailingStore
from edgeorch.wire.messages import AuditFound, ListAudit

ANN = Caller(token="ann", role="admin", address="192.0.2.7")


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


async def trail(node, *, local=False, **which):
    """What is read there, oldest first, without times."""
    page = await node.dispatch.audited(AuditFilter(**which), ANN, local=local)
    return [
        (page.names[origin_of(one.id)], one.action, one.subject, one.token, page.names.get(one.via, ""))
        for one in reversed(page.records)
    ]


async def test_every_deed_is_recorded_where_it_is_done_and_read_anywhere(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await a.submit("sleep", "1000", caller=ANN, placement={"node": "a"})
    await trio.sleep(1)
    await b.dispatch.cancel(task.id, ANN)
    await b.dispatch.cancel(task.id, ANN)
    assert (await ended(a, task, ANN)).state is T.CANCELLED
    await trio.sleep(1)
    await a.dispatch.change_node("b", "drain", ANN)
    await trio.sleep(1)
    await b.dispatch.change_node("self", "resume", ANN)
    deeds = [
        ("a", "submit", task.id, "ann", ""),
        ("a", "cancel", task.id, "ann", "b"),
        ("b", "drain", "b", "ann", "a"),
        ("b", "resume", "b", "ann", ""),
    ]
    assert await trail(a) == await trail(b) == deeds
    assert await trail(a, local=True) == deeds[:2]
    (record,) = await a.store.audit(AuditFilter(limit=1))
    assert (record.role, record.address, record.via, record.detail) == ("admin", "192.0.2.7", b.id, "task")
    assert record.at == pytest.approx(a.seams.wall(), abs=10)


async def test_each_task_of_a_batch_and_each_parent_but_no_child(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    parent = await a.submit("sleep", "10", caller=ANN, placement={"mode": "all"})
    await trio.sleep(1)
    await a.dispatch.cancel(parent.id, ANN)
    await ended(a, parent)
    assert [deed[1:3] for deed in await trail(b)] == [("submit", parent.id), ("cancel", parent.id)]


async def test_pages_follow_one_another_over_the_nodes(autojump_clock, fleet, nursery):
    nodes = await started(fleet, nursery, "a", "b")
    tasks = []
    for number in range(7):
        tasks.append(await nodes[number % 2].submit("true", caller=ANN))
        await trio.sleep(1)
    found, before = [], None
    while True:
        page = await nodes[0].dispatch.audited(AuditFilter(limit=3, before=before), ANN, local=False)
        found += [one.subject for one in page.records]
        if not page.more:
            break
        before = page.records[-1].id
    assert found == [task.id for task in reversed(tasks)]
    since = nodes[0].seams.wall() - 1.5
    assert [deed[2] for deed in await trail(nodes[0], since=since)] == [tasks[-1].id]


async def test_what_cannot_be_recorded_is_not_done_but_for_a_cancellation(autojump_clock, fleet, nursery):
    node = fleet.add("a")
    node.store = failing = FailingStore(node.store)
    await nursery.start(node.host.run)
    await nursery.start(node.run)
    task = await node.submit("sleep", "1000", caller=ANN)
    await trio.sleep(1)
    failing.failing = True
    with pytest.raises(StorageError):
        await node.submit("true", caller=ANN)
    with pytest.raises(StorageError):
        await node.dispatch.change_node("self", "drain", ANN)
    assert node.me.info.state == "ready"
    with pytest.raises(StorageError):
        await node.dispatch.cancel(task.id, ANN)
    failing.failing = False
    # A cancellation goes on in memory, and its record with the next commit.
    assert (await ended(node, task)).state is T.CANCELLED
    assert [deed[1] for deed in await trail(node)] == ["submit", "cancel"]


async def test_forgetting_a_node(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    b.crash()
    await trio.sleep(1)
    await a.dispatch.forget("b", ANN)
    assert await trail(a) == [("a", "forget", "b", "ann", "")]


async def test_nodes_that_do_not_answer_are_named(autojump_clock, fleet, nursery):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    fleet.network.crash(b.id)
    fleet.set_state(c.id, PeerState.DEAD)
    page = await a.dispatch.audited(AuditFilter(), ANN, local=False)
    assert page.unreachable == ("b", "c")


async def test_only_administrators_are_told_by_other_nodes(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    request = ListAudit(caller=Caller(token="x", role="submit"), which=AuditFilter())
    with pytest.raises(ForbiddenError):
        await a.dispatch.peers.call(b.id, request)


async def test_a_node_tells_its_own_records_only(autojump_clock, fleet, nursery, monkeypatch):
    a, b = await started(fleet, nursery, "a", "b")
    await a.submit("true", caller=ANN)
    await b.submit("true", caller=ANN)
    own, others = [await node.store.audit(AuditFilter()) for node in (b, a)]
    forged = msgspec.structs.replace(others[0], token="mallory")
    nonsense = msgspec.structs.replace(forged, id="nonsense")

    async def answer(_node, _request):
        return AuditFound(records=(forged, nonsense, *own))

    monkeypatch.setattr(a.dispatch.audit, "_ask", answer)
    assert [deed[3] for deed in await trail(a)] == ["ann", "ann"]


async def test_a_long_trail_is_cut_to_fit_a_frame_and_read_to_its_end(
    autojump_clock, fleet, nursery, monkeypatch
):
    a, b = await started(fleet, nursery, "a", "b")
    for number in range(8):
        node = (a, b)[number % 2]
        await node.dispatch.audit.keep(node.dispatch.audit.record(ANN, str(number), "ä" * 300))
        await trio.sleep(1)
    monkeypatch.setattr("edgeorch.dispatch.handlers.LIST_SIZE", 1200)
    answer = await a.dispatch.peers.call(b.id, ListAudit(caller=ANN, which=AuditFilter()))
    assert answer.more
    assert len(answer.records) == 2
    found, before = [], None
    while True:
        page = await a.dispatch.audited(AuditFilter(before=before), ANN, local=False)
        found += [one.action for one in page.records]
        if not page.more:
            break
        before = page.records[-1].id
    assert found == [str(number) for number in reversed(range(8))]


async def test_refused_logins_are_summed_up_by_source(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    nursery.start_soon(a.dispatch.audit.run)
    await trio.testing.wait_all_tasks_blocked()
    for number in range(SOURCES + 10):
        for _ in range(3):
            a.dispatch.audit.login_refused(f"192.0.2.{number}", "the token is unknown or revoked")
    assert await a.store.audit(AuditFilter()) == []
    await trio.sleep(WINDOW_S + 1)
    records = await a.store.audit(AuditFilter())
    assert {one.address: one.count for one in records} == {
        **{f"192.0.2.{number}": 3 for number in range(SOURCES)},
        OTHERS: 30,
    }
    assert {(one.action, one.token, one.detail) for one in records} == {
        (audit.REFUSED, "", "the token is unknown or revoked")
    }
    # Who looks sees them at once, at any node, and none twice.
    a.dispatch.audit.login_refused("192.0.2.99", "again")
    page = await b.dispatch.audited(AuditFilter(limit=1), ANN, local=False)
    assert [(one.address, one.count) for one in page.records] == [("192.0.2.99", 1)]
    assert len(await a.store.audit(AuditFilter())) == SOURCES + 2


async def test_refused_logins_that_cannot_be_written_are_counted_on(autojump_clock, fleet, nursery):
    node = fleet.add("a")
    node.store = failing = FailingStore(node.store)
    await nursery.start(node.host.run)
    await nursery.start(node.run)
    node.dispatch.audit.login_refused("192.0.2.1", "one")
    failing.failing = True
    await node.dispatch.audit.flush()
    node.dispatch.audit.login_refused("192.0.2.1", "two")
    failing.failing = False
    (record,) = await node.dispatch.audit.here(AuditFilter())
    assert record.count == 2


async def test_the_last_refused_logins_are_written_at_the_end(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    async with trio.open_nursery() as services:
        await services.start(a.dispatch.audit.run)
        a.dispatch.audit.login_refused("192.0.2.1", "why")
        services.cancel_scope.cancel()
    assert [one.count for one in await a.store.audit(AuditFilter())] == [1]


async def test_records_of_the_first_release_are_listed_once_the_disk_takes_it(autojump_clock, fleet, nursery):
    node = fleet.add("a")
    node.store = failing = FailingStore(node.store)
    await nursery.start(node.host.run)
    await nursery.start(node.run)
    await node.store.commit([PutAudit(at=1.0, token="ann", via="", action="submit", subject="old")])
    failing.failing = True
    await nursery.start(node.dispatch.audit.run)
    await trio.sleep(1)
    failing.failing = False
    assert (await node.dispatch.audited(AuditFilter(), ANN, local=False)).records == ()
    await trio.sleep(WINDOW_S)
    (record,) = (await node.dispatch.audited(AuditFilter(), ANN, local=False)).records
    assert (record.subject, record.token) == ("old", "ann")


async def test_the_journal_can_be_searched(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    with capture_logs() as logs:
        task = await a.submit("sleep", "100", caller=ANN)
        await trio.sleep(1)
        await a.dispatch.cancel(task.id, ANN)
        await a.dispatch.change_node("self", "cordon", ANN)
    found = [line for line in logs if "audit" in line]
    who = {"token": "ann", "role": "admin", "address": "192.0.2.7"}
    assert [line["audit"] for line in found] == ["submit", "cancel", "cordon"]
    assert all(who.items() <= line.items() for line in found)
    assert found[0]["task"] == found[1]["subject"] == task.id
    await ended(a, task, ANN)


async def test_records_of_a_moment_differ_also_after_a_restart(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    made = [a.dispatch.audit.record(ANN, "x", "") for _ in range(3)]
    a.store = a.store.reopened()
    a.dispatch.audit._store, a.dispatch.audit._written = a.store, 0
    made += [a.dispatch.audit.record(ANN, "x", "") for _ in range(3)]
    ids = [one.id for one in made]
    assert ids == sorted(set(ids))
