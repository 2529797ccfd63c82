"""The fleet as this node sees it now: who could run a task, and who is meant by a name."""

from collections.abc import Mapping
from typing import Protocol

import trio

from edgeorch.config import Scoring
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.errors import NotFoundError
from edgeorch.executor.executor import Me
from edgeorch.model import Peer, PeerState, Ranked, Sample, TaskSpec
from edgeorch.scheduler import Candidate, rank, why_waiting
from edgeorch.scoring import NOTHING
from edgeorch.seams import Seams
from edgeorch.timing import Histogram, clock

LASTING_S = 60.0
"""A refusal by policy or driver is believed for this long: somebody may change the node's settings."""
PAST_S = 2.0
"""A refusal for want of room is believed for this long where no newer sample comes."""

LARGE = 128
"""A fleet of this many other nodes or more is not looked at as a whole for each task."""
SHORTLIST = 32
"""So many of its live nodes are, by chance: the best of them is, two times of three, among the best 3 %."""

_PRESENCE = {PeerState.ALIVE: 0, PeerState.SUSPECT: 1, PeerState.LEFT: 2, PeerState.DEAD: 3}


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

    def sampled(self, node_id: str, sample: Sample) -> None:
        """A fresh sample of a known node came with its answer."""
        ...

    def forget(self, node_id: str) -> None:
        """Drop a dead or left node."""
        ...


class View:
    """Candidates and names.

    Attributes:
        node_id: this node's id.
    """

    def __init__(self, me: Me, membership: Membership, books: Books, scoring: Scoring, seams: Seams) -> None:
        self.me = me
        self.node_id = me.info.id
        self.membership = membership
        self.books = books
        self.scoring = scoring
        self.seams = seams
        self.took = Histogram()
        """Of ``best``."""
        self._since = seams.wall()

    def myself(self) -> Peer:
        """This node in the form of a peer."""
        return Peer(
            info=self.me.info,
            state=PeerState.ALIVE,
            since=self._since,
            sample=self.me.sample(),
            sample_at=trio.current_time(),
            address=next(iter(self.me.info.addresses), ""),
        )

    def peers(self) -> dict[str, Peer]:
        """Every known node by id, this one first."""
        return {self.node_id: self.myself(), **self.membership.snapshot()}

    def candidates(self, entry: Entry | None = None, *, few: bool = False) -> list[Candidate]:
        """Every known node, with this node's books and what it refused of this task.

        Args:
            entry: the task.
            few: of a large fleet only this node and a random few that are alive.
        """
        known = self.membership.snapshot()
        peers = self._some(known) if few and len(known) >= LARGE else self.peers()
        promised = self.books.promised(known)
        now = trio.current_time()
        return [
            Candidate(
                peer=peer,
                promised=promised.get(peer.info.id, NOTHING),
                sample_age_s=max(now - peer.sample_at, 0.0),
                refused=self._refused(entry, peer, now) if entry else "",
            )
            for peer in peers.values()
        ]

    def _some(self, known: Mapping[str, Peer]) -> dict[str, Peer]:
        """This node, and some of the others that are alive; fewer where most are not."""
        ids = self.seams.rng.sample(list(known), min(2 * SHORTLIST, len(known)))
        alive = [node_id for node_id in ids if known[node_id].state is PeerState.ALIVE]
        return {self.node_id: self.myself()} | {node_id: known[node_id] for node_id in alive[:SHORTLIST]}

    def best(self, entry: Entry) -> tuple[Ranked | None, str]:
        """The node for a task; where no node can take it, None and why.

        In a large fleet it is the best of a few, and of all only where none of these can take it: what a task
        costs here does not grow with the fleet, and nodes with the same view do not all choose the same one.
        """
        begun = clock()
        ranking = self.rank(entry.spec, entry, few=True, explain=False)
        if all(line.refusal for line in ranking) and len(ranking) <= len(self.membership.snapshot()):
            ranking = self.rank(entry.spec, entry, explain=False)
        best = next((line for line in ranking if not line.refusal), None)
        self.took.since(begun)
        return best, "" if best else why_waiting(ranking)

    def rank(
        self, spec: TaskSpec, entry: Entry | None = None, *, few: bool = False, explain: bool = True
    ) -> tuple[Ranked, ...]:
        """The ranking of the fleet for a spec, of a large one as ``few`` says; see ``scheduler.rank``."""
        return rank(
            spec,
            self.candidates(entry, few=few),
            self.seams.rng,
            accepting=self.node_id,
            formula=self.scoring.formula,
            explain=explain,
        )

    def alive(self) -> dict[str, Peer]:
        """Other nodes that answer."""
        return {
            node_id: peer
            for node_id, peer in self.membership.snapshot().items()
            if peer.state is PeerState.ALIVE
        }

    def find(self, name_or_id: str, *, gone: bool = False) -> Peer:
        """A node by id, name, or ``self``.

        A host that got new keys under its old name has a dead node of that name beside the one that is there.

        Args:
            name_or_id: as the user wrote it.
            gone: of nodes with this name prefer one that is gone over one that is there.

        Raises:
            NotFoundError: no such node, with the names there are.
        """
        peers = self.peers()
        if name_or_id == "self":
            return peers[self.node_id]
        if name_or_id in peers:
            return peers[name_or_id]
        named = [peer for peer in peers.values() if peer.info.name == name_or_id]
        if named:
            return min(named, key=lambda peer: (_PRESENCE[peer.state] * (-1 if gone else 1), -peer.since))
        names = ", ".join(sorted(peer.info.name for peer in peers.values()))
        raise NotFoundError(f"no node {name_or_id!r} is known here", hint=f"known: {names}")

    def name_of(self, node_id: str) -> str:
        """The name of a node, or its id where it is not known."""
        if node_id == self.node_id:
            return self.me.info.name
        peer = self.membership.snapshot().get(node_id)
        return peer.info.name if peer else node_id

    @staticmethod
    def _refused(entry: Entry, peer: Peer, now: float) -> str:
        """What the node said, while that is worth believing."""
        refused = entry.refused.get(peer.info.id)
        if refused is None:
            return ""
        age = now - refused.at
        past = age >= refused.pause_s and (peer.sample_at > refused.at or age > PAST_S)
        over = age > LASTING_S if refused.lasting else past
        if over:
            entry.refused = {node: kept for node, kept in entry.refused.items() if kept is not refused}
            return ""
        return f"refused: {refused.reason}"
