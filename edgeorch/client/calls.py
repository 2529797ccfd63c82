"""Single requests: what the client says and how it understands the answer."""

import random
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import msgspec

from edgeorch.client.answers import AuditPage, Node, Ranked, Task, TaskPage
from edgeorch.client.steps import Call, Emit, Pause, Reply, Steps
from edgeorch.errors import EdgeorchError, NodeUnreachableError, UnavailableError, problem_types

T = TypeVar("T")
Spec = Mapping[str, Any] | msgspec.Struct
Action = Literal["drain", "cordon", "resume"]

RETRY_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
MAX_RETRY_AFTER_S = 30.0


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457 problem details, as far as we read them."""

    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    hint: str = ""

    def error(self) -> EdgeorchError:
        """The error that this tells of."""
        kind = problem_types().get(re.split("[/#:]", self.type)[-1])
        if kind is None:
            kind = UnavailableError if self.status in {502, 503, 504} else EdgeorchError
        detail = self.detail or self.title or f"the node answered with HTTP status {self.status}"
        return kind(detail, hint=self.hint)


def error_of(reply: Reply) -> EdgeorchError:
    """The error that a reply with a status of 400 or more stands for."""
    try:
        problem = msgspec.json.decode(reply.body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problem = Problem(status=reply.status)
    return problem.error()


def checked(reply: Reply) -> Reply:
    """The reply, if it is a good one.

    Raises:
        EdgeorchError: what the node says is wrong, as its own type.
    """
    if reply.status >= 400:
        raise error_of(reply)
    return reply


def parsed(reply: Reply, kind: type[T]) -> T:
    """The body of a good reply.

    Raises:
        EdgeorchError: what the node says is wrong, or its answer is none that we understand.
    """
    body = checked(reply).body
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EdgeorchError(
            f"the answer cannot be understood: {error}", hint="is this URL an edgeorch node of this release?"
        ) from None


def task_path(task_id: str, rest: str = "") -> str:
    """The route of a task or of what belongs to it."""
    return f"/api/v1/tasks/{quote(task_id, safe='')}{rest}"


def read(path: str, kind: type[T], params: Mapping[str, str] | None = None) -> Steps[T]:
    """GET of one document."""
    return parsed((yield from _repeatable(Call("GET", path, params=params or {}))), kind)


def _repeatable(call: Call) -> Steps[Reply]:
    """A call that may be made twice without harm: once more where a kept connection broke."""
    try:
        reply: Reply = yield call
    except NodeUnreachableError as error:
        if not error.sent:
            raise
        reply = yield call
    return reply


def written(spec: Spec, *, names_only: bool = False) -> msgspec.Raw:
    """A spec as JSON. Secrets may be given as text or bytes; a question needs their names only."""
    secrets = spec.get("secrets") if isinstance(spec, Mapping) else None
    if isinstance(spec, Mapping) and isinstance(secrets, Mapping):
        spec = {**spec, "secrets": {name: _secret(secrets[name], names_only=names_only) for name in secrets}}
    return msgspec.Raw(msgspec.json.encode(spec))


def _secret(value: Any, *, names_only: bool) -> Any:  # noqa: ANN401  what is none the node refuses
    if names_only:
        return None
    return {"base64": value} if isinstance(value, bytes | bytearray) else value


def submit(spec: Spec, *, key: str | None = None, wait_s: float = 0.0) -> Steps[Task]:
    """Hand in one task."""
    return parsed((yield from _accept(bytes(written(spec)), key, wait_s)), Task)


def submit_batch(specs: Sequence[Spec], *, key: str | None = None) -> Steps[tuple[Task, ...]]:
    """Hand in all or none."""
    body = msgspec.json.encode([written(spec) for spec in specs])
    return parsed((yield from _accept(body, key, 0.0)), _Batch).tasks


def _accept(body: bytes, key: str | None, wait_s: float) -> Steps[Reply]:
    """POST, repeated at the same node until it has answered: the Idempotency-Key makes that one request."""
    headers = {"idempotency-key": key or uuid.uuid4().hex, "content-type": "application/json"}
    if wait_s:
        headers["prefer"] = f"wait={wait_s:g}"
    call = Call("POST", "/api/v1/tasks", headers=headers, body=body, wait_s=wait_s)
    reply: Reply
    for pause in RETRY_PAUSES_S:
        retry_after = 0.0
        try:
            reply = yield call
        except NodeUnreachableError:
            pass
        else:
            if reply.status != 503:
                return reply
            retry_after = _seconds(reply.headers.get("retry-after", ""))
        yield Pause(max(pause, retry_after) * random.uniform(1.0, 1.3))  # noqa: S311  jitter, no secret
    reply = yield call
    return reply


class _Batch(msgspec.Struct, frozen=True):
    tasks: tuple[Task, ...]


class _Ranking(msgspec.Struct, frozen=True):
    ranking: tuple[Ranked, ...]


class _Nodes(msgspec.Struct, frozen=True):
    nodes: tuple[Node, ...]


def explain(spec: Spec) -> Steps[tuple[Ranked, ...]]:
    """The ranking that a submission would see now."""
    headers = {"content-type": "application/json"}
    body = bytes(written(spec, names_only=True))
    reply: Reply = yield Call("POST", "/api/v1/tasks", params={"dry_run": "true"}, headers=headers, body=body)
    return parsed(reply, _Ranking).ranking


def task(task_id: str) -> Steps[Task]:
    """One task of the fleet."""
    return (yield from read(task_path(task_id), Task))


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks to list, newest first; ``local``: only those of the asked node."""

    state: str | None = None
    name: str | None = None
    node: str | None = None
    parent: str | None = None
    local: bool = False
    limit: int | None = None

    def params(self) -> dict[str, str]:
        """The query of ``GET /api/v1/tasks``."""
        given = {"state": self.state, "name": self.name, "node": self.node, "parent": self.parent}
        params = {key: value for key, value in given.items() if value}
        if self.local:
            params["local"] = "true"
        if self.limit:
            params["limit"] = str(self.limit)
        return params


