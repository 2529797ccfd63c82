"""The fleet as this node sees it now: who could run a task, and who is meant by a name."""

import trio

from edgeorch.config import Scoring
from edgeorch.dispatch.books import Books
from edgeorch.dispatch.choose import Chooser, Membership
from edgeorch.dispatch.entry import Entry
from edgeorch.errors import NotFoundError
from edgeorch.executor.executor import Me
from edgeorch.model import Peer, PeerState, Ranked, TaskSpec
from edgeorch.scheduler import Candidate, rank, why_waiting
from edgeorch.seams import Seams
from edgeorch.timing import Histogram, clock

_PRESENCE = {PeerState.ALIVE: 0, PeerState.SUSPECT: 1, PeerState.LEFT: 2, PeerState.DEAD: 3}


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
        self._chooser = Chooser(self.myself, membership, books, formula=scoring.formula, rng=seams.rng)

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

    def candidates(self, entry: Entry | None = None) -> list[Candidate]:
        """Every known node, with this node's books and what it refused of this task."""
        now = trio.current_time()
        return [
            Candidate(
                peer=peer,
                promised=self.books.on(peer),
                sample_age_s=max(now - peer.sample_at, 0.0),
                refused=entry.refusal_of(peer, now) if entry else "",
            )
            for peer in self.peers().values()
        ]

    def best(self, entry: Entry) -> Ranked | None:
        """The node for a task, None where no node can take it; see ``Chooser``."""
        begun = clock()
        best = self._chooser.best(entry)
        self.took.since(begun)
        return best

    def why_none(self, entry: Entry) -> str:
        """Why no node can take a task; it takes far longer than to find that out."""
        return why_waiting([line for line in self.rank(entry.spec, entry, explain=False) if line.refusal])

    def rank(self, spec: TaskSpec, entry: Entry | None = None, *, explain: bool = True) -> tuple[Ranked, ...]:
        """The ranking of the fleet for a spec; see ``scheduler.rank``."""
        return rank(
            spec,
            self.candidates(entry),
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

    @property
    def alone(self) -> bool:
        """Whether no other node answers."""
        return all(peer.state is not PeerState.ALIVE for peer in self.membership.snapshot().values())

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
        peer = self.membership.get(node_id)
        return peer.info.name if peer else node_id
