"""Slots, and those that are given away before they are free."""

import pytest
import trio
import trio.testing
from virtual_steps import ended, started

from edgeorch.executor.driver import TURN_S, Available
from edgeorch.executor.executor import NO_TURN
from edgeorch.executor.slots import MOST_SOON, SEEN, SOON_S, Slots
from edgeorch.model import AttemptState as A
from edgeorch.model import Resources
from edgeorch.model import TaskState as T
from edgeorch.testing.fleet import VirtualFleet


@pytest.fixture
def fleet(tmp_path):
    return VirtualFleet(tmp_path)


async def turn_over(slots, times, seconds):
    """Services that take so long, one after the other."""
    for _ in range(times):
        with slots.reserve(Resources()) as one:
            assert one.take() is None
            await trio.sleep(seconds)


async def test_a_free_slot_is_taken_at_once():
    slots = Slots(1)
    with slots.reserve(Resources(cpus=2)) as one:
        assert one.take() is None
        assert (slots.used, slots.held, slots.full, slots.full_for_long) == (1, 1, True, True)
        assert slots.load() == (1, 1, 2, 0)
    assert (slots.used, slots.held, slots.full) == (0, 0, False)
    one.release()
    one.run()
    assert (slots.used, slots.load().used) == (0, 0), "what was given back is used no more"


async def test_a_slot_that_is_freed_goes_to_who_waits_longest():
    slots = Slots(2)
    first, second, third, fourth = (slots.reserve(Resources(), "native") for _ in range(4))
    assert [one.take() for one in (first, second, third, fourth)] == [None, None, 2, 2]
    assert (slots.used, slots.held) == (2, 4)
    second.release()
    assert (third._runs, fourth._runs, slots._running) == (True, False, 2)
    for one in (first, third, fourth):
        one.release()
    assert (slots.used, slots.held, slots._running) == (0, 0, 0)


async def test_the_end_of_one_is_heard_before_that_of_the_one_whose_slot_it_has():
    """What its driver has told together, the node may take up in any order."""
    slots = Slots(1)
    first, second, third = (slots.reserve(Resources()) for _ in range(3))
    assert (first.take(), second.take(), third.take()) == (None, 1, 1)
    second.release()
    assert (slots.used, slots.held, slots._running) == (1, 2, 1)
    first.release()
    assert third._runs
    third.release()
    assert (slots.used, slots._running, list(slots._line)) == (0, 0, [])
    assert len(slots._freed) == 3


async def test_what_other_drivers_run_leaves_fewer_turns():
    slots = Slots(3)
    for driver in ("container", "native", "native"):
        assert slots.reserve(Resources(), driver).take() is None
    assert slots.reserve(Resources(), "native").take() == 2


async def test_who_withdraws_holds_up_nobody_and_counts_for_nothing():
    slots = Slots(1)
    first, late, last = (slots.reserve(Resources()) for _ in range(3))
    assert (first.take(), late.take(), last.take()) == (None, 1, 1)
    late.withdraw()
    first.release()
    assert last._runs
    assert len(slots._freed) == 1


async def test_what_is_adopted_runs_over_the_limit():
    slots = Slots(1)
    two = [slots.reserve(Resources()) for _ in range(2)]
    for one in two:
        one.run()
    assert slots.used == 2
    third = slots.reserve(Resources())
    assert third.take() == 1
    two[0].release()
    assert not third._runs, "one too many is still there"
    two[1].release()
    assert third._runs


async def test_slots_that_turn_over_fast_are_given_away_early(autojump_clock):
    slots = Slots(1)
    await turn_over(slots, SEEN - 1, 0.001)
    with slots.reserve(Resources()) as one:
        assert one.take() is None
        assert slots.full_for_long, "not seen often enough"
    with slots.reserve(Resources()) as one:
        assert one.take() is None
        assert slots.full
        assert not slots.full_for_long
        more = [slots.reserve(Resources()) for _ in range(MOST_SOON)]
        assert slots.full_for_long, "as many as there may be at all"
        for each in more:
            each.release()
        assert (SEEN - 1) * SOON_S < TURN_S
        await trio.sleep((SEEN - 1) * SOON_S)
        assert slots.full_for_long, "this one takes its time"


async def test_slow_ones_are_not(autojump_clock):
    slots = Slots(1)
    await turn_over(slots, 3 * SEEN, SOON_S * 1.01)
    with slots.reserve(Resources()) as one:
        assert one.take() is None
        assert slots.full_for_long


async def test_an_undone_plan_says_nothing_about_services(autojump_clock):
    slots = Slots(1)
    for _ in range(3 * SEEN):
        slots.reserve(Resources()).release()
    with slots.reserve(Resources()):
        assert slots.full_for_long


