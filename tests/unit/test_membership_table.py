"""The table's rules, with time handed in."""

import random

import pytest
import trio
from membership_world import node_info, sample

from edgeorch.config import Membership
from edgeorch.errors import StartError
from edgeorch.membership import SelfInfo, Table
from edgeorch.membership.seeds import parse_seed, resolve
from edgeorch.membership.self_info import LARGEST_JUMP, architecture
from edgeorch.membership.table import NEAREST
from edgeorch.model import PeerState
from edgeorch.seams import Seams
from edgeorch.wire.messages import Digest

ALIVE, SUSPECT, DEAD, LEFT = PeerState
PEER, OTHER = "b" * 10, "c" * 10


def make(mesh=64):
    return Table("a" * 10, Membership(), mesh, Seams(wall=lambda: 1000.0, rng=random.Random(1)))


def line(state=ALIVE, incarnation=5, age_s=0.0, node_id=PEER):
    return Digest(id=node_id, state=state, incarnation=incarnation, addresses=("10.0.0.2",), age_s=age_s)


def state(table, node_id=PEER):
    return table.get(node_id).state


@pytest.fixture
def table():
    table = make()
    table.heard(node_info(PEER, incarnation=5), sample(), 0.0, address="10.0.0.2", rtt_s=0.01)
    return table


def test_silence_makes_suspect_then_dead(table):
    table.judge(1.99)
    assert state(table) is ALIVE
    assert table.judge(2.0) == ()
    assert state(table) is SUSPECT
    table.judge(3.99)
    assert state(table) is SUSPECT
    assert table.judge(4.0) == (PEER,)
    assert state(table) is DEAD
    assert table.judge(5.0) == ()


def test_a_barred_node_is_dead_at_once_whatever_others_say(table):
    table.bar(PEER, "its certificate is revoked", 1.0)
    assert (state(table), table.get(PEER).reason) == (DEAD, "its certificate is revoked")
    for now in (1.1, 1.5, 60.0):
        table.told(line(ALIVE, age_s=0.1), now)
        table.judge(now)
        assert state(table) is DEAD
    table.bar("c" * 10, "unknown here", 1.0)
    assert table.heard(node_info(PEER, incarnation=6), None, 61.0)
    assert (state(table), table.get(PEER).reason) == (ALIVE, "")


def test_an_answer_brings_back_the_dead(table):
    table.judge(4.0)
    assert not table.here(PEER)
    assert table.heard(node_info(PEER, incarnation=5), None, 9.0)
    assert state(table) is ALIVE
    assert table.get(PEER).sample is not None


def test_a_broken_link_is_suspect_until_heard(table):
    table.link_broke(PEER, "connection reset", 0.5)
    assert (state(table), table.get(PEER).reason) == (SUSPECT, "connection reset")
    table.told(line(age_s=0.1), 0.6)
    assert state(table) is SUSPECT
    table.heard(node_info(PEER, incarnation=5), None, 0.7)
    assert (state(table), table.get(PEER).reason) == (ALIVE, "")


def test_words_of_others_keep_it_from_being_dead_but_not_from_being_suspect(table):
    table.told(line(age_s=0.5), 3.0)
    table.judge(4.0)
    assert state(table) is SUSPECT
    assert "by others" in table.get(PEER).reason
    assert table.judge(6.6) == ()
    assert state(table) is DEAD


def test_the_link_of_a_node_that_only_others_reach_is_given_up_once(table):
    table.told(line(age_s=0.5), 3.9)
    assert table.judge(4.0) == (PEER,)
    table.told(line(age_s=0.5), 4.5)
    assert table.judge(4.6) == ()


@pytest.mark.parametrize("age", [-100.0, float("nan"), float("inf"), 1e308])
def test_ages_from_outside_make_nobody_younger_than_now(table, age):
    table.told(line(age_s=age), 1.0)
    table.judge(5.01)
    assert state(table) is DEAD


