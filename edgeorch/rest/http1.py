"""HTTP/1.1 of one connection: Hypercorn's h11 protocol without upgrades and without tasks of its own.

The application runs in the connection's task (``Call``), so nothing is lost when Quart cancels a request
right after its response: in stock Hypercorn that cancels the bookkeeping of idle time and ``Connection:
close`` too. ``Upgrade`` headers are ignored, as RFC 9110 §7.8 allows: both WebSocket and h2c upgrades of
Hypercorn 0.18 can be made to raise out of the server by one packet.
"""

import http
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

import h11
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

from edgeorch.rest.problems import PROBLEM_TYPE, Problem

_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class Call:
    """One call of the application: its scope, where it sends to, and what has arrived for it.

    Attributes:
        scope: the ASGI scope.
        send: takes the application's ASGI messages.
        events: ASGI events that wait to be received.
    """

    def __init__(self, scope: Scope, send: Callable[[ASGISendEvent | None], Awaitable[None]]) -> None:
        self.scope = scope
        self.send = send
        self.events: deque[ASGIReceiveEvent] = deque()

    async def put(self, event: ASGIReceiveEvent) -> None:
        """Hypercorn's way in; never waits, so it cannot be cancelled half-way."""
        self.events.append(event)


class OneCall:
    """Takes the place of Hypercorn's task group: keeps the call for the connection's task to run."""

    def __init__(self) -> None:
        self.call: Call | None = None

    async def spawn_app(
        self,
        app: AppWrapper,  # noqa: ARG002  Hypercorn's signature
        config: Config,  # noqa: ARG002
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Keep the call instead of starting it."""
        self.call = Call(scope, send)
        return self.call.put

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401  Hypercorn's signature
        """Hypercorn needs this for HTTP/2 and WebSocket only, which are not spoken here."""
        raise AssertionError(f"{func} {args}: HTTP/1.1 starts no tasks")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *about: object) -> None:
        pass


class Http1(H11Protocol):
    """Parses requests and writes responses; the connection reads, flushes and closes."""

    connection: h11.Connection
    max_body: int
    """Bytes; a request that declares more is not told to go on (``Expect: 100-continue``)."""
    flush: Callable[[], Awaitable[None]]
    head_only = False
    """Whether the request under way is a HEAD, whose answers have no body."""
    _whole = False

    def received(self, data: bytes) -> None:
        """Keep bytes for ``advance``; an empty end of file is the connection's business."""
        self.connection.receive_data(data)

    @property
    def unparsed(self) -> int:
        """Bytes that have arrived and are not parsed yet."""
        return len(self.connection.trailing_data[0])

    @property
    def request_complete(self) -> bool:
        """Whether a request has arrived to its last byte and is not recycled yet."""
        return self.connection.their_state not in (h11.IDLE, h11.SEND_BODY)

    async def advance(self) -> None:
        """Parse what has arrived, up to the end of one request.

        Raises:
            h11.RemoteProtocolError: what has arrived is not HTTP/1.1.
        """
        while True:
            event = self.connection.next_event()
            if isinstance(event, h11.Request):
                self.head_only = event.method == b"HEAD"
                await self._create_stream(event)
                await self._go_on(event)
            elif isinstance(event, h11.Data):
                if self.stream is not None:
                    await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                if self.stream is not None:
                    await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:
                return

    async def stream_send(self, event: Event) -> None:
        """As Hypercorn's, but a response of known length leaves in one piece."""
        if isinstance(event, Response):
            self._whole = any(name.lower() == b"content-length" for name, _ in event.headers)
            await self._send_head(event.status_code, event.headers)
        else:
            await super().stream_send(event)
        if isinstance(event, EndBody) or not (self._whole or isinstance(event, StreamClosed)):
            await self.flush()

    async def refuse(self, problem: Problem) -> None:
        """Answer without the application and ask for the end of the connection, where it is not too late."""
        if self.connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = problem.encoded()
        headers = [
            (b"content-type", PROBLEM_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await self._send_head(problem.status, headers)
        if not self.head_only:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
        await self.flush()

    async def _send_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        shown = [*headers, *self.config.response_headers("h11")]
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            shown.append((b"connection", b"close"))
        reason = http.HTTPStatus(status).phrase.encode()
        await self._send_h11_event(h11.Response(status_code=status, headers=shown, reason=reason))

    async def _create_stream(self, request: h11.Request) -> None:
        target = request.target
        if absolute := _ABSOLUTE.match(target):
            target = target[absolute.end() :]
            target = target if target.startswith(b"/") else b"/" + target
        if not target.startswith(b"/"):
            raise h11.RemoteProtocolError("the request's target must be a path", error_status_hint=400)
        if request.method != request.method.upper():
            # The application would take HeAD for HEAD, which has no body, and h11 would miss it.
            raise h11.RemoteProtocolError("methods are written in capitals", error_status_hint=400)
        _check_host(request)
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _go_on(self, request: h11.Request) -> None:
        """Answer ``Expect: 100-continue``, unless the body is going to be refused."""
        if not self.connection.they_are_waiting_for_100_continue:
            return
        declared = next((value for name, value in request.headers if name == b"content-length"), b"0")
        if int(declared) <= self.max_body:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            await self.flush()

    async def _maybe_recycle(self) -> None:
        # The connection's task recycles, after the application has returned.
        await self._close_stream()


def _check_host(request: h11.Request) -> None:
    """Refuse a Host that is none (RFC 9112 §3.2); the routing behind would raise where nothing catches it."""
    host = next((value for name, value in request.headers if name == b"host"), b"")
    try:
        host.partition(b":")[0].decode("latin-1").lower().encode("idna")
    except UnicodeError:
        raise h11.RemoteProtocolError("the Host header is not a host", error_status_hint=400) from None
