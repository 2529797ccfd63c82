"""The route table's words: a ``Route`` says how a request is served and what the OpenAPI document says."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from edgeorch.errors import InvalidRequestError
from edgeorch.model import Caller, Role, Written

JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


class NoQuery(Written, frozen=True, kw_only=True):
    """A route without query parameters."""


@dataclass(frozen=True)
class Asked:
    """One request, checked as far as its route says.

    Attributes:
        caller: who asks.
        path: the path's parts by name.
        query: the decoded query, of the route's type.
        headers: the request's headers by lower-case name.
        body: the body, empty where the route takes none.
        watched: around what takes its time: cancelled when the client goes away, which then gets no answer.
    """

    caller: Caller
    path: Mapping[str, str]
    query: Any
    headers: Mapping[str, str]
    body: bytes = b""
    watched: Callable[[], AbstractAsyncContextManager[None]] = nullcontext


class Sink(Protocol):
    """Where a streamed answer is written."""

    started: bool
    """Whether the head has left."""

    async def start(self, headers: Mapping[str, str] | None = None, *, status: int = 200) -> None:
        """Send the head; until then an EdgeorchError becomes an ordinary problem."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a piece; waits while the client does not read."""
        ...

    async def end(self) -> None:
        """Say that the answer is whole. Returning without it cuts the connection: the client sees a break."""
        ...


@dataclass(frozen=True)
class Answer:
    """A response: a body, or ``play`` which streams one."""

    body: bytes = b""
    status: int = 200
    media: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    play: Callable[[Sink], Awaitable[None]] | None = None


def answer(document: msgspec.Struct, status: int = 200, **headers: str) -> Answer:
    """A JSON answer; header names are given with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(body=msgspec.json.encode(document), status=status, headers=named)


@dataclass(frozen=True)
class Header:
    """A request header that a route reads."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """One documented response.

    Attributes:
        description: for the docs.
        body: a struct type, a tuple of them, or None for bytes or nothing; of SSE, one event's data.
        media: the media type.
        lines: what a line is where the same is also served as lines of JSON; None: it is not.
        headers: names of headers that only this response has.
    """

    description: str
    body: Any = None
    media: str = JSON
    lines: Any = None
    headers: tuple[str, ...] = ()


Method = Literal["GET", "POST", "DELETE"]


@dataclass(frozen=True)
class Route:
    """One method on one path.

    Attributes:
        method: HTTP method.
        path: with ``{name}`` for its variable parts.
        name: the OpenAPI operation id.
        role: the least role; ``none`` needs no token.
        handler: serves it.
        summary: one line for the docs.
        shown: documented responses by status.
        problems: documented problem statuses besides those that follow from the fields above.
        query: struct of the query parameters.
        headers: request headers it reads.
        body: the type of the JSON body; None: a body is not read.
        any_type: take the body whatever its Content-Type says.
        tag: heading in the docs.
        description: more for the docs.
    """

    method: Method
    path: str
    name: str
    role: Role
    handler: Callable[[Asked], Awaitable[Answer]]
    summary: str
    shown: Mapping[int, Shown]
    problems: tuple[int, ...] = ()
    query: type[msgspec.Struct] = NoQuery
    headers: tuple[Header, ...] = ()
    body: Any = None
    any_type: bool = False
    tag: str = "node"
    description: str = ""


IDEMPOTENCY_KEY = Header(
    "Idempotency-Key",
    "Any text of up to 255 visible characters. For 24 h the same key and body give the first answer, another "
    "body 422. Repeat at the same node.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)
PREFER = Header(
    "Prefer",
    "``wait=SECONDS`` (RFC 7240): answer when the task has ended, or after this time.",
    {"type": "string", "examples": ["wait=10"]},
)
LAST_EVENT_ID = Header(
    "Last-Event-ID",
    "The number of the last event that was seen; what came after it is sent first.",
    {"type": "string", "pattern": "^[0-9]{1,18}$"},
)


def key_of(headers: Mapping[str, str]) -> str | None:
    """The Idempotency-Key.

    Raises:
        InvalidRequestError: it is empty, too long or has blanks or other invisible characters.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not all("!" <= char <= "~" for char in key):
        raise InvalidRequestError("the Idempotency-Key must be 1 to 255 visible ASCII characters")
    return key
