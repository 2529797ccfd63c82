"""The REST listener: Quart-Trio on Hypercorn's TCP server, where no connection can end or stop the others."""

import errno
import operator
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from edgeorch.addresses import allowed_local, is_loopback
from edgeorch.config import Api, Node
from edgeorch.errors import EdgeorchError, StartError, TooManyRequestsError, UnavailableError
from edgeorch.rest.connection import Connection
from edgeorch.rest.problems import PROBLEM_TYPE, headers_of, problem_of
from edgeorch.rest.steps import Steps
from edgeorch.rest.turns import SHARE, Turns

log = structlog.get_logger()

BACKLOG = 4096
"""The system may allow less. Where it is full, whoever comes waits a second for the next try."""
# Accepted sockets inherit these. The probes find a follower that vanished without a word within a minute.
_INHERITED = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
MOST_TOLD = 16
"""Refused connections at a time that are told why; the others of a crowd are closed at accept."""
TOLD_S = 2.0
LOCAL_CHECK_S = 5.0
"""How long an answer to "may this local address be used?" holds; addresses change seldom."""


class Server:
    """Accepts REST connections until ``stop``.

    Args:
        app: the ASGI application.
        api: limits, port and times.
        node: what to listen on; nothing given means every address, filtered by ``networks``.
        tls: gives the current TLS context, asked for every connection so that certificates rotate live. None:
            plain HTTP for everybody, for tests.
        steps: takes down how long requests take.
    """

    def __init__(
        self,
        app: ASGIFramework,
        api: Api,
        node: Node,
        tls: Callable[[], ssl.SSLContext] | None,
        steps: Steps | None = None,
    ) -> None:
        self._app = ASGIWrapper(app)
        self._api = api
        self._node = node
        self._tls = tls
        self._config = Config()
        self._config.errorlog = None
        self._config.include_server_header = False
        self._context = WorkerContext(None)
        self._connections: set[Connection] = set()
        self._turns = Turns()
        self._told = 0
        self._by_address: Counter[str] = Counter()
        self._local: dict[str, tuple[float, bool]] = {}
        self._accepting = trio.CancelScope()
        self._serving = trio.CancelScope()
        self._accepted = 0
        self._refused = 0
        self._steps = steps or Steps()
        self.addresses: tuple[tuple[str, int], ...] = ()

    async def run(
        self, *, task_status: trio.TaskStatus[tuple[tuple[str, int], ...]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve; ``started`` gives the bound (address, port) pairs. Returns once ``stop`` has taken effect.

        Raises:
            StartError: an address or port cannot be bound.
        """
        sockets = bind(self._node.listen, self._api.port)
        self.addresses = tuple(one.getsockname()[:2] for one in sockets)
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(one)) for one in sockets]
        with self._serving:
            async with trio.open_nursery() as around:
                await around.start(self._turns.run)
                async with trio.open_nursery() as connections:
                    with self._accepting:
                        task_status.started(self.addresses)
                        await trio.serve_listeners(self._serve, listeners, handler_nursery=connections)
                around.cancel_scope.cancel()

    async def stop(self, grace_s: float = 3.0) -> None:
        """Accept nothing new, close idle connections, give running requests ``grace_s``, then cut them."""
        self._accepting.cancel()
        # A response now says ``Connection: close``, so that the client does not come back on this connection.
        await self._context.terminated.set()
        self._serving.deadline = trio.current_time() + grace_s
        for connection in self._connections:
            if connection.idle:
                connection.scope.cancel()

    def statistics(self) -> Mapping[str, Any]:
        """Counts for ``/metrics``."""
        return {
            "connections": len(self._connections),
            "accepted_total": self._accepted,
            "refused_total": self._refused,
            "request_seconds": self._steps.request,
            "accept_seconds": self._steps.accept,
            "decode_seconds": self._steps.decode,
        }

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            local, client = str(stream.socket.getsockname()[0]), str(stream.socket.getpeername()[0])
            allowed = self._allowed(local)
            error = self._crowded(client) if allowed else None
            if not allowed or (error is not None and self._told >= MOST_TOLD):
                self._refused += 1
                await trio.aclose_forcefully(stream)
                return
            connection = Connection(
                self._app,
                self._config,
                self._context,
                stream,
                api=self._api,
                tls=self._tls,
                took=self._steps.request,
            )
        except OSError:  # reset before we looked
            await trio.aclose_forcefully(stream)
            return
        if error is None:
            await self._carry(connection)
        else:
            self._refused += 1
            await self._tell(connection, error)

    async def _carry(self, connection: Connection) -> None:
        client = connection.address
        connection.turn = self._turn
        self._accepted += 1
        self._connections.add(connection)
        self._by_address[client] += 1
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._by_address[client] -= 1
            if not self._by_address[client]:
                del self._by_address[client]

    async def _turn(self, client: str) -> None:
        """Before each request: whoever holds many connections shares the loop's turns with the others."""
        if self._by_address[client] > SHARE:
            await self._turns.take(client)

    def _crowded(self, client: str) -> EdgeorchError | None:
        """Why there is no room for one more connection from this address."""
        limit = self._api.max_connections_per_address
        if self._by_address[client] >= limit:
            return TooManyRequestsError(
                f"{limit} connections from {client} are open",
                hint="close some, or ask for a higher api.max_connections_per_address",
            )
        if len(self._connections) >= self._api.max_connections and not self._make_room(client):
            return UnavailableError(
                f"all {self._api.max_connections} connections are in use",
                hint="try another node, or ask for a higher api.max_connections",
            )
        return None

    def _make_room(self, client: str) -> bool:
        """Where all are in use: the address that has most gives one up that waits for a request.

        So a few addresses cannot keep out the others, however many they hold open.
        """
        greedy, held = max(self._by_address.items(), key=operator.itemgetter(1))
        if held <= self._by_address[client] + 1:
            return False
        waiting = (one for one in self._connections if one.address == greedy and one.waits and not one.cut)
        victim = next(waiting, None)
        if victim is None:
            return False
        victim.cut = True
        victim.scope.cancel()
        return True

    async def _tell(self, connection: Connection, error: EdgeorchError) -> None:
        """Answer a refused connection's first request with the reason, where it comes soon."""

        async def refuse(_scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            problem = problem_of(error)
            body = problem.encoded()
            headers = {"Content-Type": PROBLEM_TYPE, "Content-Length": str(len(body)), "Connection": "close"}
            headers |= headers_of(problem)
            shown = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": problem.status, "headers": shown})
            await send({"type": "http.response.body", "body": body, "more_body": False})

        connection.app = ASGIWrapper(refuse)
        self._told += 1
        try:
            with trio.move_on_after(TOLD_S):
                await connection.run()
        finally:
            self._told -= 1

    def _allowed(self, local: str) -> bool:
        """Whether a connection to this address of ours is wanted; named addresses always are."""
        if self._node.listen or is_loopback(local):
            return True
        now = trio.current_time()
        until, allowed = self._local.get(local, (0.0, False))
        if now >= until:
            allowed = allowed_local(local, self._node.networks)
            self._local[local] = (now + LOCAL_CHECK_S, allowed)
        return allowed


def bind(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets on each address, all with the same port (0: any free one).

    Args:
        hosts: IP addresses; empty: every IPv4 address, and every IPv6 address where the machine has IPv6.
        port: TCP port.

    Raises:
        StartError: one sentence that names the address, the reason and the key to change.
    """
    sockets: list[socket.socket] = []
    try:
        for host in hosts or ("0.0.0.0", "::"):  # noqa: S104  the accepted connection's address is filtered
            try:
                sockets.append(_bind(host, port))
            except OSError as error:
                if not hosts and host == "::" and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue
                raise _cannot_bind(host, port, error) from None
            port = sockets[0].getsockname()[1]
    except StartError:
        for one in sockets:
            one.close()
        raise
    return sockets


def _bind(host: str, port: int) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for level, option, value in _INHERITED:
            one.setsockopt(level, option, value)
        if one.family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, port))
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one


def _cannot_bind(host: str, port: int, error: OSError) -> StartError:
    where = f"the REST listener cannot use {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        return StartError(f"{where}: it is in use", hint="is another node running here? else change api.port")
    if error.errno == errno.EACCES:
        return StartError(f"{where}: not permitted", hint="take an api.port above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(f"{where}: this machine has no such address", hint="change node.listen")
    return StartError(f"{where}: {error.strerror or error}", hint="change node.listen or api.port")
