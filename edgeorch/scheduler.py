"""Which node should run a task: pure, over what is known now, without asking anybody.

Filters come first, each with its own sentence; what passes is ordered by score. Nodes within ``NEAR`` of the
best are shuffled, so that many origins with the same view do not all choose the same node.
"""

import functools
import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeorch.constraints import holds, parse
from edgeorch.model import NodeInfo, Peer, PeerState, Ranked, Resources, Score, Service, TaskSpec
from edgeorch.scoring import NOTHING, Formula, Promised, score, slots_taken, worth

_NONE = Score(value=0.0)
NEAR = 0.1
"""Scores that differ by less than this share of the best count as equal: samples are noisier than that, and
origins that all see the same node as the best by a little would fill it twice before they hear of it."""


class Candidate(NamedTuple):
    """One node and what this node's books say of it.

    Attributes:
        peer: facts, state and newest sample.
        promised: what was placed there since that sample.
        sample_age_s: seconds since the sample arrived.
        refused: why it refused this task in this round; empty where it did not.
    """

    peer: Peer
    promised: Promised = NOTHING
    sample_age_s: float = 0.0
    refused: str = ""


class Standing(NamedTuple):
    """How one node stands for specs that fit the same nodes, for as long as nothing is heard of it.

    Attributes:
        peer: what was known.
        promised: and what was placed there since.
        driver: what would run the service; empty where the node can never run it.
        liked: what ``placement.prefer`` multiplies its score with.
        value: its score as long as the sample is fresh; less than 0 where it can take nothing now.
    """

    peer: Peer
    promised: Promised
    driver: str
    liked: float
    value: float


def driver_of(service: Service) -> str:
    """The name of the driver that runs this kind of service."""
    return _driver_of(type(service))


@functools.cache
def _driver_of(kind: type[Service]) -> str:
    return str(kind.__struct_config__.tag)


def choose_service(services: Sequence[Service], drivers: Mapping[str, str]) -> Service | None:
    """The first alternative whose driver the node has."""
    for service in services:
        if _driver_of(type(service)) in drivers:
            return service
    return None


def mismatch(spec: TaskSpec, info: NodeInfo, *, accepting: str) -> str:
    """Why this node can never run the task as things are set up; empty where it can."""
    place = spec.placement
    if place.node is not None and place.node not in (info.id, info.name):
        return f"the task is for node {place.node}"
    if not place.self_ and info.id == accepting:
        return "the task must not run on the node that accepted it"
    for text in place.constraints:
        if not holds(parse(text), info):
            return f"constraint not met: {text}"
    if spec.secrets and "secrets" not in info.features:
        return f"its release {info.version} knows no secrets"
    if choose_service(spec.service, info.drivers) is None:
        wanted = " or ".join(dict.fromkeys(driver_of(service) for service in spec.service))
        return f"no {wanted} driver"
    if info.memory and spec.resources.memory > info.memory:
        return f"needs {_bytes(spec.resources.memory)} of memory, the node has {_bytes(info.memory)}"
    if spec.resources.cpus > info.cpus:
        return f"needs {spec.resources.cpus:g} CPUs, the node has {info.cpus}"
    return ""


def busy(resources: Resources, peer: Peer, promised: Promised, refused: str = "") -> str:
    """Why this node cannot take the task at this moment; empty where it can."""
    if peer.state is not PeerState.ALIVE:
        return f"the node is {peer.state}"
    if peer.info.state != "ready":
        return f"the node is {peer.info.state}"
    if refused:
        return refused
    sample = peer.sample
    if sample is None:
        return "no measurements from it yet"
    if slots_taken(sample, promised) >= sample.slots:
        return f"all {sample.slots} slots are in use"
    free = sample.memory_available - promised.memory
    if resources.memory and resources.memory > free:
        return f"needs {_bytes(resources.memory)} of memory, {_bytes(max(free, 0))} are free"
    return ""


