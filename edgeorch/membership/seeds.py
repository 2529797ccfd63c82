"""Dials the configured seeds until their nodes are here, and again when they no longer are."""

import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import structlog
import trio

from edgeorch.config import Config
from edgeorch.errors import EdgeorchError, StartError
from edgeorch.membership.link_control import Address, LinkControl
from edgeorch.membership.table import Table
from edgeorch.seams import Seams
from edgeorch.wire.transport import DialError

log = structlog.get_logger()

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
SELF_AGAIN_S = 600.0
"""An address that is ours today may be another node's tomorrow."""
LOOKUP_S = 10.0
LOOKUPS_AT_A_TIME = 4

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


@dataclass(frozen=True)
class _Tried:
    """What came of one try: the id of the node there, or why there is none, in a word and in a sentence."""

    found: str = ""
    reason: str = ""
    detail: str = ""


def parse_seed(seed: str, default_port: int) -> Address:
    """``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT`` as (host, port).

    Raises:
        StartError: the port is not a number from 1 to 65535, or there is no host.
    """
    if seed.startswith("["):
        host, closed, rest = seed[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        sound = bool(closed) and colon in ("", ":")
    elif seed.count(":") == 1:
        host, colon, port = seed.partition(":")
        sound = True
    else:
        # A bare IPv6 address has colons of its own.
        host, colon, port, sound = seed, "", "", True
    number = default_port if not colon else int(port) if port.isdecimal() and len(port) < 6 else 0
    if not sound or not host or not 1 <= number <= 65535:
        raise StartError(f"discovery.seeds: {seed!r} is not HOST or HOST:PORT")
    return host, number


def parse_seeds(config: Config) -> list[Address]:
    """The configured seeds; ``StartError`` as ``parse_seed``."""
    return [parse_seed(seed, config.wire.port) for seed in config.discovery.seeds]


async def resolve(host: str, port: int, limiter: trio.CapacityLimiter) -> list[Address]:
    """The addresses of a name; a lookup that hangs holds a thread of ``limiter``, not the caller.

    Raises:
        OSError: the name is not known, or no name server answers.
    """
    with contextlib.suppress(ValueError):
        return [(str(ip_address(host)), port)]

    def look_up() -> list[Address]:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys((str(row[4][0]), port) for row in rows))

    return await trio.to_thread.run_sync(look_up, limiter=limiter, abandon_on_cancel=True)


class Seeds:
    """One task per seed.

    Args:
        seeds: as configured, already parsed.
        table: says whether a seed's node is here.
        links: dials.
        own: id of this node: a seed that leads back to it is left alone.
        seams: jitter.
        resolve: name lookup; None: the system's, in threads of their own.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        table: Table,
        links: LinkControl,
        *,
        own: str,
        seams: Seams,
        resolve: Resolve | None = None,
    ) -> None:
        self._seeds = tuple(dict.fromkeys(seeds))
        self._changed = trio.Event()
        self._again = trio.Event()
        self._table = table
        self._links = links
        self._own = own
        self._seams = seams
        self._resolve = resolve or self._system
        self._limiter = trio.CapacityLimiter(LOOKUPS_AT_A_TIME)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the seeds in the fleet until cancelled."""
        following: dict[Address, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._changed = trio.Event()
                for gone in following.keys() - set(self._seeds):
                    following.pop(gone).cancel()
                for seed in self._seeds:
                    if seed not in following:
                        following[seed] = trio.CancelScope()
                        nursery.start_soon(self._follow_until, following[seed], *seed)
                await self._changed.wait()

    def change(self, seeds: Sequence[Address]) -> None:
        """Follow these from now on; nodes that are here stay."""
        self._seeds = tuple(dict.fromkeys(seeds))
        self._changed.set()

    def retry(self) -> None:
        """This machine's network is another now: dial at once, whatever failed before."""
        before, self._again = self._again, trio.Event()
        before.set()

    async def _follow_until(self, removed: trio.CancelScope, host: str, port: int) -> None:
        with removed:
            await self._follow(host, port)

    async def _follow(self, host: str, port: int) -> None:
        pause, said = FIRST_RETRY_S, ""
        while True:
            tried = await self._try(host, port)
            found = tried.found
            if found == self._own:
                log.info("a seed is this node itself", seed=host, port=port)
                with trio.move_on_after(SELF_AGAIN_S):
                    await self._again.wait()
                continue
            if found:
                pause, said = FIRST_RETRY_S, ""
                # Its link is dialled again by id while the node is known; a seed is for a new address.
                while self._table.here(found):
                    await self._table.states_changed.wait()
                continue
            if tried.detail != said:
                said = tried.detail
                log.warning("no node at a seed yet", seed=host, port=port, reason=tried.reason, detail=said)
            with trio.move_on_after(pause * self._seams.rng.uniform(0.5, 1)) as waiting:
                await self._again.wait()
            pause = min(pause * 2, LONGEST_RETRY_S) if waiting.cancelled_caught else FIRST_RETRY_S

    async def _try(self, host: str, port: int) -> _Tried:
        try:
            with trio.fail_after(LOOKUP_S):
                addresses = await self._resolve(host, port)
        except trio.TooSlowError:
            return _Tried(reason="name", detail="no answer to the name lookup")
        except (OSError, UnicodeError) as error:
            return _Tried(reason="name", detail=f"the name cannot be resolved: {error}")
        tried = _Tried(reason="name", detail="the name has no address")
        for address in addresses:
            try:
                found = await self._links.dial_unknown(*address)
            except EdgeorchError as error:
                reason = error.reason if isinstance(error, DialError) else error.slug
                tried = _Tried(tried.found, reason, error.detail)
                continue
            if self._table.here(found):
                return _Tried(found)
            if found == self._own:
                tried = _Tried(found, tried.reason, tried.detail)
            else:
                detail = f"node {found} answers, but has said goodbye"
                tried = _Tried(tried.found, "left", detail)
        return tried

    async def _system(self, host: str, port: int) -> Sequence[Address]:
        return await resolve(host, port, self._limiter)
