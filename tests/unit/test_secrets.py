"""Secrets of tasks over several nodes, on MockClock: where they go, and where they never are."""

import msgspec
import pytest
import trio
from virtual_steps import ended, started, until

from edgeorch.dispatch.requests import Idempotency, Submission
from edgeorch.errors import InvalidRequestError, KeyReusedError, TooLargeError
from edgeorch.executor.driver import Available
from edgeorch.model import AttemptState as A
from edgeorch.model import TaskSpec
from edgeorch.model import TaskState as T
from edgeorch.secret import MAX_BYTES, MAX_COUNT, Secret
from edgeorch.store import AuditFilter, TaskFilter
from edgeorch.testing.fleet import ADMIN, VirtualFleet
from edgeorch.wire.messages import MakeOffer

VALUE = "correct horse battery staple"
GIVEN = {"password": VALUE, "key": {"base64": b"\x00\xff"}}
KEPT = {"password": Secret(VALUE.encode()), "key": Secret(b"\x00\xff")}
DOUBLED = (
    b'{"secrets":{"b":"VALUE"},"secr\\u0065ts":{"a":"VALUE"},"name":"n","priority":7,"service":[{"driver":'
    b'"native","argv":["true"]}]}'
)


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


async def running(node, task, attempts=1):
    def done(now):
        return now.state is T.RUNNING and len(now.attempts) == attempts

    return await until(node, task, done)


async def written(node):
    """Everything that the store of a node holds, as text."""
    store = node.store
    found = [await store.tasks(TaskFilter()), await store.runs(), await store.sealed()]
    found += [await store.events(None, 0, 1000), list(store._keys.values()), await store.audit(AuditFilter())]
    return repr(msgspec.json.encode(found)) + repr(found)


@pytest.mark.parametrize("where", ["a", "b"])
async def test_a_service_is_given_its_secrets_and_nothing_is_left_of_them(
    autojump_clock, fleet, nursery, where
):
    nodes = await started(fleet, nursery, "a", "b")
    a, at = nodes[0], next(node for node in nodes if node.name == where)
    task = await a.submit("sleep", "10", secrets=GIVEN, placement={"node": where})
    assert task.requires == ("secrets",)
    assert msgspec.json.decode(task.spec)["secrets"] == {"password": None, "key": None}
    await running(a, task)
    assert list(at.host.secrets.values()) == [KEPT]
    for node in nodes:
        assert VALUE not in await written(node)
    assert [life._secrets for life in at.executor.lives().values()] == [{}]
    assert [one.task_id for one in await a.store.sealed()] == [task.id]
    assert (await ended(a, task)).state is T.SUCCEEDED
    assert at.host.secrets == {}
    assert await a.store.sealed() == []


async def test_a_retry_on_another_node_has_them_again_also_after_a_restart_of_the_origin(
    autojump_clock, fleet, nursery
):
    a, b, c = await started(fleet, nursery, "a", "b", "c")
    place = {"constraints": ["name != a"]}
    task = await running(a, await a.submit("sleep", "60", secrets=GIVEN, placement=place))
    first = next(node for node in (b, c) if node.name == task.current.node_name)
    other = next(node for node in (b, c) if node is not first)
    a.crash()
    await trio.sleep(1)
    await nursery.start(a.run)
    first.crash(host=True)
    await running(a, task, attempts=2)
    assert list(other.host.secrets.values()) == [KEPT]
    assert (await ended(a, task)).state is T.SUCCEEDED


