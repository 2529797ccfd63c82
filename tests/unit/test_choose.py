"""A task gets a node that the ranking of the fleet could have put first, whatever was heard before."""

import random
from collections import Counter

import msgspec
import pytest
import trio
from membership_world import node_info, sample

from edgeorch.config import Membership as Times
from edgeorch.config import Scoring
from edgeorch.dispatch import choose
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.choose import LARGE, SHORTLIST
from edgeorch.dispatch.entry import Entry, Refused
from edgeorch.dispatch.queue import shape_of
from edgeorch.dispatch.view import View
from edgeorch.membership.table import Table
from edgeorch.model import (
    ContainerService,
    NativeService,
    PeerState,
    Placement,
    Resources,
    Task,
    TaskSpec,
    TaskState,
)
from edgeorch.scheduler import NEAR
from edgeorch.seams import Seams

OWN = "self000000"
EITHER = (ContainerService(image="x"), NativeService(argv=("true",)))


class Me:
    def __init__(self):
        self.info = node_info(OWN, name="self", cpus=4, drivers={"native": ""})
        self.measured = sample(slots=8, slots_used=8)

    def sample(self):
        return msgspec.structs.replace(self.measured)


@pytest.fixture
def view():
    def make(count, dead=0, **scoring):
        seams = Seams(rng=random.Random(4))
        table = Table(OWN, Times(), 64, seams)
        for number in range(count):
            node_id = f"n{number:09}"
            info = node_info(node_id, name=f"n{number}", cpus=4, drivers={"native": ""})
            table.heard(info, sample(), trio.current_time())
            if number < dead:
                table.bar(node_id, "revoked", trio.current_time())
        return View(Me(), table, Books(), Scoring(**scoring), seams)

    return make


def entry(resources=None, service=EITHER, **placement):
    spec = TaskSpec(
        name="x", service=service, placement=Placement(**placement), resources=resources or Resources()
    )
    task = Task(
        id="t",
        name="x",
        state=TaskState.WAITING,
        origin=OWN,
        created_at=0.0,
        spec=msgspec.json.encode(spec),
        caller=None,
    )
    return Entry(task=task, shape=shape_of(spec), deadline=0.0, saved=task)


@pytest.fixture
def looked_at(monkeypatch):
    """The ids of the nodes that were looked at, a list for each look."""
    looks = []
    real = choose.Chooser._best_of

    def best_of(self, entry, me, peers, standings):
        peers = tuple(peers)
        looks.append([peer.info.id for peer in peers])
        return real(self, entry, me, peers, standings)

    monkeypatch.setattr(choose.Chooser, "_best_of", best_of)
    return looks


async def test_a_small_fleet_is_looked_at_as_a_whole_and_once(view, looked_at, autojump_clock):
    here = view(LARGE - 1)
    assert here.best(entry()) is not None
    assert here.best(entry(constraints=("name == nobody",))) is None
    assert [len(look) for look in looked_at] == [LARGE, LARGE]


async def test_of_a_large_fleet_a_few_that_live_are_looked_at(view, looked_at, autojump_clock):
    here = view(1000, dead=500)
    seen = Counter()
    for _ in range(100):
        assert here.best(entry()) is not None
    for few in looked_at:
        assert SHORTLIST / 2 < len(few) <= SHORTLIST + 1
        assert few.count(OWN) == 1
        seen.update(few)
    seen.pop(OWN)
    assert all(here.membership.get(node_id).state is PeerState.ALIVE for node_id in seen)
    assert len(seen) > 450


async def test_who_comes_and_goes_is_known_at_once(view, looked_at, autojump_clock):
    here = view(500)
    here.best(entry())
    late = node_info("late000000", name="late", cpus=4, drivers={"native": ""})
    here.membership.heard(late, sample(), 0.0)
    here.membership.link_broke("n000000000", "cut", 0.0)
    looked_at.clear()
    for _ in range(300):
        here.best(entry())
    seen = {node_id for look in looked_at for node_id in look}
    assert "late000000" in seen
    assert "n000000000" not in seen


async def test_the_one_node_of_a_large_fleet_that_can_take_it_is_found(view, autojump_clock):
    here = view(1000)
    assert here.best(entry(node="n777")).node_name == "n777"
    assert here.best(entry(constraints=("name == n777",))).node_name == "n777"


