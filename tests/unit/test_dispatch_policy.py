"""What origin and target make of a policy, on MockClock."""

import msgspec
import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch import config
from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.errors import PolicyError, StorageError, TooManyTasksError
from edgeorch.model import AttemptState as A
from edgeorch.model import Caller, NativeService, Resources, TaskSpec
from edgeorch.model import TaskState as T
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.testing.stores import FailingStore

LAPTOP = Caller(token="laptop", role="submit")


@pytest.fixture
async def nodes(tmp_path, nursery):
    fleet = VirtualFleet(tmp_path)
    return await started(fleet, nursery, "a", "b")


def many(count):
    spec = TaskSpec(name="x", service=(NativeService(argv=("sleep", "5")),))
    return [Submission(spec=spec, raw=msgspec.json.encode(spec))] * count


async def test_a_token_may_have_so_many_open_tasks(autojump_clock, nodes):
    a, b = nodes
    a.rules.change(max_tasks={"submit": 3})
    first = await a.submit("sleep", "5", caller=LAPTOP)
    await a.dispatch.submit(many(2), LAPTOP)
    for caller, count, error in (
        (LAPTOP, 1, TooManyTasksError),
        (LAPTOP, 4, PolicyError),
        (Caller(token="other", role="submit"), 4, PolicyError),
    ):
        with pytest.raises(error):
            await a.dispatch.submit(many(count), caller)
    for node, caller in ((a, Caller(token="other", role="submit")), (a, ADMIN), (b, LAPTOP)):
        await node.dispatch.submit(many(3), caller)
    await ended(a, first)
    await a.submit("true", caller=LAPTOP)


async def test_what_was_not_taken_is_not_counted_and_a_repeated_request_is_answered(autojump_clock, nodes):
    a, _ = nodes
    a.rules.change(max_tasks={"submit": 1})
    key = Idempotency(key="k", body=b"1")
    (first,) = await a.dispatch.submit(many(1), LAPTOP, key)
    assert await a.dispatch.submit(many(1), LAPTOP, key) == (first,)
    with pytest.raises(TooManyTasksError):
        await a.dispatch.submit(many(1), LAPTOP, Idempotency(key="l", body=b"1"))
    await a.dispatch.cancel(first.id, LAPTOP)
    await ended(a, first)
    # The refusal left no key behind.
    await a.dispatch.submit(many(1), LAPTOP, Idempotency(key="l", body=b"1"))
    assert dict(a.dispatch.ledger.held) == {"laptop": 1}


async def test_what_the_disk_does_not_take_is_not_counted(autojump_clock, tmp_path, nursery):
    node = VirtualFleet(tmp_path).add("a")
    node.store = store = FailingStore(node.store)
    await nursery.start(node.host.run)
    await nursery.start(node.run)
    store.failing = True
    with pytest.raises(StorageError):
        await node.dispatch.submit(many(2), LAPTOP)
    assert not node.dispatch.ledger.held


async def test_a_task_on_several_nodes_counts_once_also_after_a_restart(autojump_clock, nodes, nursery):
    a, _ = nodes
    a.rules.change(max_tasks={"submit": 2})
    parent = await a.submit("sleep", "60", caller=LAPTOP, placement={"mode": "all"})
    await until(a, parent, lambda now: now.state is T.RUNNING)
    assert dict(a.dispatch.ledger.held) == {"laptop": 1}
    a.crash()
    await trio.testing.wait_all_tasks_blocked()
    await nursery.start(a.run)
    assert dict(a.dispatch.ledger.held) == {"laptop": 1}
    await a.submit("true", caller=LAPTOP)
    await ended(a, parent)
    await trio.testing.wait_all_tasks_blocked()
    assert not a.dispatch.ledger.held


def launched(node):
    """What the services that were started on a node got: CPUs and memory."""
    return [(one.launch.cpus, one.launch.memory) for one in node.host.services.values()]


