"""Asks every peer once per period whether it is there, and lets silence count.

Only a word of the peer itself proves life: a paused host still completes TCP connections. Each question and
each answer carries the speaker's own facts and sample, and a digest of others: what placement needs is here
before a request comes, and of two nodes that know each other, one question a period is enough for both.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence

import structlog
import trio

from edgeorch.config import Membership as Times
from edgeorch.errors import EdgeorchError, WireError
from edgeorch.membership.link_control import LinkControl
from edgeorch.membership.self_info import SelfInfo
from edgeorch.membership.table import Table
from edgeorch.model import NodeInfo, PeerState, Sample
from edgeorch.seams import Seams
from edgeorch.wire import From
from edgeorch.wire.messages import Digest, Ping, Pong

log = structlog.get_logger()

GOSSIP = 4
"""Lines of a digest where every node probes every other and gossip only bridges gaps.

A node that one peer cannot reach is in so many digests a second that reach this one, however many nodes there
are: one of the others speaks of it well before ``dead_s``.
"""
GOSSIP_LARGE = 64
FANOUT = 8
"""Peers asked per period in a fleet too large to probe all, half of them at least by chance; at most as many
that are quiet."""
STRANGERS = 2
"""Of them, so many are of the whole fleet, for which a link may have to be opened; the others are near."""
EVERYTHING = 1024
"""Lines of the first digest to a peer: one frame brings a newcomer the fleet."""
RTT_EVERY_S = 15.0
"""A peer that asks us is asked this often all the same: only who asks learns the round trip."""
LATE_S = 0.1
"""A wake-up later than this says that this node itself did not run."""
BEATS = 4
"""Moments of a period on which peers are asked, so that one wake-up serves all who share it."""
HALF = BEATS // 2
"""Silence is judged on every so many beats; the first peers get those for their questions, too."""
ORDER = (0, 2, 1, 3)


class Probe:
    """The failure detector.

    Args:
        times: ``probe_s``, ``suspect_s``, ``dead_s``.
        self_info: what this node says of itself.
        table: takes the evidence.
        links: carries the questions.
        seams: phases and choice.
        sample: this node's newest sample.
        crl_number: of the revocation list in force.
        met: called with the facts of a peer that spoke to us.
        learned: called with the lines of a peer's digest that may tell where to reach a node.
        crl_offered: called with a node id and the number of its revocation list.
        ended: called with the id of a node whose links are of no use any more.
    """

    def __init__(
        self,
        times: Times,
        self_info: SelfInfo,
        table: Table,
        links: LinkControl,
        seams: Seams,
        *,
        sample: Callable[[], Sample | None],
        crl_number: Callable[[], int],
        met: Callable[[NodeInfo], None],
        learned: Callable[[Iterable[Digest]], None],
        crl_offered: Callable[[str, int], None],
        ended: Callable[[str], None],
    ) -> None:
        self._times = times
        self._self_info = self_info
        self._table = table
        self._links = links
        self._sample = sample
        self._crl_number = crl_number
        self._met = met
        self._learned = learned
        self._crl_offered = crl_offered
        self._ended = ended
        self._asking: set[str] = set()
        self._asked_us: dict[str, float] = {}
        """When each peer last put its own question."""
        self._measured: dict[str, float] = {}
        """When each peer last answered one of ours."""
        self._phases: dict[str, int] = {}
        """The beat of each peer in a small fleet."""
        self._turns: list[list[str]] = [[] for _ in range(BEATS)]
        """Whom to ask on each beat of this period."""
        self._halves = 0
        # That of the seams may ask the kernel for each number, and many are drawn.
        self._rng = random.Random(seams.rng.getrandbits(64))  # noqa: S311  chooses whom to talk of
        self._fresh: set[str] = set()
        """Peers that have not been sent everything yet."""
        self._urgent: set[str] = set()
        self._wake = trio.Event()
        self.late_s = 0.0
        """Seconds that this node did not run when it should have, in total."""
        self.answered = 0
        self.unanswered = 0

    def linked(self, node_id: str, *, fresh: bool) -> None:
        """There is a link to a newcomer: ask at once, and tell it everything where it is ``fresh``."""
        if fresh:
            self._fresh.add(node_id)
        self._urgent.add(node_id)
        self._wake.set()

    def hear(
        self, info: NodeInfo, sample: Sample | None, *, address: str = "", rtt_s: float | None = None
    ) -> None:
        """A peer spoke to us, over a connection from ``address`` where that is known."""
        if address and info.addresses and address not in info.addresses:
            # A connection may come from another address than the one where the node listens.
            address = info.addresses[0]
        if self._table.heard(info, sample, trio.current_time(), address=address, rtt_s=rtt_s):
            self._met(info)

    def answer(self, sender: From, ping: Ping) -> Pong:
        """Answer a peer's question, and learn from it.

        Raises:
            WireError: the message claims to come from another node.
        """
        if (ping.info.id, ping.info.name) != (sender.node_id, sender.name):
            claims = f"{ping.info.name[:64]} ({ping.info.id[:32]})"
            log.warning("a ping claims another node", peer=sender.node_id, claims=claims)
            raise WireError(f"a ping of node {sender.node_id} claims to be of {claims}")
        self.hear(ping.info, ping.sample, address=sender.address)
        self._asked_us[sender.node_id] = trio.current_time()
        self._take(sender.node_id, ping)
        return Pong(
            info=self._self_info.info,
            sample=self._sample(),
            digest=self._digest(sender.node_id),
            crl_number=self._crl_number(),
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Probe until cancelled."""
        step, beat = self._times.probe_s / BEATS, 0
        async with trio.open_nursery() as nursery:
            task_status.started()
            # Nodes that start together must not ask together.
            begun = trio.current_time() + self._rng.uniform(0, self._times.probe_s)
            while True:
                due = begun + beat * step
                with trio.move_on_at(due) as waiting:
                    await self._wake.wait()
                self._wake = trio.Event()
                asked = list(self._urgent)
                self._urgent.clear()
                if waiting.cancelled_caught:
                    now = trio.current_time()
                    self._excuse(now - due, now)
                    last = max(beat, int((now - begun) / step))
                    # Beats that were missed are made up for, of each peer one.
                    for number in range(max(beat, last - BEATS + 1), last + 1):
                        asked += self._on_beat(number % BEATS)
                    beat = last + 1
                    while beat % HALF and not self._turns[beat % BEATS]:
                        beat += 1
                if asked:
                    nursery.start_soon(self._ask_all, asked)

    def _excuse(self, late: float, now: float) -> None:
        """Time in which this node itself was held up counts against nobody."""
        if late > LATE_S:
            self.late_s += late
            self._table.excuse(late, now)

    def _on_beat(self, beat: int) -> list[str]:
        """What is to do on a beat of the period; whom to ask."""
        if beat == 0:
            self._turns = self._plan()
        if beat % HALF == 0:
            self._halves += 1
            # Where times are stretched, so is the pause between two looks at everybody.
            if self._halves % int(self._table.stretch) == 0:
                self._judge()
        return [node_id for node_id in self._turns[beat] if not self._spared(node_id)]

    def _judge(self) -> None:
        """Let silence count."""
        for node_id in self._table.judge(trio.current_time()):
            for memory in (self._phases, self._asked_us, self._measured):
                memory.pop(node_id, None)
            self._ended(node_id)

    def _plan(self) -> list[list[str]]:
        """Whom to ask on each beat of this period, so that questions do not come in bursts."""
        turns: list[list[str]] = [[] for _ in range(BEATS)]
        if self._table.meshed:
            for node_id in self._table.snapshot():
                if self._links.connected(node_id):
                    phase = self._phases.setdefault(node_id, ORDER[len(self._phases) % BEATS])
                    turns[phase].append(node_id)
            return turns
        for number, node_id in enumerate(self._some()):
            turns[number % BEATS].append(node_id)
        return turns

    def _some(self) -> Iterable[str]:
        """Peers of a large fleet to ask in this period.

        The quiet that are alive are as good to exchange news with as any other, so most of the time they are
        not asked beside the others but in their place, of strangers first.
        """
        rng, quiet = self._rng, self._table.quiet(trio.current_time())
        silent = rng.sample(quiet, min(FANOUT, len(quiet)))
        known = map(self._table.get, silent)
        alive = min(sum(peer is not None and peer.state is PeerState.ALIVE for peer in known), FANOUT // 2)
        strangers = max(STRANGERS - alive, 0)
        return {*silent, *self._table.some_alive(FANOUT - alive, rng, strangers=strangers)}

    def _spared(self, node_id: str) -> bool:
        """Whether the peer's own question came so lately that ours would tell neither side anything.

        Half a period: of two moments within a period, only one comes so soon after the other, so one of the
        two nodes always goes on asking.
        """
        now = trio.current_time()
        asked_us = now - self._asked_us.get(node_id, -math.inf) < self._times.probe_s / 2
        return self._table.meshed and asked_us and now - self._measured.get(node_id, -math.inf) < RTT_EVERY_S

    async def _ask_all(self, node_ids: Sequence[str]) -> None:
        """Ask those whose turn it is; they share one deadline."""
        with trio.move_on_after(self._times.dead_s * self._table.stretch):
            async with trio.open_nursery() as nursery:
                for node_id in node_ids:
                    nursery.start_soon(self._ask, node_id)

    async def _ask(self, node_id: str) -> None:
        """One question. A peer that is slow to answer is not asked again meanwhile."""
        if node_id in self._asking:
            return
        self._asking.add(node_id)
        try:
            ping = Ping(
                info=self._self_info.info,
                sample=self._sample(),
                digest=self._digest(node_id),
                crl_number=self._crl_number(),
            )
            asked = trio.current_time()
            pong = await self._links.call(node_id, ping)
            self._answered(node_id, pong, trio.current_time() - asked)
        except EdgeorchError as error:
            self.unanswered += 1
            log.debug("no answer to a ping", node=node_id, reason=str(error))
        except trio.Cancelled:
            self.unanswered += 1
            raise
        finally:
            self._asking.discard(node_id)

    def _answered(self, node_id: str, pong: Pong, rtt_s: float) -> None:
        known = self._table.get(node_id)
        if pong.info.id != node_id or (known is not None and pong.info.name != known.info.name):
            claims = f"{pong.info.name[:64]} ({pong.info.id[:32]})"
            log.warning("an answer claims another node", peer=node_id, claims=claims)
            return
        self.answered += 1
        self._measured[node_id] = trio.current_time()
        self.hear(pong.info, pong.sample, rtt_s=rtt_s)
        self._take(node_id, pong)

    def _take(self, node_id: str, message: Ping | Pong) -> None:
        own, now = self._self_info.info, trio.current_time()
        news = []
        for line in message.digest:
            if line.id == own.id:
                # Somebody takes us for gone, or for what we were before our store was made anew.
                if line.incarnation > own.incarnation or (
                    line.state is PeerState.LEFT and line.incarnation == own.incarnation
                ):
                    own = self._self_info.refute(line.incarnation)
            elif line.id != node_id and self._table.told(line, now):
                news.append(line)
        if news:
            self._learned(news)
        self._crl_offered(node_id, message.crl_number)

    def _digest(self, receiver: str) -> tuple[Digest, ...]:
        limit = GOSSIP if self._table.meshed else GOSSIP_LARGE
        if receiver in self._fresh:
            self._fresh.discard(receiver)
            limit = EVERYTHING
        return self._table.digest(limit, self._rng, trio.current_time(), receiver=receiver)
