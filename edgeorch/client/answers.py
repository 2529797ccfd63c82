"""What a node answers, as typed data. Unknown fields are ignored: a client may be older than its fleet.

Times are aware datetimes, durations seconds, memory bytes.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

ENDED = frozenset({"succeeded", "failed", "cancelled", "timed_out", "lost"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything below."""


class Attempt(Answer, frozen=True, kw_only=True):
    """One try of a task on one node."""

    number: int
    node: str
    node_name: str = ""
    driver: str = ""
    state: str
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""


class Task(Answer, frozen=True, kw_only=True):
    """One accepted request; ``spec`` is the accepted JSON."""

    id: str
    name: str
    state: str
    reason: str = ""
    origin: str = ""
    created_at: datetime
    ended_at: datetime | None = None
    exit_code: int | None = None
    spec: dict[str, Any] = {}
    parent: str | None = None
    cancelling: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        """Whether it ended well."""
        return self.state == "succeeded"

    @property
    def current(self) -> Attempt | None:
        """The newest attempt, or None."""
        return self.attempts[-1] if self.attempts else None

    @property
    def mode(self) -> str:
        """``best``, or ``spread`` and ``all``, where this is a parent of one task per node."""
        return str(self.spec.get("placement", {}).get("mode", "best"))


class TaskPage(Answer, frozen=True, kw_only=True):
    """Some tasks, newest first; ``unreachable`` names the nodes whose tasks are missing."""

    tasks: tuple[Task, ...] = ()
    cursor: str | None = None
    unreachable: tuple[str, ...] = ()


class Score(Answer, frozen=True, kw_only=True):
    """How well a node suits; higher is better, 0 not at all."""

    value: float = 0.0
    reasons: tuple[str, ...] = ()


class Node(Answer, frozen=True, kw_only=True):
    """One node of the fleet, as the asked node sees it, with the score that an empty spec would get there."""

    id: str
    name: str
    state: str
    """``alive``, ``cordoned``, ``draining``, ``suspect``, ``dead`` or ``left``."""
    reason: str = ""
    since: datetime | None = None
    score: Score = Score()
    address: str = ""
    version: str = ""
    arch: str = ""
    os: str = ""
    cpus: int = 0
    memory: int = 0
    drivers: dict[str, str] = {}
    limits: tuple[str, ...] = ()
    task_isolation: str = ""
    labels: dict[str, str] = {}
    slots: int = 0
    slots_used: int = 0
    cert_days: float | None = None
    rtt_ms: float = 0.0
    is_self: bool = msgspec.field(default=False, name="self")


class AuditRecord(Answer, frozen=True, kw_only=True):
    """Something that was asked of a node; ``count`` refused logins are one."""

    id: str
    at: datetime
    node: str
    node_name: str = ""
    action: str
    subject: str = ""
    detail: str = ""
    count: int = 1
    token: str = ""
    role: str = ""
    address: str = ""
    via: str = ""
    via_name: str = ""


class AuditPage(Answer, frozen=True, kw_only=True):
    """Records, newest first; ``cursor`` leads to the next page, ``unreachable`` nodes are missing."""

    records: tuple[AuditRecord, ...]
    cursor: str | None = None
    unreachable: tuple[str, ...] = ()


class Ranked(Answer, frozen=True, kw_only=True):
    """One line of a ranking; ``refusal`` says why the node cannot be chosen, empty where it can."""

    node: str
    node_name: str = ""
    driver: str = ""
    score: Score = Score()
    refusal: str = ""


class Output(Answer, frozen=True, kw_only=True):
    """A piece of what a service printed; ``offset`` counts the bytes of its stream before it."""

    stream: Literal["stdout", "stderr"]
    offset: int
    data: bytes
    label: str = ""
    """Node name, where the output of several nodes is mixed."""
    attempt: int | None = None


class Event(Answer, frozen=True, kw_only=True):
    """One thing that happened to a task; ``id`` resumes a broken stream of events."""

    id: str
    type: str
    task: str = ""
    at: datetime | None = None
    data: dict[str, Any] = {}
