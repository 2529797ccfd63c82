"""Dials nodes that somebody says exist but that are not here yet: answers to mDNS, names in digests.

Anybody on the LAN can announce anything, so an announcement is only an address to try: the number of
candidates and the rate of dialling are bounded, and who is there is proven by the certificate alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from edgeorch.errors import EdgeorchError
from edgeorch.membership.link_control import Address, LinkControl
from edgeorch.seams import Seams

log = structlog.get_logger()

MAX_CANDIDATES = 1024
MAX_ADDRESSES = 8
"""Of one candidate."""
DIALS_PER_S = 10.0
BURST = 64
"""A whole fleet of this size is dialled at once."""
AT_A_TIME = 64
DIAL_S = 3.0
"""Longer than it takes a busy board to answer; addresses that lead nowhere hold a place for this long."""
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
STALE_S = 90.0
"""A candidate that only digests named is dropped when none has named it for this long."""


@dataclass(slots=True)
class Candidate:
    """A node id and where it is said to be."""

    addresses: tuple[Address, ...]
    announced: bool
    """By mDNS, which also withdraws it."""
    named_at: float
    next_at: float
    tries: int = 0
    busy: bool = False


class Dials:
    """The candidates and the task that dials them.

    Args:
        links: opens the links.
        here: whether a node id needs no dialling now.
        mine: whether an address is this node's own listener.
        seams: jitter.
    """

    def __init__(
        self,
        links: LinkControl,
        here: Callable[[str], bool],
        mine: Callable[[str, int], bool],
        seams: Seams,
    ) -> None:
        self._links = links
        self._here = here
        self._mine = mine
        self._seams = seams
        self._candidates: dict[str, Candidate] = {}
        self._wake = trio.Event()
        self._room = trio.CapacityLimiter(AT_A_TIME)
        self._tokens = float(BURST)
        self._tokens_at = -math.inf

    def __len__(self) -> int:
        return len(self._candidates)

    def offer(self, node_id: str, addresses: Sequence[Address], *, announced: bool) -> None:
        """Somebody says that this node is at these addresses."""
        usable = tuple(address for address in addresses if not self._mine(*address))[:MAX_ADDRESSES]
        if not usable:
            return
        now = trio.current_time()
        known = self._candidates.get(node_id)
        if known is None:
            if not self._make_room(announced=announced):
                return
            self._candidates[node_id] = Candidate(usable, announced, now, next_at=now)
        else:
            known.named_at, known.announced = now, known.announced or announced
            if usable == known.addresses:
                return
            known.addresses, known.tries = usable, 0
            if not known.busy:
                known.next_at = now
        self._wake.set()

    def withdraw(self, node_id: str) -> None:
        """The LAN no longer announces the node; its links are not touched."""
        self._candidates.pop(node_id, None)

    def retry(self, node_id: str) -> None:
        """The node is no longer here: if it is still announced, dial it soon."""
        known = self._candidates.get(node_id)
        if known is not None and not known.busy:
            known.tries, known.next_at = 0, trio.current_time() + self._seams.rng.uniform(0, FIRST_RETRY_S)
            self._wake.set()

    def retry_all(self) -> None:
        """This machine's network is another now: dial everybody who is not here, as if for the first time."""
        now = trio.current_time()
        for known in self._candidates.values():
            if not known.busy:
                known.tries, known.next_at = 0, now
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dial until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                soonest = min((known.next_at for known in self._candidates.values()), default=math.inf)
                with trio.move_on_at(soonest) as waiting:
                    await self._wake.wait()
                if waiting.cancelled_caught and (due := self._choose()):
                    node_id, known = due
                    known.next_at, known.busy = math.inf, True
                    await self._pace()
                    nursery.start_soon(self._dial, node_id, known)

    def _tidy(self) -> None:
        """Let go of what nobody names any more, and of what needs no dialling now."""
        now = trio.current_time()
        for node_id, known in list(self._candidates.items()):
            if known.next_at <= now:
                if not known.announced and now - known.named_at > STALE_S:
                    del self._candidates[node_id]
                elif self._here(node_id):
                    known.next_at = math.inf

    def _choose(self) -> tuple[str, Candidate] | None:
        """What has failed least goes first: behind a flood of forged names a real newcomer does not wait."""
        self._tidy()
        now = trio.current_time()
        due = [(node_id, known) for node_id, known in self._candidates.items() if known.next_at <= now]
        return min(due, key=lambda item: (item[1].tries, self._seams.rng.random()), default=None)

    async def _dial(self, node_id: str, known: Candidate) -> None:
        async with self._room:
            host, port = known.addresses[known.tries % len(known.addresses)]
            known.tries += 1
            try:
                with trio.move_on_after(DIAL_S):
                    await self._links.dial_unknown(host, port)
            except EdgeorchError as error:
                log.debug("no node at an announced address", node=node_id, address=host, reason=str(error))
        # The addresses of one node follow each other quickly, its next round waits longer each time.
        rounds, position = divmod(known.tries, len(known.addresses))
        wait = min(FIRST_RETRY_S * 2 ** min(rounds, 10), LONGEST_RETRY_S) if position == 0 else 0.0
        known.next_at = trio.current_time() + wait * self._seams.rng.uniform(0.5, 1)
        known.busy = False
        self._wake.set()

    async def _pace(self) -> None:
        now = trio.current_time()
        self._tokens = min(BURST, self._tokens + (now - self._tokens_at) * DIALS_PER_S)
        self._tokens_at = now
        if self._tokens < 1:
            await trio.sleep((1 - self._tokens) / DIALS_PER_S)
        self._tokens -= 1

    def _make_room(self, *, announced: bool) -> bool:
        """Full: the announced candidate that failed most often goes; words of authenticated peers stay."""
        if len(self._candidates) < MAX_CANDIDATES:
            return True
        failed = [(c.tries, node_id) for node_id, c in self._candidates.items() if c.announced and not c.busy]
        worst = max(failed, default=None)
        if worst is None or (announced and worst[0] == 0):
            return False
        del self._candidates[worst[1]]
        return True
