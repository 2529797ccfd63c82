"""Scores: what is better must score higher, whatever the other numbers are."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from membership_world import node_info, sample

from edgeorch.model import NativeService, Resources, TaskSpec
from edgeorch.scoring import UNKNOWN_MHZ, Promised, baobab, cpus_wanted, score

GIB = 1 << 30
replace = msgspec.structs.replace


def spec(cpus=0.0, memory=0):
    return TaskSpec(
        name="s",
        service=(NativeService(argv=("/bin/true",)),),
        resources=Resources(cpus=cpus, memory=memory),
    )


samples = st.builds(
    sample,
    cpu_busy=st.floats(0, 1),
    cpu_mhz=st.floats(0, 6000),
    cpus=st.integers(1, 256),
    load1=st.floats(0, 300),
    memory_available=st.integers(0, 1 << 33),
    temperature_c=st.none() | st.floats(-20, 120),
    slots=st.integers(0, 64),
    slots_used=st.integers(0, 64),
    cpus_promised=st.floats(0, 64),
    cpus_wanted=st.floats(-1, 300),
    memory_promised=st.integers(0, 1 << 33),
    bandwidth_mbps=st.floats(-1, 1e5),
)
rtts = st.floats(0, 5)
specs = st.none() | st.builds(spec, cpus=st.floats(0, 64), memory=st.integers(0, 1 << 34))
promises = st.builds(
    Promised,
    slots=st.integers(0, 64),
    cpus=st.floats(0, 64),
    memory=st.integers(0, 1 << 33),
    ended=st.integers(0, 64),
    ended_cpus=st.floats(0, 64),
)
formulas = st.sampled_from(["edgeorch", "baobab"])


def value(measured, rtt=0.0, wanted=None, promised=None, weight=1.0, **options):
    return score(node_info(weight=weight), measured, rtt, wanted, promised, **options).value


@given(samples, rtts, specs, promises, formulas, st.floats(0, 1e6))
def test_a_score_is_finite_with_reasons_and_the_same_every_time(m, rtt, wanted, promised, formula, age):
    found = score(node_info(), m, rtt, wanted, promised, formula=formula, sample_age_s=age)
    assert math.isfinite(found.value)
    assert found.value >= 0
    assert all(found.reasons)
    assert found.reasons
    assert found == score(node_info(), m, rtt, wanted, promised, formula=formula, sample_age_s=age)


@given(samples, rtts, specs, promises, st.floats(0, 1))
def test_idler_is_better(m, rtt, wanted, promised, other):
    low, high = sorted((m.cpu_busy, other))
    idle, busy = replace(m, cpu_busy=low), replace(m, cpu_busy=high)
    assert value(idle, rtt, wanted, promised) >= value(busy, rtt, wanted, promised)


@given(samples, rtts, specs, promises, st.floats(1, 6000))
def test_faster_is_better(m, rtt, wanted, promised, other):
    low, high = sorted((max(m.cpu_mhz, 1.0), other))
    fast, slow = replace(m, cpu_mhz=high), replace(m, cpu_mhz=low)
    assert value(fast, rtt, wanted, promised) >= value(slow, rtt, wanted, promised)


@given(samples, rtts, rtts, specs, promises)
def test_nearer_is_better(m, one, other, wanted, promised):
    near, far = sorted((one, other))
    assert value(m, near, wanted, promised) >= value(m, far, wanted, promised)


@given(samples, rtts, specs, promises, st.integers(0, 8), st.floats(0, 8), st.integers(0, 1 << 32))
def test_what_was_promised_lowers_the_score(m, rtt, wanted, promised, slots, cpus, memory):
    more = promised._replace(
        slots=promised.slots + slots, cpus=promised.cpus + cpus, memory=promised.memory + memory
    )
    assert value(m, rtt, wanted, more) <= value(m, rtt, wanted, promised)


@given(samples, rtts, specs, promises, st.integers(0, 8), st.floats(0, 8))
def test_what_has_ended_lowers_no_score(m, rtt, wanted, promised, ended, cpus):
    more = promised._replace(ended=promised.ended + ended, ended_cpus=promised.ended_cpus + cpus)
    assert value(m, rtt, wanted, more) >= value(m, rtt, wanted, promised)


@given(samples, rtts, st.floats(0, 1e5), st.floats(0, 1e5))
def test_fresher_is_better(m, rtt, one, other):
    new, old = sorted((one, other))
    assert value(m, rtt, sample_age_s=new) >= value(m, rtt, sample_age_s=old)


def test_the_difference_is_strict_where_it_matters():
    base = sample()
    assert value(base) > value(replace(base, cpu_busy=0.5)) > value(replace(base, cpu_busy=1.0)) > 0
    assert value(base) > value(replace(base, cpu_mhz=1500.0))
    assert value(base) > value(base, 0.005)
    assert value(base, weight=2.0) == pytest.approx(2 * value(base))
    assert value(replace(base, cpu_busy=1.0, load1=1.0)) > value(replace(base, cpu_busy=1.0, load1=20.0))
    assert value(base) > value(replace(base, temperature_c=85.0))
    assert value(base, promised=Promised(slots=1)) < value(base)


def test_an_idle_slow_cpu_beats_what_is_left_of_a_fast_one():
    fast = sample(cpu_mhz=4000.0, cpus=4, slots=8, slots_used=4, cpus_wanted=4.0)
    slow = sample(cpu_mhz=500.0, cpus=4, slots=8, slots_used=3, cpus_wanted=3.0)
    assert value(slow) > value(fast)
    assert value(replace(fast, slots_used=3, cpus_wanted=3.0)) > value(replace(slow, cpus_wanted=0.0))
    # What was placed there since counts a CPU each.
    assert value(replace(fast, slots_used=2, cpus_wanted=2.0), promised=Promised(slots=2)) < value(slow)


def test_services_that_wait_take_no_cpu():
    measured = sample(cpu_mhz=2000.0, cpus=4, slots=8, slots_used=4)
    waiting = replace(measured, cpus_wanted=cpus_wanted(0.01, 4, then=4.0, now=4))
    computing = replace(measured, cpus_wanted=cpus_wanted(1.0, 4, then=4.0, now=4))
    assert value(waiting) > 10 * value(computing)


@pytest.mark.parametrize(
    ("busy", "then", "now", "wanted"),
    [
        (0.5, 2, 2, 2.0),  # two that compute
        (0.5, 2, 1, 1.0),  # one of them has ended
        (0.0, 0, 3, 3.0),  # nobody knows yet what these do
        (0.01, 4, 4, 0.04),  # services that wait
        (0.5, 1, 0, 1.0),  # the other CPU is not the executor's
        (1.0, 8, 3, 3.0),  # those that end leave their CPUs to the others
    ],
)
def test_what_attempts_use_follows_those_that_run_now(busy, then, now, wanted):
    assert cpus_wanted(busy, 4, then, now) == pytest.approx(wanted)


def test_an_idle_gigahertz_is_one():
    measured = sample(cpu_busy=0.0, cpu_mhz=1000.0, load1=0.0)
    assert value(measured) == pytest.approx(1.0)
    # 1 s of work and three round trips of 0.1 s.
    assert value(measured, 0.1) == pytest.approx(1 / 1.3)


def test_reasons_are_for_people():
    measured = sample(cpu_busy=0.07, cpu_mhz=2400.0, cpus=2, slots=4, slots_used=0)
    found = score(node_info(weight=1.5), measured, 0.0004, spec(cpus=4), Promised(), sample_age_s=12)
    assert found.reasons == (
        "2 x 2.4 GHz, 93% idle",
        "0 of 4 slots used",
        "4 CPUs wanted, 1.9 free",
        "+0.4 ms away",
        "weight 1.5",
        "measured 12 s ago",
    )


@pytest.mark.parametrize(
    ("measured", "wanted", "promised", "says"),
    [
        (sample(slots=4, slots_used=4), None, Promised(), "slot"),
        (sample(slots=4, slots_used=3), None, Promised(slots=1), "slot"),
        (sample(slots=0), None, Promised(), "slot"),
        (sample(memory_available=GIB), spec(memory=2 * GIB), Promised(), "memory"),
        (sample(memory_available=3 * GIB), spec(memory=2 * GIB), Promised(memory=2 * GIB), "memory"),
        (sample(memory_promised=7 * GIB), spec(memory=2 * GIB), Promised(), "memory"),
        (sample(cpu_busy=float("nan")), None, Promised(), "sense"),
        (sample(load1=float("inf")), None, Promised(), "sense"),
        (sample(cpus_wanted=float("nan")), None, Promised(), "sense"),
    ],
)
def test_nothing_left_is_zero(measured, wanted, promised, says):
    for formula in ("edgeorch", "baobab"):
        found = score(node_info(), measured, 0.0, wanted, promised, formula=formula)
        assert found.value == 0
        assert says in found.reasons[0]


def test_a_hostile_weight_orders_nothing():
    for weight in (float("nan"), float("inf"), -1.0, 0.0):
        assert value(sample(), weight=weight) == 0


def test_what_is_not_known_is_not_zero():
    assert score(node_info(), None).value > 0
    unknown = sample(cpu_mhz=0.0)
    assert value(unknown) == value(replace(unknown, cpu_mhz=UNKNOWN_MHZ))
    assert "assumed" in score(node_info(), unknown).reasons[0]


def test_the_original_formula_gives_the_original_numbers():
    """CPU scores at u=10, n=2 for four clock speeds, and what the round trip adds."""
    for mhz, cpu in ((600, 4.3), (1200, 6.6), (2600, 10.8), (5000, 16.6)):
        assert 2 * (baobab(10, 2, mhz, 1000, 0) - 1000**0.9 / 8770) == pytest.approx(cpu, abs=0.06)
    for ms, added in ((0.2, 30.0), (0.5, 20.2), (1, 15.0), (5, 7.5), (50, 2.8), (200, 1.5)):
        with_rtt = baobab(10, 2, 2600, 1000, ms / 1000)
        assert with_rtt - baobab(10, 2, 2600, 1000, 0) == pytest.approx(added, abs=0.06)
    assert baobab(10, 0, 2600, 1000, 0.1) == baobab(10, 2, 0, 1000, 0.1) == baobab(10, 2, 2600, 0, 0.1) == 0


def test_the_original_formula_over_a_sample():
    measured = sample(cpu_busy=0.1, cpu_mhz=2600.0, cpus=2)
    assert value(measured, 0.005, formula="baobab") == pytest.approx(baobab(10, 2, 2600, 1000, 0.005))
    # The accepting node has a round trip to itself there, and so nearly always wins.
    assert value(measured, 0.0, formula="baobab") == pytest.approx(baobab(10, 2, 2600, 1000, 0.0002))
    linked = replace(measured, bandwidth_mbps=100.0)
    assert value(linked, 0.005, formula="baobab") == pytest.approx(baobab(10, 2, 2600, 100, 0.005))
    assert value(replace(measured, cpu_mhz=0.0), 0.005, formula="baobab") == 0
