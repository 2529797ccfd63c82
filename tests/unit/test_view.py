"""What a node looks at before it places a task."""

import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest
from membership_world import node_info, sample

from edgeorch.config import Scoring
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.view import LARGE, SHORTLIST, View
from edgeorch.model import NativeService, Peer, PeerState, Placement, Task, TaskSpec, TaskState
from edgeorch.seams import Seams

OWN = "self000000"


@dataclass
class Me:
    info: object = field(default_factory=lambda: node_info(OWN, name="self", cpus=4, drivers={"native": ""}))

    def sample(self):
        return sample(slots=8, slots_used=8)


@dataclass
class Membership:
    peers: dict

    def snapshot(self):
        return self.peers


@pytest.fixture
def view():
    def make(count, dead=0):
        peers = {}
        for number in range(count):
            node_id = f"n{number:09}"
            info = node_info(node_id, name=f"n{number}", cpus=4, drivers={"native": ""})
            state = PeerState.DEAD if number < dead else PeerState.ALIVE
            peers[node_id] = Peer(info=info, state=state, since=0.0, sample=sample())
        return View(Me(), Membership(peers), Books(), Scoring(), Seams(rng=random.Random(4)))

    return make


def entry(**placement):
    spec = TaskSpec(name="x", service=(NativeService(argv=("true",)),), placement=Placement(**placement))
    task = Task(
        id="t",
        name="x",
        state=TaskState.WAITING,
        origin=OWN,
        created_at=0.0,
        spec=msgspec.json.encode(spec),
        caller=None,
    )
    return Entry(task=task, shape="", deadline=0.0, saved=task)


async def test_a_small_fleet_is_looked_at_as_a_whole(view, autojump_clock):
    assert len(view(LARGE - 1).candidates(entry(), few=True)) == LARGE


async def test_of_a_large_fleet_a_few_that_live_are_looked_at(view, autojump_clock):
    here = view(1000, dead=500)
    seen = Counter()
    for _ in range(50):
        few = here.candidates(entry(), few=True)
        assert SHORTLIST / 2 < len(few) <= SHORTLIST + 1
        assert all(candidate.peer.state is PeerState.ALIVE for candidate in few)
        assert OWN in {candidate.peer.info.id for candidate in few}
        seen.update(candidate.peer.info.id for candidate in few)
    assert len(seen) > 450


async def test_the_one_node_of_a_large_fleet_that_can_take_it_is_found(view, autojump_clock):
    best, why = view(1000).best(entry(node="n777"))
    assert (best.node_name, why) == ("n777", "")


async def test_a_large_fleet_that_cannot_take_it_says_so_of_every_node(view, autojump_clock):
    best, why = view(1000).best(entry(constraints=("arch == z80",)))
    assert best is None
    assert "(1001 nodes)" in why


async def test_nothing_is_ranked_twice_in_a_small_fleet(view, autojump_clock, monkeypatch):
    here = view(5)
    asked = []
    ranked = here.rank
    monkeypatch.setattr(here, "rank", lambda *a, **k: asked.append(k) or ranked(*a, **k))
    assert here.best(entry(node="nobody"))[0] is None
    assert asked == [{"few": True, "explain": False}]
