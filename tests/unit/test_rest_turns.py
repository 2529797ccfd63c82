"""Turns of the loop, counted by what a task sees that runs once in each."""

import trio
from trio.testing import wait_all_tasks_blocked

from edgeorch.rest.turns import SHARE, Turns


async def test_a_crowd_begins_a_few_at_a_time_and_others_at_once(nursery):
    turns, begun = Turns(), []
    await nursery.start(turns.run)

    async def ask(address):
        await turns.take(address)
        begun.append(address)

    for _ in range(10 * SHARE):
        nursery.start_soon(ask, "crowd")
    counts = []
    while begun.count("crowd") < 10 * SHARE:
        before = begun.count("crowd")
        await trio.lowlevel.checkpoint()
        await ask(f"other {len(counts)}")
        counts.append(begun.count("crowd") - before)
    # A turn may see the end of one share and the beginning of the next.
    assert max(counts) <= 2 * SHARE
    assert len(counts) >= 5
    assert begun[-1].startswith("other")


async def test_who_gives_up_takes_nobodys_turn(nursery):
    turns, begun = Turns(), []
    await nursery.start(turns.run)

    async def ask(number, scope):
        with scope:
            await turns.take("crowd")
            begun.append(number)

    scopes = [trio.CancelScope() for _ in range(3 * SHARE)]
    for number, scope in enumerate(scopes):
        nursery.start_soon(ask, number, scope)
    await trio.lowlevel.checkpoint()
    gone = [number for number in range(3 * SHARE) if number not in begun][:SHARE]
    for number in gone:
        scopes[number].cancel()
    await wait_all_tasks_blocked()
    assert set(begun) >= set(range(3 * SHARE)) - set(gone)
    assert len(begun) < 3 * SHARE
    # Nothing is left over: the next one begins at once, and nobody turns the loop for nothing.
    assert not turns._waiting
    assert not turns._begun