ALL_TASKS = TaskFilter()


def tasks_page(which: TaskFilter, cursor: str | None) -> Steps[TaskPage]:
    """One page of the list of tasks."""
    params = which.params()
    if cursor:
        params["cursor"] = cursor
    return (yield from read("/api/v1/tasks", TaskPage, params))


def all_tasks(which: TaskFilter) -> Steps[None]:
    """Emits every task, page by page."""
    cursor: str | None = None
    while True:
        page = yield from tasks_page(which, cursor)
        for found in page.tasks:
            yield Emit(found)
        if not (cursor := page.cursor):
            return


def ended(task: Task) -> bool:
    """Whether nothing changes any more."""
    return task.ended


def cancel(task_id: str) -> Steps[Task]:
    """Begin to cancel; the same as often as it is asked."""
    return parsed((yield from _repeatable(Call("DELETE", task_path(task_id)))), Task)


def nodes() -> Steps[tuple[Node, ...]]:
    """Every node that the asked one knows, itself first."""
    return (yield from read("/api/v1/nodes", _Nodes)).nodes


def node(name_or_id: str) -> Steps[Node]:
    """One node."""
    return (yield from read(_node_path(name_or_id), Node))


def change_node(name_or_id: str, action: Action) -> Steps[Node]:
    """Drain, cordon or resume a node."""
    headers = {"content-type": "application/json"}
    reply: Reply = yield Call("POST", _node_path(name_or_id, f"/{action}"), headers=headers, body=b"{}")
    return parsed(reply, Node)


def forget(name_or_id: str) -> Steps[None]:
    """Drop a dead or left node from every table."""
    checked((yield Call("DELETE", _node_path(name_or_id))))


def audit(
    since: datetime | None = None, *, limit: int | None = None, cursor: str | None = None, local: bool = False
) -> Steps[AuditPage]:
    """One page of the audit trail; a time without a zone is this machine's."""
    params = {"since": since.astimezone(UTC).isoformat().replace("+00:00", "Z")} if since else {}
    if limit:
        params["limit"] = str(limit)
    if cursor:
        params["cursor"] = cursor
    if local:
        params["local"] = "true"
    return (yield from read("/api/v1/audit", AuditPage, params))


def ready() -> Steps[None]:
    """Whether the node says that it is ready."""
    checked((yield Call("GET", "/readyz")))


def _node_path(name_or_id: str, rest: str = "") -> str:
    return f"/api/v1/nodes/{quote(name_or_id, safe='')}{rest}"


def _seconds(text: str) -> float:
    """A Retry-After in seconds; dates and nonsense count as 0."""
    return min(float(text), MAX_RETRY_AFTER_S) if text.isdecimal() else 0.0
