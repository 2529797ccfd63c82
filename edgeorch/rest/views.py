"""What the API shows: our data as the documents of DESIGN §5, with times as RFC 3339 in UTC."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import msgspec

from edgeorch.model import Attempt, AttemptState, Caller, Event, PeerState, Ranked, Score, Task, TaskState
from edgeorch.rest.backend import NodeView, TaskPage

HIDDEN = "***"
SPEC_SCHEMA: dict[str, Any] = {"$ref": "#/components/schemas/TaskSpec"}
# Short switches of docker run may be packed before the e: -ite K=V.
_SHORT_ENV = re.compile(r"-[itPdq]*e(?P<rest>.*)", re.DOTALL)

Time: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is answered."""


class AttemptDocument(Document, frozen=True, kw_only=True):
    """One try of a task on one node."""

    number: int
    node: str
    node_name: str
    driver: str
    state: AttemptState
    started_at: Time | None
    ended_at: Time | None
    exit_code: int | None
    signal: int | None
    reason: str


class TaskDocument(Document, frozen=True, kw_only=True):
    """One accepted request. ``reason`` also says what a waiting task waits for."""

    id: str
    name: str
    state: TaskState
    reason: str
    cancelling: bool
    origin: str
    created_at: Time
    ended_at: Time | None
    exit_code: int | None
    spec: Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema=SPEC_SCHEMA)]
    parent: str | None
    attempts: tuple[AttemptDocument, ...]


class TasksDocument(Document, frozen=True, kw_only=True):
    """Some tasks."""

    tasks: tuple[TaskDocument, ...]


class TaskPageDocument(TasksDocument, frozen=True, kw_only=True):
    """Tasks, newest first."""

    cursor: str | None
    """Give it as ``cursor`` to get the next page; null on the last one."""
    unreachable: tuple[str, ...]
    """Names of the nodes that did not answer: their tasks are missing here."""


class RankedDocument(Document, frozen=True, kw_only=True):
    """One node in a ranking; ``refusal`` says why it cannot be chosen, empty where it can."""

    node: str
    node_name: str
    driver: str
    score: Score
    refusal: str


class RankingDocument(Document, frozen=True, kw_only=True):
    """What a submission would choose now, best first."""

    ranking: tuple[RankedDocument, ...]


class RankingsDocument(Document, frozen=True, kw_only=True):
    """The ranking of each task of a batch, each as if it came alone."""

    rankings: tuple[RankingDocument, ...]


class NodeDocument(Document, frozen=True, kw_only=True):
    """One node of the fleet, as the asked node sees it. Memory in bytes."""

    id: str
    name: str
    self_: bool = msgspec.field(name="self")
    state: str
    """``alive``, ``cordoned``, ``draining``, ``suspect``, ``dead`` or ``left``."""
    reason: str
    since: Time
    score: Score
    """Of an empty spec; higher is better."""
    address: str
    version: str
    arch: str
    os: str
    cpus: int
    memory: int
    drivers: dict[str, str]
    """Driver to the version of what is behind it."""
    limits: tuple[str, ...]
    """What limits native services: ``cgroup:memory``, ``cgroup:cpus``, ``rlimit:memory`` (each process)."""
    task_isolation: str
    """What keeps native services out of each other's folders: ``landlock`` or ``none``."""
    labels: dict[str, str]
    slots: int
    slots_used: int
    cert_days: float | None
    rtt_ms: float


class NodesDocument(Document, frozen=True, kw_only=True):
    """Every node that the asked one knows, itself first."""

    nodes: tuple[NodeDocument, ...]


class EventDocument(Document, frozen=True, kw_only=True):
    """The data of one Server-Sent Event."""

    type: str
    task: str
    at: Time
    data: dict[str, str | int | float | bool | None]


class HealthDocument(Document, frozen=True, kw_only=True):
    """The answer of a probe; a failing check is a problem instead."""

    status: str


