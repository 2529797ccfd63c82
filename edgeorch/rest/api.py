"""The Quart-Trio application: authentication, limits and errors around the route table."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import msgspec
import structlog
import trio
from quart import request
from quart.sessions import NullSession, SessionInterface
from quart.typing import ResponseReturnValue
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge
from werkzeug.routing import MapAdapter
from werkzeug.wrappers import Response as WerkzeugResponse

from edgeorch.config import Api
from edgeorch.errors import EdgeorchError, ForbiddenError
from edgeorch.model import Caller
from edgeorch.rest.asgi import ALWAYS, Asking, HttpCall, Incoming, Ready, Streamed, problem_response
from edgeorch.rest.audit import AuditRoutes
from edgeorch.rest.auth import Tokens, check_browser
from edgeorch.rest.backend import Backend
from edgeorch.rest.compat import CompatRoutes
from edgeorch.rest.decode import check_json, query_of
from edgeorch.rest.docs import DocsRoutes
from edgeorch.rest.events import EventRoutes
from edgeorch.rest.nodes import NodeRoutes
from edgeorch.rest.output import OutputRoutes
from edgeorch.rest.probes import ProbeRoutes
from edgeorch.rest.problems import problem_of, problem_of_defect, problem_of_http
from edgeorch.rest.rates import Rates
from edgeorch.rest.routes import Answer, Asked, Route
from edgeorch.rest.steps import Steps
from edgeorch.rest.tasks import TaskRoutes
from edgeorch.timing import Histogram

log = structlog.get_logger()

NOBODY = Caller(token="", role="none")


def create_app(
    backend: Backend,
    tokens: Tokens,
    api: Api,
    *,
    metrics: Callable[[], bytes],
    wall: Callable[[], float],
    steps: Steps | None = None,
) -> "App":
    """The application; it has no lifespan, its parts are started by the node.

    Args:
        backend: what the node can do.
        tokens: who may call.
        api: the limits.
        metrics: gives the Prometheus text.
        wall: seconds since the epoch.
        steps: takes down how long requests take.
    """
    steps = steps or Steps()
    app = App("edgeorch", static_folder=None)
    # Time limits of bodies and writes are the connection's (connection.py); followed output has none.
    app.config.update(MAX_CONTENT_LENGTH=api.max_body, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    app.url_map.merge_slashes = False
    app.register_error_handler(EdgeorchError, _show_error)
    app.register_error_handler(HTTPException, _show_http_error)
    guard = Guard(tokens, api, wall)
    for route in routes_of(backend, metrics=metrics, wall=wall, steps=steps):
        app.add_url_rule(
            route.path.replace("{", "<").replace("}", ">"),
            endpoint=route.name,
            view_func=_view(route, guard, api.max_body, steps.accept),
            methods=[route.method],
            provide_automatic_options=False,
        )
    return app


def routes_of(
    backend: Backend, *, metrics: Callable[[], bytes], wall: Callable[[], float], steps: Steps
) -> tuple[Route, ...]:
    """The whole route table."""
    described = (
        *TaskRoutes(backend, steps.decode).routes(),
        *OutputRoutes(backend).routes(),
        *EventRoutes(backend).routes(),
        *NodeRoutes(backend, wall).routes(),
        *AuditRoutes(backend).routes(),
        *CompatRoutes(backend).routes(),
        *ProbeRoutes(backend, metrics).routes(),
    )
    return (*described, *DocsRoutes(described).routes())


class Guard:
    """Who may do what, how often."""

    def __init__(self, tokens: Tokens, api: Api, wall: Callable[[], float]) -> None:
        self._tokens = tokens
        self._wall = wall
        self._rates = Rates(api.requests_per_second)

    def admit(self, route: Route, headers: Mapping[str, str], address: str) -> Caller:
        """The caller, if it may use the route.

        Raises:
            UnauthorizedError: no valid token.
            ForbiddenError: its role is too low, or a web page of another site asks.
            UnsupportedMediaTypeError: the latter, by its body.
            TooManyRequestsError: over a limit.
        """
        if route.role == "none":
            return NOBODY
        authorization = headers.get("authorization")
        caller = self._tokens.authenticate(authorization, address, self._wall())
        if authorization is None:
            check_browser(headers)
        if not caller.may(route.role):
            raise ForbiddenError(
                f"this needs the role {route.role}, the caller has {caller.role}",
                hint="use a token with that role: `edgeorch token create`",
            )
        self._rates.take(caller.token, trio.current_time())
        return caller


def _view(
    route: Route, guard: Guard, max_body: int, accepted: Histogram
) -> Callable[..., Awaitable[Response]]:
    """The Quart view of a route."""

    async def view(**path: str) -> Response:
        # The proxy itself would look it up each time; this is how werkzeug says to get at what is behind.
        asking = cast("Asking", request._get_current_object())  # type: ignore[attr-defined]  # noqa: SLF001
        headers, client = asking.names, asking.scope["client"]
        caller = guard.admit(route, headers, client[0] if client else "")
        body = b""
        if route.body is not None:
            if not route.any_type:
                check_json(headers.get("content-type"))
            body = await _body(asking, max_body)
        query: msgspec.Struct | None = None
        if not route.any_type:
            given = asking.args.to_dict(flat=False) if asking.query_string else {}
            query = query_of(given, route.query)
        watched = cast("Incoming", asking.body).watched
        asked = Asked(caller=caller, path=path, query=query, headers=headers, body=body, watched=watched)
        accepted.since(asking.begun)
        return _response(await route.handler(asked))

    return view


async def _body(asking: Asking, limit: int) -> bytes:
    """The request's body, read no further than its limit."""
    if int(asking.names.get("content-length", 0)) > limit:
        raise RequestEntityTooLarge
    body = b""
    async for data in asking.body:
        body = body + data if body else data
        if len(body) > limit:
            raise RequestEntityTooLarge
    return body