def test_old_words_are_no_evidence(table):
    table.told(line(incarnation=4, age_s=0.0), 3.0)
    table.judge(4.0)
    assert state(table) is DEAD


def test_words_alone_add_nobody(table):
    table.told(line(node_id="z" * 10), 1.0)
    assert len(table) == 1


def test_left_stays_until_a_newer_incarnation(table):
    table.left(PEER, 1.0)
    assert not table.heard(node_info(PEER, incarnation=5), None, 1.1)
    table.told(line(incarnation=5), 1.2)
    assert state(table) is LEFT
    table.told(line(incarnation=6, age_s=0.1), 1.3)
    assert state(table) is ALIVE
    table.left(PEER, 2.0)
    assert table.heard(node_info(PEER, incarnation=6), None, 2.1)
    assert state(table) is ALIVE


def test_a_goodbye_to_others_counts_here_too(table):
    table.told(line(LEFT, incarnation=4), 1.0)
    assert state(table) is ALIVE
    table.told(line(LEFT, incarnation=5), 1.0)
    assert state(table) is LEFT


def test_older_facts_do_not_replace_newer(table):
    table.heard(node_info(PEER, incarnation=7, labels={"v": "7"}), None, 0.1)
    table.heard(node_info(PEER, incarnation=6, labels={"v": "6"}), None, 0.2)
    assert table.get(PEER).info.labels == {"v": "7"}
    table.heard(node_info(PEER, incarnation=1, store_id="new"), None, 0.3)
    assert table.get(PEER).info.store_id == "new"


def test_our_own_delay_counts_against_nobody(table):
    table.excuse(3.0, 3.5)
    table.judge(3.5)
    assert state(table) is ALIVE
    table.judge(5.01)
    assert state(table) is SUSPECT


def test_snapshots_are_reused_and_do_not_change(table):
    before = table.snapshot()
    assert table.snapshot() is before
    version = table.version
    table.left(PEER, 1.0)
    assert table.version > version
    assert before[PEER].state is ALIVE
    assert table.snapshot()[PEER].state is LEFT
    with pytest.raises(TypeError):
        before["x"] = 1


async def test_samples_alone_change_no_states(table):
    def told(act):
        before = table.states_changed
        act()
        assert before.is_set() is (table.states_changed is not before)
        return before.is_set()

    assert not told(lambda: table.heard(node_info(PEER, incarnation=5), sample(), 0.1))
    assert not told(lambda: table.sampled(PEER, sample(), 0.2))
    assert told(lambda: table.heard(node_info("c" * 10, incarnation=1), sample(), 0.3))
    assert told(lambda: table.link_broke(PEER, "connection reset", 0.5))
    assert told(lambda: table.judge(9.0))
    assert told(lambda: table.forget(PEER))


async def test_changed_is_set_and_replaced(table):
    changed = table.changed
    table.sampled(PEER, sample(slots_used=3), 0.4)
    assert changed.is_set()
    assert not table.changed.is_set()
    assert (table.get(PEER).sample.slots_used, table.get(PEER).sample_at) == (3, 0.4)


def test_round_trips_are_averaged(table):
    table.heard(node_info(PEER, incarnation=5), None, 1.0, rtt_s=0.09)
    assert table.get(PEER).rtt_s == pytest.approx(0.02)


def test_forget_only_what_is_gone(table):
    assert not table.forget(PEER)
    table.left(PEER, 1.0)
    assert table.forget(PEER)
    assert not table.forget(PEER)


def test_the_digest_is_bounded_and_tells_the_receiver_what_we_think_of_it():
    table, rng = make(), random.Random(1)
    for number in range(50):
        table.heard(node_info(f"{number:010d}"), None, 0.0)
    lines = table.digest(12, rng, 1.0, receiver=f"{3:010d}")
    assert len(lines) == 13
    assert lines[-1].id == f"{3:010d}"
    assert {line.age_s for line in lines} == {1.0}
    assert len({line.id for line in lines}) == 13


