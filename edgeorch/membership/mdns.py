"""Finds nodes on the LAN by multicast DNS (RFC 6762, DNS-SD RFC 6763), and lets itself be found.

The service is ``NODE_ID._edgeorch._tcp.local.``; TXT holds ``id``, ``name``, ``fleet``, ``ca`` (fingerprints)
and ``version``; the port is that of the wire listener. Nothing here is proof of anything: what is found is an
address to try, and only a certificate says who is there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
import trio
import zeroconf

from edgeorch.addresses import is_loopback
from edgeorch.membership.addresses_watch import AddressWatch
from edgeorch.membership.responder import Announcement, Found, Responder
from edgeorch.membership.self_info import SelfInfo

log = structlog.get_logger()

CLOSE_S = 2.0
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
MAX_INBOX = 1024
MAX_STRANGERS_SAID = 64
"""Nodes of other fleets that are logged, each once; a LAN may hold thousands, and names are easily forged."""


@dataclass(frozen=True)
class Fleet:
    """Whom to listen to: the fleet's name and the fingerprints of its CAs, with commas between, as in TXT.

    There are two CAs while the fleet changes from one to the other (RFC 6763 leaves 252 bytes for them).
    """

    name: str
    ca: str

    def includes(self, name: str, ca: str) -> bool:
        """Whether an announcement is of this fleet: one CA that both trust is enough to try."""
        return name == self.name and not set(ca.split(",")).isdisjoint(self.ca.split(","))


class Discovery(Protocol):
    """Says who may exist; ``Mdns`` is the real one, ``testing.discovery`` has one in memory."""

    def announce(self) -> None:
        """The node is ready: let others find it."""
        ...

    def change(self, fleet: "Fleet") -> None:
        """Other CAs are trusted now: announce them, and listen to whom they fit."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Find others until cancelled."""
        ...


class Mdns:
    """Browses from the start, announces once ``announce`` was called.

    Args:
        fleet: announcements of any other are ignored.
        self_info: what to announce.
        watch: the addresses to announce and whose networks to use; a new set makes everything anew, because
            sockets joined to an interface that has changed go deaf without a word.
        found: called with (node id, addresses) of a node of this fleet.
        withdrawn: called with a node id that is no longer announced.
        responder: makes the multicast side; tests have one in memory.
    """

    def __init__(
        self,
        fleet: Fleet,
        self_info: SelfInfo,
        watch: AddressWatch,
        *,
        found: Callable[[str, tuple[tuple[str, int], ...]], None],
        withdrawn: Callable[[str], None],
        responder: Callable[..., Responder] = Responder,
    ) -> None:
        self._fleet = fleet
        self._self_info = self_info
        self._watch = watch
        self._found = found
        self._withdrawn = withdrawn
        self._responder = responder
        self._limiter = trio.CapacityLimiter(1)
        self._ready = trio.Event()
        self._changed = trio.Event()
        """Set when the fleet's CAs have changed, and replaced by a new event."""
        self._inbox: dict[str, Found | None] = {}
        self._strangers: set[str] = set()
        self._token: trio.lowlevel.TrioToken | None = None

    def announce(self) -> None:
        """The node is ready: tell the LAN."""
        self._ready.set()

    def change(self, fleet: Fleet) -> None:
        """Other CAs are trusted now: look at everybody again, and announce anew."""
        if fleet != self._fleet:
            self._fleet = fleet
            self._strangers.clear()
            before, self._changed = self._changed, trio.Event()
            before.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Browse and announce until cancelled, then say goodbye. A LAN without multicast is only logged."""
        self._token = trio.lowlevel.current_trio_token()
        task_status.started()
        pause, said = FIRST_RETRY_S, ""
        while True:
            changed = self._watch.changed
            addresses = self._watch.addresses
            try:
                if addresses:
                    await self._serve(addresses, changed)
                else:
                    await changed.wait()
            except (OSError, zeroconf.Error, RuntimeError) as error:
                reason = str(error) or type(error).__name__
                if reason != said:
                    log.warning("mDNS does not work now, trying again", reason=reason)
                    said = reason
                with trio.move_on_after(pause):
                    await changed.wait()
                pause = min(pause * 2, LONGEST_RETRY_S)
            else:
                pause, said = FIRST_RETRY_S, ""

    async def _serve(self, addresses: tuple[str, ...], changed: trio.Event) -> None:
        """One life of the responder, until the addresses or the fleet's CAs change."""
        other_fleet = self._changed
        responder = self._responder(list(addresses), self._self_info.info.id, self._take)
        try:
            await self._blocking(responder.open)
            log.info("mDNS listens", addresses=list(addresses))
            await _any_of(self._ready, changed, other_fleet)
            if not changed.is_set() and not other_fleet.is_set():
                await self._announce(responder, addresses)
                await _any_of(changed, other_fleet)
        finally:
            # Goodbyes are for others: a LAN that is gone must not hold up the stop.
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._blocking(responder.close)

    async def _announce(self, responder: Responder, addresses: tuple[str, ...]) -> None:
        info = self._self_info.info
        announcement = Announcement(
            node_id=info.id,
            name=info.name,
            fleet=self._fleet.name,
            ca=self._fleet.ca,
            version=info.version,
            port=info.wire_port,
            addresses=addresses,
        )
        await self._blocking(lambda: responder.announce(announcement))

    async def _blocking(self, work: Callable[[], Any]) -> None:
        await trio.to_thread.run_sync(work, limiter=self._limiter, abandon_on_cancel=True)

    # From the responder's thread

    def _take(self, node_id: str, found: Found | None) -> None:
        """Called in the responder's thread; a flood of forged names fills the inbox and no more."""
        if node_id not in self._inbox and len(self._inbox) >= MAX_INBOX:
            return
        self._inbox[node_id] = found
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._empty_inbox, idempotent=True)
            except trio.RunFinishedError:
                return

    def _empty_inbox(self) -> None:
        while self._inbox:
            # popitem is one atomic step, so the other thread may go on adding.
            node_id, found = self._inbox.popitem()
            if found is None:
                self._withdrawn(node_id)
            elif self._ours(node_id, found):
                self._found(node_id, tuple((address, found.port) for address in self._usable(found)))

    def _ours(self, node_id: str, found: Found) -> bool:
        if self._fleet.includes(found.fleet, found.ca):
            return True
        if node_id not in self._strangers and len(self._strangers) < MAX_STRANGERS_SAID:
            self._strangers.add(node_id)
            log.info(
                "a node of another fleet is on this network",
                node=node_id,
                name=found.name[:64],
                fleet=found.fleet[:64],
                ca=found.ca[:16],
                address=found.addresses[0],
            )
        return False

    def _usable(self, found: Found) -> list[str]:
        """Loopback leads to another node only between nodes that announce loopback themselves."""
        local = all(is_loopback(address) for address in self._watch.addresses)
        return [address for address in found.addresses if local or not is_loopback(address)]


async def _any_of(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
