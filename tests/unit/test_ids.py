"""Ids that only grow."""

import random

import pytest

from edgeorch.dispatch.ids import Ids
from edgeorch.model import number_of, origin_of, ulid, ulid_of
from edgeorch.seams import Seams

NODE = "0123456789"
NOW = 1_800_000_000.0


class Clock:
    def __init__(self):
        self.now = NOW
        self.ids = Ids(Seams(wall=lambda: self.now, rng=random.Random(1)))

    def take(self, count):
        return [self.ids.new(NODE) for _ in range(count)]


def test_a_number_and_its_text():
    for seed in range(20):
        made = ulid(NOW + seed, random.Random(seed).getrandbits(80), NODE)
        assert ulid_of(number_of(made), origin_of(made)) == made
    assert number_of(ulid(NOW, random.Random(1).getrandbits(80), NODE)) >> 80 == int(NOW * 1000)


@pytest.mark.parametrize("off_s", [-86_400.0, 86_400.0, -1e9, 3e9, 0.0])
def test_ids_grow_whatever_the_clock_does(off_s):
    clock = Clock()
    made = clock.take(500)
    clock.now += off_s
    made += clock.take(500)
    clock.now -= 2 * off_s
    made += clock.take(500)
    assert made == sorted(set(made))


def test_they_follow_the_clock_again_once_it_has_caught_up():
    clock = Clock()
    clock.take(1)
    clock.now -= 60
    behind = clock.take(100)[-1]
    assert number_of(behind) >> 80 == int(NOW * 1000)
    clock.now = NOW + 1
    assert number_of(clock.take(1)[0]) >> 80 == int((NOW + 1) * 1000)


def test_the_next_life_goes_on_above_what_is_on_the_disk_and_repeats_nothing():
    first = Clock()
    kept, lost = first.take(1), set(first.take(1000))
    second = Clock()
    second.ids = Ids(Seams(wall=lambda: NOW - 86_400, rng=random.Random(2)))
    second.ids.above(kept[0])
    made = second.take(1000)
    assert made == sorted(made)
    assert made[0] > kept[0]
    assert not lost & set(made), "a backup was restored: these are known elsewhere"
