"""The node for a task: what ``scheduler.rank`` would put first, without a ranking of all others.

How a node stands for tasks of a shape is worked out once and holds until something is heard of the node or
placed there, so that most of a choice is a look at each node. Of a large fleet it looks at a few only.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import trio

from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.model import Peer, PeerState, Ranked, Sample, Score
from edgeorch.scheduler import NEAR, Standing, standing
from edgeorch.scoring import FRESH_S, NOTHING, Formula, fading

LARGE = 128
"""A fleet with this many other nodes that are alive, or more, is not looked at as a whole for each task."""
SHORTLIST = 16
"""So many of them are, by chance: the best of them is, two times of three, among the best 6 %."""
SHAPES = 16
"""Shapes whose standings are kept: a node has few at a time."""


class Membership(Protocol):
    """What membership offers; ``membership.Membership`` and ``testing.FakeDiscovery`` have it."""

    @property
    def changed(self) -> trio.Event:
        """Set at each change of the table; replaced by a new event each time."""
        ...

    @property
    def states_changed(self) -> trio.Event:
        """Set when a peer comes, goes or changes its state; replaced by a new event each time."""
        ...

    def snapshot(self) -> Mapping[str, Peer]:
        """All other nodes by id."""
        ...

    def get(self, node_id: str) -> Peer | None:
        """One of them, or None."""
        ...

    def sampled(self, node_id: str, sample: Sample) -> None:
        """A fresh sample of a known node came with its answer."""
        ...

    def forget(self, node_id: str) -> None:
        """Drop a dead or left node."""
        ...


class Chooser:
    """Chooses nodes.

    Args:
        myself: this node in the form of a peer.
        membership: the others.
        books: what this node has placed on them.
        formula: the score to use.
        rng: chance.
    """

    def __init__(
        self,
        myself: Callable[[], Peer],
        membership: Membership,
        books: Books,
        *,
        formula: Formula,
        rng: random.Random,
    ) -> None:
        self._myself = myself
        self._membership = membership
        self._books = books
        self._formula: Formula = formula
        # Of its own: the system's randomness costs a system call each time.
        self._rng = random.Random(rng.getrandbits(64))  # noqa: S311  nothing is secret here
        self._standings: dict[str, dict[str, Standing]] = {}
        self._alive: list[str] = []
        self._states: trio.Event | None = None

    def best(self, entry: Entry) -> Ranked | None:
        """The node for a task; None where no node can take it.

        In a large fleet it is the best of a few, and of all only where none of these can take it: what a task
        costs here does not grow with the fleet, and nodes with the same view do not all choose the same one.
        """
        me, node = self._myself(), entry.spec.placement.node
        if node is not None and (only := me if node == me.info.id else self._membership.get(node)):
            return self._best_of(entry, me, (only,), {})
        alive = self._who_is_alive()
        standings = self._standings_of(entry.shape, 2 * len(alive) + LARGE)
        if node is None and len(alive) >= LARGE:
            get, few = self._membership.get, dict.fromkeys(self._rng.choices(alive, k=SHORTLIST))
            found = self._best_of(entry, me, (me, *filter(None, map(get, few))), standings)
            if found is not None:
                return found
        return self._best_of(entry, me, (me, *self._membership.snapshot().values()), standings)

    def _who_is_alive(self) -> list[str]:
        """Ids of the others that are; the list is as old as the last change of any node's state."""
        states = self._membership.states_changed
        if states is not self._states:
            self._states = states
            peers = self._membership.snapshot().items()
            self._alive = [node_id for node_id, peer in peers if peer.state is PeerState.ALIVE]
        return self._alive

    def _standings_of(self, shape: str, most: int) -> dict[str, Standing]:
        found = self._standings.get(shape)
        if found is None:
            if len(self._standings) >= SHAPES:
                del self._standings[next(iter(self._standings))]
            found = self._standings[shape] = {}
        elif len(found) > most:
            found.clear()
        return found

    def _best_of(
        self, entry: Entry, me: Peer, peers: Iterable[Peer], standings: dict[str, Standing]
    ) -> Ranked | None:
        """The best of these, or any of those within ``NEAR`` of it."""
        spec, refused, now = entry.spec, entry.refused, trio.current_time()
        on, placed = self._books.on, self._books.pages
        fades = self._formula == "edgeorch"
        found: list[tuple[float, Standing]] = []
        for peer in peers:
            node_id = peer.info.id
            promised = on(peer) if node_id in placed else NOTHING
            known = standings.get(node_id)
            if known is None or known.peer is not peer or known.promised is not promised:
                known = standings[node_id] = standing(
                    spec, peer, promised, known, accepting=me.info.id, formula=self._formula
                )
            value = known.value
            if value < 0 or (node_id in refused and entry.refusal_of(peer, now)):
                continue
            if fades and now - peer.sample_at > FRESH_S:
                value /= fading(now - peer.sample_at)
            found.append((value, known))
        if not found:
            return None
        limit = max([value for value, _ in found]) * (1 - NEAR)
        value, chosen = self._rng.choice([line for line in found if line[0] >= limit])
        info = chosen.peer.info
        return Ranked(node=info.id, node_name=info.name, driver=chosen.driver, score=Score(value=value))