def time_text(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else time_text(seconds)


def task_document(task: Task, caller: Caller) -> TaskDocument:
    """A task as this caller may see it: the role ``read`` sees no environment values."""
    return TaskDocument(
        id=task.id,
        name=task.name,
        state=task.state,
        reason=task.reason,
        cancelling=task.cancelling,
        origin=task.origin,
        created_at=time_text(task.created_at),
        ended_at=_time(task.ended_at),
        exit_code=task.exit_code,
        spec=msgspec.Raw(task.spec if caller.may("submit") else hidden(task.spec)),
        parent=task.parent,
        attempts=tuple(_attempt_document(attempt) for attempt in task.attempts),
    )


def _attempt_document(attempt: Attempt) -> AttemptDocument:
    return AttemptDocument(
        number=attempt.number,
        node=attempt.node,
        node_name=attempt.node_name,
        driver=attempt.driver,
        state=attempt.state,
        started_at=_time(attempt.started_at),
        ended_at=_time(attempt.ended_at),
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        reason=attempt.reason,
    )


def page_document(page: TaskPage, caller: Caller, limit: int) -> TaskPageDocument:
    """A page; its cursor is the id of its last task."""
    more = page.more or len(page.tasks) >= limit
    return TaskPageDocument(
        tasks=tuple(task_document(task, caller) for task in page.tasks),
        cursor=page.tasks[-1].id if more and page.tasks else None,
        unreachable=page.unreachable,
    )


def ranking_document(ranking: tuple[Ranked, ...]) -> RankingDocument:
    """A ranking."""
    return RankingDocument(
        ranking=tuple(
            RankedDocument(
                node=line.node,
                node_name=line.node_name,
                driver=line.driver,
                score=line.score,
                refusal=line.refusal,
            )
            for line in ranking
        )
    )


def node_document(view: NodeView, now: float) -> NodeDocument:
    """A node. ``now`` is the wall time, for the days that its certificate still has."""
    peer, info, sample = view.peer, view.peer.info, view.peer.sample
    standing = info.state if peer.state is PeerState.ALIVE and info.state != "ready" else peer.state.value
    days = round((info.cert_expires_at - now) / 86_400, 1) if info.cert_expires_at else None
    return NodeDocument(
        id=info.id,
        name=info.name,
        self_=view.is_self,
        state=standing,
        reason=peer.reason,
        since=time_text(peer.since),
        score=view.score,
        address=address_of(view),
        version=info.version,
        arch=info.arch,
        os=info.os,
        cpus=info.cpus,
        memory=info.memory,
        drivers=info.drivers,
        limits=info.limits,
        task_isolation=info.task_isolation,
        labels=info.labels,
        slots=sample.slots if sample else 0,
        slots_used=sample.slots_used if sample else 0,
        cert_days=days,
        rtt_ms=round(peer.rtt_s * 1000, 3),
    )


def address_of(view: NodeView) -> str:
    """Where the node is: what its link uses, else the first address it announces."""
    return view.peer.address or next(iter(view.peer.info.addresses), "127.0.0.1" if view.is_self else "")


def event_document(event: Event) -> EventDocument:
    """An event."""
    return EventDocument(type=event.type, task=event.task, at=time_text(event.at), data=event.data)


def hidden(spec: bytes) -> bytes:
    """A spec with every environment value replaced.

    Works on any JSON object, because a newer node may have accepted fields that this one does not know.
    """
    document = msgspec.json.decode(spec)
    for service in document.get("service", ()):
        if isinstance(service.get("env"), dict):
            service["env"] = dict.fromkeys(service["env"], HIDDEN)
        if isinstance(service.get("options"), list):
            service["options"] = list(_hidden_options(service["options"]))
    return msgspec.json.encode(document)


def _hidden_options(options: list[str]) -> list[str]:
    shown = []
    value_follows = False
    for option in options:
        short = _SHORT_ENV.fullmatch(option)
        if value_follows:
            shown.append(_hidden_value(option))
            value_follows = False
        elif option == "--env" or (short and not short["rest"]):
            shown.append(option)
            value_follows = True
        elif option.startswith("--env="):
            shown.append("--env=" + _hidden_value(option.removeprefix("--env=")))
        elif short:
            start = short.start("rest")
            shown.append(option[:start] + _hidden_value(option[start:]))
        else:
            shown.append(option)
    return shown


def _hidden_value(assignment: str) -> str:
    name, equals, _ = assignment.partition("=")
    return f"{name}={HIDDEN}" if equals else assignment
