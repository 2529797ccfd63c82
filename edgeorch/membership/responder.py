"""One life of a zeroconf instance, which runs an event loop in a thread of its own.

All methods block and are called from worker threads; what is found arrives in zeroconf's thread.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from edgeorch.model import CROCKFORD, NODE_ID_LENGTH

SERVICE = "_edgeorch._tcp.local."
ASK_MS = 3000
ASKS_AT_A_TIME = 16
MAX_UNRESOLVED = 256
TRIES = 3
MAX_ADDRESSES = 8
BLOCKED_S = 5.0


@dataclass(frozen=True)
class Announcement:
    """What this node tells the LAN; ``addresses`` are IP addresses."""

    node_id: str
    name: str
    fleet: str
    ca: str
    version: str
    port: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a node, or somebody in its name, told the LAN."""

    name: str
    fleet: str
    ca: str
    port: int
    addresses: tuple[str, ...]


class Responder:
    """Browses for nodes and announces this one on the networks of the given addresses.

    Args:
        addresses: of this machine; their interfaces are used.
        own: this node's id, which is not reported.
        take: called in zeroconf's thread with a node id and what was found, None when it was withdrawn.
    """

    def __init__(self, addresses: list[str], own: str, take: Callable[[str, Found | None], None]) -> None:
        self._addresses = addresses
        self._own = own
        self._take = take
        self._zeroconf: zeroconf.Zeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._waiting: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Open the sockets and start browsing.

        Raises:
            OSError: the port is taken by a program that does not share it, or the network is gone.
            zeroconf.Error: zeroconf does not start.
        """
        self._zeroconf = zeroconf.Zeroconf(interfaces=self._addresses, use_asyncio=False)
        self._in_loop(self._browse())

    def announce(self, announcement: Announcement) -> None:
        """Register the node; blocks while zeroconf announces it.

        Raises:
            zeroconf.Error: the instance was closed meanwhile, or is stuck.
        """
        if self._zeroconf is None:
            return
        info = zeroconf.ServiceInfo(
            SERVICE,
            f"{announcement.node_id}.{SERVICE}",
            port=announcement.port,
            properties={
                "id": announcement.node_id,
                "name": announcement.name,
                "fleet": announcement.fleet,
                "ca": announcement.ca,
                "version": announcement.version,
            },
            server=f"edgeorch-{announcement.node_id}.local.",
            parsed_addresses=list(announcement.addresses),
        )
        # The id is unique by its certificate, so there is no name to fight for; it saves a second of probing.
        self._zeroconf.register_service(info, cooperating_responders=True)

    def close(self) -> None:
        """Say goodbye and end the thread."""
        if self._zeroconf is None:
            return
        if self._browser is not None:
            self._in_loop(self._stop_browsing())
        self._zeroconf.close()

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        loop = self._zeroconf.loop if self._zeroconf else None
        if loop is None or not loop.is_running():
            work.close()
            raise zeroconf.NotRunningException
        asyncio.run_coroutine_threadsafe(work, loop).result(BLOCKED_S)

    # In zeroconf's thread

    async def _browse(self) -> None:
        if self._zeroconf is not None:
            await self._zeroconf.async_wait_for_start()
            self._browser = AsyncServiceBrowser(self._zeroconf, SERVICE, handlers=[self._on_change])

    async def _stop_browsing(self) -> None:
        if self._browser is not None:
            await self._browser.async_cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_change(
        self,
        zeroconf: zeroconf.Zeroconf,
        service_type: str,
        name: str,
        state_change: zeroconf.ServiceStateChange,
    ) -> None:
        node_id = name.removesuffix("." + service_type).lower()
        if node_id == self._own or len(node_id) != NODE_ID_LENGTH or not set(node_id) <= set(CROCKFORD):
            return
        if state_change.name == "Removed":
            self._waiting.pop(name, None)
            self._take(node_id, None)
            return
        info = AsyncServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._report(node_id, info)
        elif len(self._waiting) < MAX_UNRESOLVED:
            self._waiting.setdefault(name, TRIES)
            if len(self._tasks) < ASKS_AT_A_TIME:
                task = asyncio.get_running_loop().create_task(self._ask(zeroconf))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _ask(self, zeroconf: zeroconf.Zeroconf) -> None:
        """Ask for the details that an announcement left out, one name after another, each a few times."""
        while self._waiting:
            name, tries = next(iter(self._waiting.items()))
            del self._waiting[name]
            info = AsyncServiceInfo(SERVICE, name)
            if await info.async_request(zeroconf, ASK_MS):
                self._report(name.removesuffix("." + SERVICE).lower(), info)
            elif tries > 1:
                self._waiting[name] = tries - 1

    def _report(self, node_id: str, info: AsyncServiceInfo) -> None:
        texts = info.decoded_properties
        addresses = tuple(info.parsed_scoped_addresses())[:MAX_ADDRESSES]
        if addresses and info.port:
            name, fleet, ca = (texts.get(key) or "" for key in ("name", "fleet", "ca"))
            found = Found(name=name, fleet=fleet, ca=ca, port=info.port, addresses=addresses)
            self._take(node_id, found)
