"""The port that other nodes dial. Whatever arrives there, it ends one connection at most."""

import errno
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

import structlog
import trio

from edgeorch.addresses import allowed_local
from edgeorch.errors import StartError
from edgeorch.wire.links import Links
from edgeorch.wire.transport import DialError

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  filtered by the local address of each connection
MAX_CONNECTIONS = 2048
MAX_PER_ADDRESS = 256
"""So that one address cannot take every connection; several nodes may share one behind NAT."""
QUIET_S = 60.0
"""The same complaint about the same address is logged once in this time."""
LOCAL_CHECK_S = 10.0
"""How long what is known of a local address stays true."""

log = structlog.get_logger()


class Listener:
    """Accepts connections and hands them to ``Links``, where they outlive it.

    Args:
        links: must be running before this is.
        port: 0 takes a free one.
        listen: addresses to bind (``node.listen``); empty: all, less those that ``networks`` leaves out.
        networks: CIDRs (``node.networks``).
    """

    def __init__(
        self,
        links: Links,
        *,
        port: int,
        listen: Sequence[str] = (),
        networks: Sequence[str] = (),
        max_connections: int = MAX_CONNECTIONS,
        max_per_address: int = MAX_PER_ADDRESS,
    ) -> None:
        self._links = links
        self._port = port
        self._listen = tuple(listen)
        self._networks = tuple(networks)
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._per_address: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._said: dict[tuple[str, str], float] = {}
        self._local: dict[str, tuple[float, bool]] = {}

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Accept until cancelled; ``started`` gives the port.

        Running out of file descriptors pauses accepting (``trio.serve_listeners``); nothing that a
        connection does ends it.

        Raises:
            StartError: the port or an address cannot be bound.
        """
        listeners = await _bind(self._listen or WILDCARDS, self._port, optional=not self._listen)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._serve, listeners, handler_nursery=self._links.nursery)

    def statistics(self) -> Mapping[str, object]:
        """Open connections, and refused ones by reason since the start."""
        return {"connections": self._per_address.total(), "refused": dict(self._refused)}

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            address = str(stream.socket.getpeername()[0])
            local = str(stream.socket.getsockname()[0])
        except OSError:
            # Reset before it was looked at.
            await trio.aclose_forcefully(stream)
            return
        reason = self._no_entry(address, local)
        if reason:
            self._say(address, reason)
            await trio.aclose_forcefully(stream)
            return
        self._per_address[address] += 1
        try:
            await self._links.accept(stream)
        except DialError as error:
            self._say(address, error.reason, error.detail)
        except Exception:
            log.exception("a connection from a node failed", address=address)
        finally:
            await trio.aclose_forcefully(stream)
            self._per_address[address] -= 1
            if not self._per_address[address]:
                del self._per_address[address]

    def _no_entry(self, address: str, local: str) -> str:
        """Why a connection is closed before a byte is read, or nothing."""
        if self._per_address.total() >= self._max_connections:
            return "too_many_connections"
        if self._per_address[address] >= self._max_per_address:
            return "too_many_connections_of_address"
        if not self._listen and not self._allowed(local):
            return "not_on_this_network"
        return ""

    def _allowed(self, local: str) -> bool:
        now = trio.current_time()
        known = self._local.get(local)
        if known is None or now - known[0] > LOCAL_CHECK_S:
            known = self._local[local] = (now, allowed_local(local, self._networks))
        return known[1]

    def _say(self, address: str, reason: str, detail: str = "") -> None:
        """One line per address, reason and minute: a port scan must not fill the disk."""
        self._refused[reason] += 1
        now = trio.current_time()
        if now - self._said.get((address, reason), -QUIET_S) < QUIET_S:
            return
        if len(self._said) >= 1000:
            self._said.clear()
        self._said[address, reason] = now
        # A connection that is opened and closed is a probe of some kind, or a dial that crossed with ours.
        say = log.debug if reason in ("closed", "self") else log.warning
        say("connection refused", address=address, reason=reason, detail=detail[:300])


async def _bind(addresses: Sequence[str], port: int, *, optional: bool) -> list[trio.SocketListener]:
    """Listeners on one port of all addresses. ``optional``: a family this machine lacks is left out."""
    listeners: list[trio.SocketListener] = []
    try:
        for address in addresses:
            try:
                listeners += await trio.open_tcp_listeners(port, host=address)
            except OSError as error:
                if optional and listeners and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue
                raise _start_error(error, address, port) from None
            port = listeners[0].socket.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _start_error(error: OSError, address: str, port: int) -> StartError:
    if error.errno == errno.EADDRINUSE:
        hint = f"stop the other program (`ss -ltnp sport = :{port}` shows it) or set wire.port"
        return StartError(f"port {port} on {address} is in use", hint=hint)
    if error.errno == errno.EACCES:
        return StartError(f"no permission for port {port}", hint="set wire.port to 1024 or more")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(f"this machine has no address {address}", hint="correct node.listen")
    return StartError(f"cannot listen on {address} port {port}: {error.strerror}", hint="see node.listen")