async def busy_node(fleet, nursery, *names):
    """Nodes with two slots each; at the first one short services have just come and gone."""
    nodes = await started(fleet, nursery, *names, slots=2)
    for task in [await nodes[0].submit("true") for _ in range(2 * SEEN)]:
        assert (await ended(nodes[0], task)).state is T.SUCCEEDED
    return nodes


def refusals(task):
    return [one.reason for one in task.attempts if one.state is A.REFUSED]


async def test_long_services_after_short_ones_are_given_back(autojump_clock, fleet, nursery):
    (a,) = await busy_node(fleet, nursery, "a")
    tasks = [await a.submit("sleep", "20") for _ in range(6)]
    assert (a.executor.slots.used, a.executor.slots.held) == (2, 6)
    most = 0
    while trio.current_time() % 1000 < 5:
        most = max(most, len(a.host.services))
        await trio.sleep(0.01)
    assert most == 2
    assert a.executor.slots.held == 2, "given back: they may run elsewhere now"
    done = [await ended(a, task) for task in tasks]
    assert [task.state for task in done] == [T.SUCCEEDED] * 6
    assert [refusals(task) for task in done] == [[]] * 2 + [[NO_TURN]] * 4
    assert {len(task.attempts) - len(refusals(task)) for task in done} == {1}


async def test_what_was_given_back_runs_on_another_node(autojump_clock, fleet, nursery):
    (a,) = await busy_node(fleet, nursery, "a")
    first, second, third = [await a.submit("sleep", "20") for _ in range(3)]
    (b,) = await started(fleet, nursery, "b")
    begun = trio.current_time()
    third = await ended(a, third)
    assert [(one.node_name, one.state) for one in third.attempts] == [("a", A.REFUSED), ("b", A.SUCCEEDED)]
    assert trio.current_time() - begun < 20 + TURN_S + 1
    assert {(await ended(a, task)).state for task in (first, second)} == {T.SUCCEEDED}
    assert b.executor.slots.held == 0


async def test_what_may_be_tried_once_waits_for_a_free_slot(autojump_clock, fleet, nursery):
    (a,) = await busy_node(fleet, nursery, "a")
    tasks = [await a.submit("sleep", "20", retry={"max_attempts": 1}) for _ in range(4)]
    assert a.executor.slots.held == 2
    done = [await ended(a, task) for task in tasks]
    assert [(task.state, len(task.attempts)) for task in done] == [(T.SUCCEEDED, 1)] * 4


async def test_what_cannot_wait_at_its_driver_waits_for_a_free_slot(autojump_clock, fleet, nursery):
    """A runner that goes on over an upgrade of its node may know no turns."""
    (a,) = await busy_node(fleet, nursery, "a")
    a.executor.drivers["native"].set_available(Available(version="older"))
    tasks = [await a.submit("sleep", "20") for _ in range(4)]
    assert a.executor.slots.held == 2
    assert {(await ended(a, task)).state for task in tasks} == {T.SUCCEEDED}


async def test_cancelled_while_it_waits_for_its_turn(autojump_clock, fleet, nursery):
    (a,) = await busy_node(fleet, nursery, "a")
    *_, task = [await a.submit("sleep", "20") for _ in range(3)]
    await a.dispatch.cancel(task.id, task.caller)
    assert (await ended(a, task)).state is T.CANCELLED
    assert a.executor.slots.held == 2


async def test_another_nodes_offer_gets_no_slot_that_is_not_free(autojump_clock, fleet, nursery):
    a, b = await busy_node(fleet, nursery, "a", "b")
    held = [await a.submit("sleep", "20", placement={"node": "a"}) for _ in range(2)]
    task = await b.submit("sleep", "20", placement={"node": "a"})
    await trio.sleep(5)
    assert a.executor.slots.held == 2
    assert {(await ended(a, one)).state for one in held} == {T.SUCCEEDED}
    assert (await ended(b, task)).state is T.SUCCEEDED


async def test_a_task_for_another_node_is_not_refused_here_again_and_again(autojump_clock, fleet, nursery):
    a, b = await busy_node(fleet, nursery, "a", "b")
    held = [await b.submit("sleep", "20", placement={"node": "b"}) for _ in range(2)]
    refused = a.executor.refused
    task = await a.submit("sleep", "1", placement={"node": "b"})
    assert (await ended(a, task)).attempts[-1].node_name == "b"
    assert a.executor.refused == refused
    assert {(await ended(b, one)).state for one in held} == {T.SUCCEEDED}
