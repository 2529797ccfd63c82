"""A LAN in memory, in place of multicast DNS."""

from collections.abc import Callable

import trio

from edgeorch.membership.addresses_watch import AddressWatch
from edgeorch.membership.mdns import Fleet
from edgeorch.membership.self_info import SelfInfo

Found = Callable[[str, tuple[tuple[str, int], ...]], None]


class FakeLan:
    """What is announced, and who listens. ``discovery`` is handed to ``Membership``."""

    def __init__(self) -> None:
        self._announced: dict[str, tuple[Fleet, tuple[tuple[str, int], ...]]] = {}
        self._listeners: list[FakeDiscovery] = []

    def discovery(
        self,
        fleet: Fleet,
        self_info: SelfInfo,
        watch: AddressWatch,
        *,
        found: Found,
        withdrawn: Callable[[str], None],
    ) -> "FakeDiscovery":
        """One node's place on this LAN."""
        return FakeDiscovery(self, fleet, self_info, watch, found=found, withdrawn=withdrawn)

    def join(self, listener: "FakeDiscovery") -> None:
        """Tell a new listener what is there, and later what comes."""
        self._listeners.append(listener)
        for node_id, (fleet, addresses) in self._announced.items():
            listener.heard(node_id, fleet, addresses)

    def part(self, listener: "FakeDiscovery") -> None:
        """The listener hears nothing more."""
        self._listeners.remove(listener)

    def announce(self, node_id: str, fleet: Fleet, addresses: tuple[tuple[str, int], ...]) -> None:
        """Somebody, perhaps a forger, says that a node is there."""
        self._announced[node_id] = (fleet, addresses)
        for listener in self._listeners:
            listener.heard(node_id, fleet, addresses)

    def withdraw(self, node_id: str) -> None:
        """Somebody says that a node is gone."""
        self._announced.pop(node_id, None)
        for listener in self._listeners:
            listener.lost(node_id)


class FakeDiscovery:
    """A ``Discovery`` on a ``FakeLan``."""

    def __init__(
        self,
        lan: FakeLan,
        fleet: Fleet,
        self_info: SelfInfo,
        watch: AddressWatch,
        *,
        found: Found,
        withdrawn: Callable[[str], None],
    ) -> None:
        self._lan = lan
        self._fleet = fleet
        self._self_info = self_info
        self._watch = watch
        self._found = found
        self._withdrawn = withdrawn
        self._ready = trio.Event()

    def announce(self) -> None:
        """The node is ready."""
        self._ready.set()

    def change(self, fleet: Fleet) -> None:
        """Other CAs are trusted now: listen anew, and announce them where the node is announced."""
        self._fleet = fleet
        self._lan.part(self)
        self._lan.join(self)
        if self._ready.is_set():
            self._announce()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, announce every change of the own addresses, and withdraw at the end."""
        self._lan.join(self)
        task_status.started()
        try:
            await self._ready.wait()
            while True:
                changed = self._watch.changed
                self._announce()
                await changed.wait()
        finally:
            self._lan.part(self)
            self._lan.withdraw(self._self_info.info.id)

    def _announce(self) -> None:
        info = self._self_info.info
        addresses = tuple((address, info.wire_port) for address in self._watch.addresses)
        self._lan.announce(info.id, self._fleet, addresses)

    def heard(self, node_id: str, fleet: Fleet, addresses: tuple[tuple[str, int], ...]) -> None:
        """From the LAN."""
        if node_id != self._self_info.info.id and self._fleet.includes(fleet.name, fleet.ca):
            self._found(node_id, addresses)

    def lost(self, node_id: str) -> None:
        """From the LAN."""
        self._withdrawn(node_id)