def test_a_node_that_was_found_lately_is_told_of_first():
    table = make()
    for number in range(40):
        table.heard(node_info(f"{number:010d}"), None, 0.0)
    table.heard(node_info(PEER), None, 15.0)
    rng = random.Random(1)
    for now, always in ((15.0, True), (25.0, True), (25.1, False)):
        told = [table.digest(12, rng, now, receiver=OTHER) for _ in range(50)]
        assert all(len(lines) == 12 for lines in told)
        assert all(PEER in {line.id for line in lines} for lines in told) is always
    assert table._news == {}


def test_in_a_large_fleet_some_are_strangers_and_the_others_spoke_last():
    table, rng = make(), random.Random(1)
    ids = [f"{number:010d}" for number in range(3 * NEAREST)]
    for node_id in ids:
        table.heard(node_info(node_id), None, 0.0)
    spoke, gone = set(ids[::3]), set(ids[:60:3])
    for node_id in ids[::3]:
        table.heard(node_info(node_id), None, 1.0)
    table.judge(1.0)
    for node_id in gone:
        table.link_broke(node_id, "cut", 1.0)
    for strangers in range(3):
        some = [table.some_alive(8, rng, strangers=strangers) for _ in range(2000)]
        assert all(len(set(drawn)) == 8 for drawn in some)
        assert all(len(set(drawn) - spoke) <= strangers for drawn in some)
        met = set().union(*some)
        assert spoke - gone <= met
        assert not met & gone
        assert len(met - spoke) >= strangers * 200


def test_a_large_fleet_is_told_of_those_that_spoke_last():
    ids = [f"{number:010d}" for number in range(100)]
    for mesh, always in ((64, True), (128, False)):
        table, rng = make(mesh=mesh), random.Random(1)
        for at, some in ((0.0, ids), (20.0, ids[::3])):
            for node_id in some:
                table.heard(node_info(node_id), None, at)
        spoke = set(ids[::3][-32:])
        told = [table.digest(64, rng, 20.0, receiver=OTHER) for _ in range(50)]
        assert all(len(lines) == len({line.id for line in lines}) == 64 for lines in told)
        assert all(spoke <= {line.id for line in lines} for lines in told) is always
        assert {line.id for lines in told for line in lines} == set(ids)


def test_a_large_fleet_lives_by_words_and_has_more_time():
    table = make(mesh=4)
    for number in range(16):
        table.heard(node_info(f"{number:010d}", incarnation=5), None, 0.0)
    assert table.stretch == 3.0
    one, other = f"{1:010d}", f"{2:010d}"
    table.judge(5.9)
    assert state(table, one) is ALIVE
    table.told(line(node_id=one, age_s=1.0), 5.9)
    table.judge(6.0)
    assert (state(table, one), state(table, other)) == (ALIVE, SUSPECT)
    table.judge(12.0)
    assert (state(table, one), state(table, other)) == (SUSPECT, DEAD)


def test_a_fleet_that_shrinks_is_probed_whole_again():
    table = make(mesh=1)
    for node_id in (PEER, OTHER):
        table.heard(node_info(node_id, incarnation=5), None, 0.0)
    assert (table.meshed, table.stretch) == (False, 2.0)
    table.left(OTHER, 0.0)
    assert table.forget(OTHER)
    assert (table.meshed, table.stretch) == (True, 1.0)


async def test_what_a_node_says_of_itself_grows():
    own = SelfInfo(node_info(incarnation=10))
    changed = own.changed
    assert own.change(addresses=("10.0.0.1",)).incarnation == 10
    assert not changed.is_set()
    assert own.change(state="draining").incarnation == 11
    assert changed.is_set()
    assert own.refute(5).incarnation == 11
    assert own.refute(11).incarnation == 12
    assert own.refute(12 + LARGEST_JUMP).incarnation == 12
    own.leaving = True
    assert own.refute(12).incarnation == 12


