"""One REST connection: TLS or plain, request after request, and whatever strangers send.

``TCPServer`` of Hypercorn with its run replaced. One task reads, runs the application and writes, under
deadlines; an unexpected exception ends this connection and nothing else (DESIGN §4, the first of two places).
"""

import math
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, LifespanState
from hypercorn.utils import parse_socket_addr

from edgeorch.addresses import is_loopback
from edgeorch.config import Api
from edgeorch.errors import TlsRequiredError
from edgeorch.rest.http1 import BadRequestError, Reader
from edgeorch.rest.problems import PROBLEM_TYPE, problem_of, problem_of_status
from edgeorch.rest.reply import GO_ON, Part, Reply
from edgeorch.timing import Histogram, clock

log = structlog.get_logger()

HANDSHAKE_S = 5.0
LINGER_S = 1.0
"""How long a refused client may go on sending before it is cut; closing at once would drop our answer."""
LINGER_BYTES = 4 << 20
PIECE = 65_536
PIPELINED = 65_536
"""Bytes that may arrive ahead of their turn; reading pauses beyond."""
TLS_HANDSHAKE = b"\x16"
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
_DISCONNECT: ASGIReceiveEvent = {"type": "http.disconnect"}


class Connection(TCPServer):
    """Serves one accepted socket until its end.

    Attributes:
        scope: cancelled to cut the connection.
        idle: whether no request is under way, so that a stopping server may cut at once.
        cut: whether the server has chosen it to be cut for another's sake.
        turn: waited for before each request, with the client's address.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        *,
        api: Api,
        tls: Callable[[], ssl.SSLContext] | None,
        took: Histogram,
    ) -> None:
        super().__init__(app, config, context, LifespanState({}), stream)  # type: ignore[arg-type]  # plain too
        self.transport = stream
        self.api = api
        self.tls = tls
        self.took = took
        self.scope = trio.CancelScope()
        self.idle = True
        self.cut = False
        self.client = parse_socket_addr(stream.socket.family, stream.socket.getpeername())
        self.server = parse_socket_addr(stream.socket.family, stream.socket.getsockname())
        self.turn: Callable[[str], Awaitable[None]] = _at_once
        self.reader = Reader()
        self.reply: Reply | None = None
        self._due = math.inf
        self._gone = False
        self._torn = False
        self._late = False
        self._bad: BadRequestError | None = None

    async def run(self) -> None:
        """Serve; returns when the connection is closed, whatever the reason."""
        try:
            with self.scope:
                if await self._secure():
                    await self._converse()
        except _GONE:
            pass
        except Exception:  # containment: one connection must not take the node down
            log.exception("A connection failed unexpectedly", client=self.address)
        finally:
            await trio.aclose_forcefully(self.transport)

    @property
    def address(self) -> str:
        """The client's, empty where it has none."""
        return self.client[0] if self.client else ""

    @property
    def waits(self) -> bool:
        """Whether no request has arrived whole and is unanswered: cutting it costs nobody an answer."""
        return not self.reader.complete

    @property
    def _encrypted(self) -> bool:
        return isinstance(self.stream, trio.SSLStream)

    # Before the first request

    async def _secure(self) -> bool:
        """Finish the handshake, or let plain HTTP pass where it may; False: refused or gone."""
        with trio.move_on_after(HANDSHAKE_S) as limit:
            first = await self.transport.socket.recv(1, trio.socket.MSG_PEEK)
            if not first:
                return False
            if first == TLS_HANDSHAKE and self.tls is not None:
                context = self.tls()
                # Nothing else is spoken here, whatever the context's maker says.
                context.set_alpn_protocols(["http/1.1"])
                self.stream = trio.SSLStream(self.transport, context, server_side=True, https_compatible=True)
                await self.stream.do_handshake()
                return True
        if limit.cancelled_caught:
            return False
        if self.tls is not None and not is_loopback(self.address):
            await self._ask_for_tls()
            return False
        return True

    async def _ask_for_tls(self) -> None:
        problem = problem_of(
            TlsRequiredError(
                "plain HTTP is for this machine only", hint="use https:// with the fleet's ca.pem"
            )
        )
        body = problem.encoded()
        head = (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2\r\nConnection: Upgrade, close\r\n"
            f"Content-Type: {PROBLEM_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with trio.move_on_after(self.api.write_timeout_s):
            await self.transport.send_all(head.encode() + body)
            await self._linger()

    # Request after request

    async def _converse(self) -> None:
        self.reader.scheme = "https" if self._encrypted else "http"
        self.reader.client, self.reader.server = self.client, self.server
        while await self._request():
            await self._answer()
            if not await self._recycle():
                break
        if not self._gone and not self._torn:
            await self._say_goodbye()

    async def _request(self) -> bool:
        """Wait for a request's head; False: the connection is to be closed."""
        self.idle = self.reader.unparsed == 0
        now = trio.current_time()
        self._due = now + (self.api.keep_alive_s if self.idle else self.api.body_timeout_s)
        try:
            if not self.idle:
                await trio.lowlevel.checkpoint()  # requests that came together take turns with the others
                self.reader.advance()
            while self.reader.call is None:
                if self.idle and self.context.terminated.is_set():
                    return False
                data = await (self._receive(self._due) if self._encrypted or not self.idle else self._first())
                if not data:
                    if data is None and not self.idle:
                        await self._refuse(408, "the request did not arrive in time")
                    return False
                if self.idle:
                    self.idle = False
                    self._due = trio.current_time() + self.api.body_timeout_s
                self.reader.received(data)
                self.reader.advance()
        except BadRequestError as error:
            await self._refuse_bad(error)
            return False
        return True

    async def _answer(self) -> None:
        """Run the application on the request."""
        call = self.reader.call
        if call is None:
            return
        begun = clock()
        await self.turn(self.address)
        # A body that is too large is not read to its end, so nothing can follow it.
        fits = call.declared <= self.api.max_body
        self.reply = Reply(
            self.flush,
            self.context.terminated.is_set,
            head_only=self.reader.head_only,
            version=call.scope["http_version"],
            keep_alive=call.keep_alive and fits,
        )
        if call.hesitates and not call.events and fits:
            await self.flush(GO_ON)
        try:
            await self.app(
                call.scope, self._app_receive, self.reply.send, trio.to_thread.run_sync, trio.from_thread.run
            )
        except Exception:  # the same containment, while there is still a way to answer
            log.exception("A request failed unexpectedly", client=self.address)
            await self._refuse(500, "the node failed to answer this request")
            self._torn = True
        self.took.since(begun)
        if self._late:
            await self._refuse(408, "the body did not arrive in time")
        elif self._bad is not None:
            await self._refuse_bad(self._bad)

    async def _recycle(self) -> bool:
        """Make ready for the next request; False: there is none on this connection."""
        if self._gone or self._torn or self.reply is None:
            return False
        if self.reply.part is not Part.NOTHING or not self.reply.keep_alive:
            return False
        if not self.reader.complete:
            await self._skip_body()
            if not self.reader.complete:
                return False
        self.reader.done()
        self.reply = None
        return True

    async def _skip_body(self) -> None:
        """Read the rest of a body that nobody wanted, if it is short, so that the connection can go on."""
        left = self.api.max_body
        try:
            while not self.reader.complete and left > 0:
                data = await self._receive(min(self._due, trio.current_time() + LINGER_S))
                if not data:
                    return
                left -= len(data)
                self.reader.received(data)
                self.reader.advance()
        except BadRequestError:
            return

    async def _refuse(self, status: int, why: str) -> None:
        """Answer in the application's place, where it is not too late."""
        if self.reply is None:
            self.reply = Reply(self.flush, self.context.terminated.is_set, head_only=self.reader.head_only)
        await self.reply.refuse(problem_of_status(status, why))

    async def _refuse_bad(self, error: BadRequestError) -> None:
        await self._refuse(error.status, f"the request is not valid HTTP/1.1: {error}")

    # Bytes in

    async def _first(self) -> bytes:
        """The first bytes of a request in plain text; empty: the client is gone.

        Where they do not come in time there is nobody to answer and nothing else to end than the connection,
        so this takes its scope: one for each request would cost more than the reading.
        """
        self.scope.deadline = self._due
        try:
            data = await self._read()
        except _GONE:
            data = b""
        self.scope.deadline = math.inf
        self._gone = not data
        return data

    async def _receive(self, deadline: float) -> bytes | None:
        """The next bytes; empty: the client is gone; None: the deadline has passed."""
        with trio.CancelScope(deadline=deadline):
            try:
                data = await (self._decrypted() if self._encrypted else self._read())
            except _GONE:
                data = b""
            if not data:
                self._gone = True
            return data
        return None

    async def _decrypted(self) -> bytes:
        return bytes(await self.stream.receive_some(PIECE))

    async def _read(self) -> bytes:
        """As the stream's ``receive_some``, which first looks for what is mostly not there yet."""
        while True:
            await trio.lowlevel.wait_readable(self.transport.socket)
            with suppress(BlockingIOError):
                return os.read(self.transport.socket.fileno(), PIECE)

    async def _app_receive(self) -> ASGIReceiveEvent:
        """The application's receive: body events, then the client's disconnect."""
        call = self.reader.call
        if call is None:
            return _DISCONNECT
        while not call.events:
            complete = call.complete
            if complete and self.reader.unparsed > PIPELINED:
                await trio.sleep_forever()
            data = await self._receive(math.inf if complete else self._due)
            if not data:
                self._late = data is None
                return _DISCONNECT
            self.reader.received(data)
            if not complete:
                try:
                    self.reader.advance()
                except BadRequestError as error:
                    self._bad = error
                    return _DISCONNECT
        return call.events.popleft()

    # Bytes out

    async def flush(self, data: bytes) -> None:
        """Send. A client that does not read for ``write_timeout_s`` is cut."""
        if self._gone:
            return
        self._torn = True
        try:
            view = memoryview(data)[0 if self._encrypted else self._write(data) :]
            for start in range(0, len(view), PIECE):
                with trio.fail_after(self.api.write_timeout_s):
                    await self.stream.send_all(view[start : start + PIECE])
        except (*_GONE, trio.TooSlowError):
            self._gone = True
            # The application waits in receive: closing the socket tells it.
            await trio.aclose_forcefully(self.transport)
        self._torn = False

    def _write(self, data: bytes) -> int:
        """What the system takes at once: mostly all of it, which saves a turn of the loop."""
        try:
            return os.write(self.transport.socket.fileno(), data)
        except BlockingIOError:
            return 0

    async def _say_goodbye(self) -> None:
        """End the connection so that the client still gets all that was sent."""
        with trio.move_on_after(self.api.write_timeout_s):
            if not (self.idle or self.reader.complete):
                await self._linger()
            elif self._encrypted:
                await self.stream.aclose()

    async def _linger(self) -> None:
        """Say that nothing more comes, and take what is on its way: a reset would destroy our answer."""
        await self.transport.send_eof()
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_S):
            while left > 0:
                data = await self.transport.receive_some(PIECE)
                if not data:
                    break
                left -= len(data)


async def _at_once(_address: str) -> None:
    """Nobody else is served."""
