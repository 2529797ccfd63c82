"""One request's call of the application, in the connection's own task.

Quart-Trio starts two tasks for each request, one of which only waits for the client to go away: half of what
Trio did for a small request. Here a body is pulled when the view asks for it, and the client is watched only
where an answer takes its time (``Incoming.watched``). Headers go past Quart's: ``Asking.names`` is what has
arrived, ``Ready`` what leaves.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
)
from quart.wrappers import Response
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest, TrioResponse
from werkzeug.datastructures import Headers
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wrappers import Response as WerkzeugResponse

from edgeorch.errors import EdgeorchError
from edgeorch.rest.problems import PROBLEM_TYPE, Problem, headers_of, problem_of
from edgeorch.rest.routes import Sink
from edgeorch.rest.streaming import first_error
from edgeorch.timing import clock

log = structlog.get_logger()

ALWAYS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_ALWAYS = [(name.lower().encode(), value.encode()) for name, value in ALWAYS.items()]


class Incoming:
    """What the client sends, in the place of Quart's ``Body``.

    Attributes:
        gone: whether the client has gone, or stopped in the middle of its request.
    """

    def __init__(self, receive: ASGIReceiveCallable) -> None:
        self._receive = receive
        self._complete = False
        self.gone = False

    def __aiter__(self) -> "Incoming":
        return self

    async def __anext__(self) -> bytes:
        """A piece of the body.

        Raises:
            ClientDisconnected: there will not be one.
        """
        while not self._complete:
            message = await self._receive()
            if message["type"] != "http.request":
                self.gone = True
                raise ClientDisconnected
            self._complete = not message.get("more_body", False)
            if piece := message.get("body", b""):
                return bytes(piece)
        raise StopAsyncIteration

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel what is in the block when the client goes away; the body is not read any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_gone, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def _until_gone(self, scope: trio.CancelScope) -> None:
        while (await self._receive())["type"] == "http.request":
            pass
        self.gone = True
        scope.cancel()


class _NoBody:
    """Quart makes one for each request; ``HttpCall`` puts an ``Incoming`` in its place."""

    def __init__(self, *_: object) -> None:
        pass


class _Given(Headers):
    """Headers of a request, which ``http1`` has checked: Werkzeug would do so for each by itself."""

    def __init__(self, given: list[tuple[str, str]]) -> None:
        self._list = given


class Asking(TrioRequest):
    """A request.

    Attributes:
        names: its headers by lower-case name; the last one where there are several.
        begun: when its head was there, on the clock of ``timing``.
    """

    body_class: Any = _NoBody
    content_length = None  # what is read of it is measured (api.py)
    names: Mapping[str, str]
    begun: float


class Ready(TrioResponse):
    """A response that is bytes already: Quart hands it through and has no need of its other attributes."""

    def __init__(self, body: bytes, status: int, media: str, headers: Mapping[str, str]) -> None:
        head = [*_ALWAYS]
        if status != 204:
            head += [(b"content-type", media.encode()), (b"content-length", b"%d" % len(body))]
        head += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.start: HTTPResponseStartEvent = {
            "type": "http.response.start",
            "status": status,
            "headers": head,
        }
        self.whole: HTTPResponseBodyEvent = {"type": "http.response.body", "body": body, "more_body": False}


class Streamed(TrioResponse):
    """A response whose ``play`` writes it, with the head when it is ready for it."""

    play: Callable[[Sink], Awaitable[None]] | None = None


class HttpCall(TrioASGIHTTPConnection):
    """Calls the application and sends its response, which may be a stream.

    Quart sends the head before it enters a response's body; a stream that turns out to be impossible (no such
    task, its node unreachable) must still become a problem response.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request to its end."""
        begun = clock()
        request = self._create_request_from_scope(send)
        request.begun = begun
        incoming: Any = Incoming(receive)
        request.body = incoming
        response = await self.app.handle_request(request)
        if incoming.gone:
            return
        if isinstance(response, Ready):
            await send(response.start)
            await send(response.whole)
        elif isinstance(response, Streamed) and response.play is not None:
            await self._play(incoming, ResponseSink(send, response), response.play)
        elif isinstance(response, Response):
            await _send_whole(send, response, await response.get_data(as_text=False))
        else:
            await self._send_response(send, response)

    def _create_request_from_scope(self, send: ASGISendCallable) -> Asking:  # noqa: ARG002  Quart's signature
        scope = self.scope
        given = [("remote-addr", scope["client"][0] if scope["client"] else "")]  # Quart looks for it there
        given += [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        request = Asking(
            scope["method"],
            scope["scheme"],
            scope["path"],
            scope["query_string"],
            _Given(given),
            "",
            scope["http_version"],
            scope,
            send_push_promise=_push_nothing,
        )
        request.names = dict(given)
        return request

    async def _play(
        self, incoming: Incoming, sink: "ResponseSink", play: Callable[[Sink], Awaitable[None]]
    ) -> None:
        error: EdgeorchError | None = None
        try:
            if self.scope["method"] == "HEAD":
                await sink.start()
                await sink.end()
            else:
                async with incoming.watched():
                    await play(sink)
        except* EdgeorchError as group:
            error = first_error(group)
        if error is None:
            return
        if sink.started:
            log.info("a stream was cut", reason=str(error))
        else:
            problem = problem_response(problem_of(error))
            await _send_whole(sink.send, problem, await problem.get_data(as_text=False))


async def _push_nothing(_path: str, _headers: Headers) -> None:
    """HTTP/1.1 has nothing like it."""


async def _send_whole(send: ASGISendCallable, response: Response | WerkzeugResponse, body: bytes) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class ResponseSink:
    """Writes a streamed response as ASGI messages."""

    def __init__(self, send: ASGISendCallable, response: Streamed) -> None:
        self.send = send
        self._response = response
        self.started = False

    async def start(self, headers: Mapping[str, str] | None = None, *, status: int = 200) -> None:
        """Send the head."""
        self.started = True
        self._response.headers.update(headers or {})
        if status == 204:
            del self._response.headers["Content-Type"]
        shown = [(name.lower().encode(), value.encode()) for name, value in self._response.headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": shown})

    async def write(self, data: bytes) -> None:
        """Send a piece."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send the end."""
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def problem_response(problem: Problem) -> Response:
    """A problem as a response."""
    headers = {**ALWAYS, **headers_of(problem)}
    return TrioResponse(problem.encoded(), status=problem.status, content_type=PROBLEM_TYPE, headers=headers)
