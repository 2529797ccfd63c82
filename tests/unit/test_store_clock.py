"""The clock by which a store forgets, over restarts of the node and of the machine."""

from types import SimpleNamespace

import pytest

from edgeorch.seams import Seams
from edgeorch.store.clock import AWAY_S, StoreClock, noted

NOW = 1_800_000_000.0
YEAR = 365 * 86_400.0


@pytest.fixture
def machine():
    return SimpleNamespace(wall=NOW, up=50.0, boot=7)


def seams(machine):
    return Seams(wall=lambda: machine.wall, boottime=lambda: machine.up, boot=machine.boot)


def test_it_begins_with_the_wall_clock_and_heeds_it_no_more(machine):
    clock = StoreClock(seams(machine), None)
    machine.up += 10
    machine.wall += YEAR
    assert clock.now() == NOW + 10


@pytest.mark.parametrize("jump", [-56 * YEAR, 0.0, 70 * YEAR])
def test_while_the_machine_was_on_it_knows_how_long_the_node_was_away(machine, jump):
    clock = StoreClock(seams(machine), None)
    note = clock.note()
    machine.up += 30 * 86_400
    machine.wall += jump
    assert StoreClock(seams(machine), noted(note, NOW, machine.wall)).now() == NOW + 30 * 86_400


@pytest.mark.parametrize("boot", [8, 0])
@pytest.mark.parametrize(
    ("away", "counted"), [(3600.0, 3600.0), (-3600.0, 0.0), (-56 * YEAR, 0.0), (70 * YEAR, AWAY_S)]
)
def test_over_a_restart_of_the_machine_at_most_a_day_is_believed(machine, boot, away, counted):
    clock = StoreClock(seams(machine), None)
    machine.up += 100
    before = clock.now()
    note = clock.note()
    machine.wall, machine.up, machine.boot = machine.wall + away, 5.0, boot
    after = StoreClock(seams(machine), noted(note, NOW, machine.wall))
    assert after.now() == pytest.approx(before + counted)
    machine.up += 10
    assert after.now() == pytest.approx(before + counted + 10)


def test_it_never_goes_back(machine):
    clock, last = StoreClock(seams(machine), None), NOW
    for boot, wall, up in ((7, 0.0, 60.0), (8, 0.0, 1.0), (9, NOW + 70 * YEAR, 1.0), (10, -5.0, 2.0)):
        note = clock.note()
        machine.boot, machine.wall, machine.up = boot, wall, up
        clock = StoreClock(seams(machine), noted(note, NOW, machine.wall))
        assert clock.now() >= last
        last = clock.now()
    assert last == NOW + 10 + AWAY_S


@pytest.mark.parametrize("note", [None, b"", b"damaged", 5, "text"])
def test_without_a_note_the_newest_end_is_as_good(machine, note):
    def begun(newest_end):
        return StoreClock(seams(machine), noted(note, newest_end, machine.wall)).now()

    assert begun(None) == NOW
    assert begun(NOW - 3600) == NOW
    assert begun(NOW - YEAR) == NOW - YEAR + AWAY_S
    assert begun(NOW + YEAR) == NOW
