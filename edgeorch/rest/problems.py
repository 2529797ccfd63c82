"""Errors as RFC 9457 problem details."""

import http
from typing import Any

import msgspec
from werkzeug.exceptions import HTTPException

from edgeorch.errors import (
    EdgeorchError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
)

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""What a caller is told to wait where nothing better is known."""

_BY_STATUS: dict[int, type[EdgeorchError]] = {
    kind.status: kind
    for kind in (
        InvalidRequestError,
        NotFoundError,
        MethodNotAllowedError,
        TooLargeError,
        UnsupportedMediaTypeError,
        UnavailableError,
    )
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong and what to do about it (RFC 9457)."""

    type: str
    """URI reference of the problem type's description: /docs/problems#SLUG."""
    title: str
    status: int
    detail: str
    hint: str = ""
    extra: dict[str, Any] = {}
    """Further members, such as ``path`` (JSON path of the wrong value)."""

    def encoded(self) -> bytes:
        """The body; ``extra`` becomes members of its own, as RFC 9457 §3.2 has it."""
        members = msgspec.structs.asdict(self)
        extra = members.pop("extra")
        return msgspec.json.encode({**members, **extra})


def type_uri(kind: type[EdgeorchError]) -> str:
    """Where the docs page describes this type."""
    return f"/docs/problems#{kind.slug}"


def problem_of(error: EdgeorchError) -> Problem:
    """An expected error as a problem."""
    return Problem(
        type=type_uri(type(error)),
        title=error.title,
        status=error.status,
        detail=error.detail,
        hint=error.hint,
        extra=dict(getattr(error, "extra", {})),
    )


def problem_of_status(status: int, detail: str = "", hint: str = "") -> Problem:
    """A bare HTTP status as a problem: our own type where one has this status, else ``about:blank``."""
    phrase = http.HTTPStatus(status).phrase
    kind = _BY_STATUS.get(status)
    return Problem(
        type=type_uri(kind) if kind else "about:blank",
        title=kind.title if kind else phrase,
        status=status,
        detail=detail or phrase,
        hint=hint,
    )


def problem_of_http(error: HTTPException, method: str, path: str) -> Problem:
    """What Quart's routing and body reading raise, as a problem."""
    status = error.code or 500
    if status == NotFoundError.status:
        return problem_of_status(status, f"there is no {path}", "GET /docs lists every route")
    if status == MethodNotAllowedError.status:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return problem_of_status(status, f"{path} does not take {method}", f"allowed: {allowed}")
    if status == TooLargeError.status:
        return problem_of_status(status, "the body is over api.max_body", "split the batch")
    return problem_of_status(status, error.description or "")


def problem_of_defect(log_id: str) -> Problem:
    """An unexpected exception: nothing of it is shown but where the log has it."""
    return Problem(
        type=type_uri(EdgeorchError),
        title=EdgeorchError.title,
        status=500,
        detail="the node failed to answer this request",
        hint=f"the node's log has the details under id {log_id}",
        extra={"log_id": log_id},
    )


def headers_of(problem: Problem) -> dict[str, str]:
    """Headers that go with a problem."""
    headers = {"Cache-Control": "no-store"}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="edgeorch"'
    if problem.status in {429, 503}:
        headers["Retry-After"] = str(problem.extra.get("retry_after_s", RETRY_AFTER_S))
    if problem.status == 413:
        headers["Connection"] = "close"
    return headers