async def test_what_asks_for_nothing_gets_the_tighter_policy_of_origin_and_target(autojump_clock, nodes):
    a, b = nodes
    a.rules.change(max_cpus=2, max_memory=100, max_timeout_s=50)
    b.rules.change(max_cpus=1, max_memory=200, max_timeout_s=30)
    placement = {"node": "b"}
    task = await a.submit("sleep", "1000", placement=placement)
    running = await until(a, task, lambda now: now.state is T.RUNNING)
    assert launched(b) == [(1, 100)]
    done = await ended(a, task)
    assert done.state is T.TIMED_OUT
    assert done.ended_at - running.attempts[0].started_at == pytest.approx(30, abs=1)
    assert done.reason == "ran longer than policy.max_timeout_s = 30"
    # Less is less.
    await trio.sleep(1)
    asked = Resources(cpus=0.5, memory=10)
    task = await a.submit("sleep", "1000", placement=placement, resources=asked, timeout_s=5)
    await until(a, task, lambda now: now.state is T.RUNNING)
    assert launched(b) == [(0.5, 10)]
    assert (await ended(a, task)).reason == "ran longer than timeout_s = 5"


async def test_a_restarted_target_keeps_the_limits(autojump_clock, nodes, nursery):
    a, b = nodes
    a.rules.change(max_timeout_s=30)
    task = await a.submit("sleep", "1000", placement={"node": "b"}, on_disconnect="keep")
    await until(a, task, lambda now: now.state is T.RUNNING)
    b.crash()
    await trio.sleep(5)
    await nursery.start(b.run)
    done = await ended(a, task)
    assert (done.state, done.reason) == (T.TIMED_OUT, "ran longer than policy.max_timeout_s = 30")


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"max_cpus": 1}, {"resources": Resources(cpus=2)}),
        ({"max_memory": 100}, {"resources": Resources(memory=101)}),
        ({"max_timeout_s": 60}, {"timeout_s": 61}),
    ],
)
async def test_origin_and_target_refuse_what_is_over_a_limit(autojump_clock, nodes, settings, fields):
    a, b = nodes
    (key,) = settings
    a.rules.change(**settings)
    with pytest.raises(PolicyError, match=f"policy.{key}"):
        await a.submit("true", placement={"node": "b"}, **fields)
    a.rules.change()
    b.rules.change(**settings)
    task = await a.submit("true", placement={"node": "b"}, **fields)
    waiting = await until(a, task, lambda now: bool(now.attempts) and now.state is T.WAITING)
    assert waiting.attempts[0].state is A.REFUSED
    assert f"policy.{key}" in waiting.attempts[0].reason
    waiting = await until(a, task, lambda now: f"policy.{key}" in now.reason)
    # Another node takes it.
    a.me.cpu_busy = 0.95
    task = await ended(a, await a.submit("true", **fields))
    assert [(one.node_name, one.state) for one in task.attempts] == [("b", A.REFUSED), ("a", A.SUCCEEDED)]


async def test_a_deadline_of_policy_ends_what_names_none(autojump_clock, nodes):
    a, _ = nodes
    a.rules.change(max_deadline_s={"submit": 100})
    with pytest.raises(PolicyError, match=r"policy\.max_deadline_s"):
        await a.submit("true", caller=LAPTOP, deadline_s=101)
    task = await a.submit("sleep", "1000", caller=LAPTOP)
    done = await ended(a, task)
    assert (done.state, done.reason) == (T.TIMED_OUT, "not done within policy.max_deadline_s = 100")
    assert done.ended_at - done.created_at == pytest.approx(100, abs=2)
    short = await ended(a, await a.submit("sleep", "1000", caller=LAPTOP, deadline_s=10))
    assert short.reason == "not done within deadline_s = 10"


def test_the_default_limits_are_no_limits_but_one():
    known = config.Policy()
    assert (known.max_cpus, known.max_memory, known.max_timeout_s, known.max_deadline_s) == (0, 0, 0, 0)


async def test_what_policies_refuse_holds_up_nothing_behind_it(autojump_clock, nodes):
    a, b = nodes
    b.rules.change(max_timeout_s=60)
    there = {"placement": {"node": "b"}}
    refused = [await a.submit("true", timeout_s=100, **there) for _ in range(20)]
    for task in refused:
        await until(a, task, lambda now: "policy.max_timeout_s" in now.reason)
    started = trio.current_time()
    assert (await ended(a, await a.submit("true", **there))).state is T.SUCCEEDED
    assert trio.current_time() - started < 5
    # And when the policy lets them run, they do, all of them.
    b.rules.change()
    for task in refused:
        assert (await ended(a, task)).state is T.SUCCEEDED
