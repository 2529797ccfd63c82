import random

from edgeorch.model import (
    ContainerService,
    NativeService,
    NodeInfo,
    Peer,
    PeerState,
    Placement,
    Resources,
    Sample,
    TaskSpec,
)
from edgeorch.scheduler import Candidate, rank, why_waiting
from edgeorch.scoring import Promised


def sample(**fields):
    values = {
        "at": 0.0,
        "cpu_busy": 0.1,
        "cpu_mhz": 2000.0,
        "cpus": 4,
        "load1": 0.1,
        "memory_total": 8 << 30,
        "memory_available": 4 << 30,
        "disk_free": 1 << 40,
        "slots": 8,
        "slots_used": 0,
    }
    return Sample(**(values | fields))


def node(
    name, *, state=PeerState.ALIVE, node_state="ready", rtt_s=0.0, labels=None, drivers=None, **measured
):
    info = NodeInfo(
        id=name.ljust(10, "0"),
        name=name,
        fleet="home",
        version="0.1.0",
        arch="amd64",
        cpus=4,
        memory=8 << 30,
        drivers=drivers or {"native": "1"},
        labels=labels or {},
        state=node_state,
    )
    return Candidate(peer=Peer(info=info, state=state, since=0.0, sample=sample(**measured)))


def spec(**fields):
    return TaskSpec(**({"name": "t", "service": (NativeService(argv=("true",)),)} | fields))


def ranked(task, *candidates, accepting="aaa0000000"):
    return rank(task, candidates, random.Random(1), accepting=accepting)


def test_the_idle_node_is_first_and_reasons_are_given():
    lines = ranked(spec(), node("aaa", cpu_busy=0.9), node("bbb", cpu_busy=0.05))
    assert [line.node_name for line in lines] == ["bbb", "aaa"]
    assert all(line.score.reasons for line in lines)
    assert lines[0].driver == "native"


def test_each_filter_says_why():
    big = Resources(memory=5 << 30)
    cases = [
        (spec(placement=Placement(node="bbb")), node("aaa"), "for node bbb"),
        (spec(placement=Placement(self_=False)), node("aaa"), "accepted it"),
        (spec(placement=Placement(constraints=("arch == arm64",))), node("aaa"), "constraint not met"),
        (spec(service=(ContainerService(image="x"),)), node("aaa"), "no container driver"),
        (spec(resources=Resources(memory=9 << 30)), node("aaa"), "the node has"),
        (spec(resources=Resources(cpus=5)), node("aaa"), "needs 5 CPUs"),
        (spec(resources=big), node("aaa"), "are free"),
        (spec(), node("aaa", state=PeerState.SUSPECT), "suspect"),
        (spec(), node("aaa", node_state="draining"), "draining"),
        (spec(), node("aaa", slots_used=8), "slots"),
    ]
    for task, candidate, says in cases:
        line = ranked(task, candidate)[0]
        assert says in line.refusal
        assert says in why_waiting([line])


def test_what_was_just_placed_counts():
    free = node("aaa", slots=1)
    taken = Candidate(peer=free.peer, promised=Promised(slots=1))
    assert ranked(spec(), free)[0].refusal == ""
    assert "slots" in ranked(spec(), taken)[0].refusal


def test_the_first_alternative_that_the_node_has_is_taken():
    either = spec(service=(ContainerService(image="x"), NativeService(argv=("x",))))
    both = node("bbb", drivers={"native": "1", "container": "1"})
    lines = {line.node_name: line.driver for line in ranked(either, node("aaa"), both)}
    assert lines == {"aaa": "native", "bbb": "container"}


def test_preferences_add_percent():
    task = spec(placement=Placement(prefer=(("labels.ssd == yes", 50),)))
    lines = ranked(task, node("aaa"), node("bbb", labels={"ssd": "yes"}))
    assert lines[0].node_name == "bbb"
    assert any("+50 %" in reason for reason in lines[0].score.reasons)


def test_near_ties_are_shared_between_nodes():
    rng = random.Random(7)
    candidates = [node("aaa"), node("bbb"), node("ccc", cpu_busy=0.9)]
    firsts = {rank(spec(), candidates, rng, accepting="x")[0].node_name for _ in range(50)}
    assert firsts == {"aaa", "bbb"}


def test_many_reasons_are_summed_up():
    lines = ranked(spec(placement=Placement(constraints=("arch == arm64",))), node("aaa"), node("bbb"))
    assert why_waiting(lines) == "no node can take it: constraint not met: arch == arm64 (2 nodes)"
    assert why_waiting([]) == "no node is known"
