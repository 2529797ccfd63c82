"""The table of known nodes: what each said of itself, and whether it is alive. Pure state; time is handed in.

A peer lives by evidence with an age: ``heard`` is contact with the node itself, ``told`` is another node's
word that it had such contact (``Digest.age_s``). While every node probes every other (up to ``mesh`` peers):

* alive: heard less than ``suspect_s`` ago over a link that is up;
* dead: neither heard nor told of for ``dead_s``;
* suspect, and not chosen: everything between, and at once when its link breaks. So a node that only *we*
  cannot reach stays suspect.

A node whose certificate was revoked is dead at once, until it shows another one.

In larger fleets few peers are probed in each period; there a word counts as much as own contact, and both
times are stretched by ``1 + log2(peers / mesh)``, the rounds that news needs to spread (compare the
suspicion timeout of SWIM, Das et al. 2002, and of its descendant Lifeguard).

Incarnations order a node's facts for good, because each start of a node begins above all earlier ones. A node
that said goodbye stays ``left`` until it shows a higher one.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import islice
from types import MappingProxyType

import msgspec
import structlog
import trio

from edgeorch.config import Membership as Times
from edgeorch.membership.clones import Clones
from edgeorch.model import NodeInfo, Peer, PeerState, Sample
from edgeorch.seams import Seams
from edgeorch.wire.messages import Digest

log = structlog.get_logger()

GONE = (PeerState.DEAD, PeerState.LEFT)
NEWS_S = 10.0
"""For so long a node that was found is told of first."""
QUIET = 0.75
"""Of the time after which a peer is suspect: without a word for so long, it is looked at closely."""
NEAREST = 384
"""Peers that a node in a large fleet asks again and again: those of half a minute.

It is half of what an idle link is kept for, so that there still is one to each."""
RTT_GAIN = 1 / 8
"""Weight of a new round trip in the average, as in RFC 6298."""


@dataclass(slots=True)
class Entry:
    """A peer and the evidence for its state; times are monotonic.

    What others tell of it and are told is here once more: there are thousands of lines a second in a large
    fleet, whose peers and their facts are not in the processor's cache.
    """

    peer: Peer
    changed_at: float
    heard: float
    known: float
    """When it was heard or others, by their word, heard it: the newest of both."""
    look_at: float = math.inf
    """When it is to be looked at again; never while it is watched."""
    down: str = ""
    """Why its link broke, until it is heard again."""
    cut: bool = False
    """Its link was given up after ``dead_s`` of silence, until it is heard again."""
    barred: str = ""
    """Why it is a node of the fleet no more; nobody's word counts for it until it proves itself again."""
    state: PeerState = field(init=False)
    incarnation: int = field(init=False)
    addresses: tuple[str, ...] = field(init=False)
    wire_port: int = field(init=False)

    def __post_init__(self) -> None:
        self.show(self.peer)

    def show(self, peer: Peer) -> None:
        """The peer is like this from now on."""
        self.peer, self.state, info = peer, peer.state, peer.info
        self.incarnation, self.addresses, self.wire_port = info.incarnation, info.addresses, info.wire_port


