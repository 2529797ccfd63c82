"""Every error that a user or a peer may see, with its HTTP status and what to do about it.

An ``EdgeorchError`` is an answer, not a defect: it is shown as one sentence on stderr, as RFC 9457 problem
details over REST, and as a ``Failure`` over the wire. Anything else that escapes is a defect.
"""

from typing import ClassVar


class EdgeorchError(Exception):
    """Base of all expected errors.

    Attributes:
        slug: stable name of the problem type, last part of the problem's ``type`` URI.
        title: the problem type in a few words, the same for every occurrence.
        status: HTTP status.
        retryable: whether the same request may succeed later without a change.
        detail: what is wrong here, with the name of the thing.
        hint: what to do next, or an empty string.
    """

    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.detail} ({self.hint})" if self.hint else self.detail


class ConfigError(EdgeorchError):
    """The configuration cannot be used. The node exits with 78 (EX_CONFIG)."""

    slug = "bad-configuration"
    title = "The configuration cannot be used"


class StartError(EdgeorchError):
    """A part of the node cannot start: port in use, folder not writable, Docker forced but absent."""

    slug = "cannot-start"
    title = "The node cannot start"


class IdentityError(EdgeorchError):
    """A certificate, key or CA cannot be used; ``reason`` is the short word for logs."""

    slug = "bad-identity"
    title = "A certificate or key cannot be used"
    status = 403

    def __init__(self, detail: str, *, hint: str = "", reason: str = "invalid") -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason


class InvalidRequestError(EdgeorchError):
    """The request cannot be understood: JSON, types, unknown fields, unknown options."""

    slug = "invalid-request"
    title = "The request is not valid"
    status = 400


class ConstraintError(InvalidRequestError):
    """A placement constraint cannot be parsed or names an unknown attribute."""

    slug = "invalid-constraint"
    title = "A placement constraint is not valid"


class DockerOptionError(InvalidRequestError):
    """An option of ``docker run`` is unknown, unsupported, or has a bad value."""

    slug = "invalid-docker-option"
    title = "A docker run option is not valid"


class UnauthorizedError(EdgeorchError):
    """No token, or one that is unknown, expired or revoked."""

    slug = "unauthorized"
    title = "A valid token is needed"
    status = 401


class ForbiddenError(EdgeorchError):
    """The token's role does not allow this."""

    slug = "forbidden"
    title = "The token does not allow this"
    status = 403


class PolicyError(EdgeorchError):
    """The node's policy refuses the service; the detail names the rule and the configuration key.

    ``key`` is that key as a member of its own, ``policy.images``.
    """

    slug = "policy"
    title = "The node's policy refuses this"
    status = 403

    def __init__(self, detail: str, *, hint: str = "", key: str = "", rule: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.extra = {"key": key} if key else {}
        self.rule = rule
        """For ``policy.native``: which part of a listed service does not hold."""


class NotFoundError(EdgeorchError):
    """No such task, node, attempt or route."""

    slug = "not-found"
    title = "Not found"
    status = 404


class MethodNotAllowedError(EdgeorchError):
    """The route exists, the method does not."""

    slug = "method-not-allowed"
    title = "Method not allowed"
    status = 405


class ConflictError(EdgeorchError):
    """The thing is not in a state that allows this."""

    slug = "conflict"
    title = "The current state does not allow this"
    status = 409


class TooLargeError(EdgeorchError):
    """The body is over ``api.max_body``."""

    slug = "too-large"
    title = "The request is too large"
    status = 413


class UnsupportedMediaTypeError(EdgeorchError):
    """The body is not ``application/json``."""

    slug = "unsupported-media-type"
    title = "The body must be JSON"
    status = 415


class KeyReusedError(EdgeorchError):
    """The Idempotency-Key was used with another body."""

    slug = "idempotency-key-reused"
    title = "The Idempotency-Key was used with another body"
    status = 422


class TlsRequiredError(EdgeorchError):
    """Plain HTTP came from another machine."""

    slug = "tls-required"
    title = "Use https"
    status = 426


class TooManyRequestsError(EdgeorchError):
    """The caller is over a rate limit."""

    slug = "too-many-requests"
    title = "Too many requests"
    status = 429
    retryable = True


class TooManyTasksError(TooManyRequestsError):
    """The token has as many open tasks at this node as ``policy.max_tasks`` allows."""

    slug = "too-many-tasks"
    title = "The token has too many open tasks"

    def __init__(self, detail: str, *, hint: str = "", key: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.extra = {"key": key, "retry_after_s": 5}


class UnavailableError(EdgeorchError):
    """The node cannot do this now: starting, draining, stopping."""

    slug = "unavailable"
    title = "The node cannot do this now"
    status = 503
    retryable = True


class OriginUnreachableError(UnavailableError):
    """The node that owns the task does not answer."""

    slug = "origin-unreachable"
    title = "The task's origin node does not answer"


class NodeUnreachableError(UnavailableError):
    """A peer does not answer: link down, refused, or too slow."""

    slug = "node-unreachable"
    title = "The node does not answer"

    def __init__(self, detail: str, *, hint: str = "", sent: bool = True) -> None:
        super().__init__(detail, hint=hint)
        self.sent = sent
        """False when the request certainly never left this node."""


class StorageError(EdgeorchError):
    """The node cannot write its state: disk full, read-only, I/O error."""

    slug = "insufficient-storage"
    title = "The node cannot store this"
    status = 507
    retryable = True


class DriverError(EdgeorchError):
    """A service cannot be prepared, started or watched.

    ``reason`` is one of ``image_unavailable``, ``no_program``, ``no_permission``, ``driver_unavailable``,
    ``invalid_service`` or ``failed``; retry rules look at it.
    """

    slug = "driver"
    title = "The service cannot be run"
    status = 502

    def __init__(self, detail: str, *, hint: str = "", reason: str = "failed") -> None:
        super().__init__(detail, hint=hint)
        self.reason = reason


class WireError(EdgeorchError):
    """A frame or message from a peer cannot be used."""

    slug = "wire"
    title = "A message between nodes cannot be used"
    status = 502


class UnsupportedMessageError(WireError):
    """The peer's version does not know this message."""

    slug = "unsupported-message"
    title = "The peer does not know this message"


def problem_types() -> dict[str, type[EdgeorchError]]:
    """Every problem type by slug, for the docs page and for errors that arrive over the wire."""
    found: dict[str, type[EdgeorchError]] = {}
    todo: list[type[EdgeorchError]] = [EdgeorchError]
    while todo:
        kind = todo.pop()
        found.setdefault(kind.slug, kind)
        todo.extend(kind.__subclasses__())
    return found