def test_architectures_are_named_as_images_name_them():
    assert [architecture(name) for name in ("x86_64", "aarch64", "armv7l", "riscv64")] == [
        "amd64",
        "arm64",
        "arm",
        "riscv64",
    ]


def test_seeds_are_read():
    assert parse_seed("edge1", 56002) == ("edge1", 56002)
    assert parse_seed("edge1:7", 56002) == ("edge1", 7)
    assert parse_seed("fd00::1", 56002) == ("fd00::1", 56002)
    assert parse_seed("[fd00::1]", 56002) == ("fd00::1", 56002)
    assert parse_seed("[fd00::1]:7", 56002) == ("fd00::1", 7)


@pytest.mark.parametrize("seed", ["", ":7", "edge1:", "edge1:x", "edge1:70000", "edge1:0", "[::1", "[::1]x7"])
def test_bad_seeds_name_themselves(seed):
    with pytest.raises(StartError, match=r"discovery\.seeds"):
        parse_seed(seed, 56002)


async def test_numbers_are_not_looked_up():
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait("somebody who holds the only thread")
    assert await resolve("10.0.0.1", 7, limiter) == [("10.0.0.1", 7)]


class Words:
    """What a table was told, and so what it should say."""

    def __init__(self, rng):
        self.rng, self.table, self.now = rng, make(mesh=3), 0.0
        self.heard, self.known, self.down = {}, {}, set()

    def hear(self, peer):
        self.table.heard(node_info(peer, incarnation=5), None, self.now)
        self.heard[peer] = self.known[peer] = self.now
        self.down.discard(peer)

    def tell(self, peer):
        age_s = self.rng.uniform(0, 3)
        self.table.told(line(node_id=peer, age_s=age_s), self.now)
        if peer in self.known:
            self.known[peer] = max(self.known[peer], self.now - age_s)

    def cut(self, peer):
        if self.table.get(peer) and state(self.table, peer) is ALIVE:
            self.down.add(peer)
        self.table.link_broke(peer, "cut", self.now)

    def excuse(self, _peer):
        late = self.rng.uniform(0, 1)
        self.table.excuse(late, self.now)
        for times in (self.heard, self.known):
            times.update({one: min(at + late, self.now) for one, at in times.items()})

    def forget(self, peer):
        if self.table.forget(peer):
            del self.heard[peer], self.known[peer]
            self.down.discard(peer)

    def state(self, peer):
        evidence = self.heard if self.table.meshed else self.known
        if self.now - evidence[peer] < 2 * self.table.stretch and peer not in self.down:
            return ALIVE
        return DEAD if self.now - self.known[peer] >= 4 * self.table.stretch else SUSPECT

    def quiet(self, peer):
        return self.now - self.known[peer] > 1.5 * self.table.stretch


@pytest.mark.parametrize("seed", range(20))
def test_each_peer_has_the_state_that_its_silence_asks_for(seed):
    rng = random.Random(seed)
    words = Words(rng)
    table, ids = words.table, [f"{number:010d}" for number in range(6)]
    actions = [words.hear] * 5 + [words.tell] * 4 + [words.cut, words.excuse, words.forget, words.forget]
    for _ in range(400):
        words.now += rng.choice((0.0531, 0.417, 1.573))
        rng.choice(actions)(rng.choice(ids))
        table.judge(words.now)
        assert {one: state(table, one) for one in words.known} == {
            one: words.state(one) for one in words.known
        }
        assert set(table.quiet(words.now)) == set(filter(words.quiet, words.known))
        alive = {one for one in words.known if state(table, one) is ALIVE}
        some = table.some_alive(2, rng, strangers=rng.randrange(3))
        assert len(set(some)) == len(some) == min(2, len(alive))
        assert set(some) <= alive