class Table:
    """Every node of the fleet that this node knows, itself not included.

    Args:
        own: id of this node.
        times: ``suspect_s``, ``dead_s`` and ``forget_s``.
        mesh: up to this many peers are all probed.
        seams: wall time for ``Peer.since``.

    Attributes:
        changed: set at each change of any peer (samples included) and replaced by a new event.
        states_changed: the same, but only when a peer comes, goes or changes its state.
        version: number of changes so far.
        meshed: whether the fleet is small enough for every node to probe every other.
        stretch: what ``suspect_s`` and ``dead_s`` are multiplied with.
        clones: nodes that share an id or a name.
    """

    def __init__(self, own: str, times: Times, mesh: int, seams: Seams) -> None:
        self.changed = trio.Event()
        self.states_changed = trio.Event()
        self.version = 0
        self._own = own
        self._times = times
        self._mesh = mesh
        self._seams = seams
        self._entries: dict[str, Entry] = {}
        self._ids: list[str] = []
        self._watched: dict[str, None] = {}
        """Who is looked at each time: all that are quiet or not sound."""
        self._looks: list[tuple[float, str]] = []
        """A heap of when to look at the others."""
        self._view: Mapping[str, Peer] | None = None
        self._barred: set[str] = set()
        self._news: dict[str, float] = {}
        """When nodes were found, the newest last."""
        self._spoke: dict[str, None] = {}
        """Who has spoken to us, the last one last."""
        self.meshed, self.stretch = True, 1.0
        self.clones = Clones()

    # Reading

    def snapshot(self) -> Mapping[str, Peer]:
        """All peers by id; a read-only view that later changes do not touch, the same one until a change."""
        if self._view is None:
            self._view = MappingProxyType({node_id: entry.peer for node_id, entry in self._entries.items()})
        return self._view

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, node_id: str) -> Peer | None:
        """One peer, or None."""
        entry = self._entries.get(node_id)
        return entry.peer if entry else None

    def here(self, node_id: str) -> bool:
        """Whether this node is known and neither dead nor left."""
        entry = self._entries.get(node_id)
        return entry is not None and entry.peer.state not in GONE

    def some_alive(self, count: int, rng: random.Random, *, strangers: int) -> list[str]:
        """Ids of up to so many that are alive, by chance: ``strangers`` of all, the rest of the nearest.

        Those are the ``NEAREST`` that spoke to this node last: there still is a link to them. News spreads in
        a fleet whose nodes have some hundreds of partners each, and change one or two a second, as it does
        where everybody may ask everybody.
        """
        near = list(islice(reversed(self._spoke), NEAREST))
        # Whoever is not alive is watched.
        some = rng.sample(near, min(count + len(self._watched), len(near)))
        drawn = dict.fromkeys((*rng.sample(self._ids, min(strangers, len(self._ids))), *some))
        alive, entries = PeerState.ALIVE, self._entries
        return [node_id for node_id in drawn if entries[node_id].peer.state is alive][:count]

    def quiet(self, now: float) -> list[str]:
        """Ids of all that there was no word of lately; those that said goodbye are expected to be."""
        self._look(now)
        entries, left, since = self._entries, PeerState.LEFT, now - self._patience()
        return [
            node_id
            for node_id in self._watched
            if entries[node_id].known < since and entries[node_id].peer.state is not left
        ]

    # Evidence

    def heard(
        self,
        info: NodeInfo,
        sample: Sample | None,
        now: float,
        *,
        address: str = "",
        rtt_s: float | None = None,
    ) -> bool:
        """The node itself spoke to us.

        Returns:
            Whether it counts as alive now; False for a late word of a node that has said goodbye.
        """
        entry = self._entries.get(info.id)
        new = entry is None
        if entry is None:
            if info.id == self._own:
                return False
            peer = Peer(info=info, state=PeerState.ALIVE, since=self._seams.wall())
            entry = self._entries[info.id] = Entry(peer, changed_at=now, heard=now, known=now)
            self._resized()
            self._watched[info.id] = None
            self._news[info.id] = now
            log.info("node found", node=info.id, name=info.name, address=address or info.addresses)
        known = entry.peer.info
        if entry.peer.state is PeerState.LEFT and not _newer(info, known):
            return False
        news = info != known
        if news:
            self.clones.check(info, known)
        entry.heard = entry.known = now
        self._spoke.pop(info.id, None)
        self._spoke[info.id] = None
        entry.down, entry.cut, entry.barred = "", False, ""
        self._barred.discard(info.id)
        fields: dict[str, object] = {"reason": self.clones.about(info.id)}
        if news and (_newer(info, known) or info.incarnation == known.incarnation):
            fields["info"] = info
            self.clones.check_name(info, [other.peer for other in self._entries.values()])
            fields["reason"] = self.clones.about(info.id)
        if sample is not None:
            fields |= {"sample": sample, "sample_at": now}
        if rtt_s is not None:
            before = entry.peer.rtt_s
            fields["rtt_s"] = before + RTT_GAIN * (rtt_s - before) if before else rtt_s
        if address:
            fields["address"] = address
        entry.show(msgspec.structs.replace(entry.peer, **fields))
        self._set_state(entry, PeerState.ALIVE, now, str(fields["reason"]))
        self._touch()
        if new:
            self._tell_states()
        return True

    def told(self, digest: Digest, now: float) -> bool:
        """Another node says what it believes of a third one; unknown nodes are not added by words alone.

        Returns:
            Whether it may say where to reach a node that is not here, or that has changed.
        """
        entry = self._entries.get(digest.id)
        if entry is None:
            return True
        known = entry.incarnation
        if digest.incarnation >= known:
            if digest.state is PeerState.LEFT:
                self.left(digest.id, now)
            elif entry.state is not PeerState.LEFT or digest.incarnation > known:
                # Ages come from outside: the future is not evidence, and old news changes nothing.
                told = now - max(digest.age_s, 0.0)
                if told > entry.known and now - told < self._times.dead_s * self.stretch:
                    entry.known = told
                    if entry.state is not PeerState.ALIVE:
                        self._judge(entry, now)
        return digest.incarnation > known or entry.state in GONE

    def sampled(self, node_id: str, sample: Sample, now: float) -> None:
        """A fresh sample of a known peer came with something else, such as a refusal."""
        entry = self._entries.get(node_id)
        if entry is not None:
            entry.peer = msgspec.structs.replace(entry.peer, sample=sample, sample_at=now)
            self._touch()

    def link_broke(self, node_id: str, why: str, now: float) -> None:
        """The link to the node ended, not by our wish: it is not chosen until it is heard again."""
        entry = self._entries.get(node_id)
        if entry is not None and entry.peer.state is PeerState.ALIVE:
            entry.down = why or "the link broke"
            self._set_state(entry, PeerState.SUSPECT, now, entry.down)

    def bar(self, node_id: str, why: str, now: float) -> None:
        """The node is one of the fleet no more: dead at once, whatever others still say."""
        entry = self._entries.get(node_id)
        if entry is not None:
            entry.barred = why
            self._barred.add(node_id)
            self._judge(entry, now)

    def replaced(self) -> tuple[str, ...]:
        """Ids of barred nodes whose names other nodes have that are here: the host got new keys."""
        if not self._barred:
            return ()
        taken = {entry.peer.info.name for entry in self._entries.values() if entry.peer.state not in GONE}
        return tuple(
            node_id for node_id in sorted(self._barred) if self._entries[node_id].peer.info.name in taken
        )

    def left(self, node_id: str, now: float) -> None:
        """The node stops on purpose."""
        entry = self._entries.get(node_id)
        if entry is not None:
            self._set_state(entry, PeerState.LEFT, now, "said goodbye")

    def forget(self, node_id: str) -> bool:
        """Drop a dead or left node; False for a node that is here or unknown."""
        entry = self._entries.get(node_id)
        if entry is None or entry.peer.state not in GONE:
            return False
        del self._entries[node_id]
        self._barred.discard(node_id)
        for memory in (self._watched, self._spoke, self._news):
            memory.pop(node_id, None)
        self._resized()
        self._touch()
        self._tell_states()
        return True

    # Time

    def judge(self, now: float) -> tuple[str, ...]:
        """Let time pass.

        Returns:
            Ids whose links are of no use any more: nodes that died, nodes that only others reach (their old
            link may hang where a new one would not), and nodes that were forgotten.
        """
        ended = []
        self._look(now)
        for node_id in list(self._watched):
            entry = self._entries[node_id]
            if entry.peer.state in GONE and now - entry.changed_at >= self._times.forget_s:
                self.forget(node_id)
                ended.append(node_id)
            elif entry.peer.state is not PeerState.LEFT and not self._sound(entry, now):
                self._judge(entry, now)
                if not entry.cut and now - self._evidence(entry) >= self._times.dead_s * self.stretch:
                    entry.cut = True
                    ended.append(node_id)
            else:
                self._rest(node_id, entry, now)
        return tuple(ended)

    def _look(self, now: float) -> None:
        """Watch all of whom there was no word since the look at them was set."""
        looks = self._looks
        while looks and looks[0][0] <= now:
            at, node_id = heappop(looks)
            entry = self._entries.get(node_id)
            if entry is not None and entry.look_at == at:
                self._rest(node_id, entry, now)

    def _rest(self, node_id: str, entry: Entry, now: float) -> None:
        """Look at it later, where it is sound and not quiet; else from now on each time."""
        at = self._evidence(entry) + self._patience()
        if at > now and self._sound(entry, now):
            entry.look_at = at
            self._watched.pop(node_id, None)
            heappush(self._looks, (at, node_id))
        else:
            entry.look_at = math.inf
            self._watched[node_id] = None

    def excuse(self, late: float, now: float) -> None:
        """This node itself did not run for ``late`` seconds: they count against nobody."""
        for entry in self._entries.values():
            entry.heard = min(entry.heard + late, now)
            entry.known = min(entry.known + late, now)

    def digest(self, limit: int, rng: random.Random, now: float, *, receiver: str) -> tuple[Digest, ...]:
        """What this node tells another: up to ``limit`` lines, and what it believes of the receiver.

        Up to a quarter of the lines are of nodes that it found lately, so that news outruns the fleet's size.
        In a fleet too large to probe all, as many as half are of those that spoke to it last: of all that it
        knows, this is the news to others. The rest follow each other in the table, from a random place on:
        each node is in as many digests as if each line were drawn by itself, which costs more.

        A receiver that finds itself called left, or known by a higher incarnation than its own, refutes it.
        """
        ids = self._ids
        if len(ids) > limit + 1:
            first = rng.randrange(len(ids))
            some = ids[first : first + limit + 1]
            some += ids[: limit + 1 - len(some)]
            spoke = () if self.meshed else islice(reversed(self._spoke), limit // 2)
            ids = list(dict.fromkeys((*self._newest(limit // 4, now), *spoke, *some)))
        ids = [node_id for node_id in ids if node_id != receiver][:limit]
        if receiver in self._entries:
            ids.append(receiver)
        return tuple([_line(node_id, entry, now) for node_id in ids for entry in [self._entries[node_id]]])

    def _newest(self, count: int, now: float) -> tuple[str, ...]:
        while self._news and now - next(iter(self._news.values())) > NEWS_S:
            del self._news[next(iter(self._news))]
        return tuple(islice(reversed(self._news), count))

    def _evidence(self, entry: Entry) -> float:
        return entry.heard if self.meshed else entry.known

    def _patience(self) -> float:
        return QUIET * self._times.suspect_s * self.stretch

    def _sound(self, entry: Entry, now: float) -> bool:
        """Whether there is nothing to judge."""
        peer = entry.peer
        return (
            peer.state is PeerState.ALIVE
            and not (peer.reason or entry.down or entry.barred)
            and now - self._evidence(entry) < self._times.suspect_s * self.stretch
        )

    def _judge(self, entry: Entry, now: float) -> None:
        """Give the entry the state that the evidence asks for."""
        silent = now - self._evidence(entry)
        unheard = now - entry.known
        if entry.barred:
            state, reason = PeerState.DEAD, entry.barred
        elif not entry.down and silent < self._times.suspect_s * self.stretch:
            state, reason = PeerState.ALIVE, self.clones.about(entry.peer.info.id)
        elif unheard >= self._times.dead_s * self.stretch:
            state, reason = PeerState.DEAD, entry.down or f"no answer for {unheard:.1f} s"
        elif silent >= self._times.dead_s * self.stretch:
            state, reason = PeerState.SUSPECT, "not reached from here, but by others"
        else:
            state, reason = PeerState.SUSPECT, entry.down or "no answer"
        self._set_state(entry, state, now, reason)

    def _set_state(self, entry: Entry, state: PeerState, now: float, reason: str) -> None:
        before = entry.peer.state
        if reason or state is not PeerState.ALIVE:
            self._watched[entry.peer.info.id] = None
            entry.look_at = math.inf
        if before is state:
            if reason != entry.peer.reason:
                entry.peer = msgspec.structs.replace(entry.peer, reason=reason)
                self._touch()
            return
        entry.changed_at = now
        if state in GONE:
            self.clones.forget(entry.peer.info.id)
        entry.show(msgspec.structs.replace(entry.peer, state=state, since=self._seams.wall(), reason=reason))
        say = log.info if state in (PeerState.ALIVE, PeerState.LEFT) else log.warning
        say(
            f"node is {state}",
            node=entry.peer.info.id,
            name=entry.peer.info.name,
            was=str(before),
            reason=reason,
        )
        self._touch()
        self._tell_states()

    def _resized(self) -> None:
        self._ids = list(self._entries)
        count, before = len(self._ids), self.stretch
        self.meshed = count <= self._mesh
        self.stretch = 1.0 if self.meshed else 1 + math.log2(count / self._mesh)
        if self.stretch < before:
            # Sooner than was thought.
            self._watched |= dict.fromkeys(self._ids)

    def _touch(self) -> None:
        self._view = None
        self.version += 1
        before, self.changed = self.changed, trio.Event()
        before.set()

    def _tell_states(self) -> None:
        before, self.states_changed = self.states_changed, trio.Event()
        before.set()


def _line(node_id: str, entry: Entry, now: float) -> Digest:
    return Digest(
        id=node_id,
        state=entry.state,
        incarnation=entry.incarnation,
        addresses=entry.addresses,
        wire_port=entry.wire_port,
        age_s=now - entry.known,
    )


def _newer(info: NodeInfo, known: NodeInfo) -> bool:
    """A node whose store was made anew counts its starts from one again, so that is newer too."""
    return info.incarnation > known.incarnation or info.store_id != known.store_id