def rank(
    spec: TaskSpec,
    candidates: Sequence[Candidate],
    rng: random.Random,
    *,
    accepting: str,
    formula: Formula = "edgeorch",
    explain: bool = True,
) -> tuple[Ranked, ...]:
    """All candidates, best first; those that cannot be chosen come last, with the reason in ``refusal``.

    Args:
        spec: the task, already validated.
        candidates: every known node, the accepting one included.
        rng: breaks near-ties.
        accepting: id of the node that accepted the task (for ``placement.self``).
        formula: the score to use.
        explain: whether scores have their reasons, and nodes that cannot be chosen have a score at all.
    """
    chosen: list[Ranked] = []
    others: list[Ranked] = []
    for candidate in candidates:
        info = candidate.peer.info
        refusal = mismatch(spec, info, accepting=accepting) or busy(
            spec.resources, candidate.peer, candidate.promised, candidate.refused
        )
        service = choose_service(spec.service, info.drivers)
        line = Ranked(
            node=info.id,
            node_name=info.name,
            driver=driver_of(service) if service else "",
            score=_score(spec, candidate, formula, explain=explain) if explain or not refusal else _NONE,
            refusal=refusal,
        )
        (others if refusal else chosen).append(line)
    chosen.sort(key=lambda line: -line.score.value)
    others.sort(key=lambda line: (-line.score.value, line.node))
    return (*_shuffle_near(chosen, rng), *others)


def standing(
    spec: TaskSpec,
    peer: Peer,
    promised: Promised,
    before: Standing | None = None,
    *,
    accepting: str,
    formula: Formula = "edgeorch",
) -> Standing:
    """What ``rank`` finds of one node, but for the age of its sample and what it refused.

    Args:
        spec: the task, or another that fits the same nodes.
        peer: the node.
        promised: what was placed there since its sample.
        before: how it stood: its facts change seldom, and what follows from them is not worked out again.
        accepting: id of the node that accepted the task.
        formula: the score to use.
    """
    info = peer.info
    if before is not None and before.peer.info is info:
        driver, liked = before.driver, before.liked
    else:
        service = choose_service(spec.service, info.drivers)
        driver = driver_of(service) if service and not mismatch(spec, info, accepting=accepting) else ""
        liked = _liked(_wishes(spec, info))
    value = -1.0
    if driver and not busy(spec.resources, peer, promised):
        value = worth(peer, spec, promised, formula=formula) * liked
    return Standing(peer, promised, driver, liked, value)


def why_waiting(ranking: Sequence[Ranked]) -> str:
    """One sentence for a task that no node can take now: the most frequent reasons first."""
    if not ranking:
        return "no node is known"
    counts: dict[str, list[str]] = {}
    for line in ranking:
        counts.setdefault(line.refusal, []).append(line.node_name)
    parts = [
        f"{reason} ({names[0]})" if len(names) == 1 else f"{reason} ({len(names)} nodes)"
        for reason, names in sorted(counts.items(), key=lambda item: -len(item[1]))[:4]
    ]
    return "no node can take it: " + "; ".join(parts)


def _score(spec: TaskSpec, candidate: Candidate, formula: Formula, *, explain: bool) -> Score:
    peer = candidate.peer
    found = score(
        peer.info,
        peer.sample,
        peer.rtt_s,
        spec,
        candidate.promised,
        formula=formula,
        sample_age_s=candidate.sample_age_s,
        explain=explain,
    )
    return _preferred(spec, peer.info, found) if spec.placement.prefer else found


def _preferred(spec: TaskSpec, info: NodeInfo, found: Score) -> Score:
    """The score with ``placement.prefer`` applied: each weight that holds adds that many percent."""
    wishes = _wishes(spec, info)
    reasons = (f"{weight:+d} % for {text}" for text, weight in wishes)
    return Score(value=found.value * _liked(wishes), reasons=(*found.reasons, *reasons))


def _wishes(spec: TaskSpec, info: NodeInfo) -> list[tuple[str, int]]:
    return [(text, weight) for text, weight in spec.placement.prefer if holds(parse(text), info)]


def _liked(wishes: Sequence[tuple[str, int]]) -> float:
    return math.prod([1 + weight / 100 for _, weight in wishes])


def _shuffle_near(ranking: list[Ranked], rng: random.Random) -> list[Ranked]:
    if len(ranking) < 2:
        return ranking
    limit = ranking[0].score.value * (1 - NEAR)
    near = [line for line in ranking if line.score.value >= limit]
    rest = ranking[len(near) :]
    rng.shuffle(near)
    return near + rest


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