async def test_a_restart_of_the_target_leaves_a_running_service_its_secrets(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await running(a, await a.submit("sleep", "60", secrets=GIVEN, placement={"node": "b"}))
    b.crash()
    await trio.sleep(1)
    await nursery.start(b.run)
    assert list(b.host.secrets.values()) == [KEPT]
    done = await ended(a, task)
    assert (done.state, len(done.attempts)) == (T.SUCCEEDED, 1)


async def test_children_have_their_parents_secrets_until_it_ends(autojump_clock, fleet, nursery):
    nodes = await started(fleet, nursery, "a", "b")
    a = nodes[0]
    parent = await a.submit("sleep", "10", secrets=GIVEN, placement={"mode": "all"})
    await trio.sleep(5)
    assert [list(node.host.secrets.values()) for node in nodes] == [[KEPT], [KEPT]]
    assert [one.task_id for one in await a.store.sealed()] == [parent.id]
    for child in await a.dispatch.children(parent.id, ADMIN):
        assert child.requires == ("secrets",)
        assert msgspec.json.decode(child.spec)["secrets"] == {"password": None, "key": None}
    assert (await ended(a, parent)).state is T.SUCCEEDED
    assert await a.store.sealed() == []


async def test_nobody_is_offered_secrets_whose_release_does_not_know_them(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.95
    b.me.info = msgspec.structs.replace(b.me.info, features=())
    done = await ended(a, await a.submit("true", secrets=GIVEN))
    assert [one.node_name for one in done.attempts] == ["a"]
    task = await a.submit("true", secrets=GIVEN, placement={"node": "b"})
    assert "knows no secrets" in task.reason
    assert (await ended(a, await a.submit("true", placement={"node": "b"}))).state is T.SUCCEEDED


async def test_a_node_without_memory_for_them_refuses_by_name(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    a.me.cpu_busy = 0.95
    why = "secrets are kept in memory only, and /x is on a ext4 file system"
    b.executor.drivers["native"].set_available(Available(version="1", no_secrets=why))
    done = await ended(a, await a.submit("true", secrets=GIVEN, retry={"max_attempts": 1}))
    assert [(one.node_name, one.state) for one in done.attempts] == [("b", A.REFUSED), ("a", A.SUCCEEDED)]
    assert done.attempts[0].reason == f"b cannot take secrets: {why}"


async def test_an_offer_that_lacks_its_secrets_is_refused(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    task = await running(a, await a.submit("sleep", "60", secrets=GIVEN, placement={"node": "a"}))
    offer = a.executor.lives()[f"{task.id}.1"].run.offer
    offer = msgspec.structs.replace(offer, number=2, spec=offer.spec.replace(b'"node":"a"', b'"node":null'))
    answer = await b.executor.accept(offer, {})
    assert (answer.accepted, answer.cause) == (False, "unsupported")
    assert "did not come" in answer.reason
    plain = await running(a, await a.submit("sleep", "60", placement={"node": "a"}))
    other = a.executor.lives()[f"{plain.id}.1"].run.offer
    other = msgspec.structs.replace(other, number=2, spec=other.spec.replace(b'"node":"a"', b'"node":null'))
    answer = await b.executor.accept(other, {"../../x": Secret(b"x")})
    assert (answer.accepted, answer.cause) == (False, "unsupported"), "names that nobody has looked at"
    assert "requires" in repr(offer)
    assert VALUE not in repr(MakeOffer(offer=offer, secrets=KEPT))


async def test_a_key_that_was_lost_holds_the_task_up_and_says_so(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    for node in (a, b):
        node.me.set_state("cordoned")
    task = await a.submit("true", secrets=GIVEN, placement={"node": "b"})
    kept, other = a.sealer._fernet, b.sealer._fernet
    a.sealer._fernet = other
    b.me.set_state("ready")
    fleet.touch()
    await until(a, task, lambda now: "store.key" in now.reason)
    a.sealer._fernet = kept
    assert (await ended(a, task)).state is T.SUCCEEDED


async def test_the_same_key_and_other_secrets_are_another_request(autojump_clock, fleet, nursery):
    (a,) = await started(fleet, nursery, "a")
    spec = msgspec.convert(
        {"name": "n", "service": [{"driver": "native", "argv": ["true"]}], "secrets": GIVEN}, TaskSpec
    )
    raw = msgspec.json.encode(spec)

    async def submit(body):
        return await a.dispatch.submit([Submission.of(spec, raw)], ADMIN, Idempotency(key="k", body=body))

    first = await submit(b"digest")
    assert await submit(b"digest") == first
    with pytest.raises(KeyReusedError):
        await submit(b"other")
    assert (await a.store.key("test", "k", 0)).body != b"digest"
    await ended(a, first[0])


@pytest.mark.parametrize(
    ("secrets", "error", "words"),
    [
        ({"a": None}, InvalidRequestError, "$.secrets.a has no value"),
        ({"a": "x" * (MAX_BYTES + 1)}, TooLargeError, f"{MAX_BYTES} are allowed"),
        ({"a": "ä" * (MAX_BYTES // 2), "b": "c"}, TooLargeError, "$.secrets"),
    ],
)
async def test_what_is_refused(autojump_clock, fleet, nursery, secrets, error, words):
    (a,) = await started(fleet, nursery, "a")
    with pytest.raises(error) as caught:
        await a.submit("true", secrets=secrets)
    assert words in caught.value.detail


async def test_the_largest_secrets_still_travel(autojump_clock, fleet, nursery):
    a, b = await started(fleet, nursery, "a", "b")
    secrets = {f"name{n}": "x" * (MAX_BYTES // MAX_COUNT) for n in range(MAX_COUNT)}
    task = await running(a, await a.submit("sleep", "9", secrets=secrets, placement={"node": "b"}))
    assert len(next(iter(b.host.secrets.values()))) == MAX_COUNT
    assert (await ended(a, task)).state is T.SUCCEEDED


@pytest.mark.parametrize(
    "raw",
    [
        b'{"name":"n","service":[{"driver":"native","argv":["true"]}],"secrets":{"a":"VALUE"},"priority":7}',
        DOUBLED,
    ],
)
def test_values_are_taken_out_of_the_accepted_text(raw):
    submission = Submission.of(msgspec.json.decode(raw, type=TaskSpec), raw)
    assert b"VALUE" not in submission.raw
    assert submission.secrets == {"a": Secret(b"VALUE")}
    assert submission.spec == msgspec.json.decode(submission.raw, type=TaskSpec)
    assert (submission.spec.secrets, submission.spec.priority) == ({"a": None}, 7)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "-x", "a b", "ä", "x" * 65, "a\n"])
def test_names_are_safe_as_names_of_files(name):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(
            {"name": "n", "service": [{"driver": "native", "argv": ["true"]}], "secrets": {name: "v"}},
            TaskSpec,
        )


def test_there_are_not_too_many():
    secrets = {f"n{n}": "v" for n in range(MAX_COUNT + 1)}
    with pytest.raises(msgspec.ValidationError, match="32"):
        msgspec.convert(
            {"name": "n", "service": [{"driver": "native", "argv": ["true"]}], "secrets": secrets}, TaskSpec
        )