async def test_for_a_task_of_one_node_no_other_is_looked_at(view, looked_at, autojump_clock):
    here = view(1000)
    assert here.best(entry(node="n000000777")).node_name == "n777"
    assert here.best(entry(node=OWN)) is None  # its slots are in use
    assert looked_at == [["n000000777"], [OWN]]


async def test_a_large_fleet_that_cannot_take_it_says_so_of_every_node(view, autojump_clock):
    here = view(1000)
    z80 = entry(constraints=("arch == z80",))
    assert here.best(z80) is None
    assert "(1001 nodes)" in here.why_none(z80)


async def test_what_is_kept_of_shapes_is_bounded(view, autojump_clock):
    here = view(5)
    for number in range(3 * choose.SHAPES):
        here.best(entry(Resources(memory=number)))
    assert len(here._chooser._standings) == choose.SHAPES


@pytest.mark.parametrize("formula", ["edgeorch", "baobab"])
@pytest.mark.parametrize("count", [3, LARGE + 40])
@pytest.mark.parametrize("seed", range(3))
async def test_the_choice_is_one_that_the_ranking_could_put_first(view, count, formula, seed, mock_clock):
    """After each of many changes: what was worked out before them must not be used after."""
    rng = random.Random(seed)
    here = view(count, formula=formula)
    ids = [f"n{number:09}" for number in range(count)]
    entries = [
        entry(),
        entry(Resources(cpus=2.5)),
        entry(Resources(cpus=1, memory=1 << 31)),
        entry(self_=False, prefer=(("labels.ssd == yes", 40), ("labels.zone == a", -60))),
        entry(constraints=("labels.zone == a",)),
        entry(service=(ContainerService(image="x"),)),
    ]
    for turn in range(400):
        _change(here, rng, rng.choice(ids), f"t{turn}", entries)
        mock_clock.jump(rng.choice((0.0, 0.01, 1.0, 6.0)))
        one = rng.choice(entries)
        chosen = here.best(one)
        ranking = {line.node: line for line in here.rank(one.spec, one, explain=False) if not line.refusal}
        if chosen is None:
            assert not ranking
            continue
        line = ranking[chosen.node]
        assert chosen.driver == line.driver
        assert chosen.score.value == pytest.approx(line.score.value, rel=1e-9)
        if count < LARGE:
            best = max(line.score.value for line in ranking.values())
            assert line.score.value >= best * (1 - NEAR) * (1 - 1e-9)


def _change(here, rng, node, task, entries):
    """Something that a node may learn."""
    table, books, now = here.membership, here.books, trio.current_time()
    info = table.get(node).info
    measured = sample(
        cpu_busy=rng.random(),
        cpu_mhz=rng.choice((0.0, 900.0, 3000.0, float("nan"))),
        load1=rng.uniform(0, 9),
        memory_available=rng.choice((1 << 30, 1 << 33)),
        memory_promised=rng.choice((0, 1 << 33)),
        temperature_c=rng.choice((None, 85.0)),
        slots_used=rng.choice((0, 3, 7, 8)),
        cpus_wanted=rng.choice((-1.0, 2.5)),
        bandwidth_mbps=100.0,
    )
    match rng.randrange(9):
        case 0:
            table.heard(info, measured, now, rtt_s=rng.choice((0.0002, 0.2)))
        case 1:
            table.sampled(node, measured, now)
        case 2:
            labels = {"ssd": rng.choice("yn"), "zone": rng.choice("ab")}
            fields = {"labels": labels, "weight": rng.choice((0.5, 1.0)), "cpus": rng.choice((2, 4))}
            fields["drivers"] = rng.choice(({"native": ""}, {"container": "", "native": ""}, {}))
            fields["state"] = rng.choice(("ready", "ready", "draining"))
            table.heard(msgspec.structs.replace(info, **fields), None, now)
        case 3:
            table.link_broke(node, "cut", now)
        case 4:
            here.me.measured = measured
        case 5 | 6:
            books.promise(task, node, Resources(cpus=rng.choice((0.0, 1.5)), memory=1 << 28))
        case 7:
            known = list(books._lines)
            if known:
                books.accepted(rng.choice(known), now, shown=rng.random() < 0.5)
                books.ended(rng.choice(known), now)
                books.release(rng.choice(known))
        case 8:
            one = rng.choice(entries)
            refused = Refused("no", now, rng.random() < 0.5, rng.choice((0.0, 3.0)))
            one.refused = {**one.refused, node: refused}
