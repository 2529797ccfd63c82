import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeorch import config
from edgeorch.errors import PolicyError, TooManyTasksError
from edgeorch.executor.admission import tightened
from edgeorch.model import Caller, Cap, ContainerFacts, NativeService, Offer, Resources, TaskSpec
from edgeorch.policy import Policy

PROGRAM = NativeService(argv=("true",))
GIB = 1 << 30


def check(settings, *, role="submit", facts=None, **spec):
    limits = Policy(config.Policy(**settings), node="kitchen").limits
    limits.check(TaskSpec(name="x", service=(PROGRAM,), **spec), role, facts)


@pytest.mark.parametrize(
    ("key", "limit", "at", "over", "said"),
    [
        (
            "max_cpus",
            2.0,
            {"resources": Resources(cpus=2)},
            {"resources": Resources(cpus=2.5)},
            "asks for 2.5",
        ),
        (
            "max_memory",
            GIB,
            {"resources": Resources(memory=GIB)},
            {"resources": Resources(memory=GIB + 1)},
            "asks for 1073741825",
        ),
        ("max_timeout_s", 60.0, {"timeout_s": 60.0}, {"timeout_s": 61.0}, "asks for 61"),
        ("max_deadline_s", 3600.0, {"deadline_s": 3600.0}, {"deadline_s": 3601.0}, "asks for 3601"),
        ("max_cpus", 2.0, {"facts": ContainerFacts(cpus=2)}, {"facts": ContainerFacts(cpus=3)}, "asks for 3"),
        ("max_cpus", 2.0, {}, {"facts": ContainerFacts(cpus=math.inf)}, "asks for no limit"),
        (
            "max_memory",
            100,
            {"facts": ContainerFacts(memory=100)},
            {"facts": ContainerFacts(memory=101)},
            "101",
        ),
        (
            "max_memory",
            100,
            {"facts": ContainerFacts(memory=100, memory_swap=200)},
            {"facts": ContainerFacts(memory=100, memory_swap=math.inf)},
            "asks for no limit for each of memory and swap",
        ),
    ],
)
def test_each_limit(key, limit, at, over, said):
    check({}, **over)
    check({key: 0}, **over)
    check({key: limit}, **at)
    check({key: limit})
    check({key: {"submit": limit}}, role="admin", **over)
    for settings in ({key: limit}, {key: {"submit": limit, "admin": 0}}):
        with pytest.raises(PolicyError) as caught:
            check(settings, **over)
        assert caught.value.detail.startswith(f"policy.{key} is ")
        assert said in caught.value.detail
        assert "'submit'" in caught.value.detail
        assert caught.value.hint == f"ask for less, or raise policy.{key} in edgeorch.toml on kitchen"
        assert caught.value.extra == {"key": f"policy.{key}"}


def test_what_a_task_leaves_open_it_gets_from_the_limits():
    settings = config.Policy(
        max_cpus={"submit": 1.0}, max_memory=GIB, max_timeout_s=60.0, max_deadline_s={"submit": 3600.0}
    )
    limits = Policy(settings).limits
    assert limits.cap("submit") == Cap(resources=Resources(cpus=1, memory=GIB), timeout_s=60)
    assert limits.cap("admin") == Cap(resources=Resources(memory=GIB), timeout_s=60)
    assert Policy(config.Policy()).limits.cap("submit") == Cap()
    for role, deadline, expected in (
        ("submit", 60.0, 60),
        ("submit", 604_800.0, 3600),
        ("admin", 7200.0, 7200),
    ):
        spec = TaskSpec(name="x", service=(PROGRAM,), deadline_s=deadline)
        assert limits.deadline_s(spec, role) == expected


def offer(**fields):
    return Offer(
        task_id="t",
        number=1,
        origin="o",
        name="x",
        spec=b"",
        caller=Caller(token="t", role="submit"),
        **fields,
    )


limit = st.none() | st.floats(1, 100)
amount = st.integers(0, 5)
caps = st.builds(Cap, resources=st.builds(Resources, cpus=amount, memory=amount), timeout_s=limit)


@given(limit, caps, caps)
def test_of_two_policies_the_tighter_counts(timeout_s, origins, targets):
    found = tightened(tightened(offer(timeout_s=timeout_s), origins), targets)
    assert found.timeout_s == min(
        filter(None, (timeout_s, origins.timeout_s, targets.timeout_s)), default=None
    )
    for name in ("cpus", "memory"):
        asked = [getattr(cap.resources, name) for cap in (origins, targets)]
        assert getattr(found.cap, name) == min(filter(None, asked), default=0)


@pytest.mark.parametrize(
    ("wanted", "held", "error"),
    [
        (1, 0, None),
        (3, 0, None),
        (1, 2, None),
        (1, 3, TooManyTasksError),
        (2, 2, TooManyTasksError),
        (4, 0, PolicyError),
    ],
)
def test_open_tasks(wanted, held, error):
    caller = Caller(token="laptop", role="submit")
    limits = Policy(config.Policy(max_tasks={"submit": 3}), node="kitchen").limits
    limits.check_tasks(Caller(token="laptop", role="admin"), wanted=wanted, held=held)
    Policy(config.Policy(max_tasks=0)).limits.check_tasks(caller, wanted=10**6, held=10**6)
    if error is None:
        limits.check_tasks(caller, wanted=wanted, held=held)
        return
    with pytest.raises(error, match=r"policy\.max_tasks is 3") as caught:
        limits.check_tasks(caller, wanted=wanted, held=held)
    assert caught.value.extra["key"] == "policy.max_tasks"
    assert (caught.value.status, "retry_after_s" in caught.value.extra) == (
        (429, True) if error is TooManyTasksError else (403, False)
    )


def test_tasks_are_limited_by_default():
    with pytest.raises(TooManyTasksError):
        Policy(config.Policy()).limits.check_tasks(Caller(token="t", role="admin"), wanted=1, held=100_000)