def _response(answer: Answer) -> Response:
    if answer.play is None:
        return Ready(answer.body, answer.status, answer.media, answer.headers)
    headers = {**ALWAYS, **answer.headers}
    response = Streamed(status=answer.status, content_type=answer.media, headers=headers)
    response.play = answer.play
    return response


class _NoSessions(SessionInterface):
    """Tokens say who asks; there are no cookies."""

    _none = NullSession()

    async def open_session(self, *_: object) -> NullSession:
        return self._none


class App(QuartTrio):
    """Quart-Trio with our errors, and without what an API has no use for.

    What Quart does around each view for functions to be called before and after it, for sessions and for
    several hosts took longer than the view. None of that is there, so it is not looked for.
    """

    asgi_http_class = HttpCall
    request_class = Asking
    session_interface: Any = _NoSessions()

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Routes depend on path and method alone."""
        if request is None:
            return None
        return MapAdapter(self.url_map, "localhost", "/", "", request.scheme, request.path, request.method)

    def ensure_async(self, func: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """All that is called here is asynchronous."""
        return func

    async def preprocess_request(self, *_: object, **__: object) -> None:
        """Nothing to be called before a view."""

    async def process_response(
        self,
        *given: Any,  # noqa: ANN401  Quart 0.22 and 0.23 call it differently
    ) -> Response | WerkzeugResponse:
        """Nothing to be called after a view.

        Args:
            given: the response and the request's context, in one or the other order.
        """
        response: Response | WerkzeugResponse
        (response,) = (one for one in given if isinstance(one, (Response, WerkzeugResponse)))
        return response

    async def do_teardown_request(self, *_: object, **__: object) -> None:
        """Nothing either."""

    async def do_teardown_appcontext(self, *_: object, **__: object) -> None:
        """Nothing either."""

    async def handle_exception(
        self,
        *found: Any,  # noqa: ANN401  Quart 0.22 and 0.23 call it differently
    ) -> Response | WerkzeugResponse:
        """Answer 500 and log the exception; Quart's own would show or raise it.

        Args:
            found: the exception; from Quart 0.23 on after the request's context.
        """
        context, error = found[:-1], found[-1]
        if not isinstance(error, Exception):  # a group with KeyboardInterrupt and the like in it
            raise error
        log_id = secrets.token_hex(4)
        log.error("A request failed unexpectedly", log_id=log_id, path=request.path, exc_info=error)
        response = problem_response(problem_of_defect(log_id))
        finish: Callable[..., Awaitable[Response | WerkzeugResponse]] = self.finalize_request
        return await finish(*context, response, from_error_handler=True)


async def _show_error(error: EdgeorchError) -> ResponseReturnValue:
    return problem_response(problem_of(error))


async def _show_http_error(error: HTTPException) -> ResponseReturnValue:
    response = problem_response(problem_of_http(error, request.method, request.path))
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response
