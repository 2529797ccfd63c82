"""The Quart-Trio application: authentication, limits and errors around the route table."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import structlog
import trio
from quart import request
from quart.typing import ResponseReturnValue
from quart.wrappers import Response
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    MethodNotAllowed,
    RequestEntityTooLarge,
)
from werkzeug.wrappers import Response as WerkzeugResponse

from edgeorch.config import Api
from edgeorch.errors import EdgeorchError, ForbiddenError
from edgeorch.model import Caller
from edgeorch.rest.asgi import ALWAYS, HttpCall, Incoming, Streamed, problem_response
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
from edgeorch.rest.tasks import TaskRoutes

log = structlog.get_logger()

NOBODY = Caller(token="", role="none")


def create_app(
    backend: Backend,
    tokens: Tokens,
    api: Api,
    *,
    metrics: Callable[[], bytes],
    wall: Callable[[], float],
) -> "App":
    """The application; it has no lifespan, its parts are started by the node.

    Args:
        backend: what the node can do.
        tokens: who may call.
        api: the limits.
        metrics: gives the Prometheus text.
        wall: seconds since the epoch.
    """
    app = App("edgeorch", static_folder=None)
    # Time limits of bodies and writes are the connection's (connection.py); followed output has none.
    app.config.update(MAX_CONTENT_LENGTH=api.max_body, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
    app.url_map.merge_slashes = False
    app.register_error_handler(EdgeorchError, _show_error)
    app.register_error_handler(HTTPException, _show_http_error)
    guard = Guard(tokens, api, wall)
    for route in routes_of(backend, metrics=metrics, wall=wall):
        app.add_url_rule(
            route.path.replace("{", "<").replace("}", ">"),
            endpoint=route.name,
            view_func=_view(route, guard, api.max_body),
            methods=[route.method],
            provide_automatic_options=False,
        )
    return app


def routes_of(
    backend: Backend, *, metrics: Callable[[], bytes], wall: Callable[[], float]
) -> tuple[Route, ...]:
    """The whole route table."""
    described = (
        *TaskRoutes(backend).routes(),
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


def _view(route: Route, guard: Guard, max_body: int) -> Callable[..., Awaitable[Response]]:
    """The Quart view of a route."""

    async def view(**path: str) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        client = request.scope["client"]
        caller = guard.admit(route, headers, client[0] if client else "")
        body = b""
        if route.body is not None:
            if not route.any_type:
                check_json(headers.get("content-type"))
            body = await _body(max_body)
        query = None if route.any_type else query_of(request.args.to_dict(flat=False), route.query)
        asked = Asked(caller=caller, path=path, query=query, headers=headers, body=body)
        if "prefer" not in headers:
            return _response(await route.handler(asked))
        # The one header that makes an answer wait: who goes away meanwhile wants none.
        async with cast("Incoming", request.body).watched():
            return _response(await route.handler(asked))
        raise ClientDisconnected

    return view


async def _body(limit: int) -> bytes:
    """The request's body, read no further than its limit."""
    if (request.content_length or 0) > limit:
        raise RequestEntityTooLarge
    body = bytearray()
    async for data in request.body:
        body += data
        if len(body) > limit:
            raise RequestEntityTooLarge
    return bytes(body)


def _response(answer: Answer) -> Response:
    kind = TrioResponse if answer.play is None else Streamed
    response = kind(
        answer.body, status=answer.status, content_type=answer.media, headers={**ALWAYS, **answer.headers}
    )
    if isinstance(response, Streamed):
        response.play = answer.play
        del response.headers["Content-Length"]
    elif answer.status == 204:
        del response.headers["Content-Type"]
    return response


class App(QuartTrio):
    """Quart-Trio with our errors."""

    asgi_http_class = HttpCall

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
