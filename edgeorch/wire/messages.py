"""Every message between nodes. A request names its answer; unknown fields are ignored.

The protocol version changes only when a meaning does. New fields get defaults; a new message is answered with
``Unsupported`` by older nodes, and the link stays up.
"""

from typing import Annotated, ClassVar, Literal

import msgspec

from edgeorch.model import (
    AttemptState,
    Caller,
    Event,
    Exit,
    Kept,
    NodeInfo,
    Offer,
    PeerState,
    Port,
    Sample,
    Task,
)
from edgeorch.secret import Secret
from edgeorch.store import AuditFilter, PutAudit, TaskFilter

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1


class Message(Kept, frozen=True):
    """Base of all messages; the class name is the type on the wire."""

    answer: ClassVar[type["Message"] | None] = None
    """The message that answers this request; None for answers and notices."""


class Failure(Message, frozen=True, kw_only=True):
    """A request failed with an expected error; raised again at the caller."""

    slug: str
    detail: str
    hint: str = ""


class Unsupported(Message, frozen=True, kw_only=True):
    """This node does not know the message ``type``."""

    type: str


class Done(Message, frozen=True, kw_only=True):
    """It is done; nothing more to say."""


# Links and membership


class Hello(Message, frozen=True, kw_only=True):
    """First frame each way."""

    info: NodeInfo
    protocol_min: int = PROTOCOL_MIN
    protocol_max: int = PROTOCOL_MAX
    sample: Sample | None = None
    crl_number: int = 0
    time: float = 0.0
    """What time the sender thinks it is, seconds since the epoch; 0 from one that does not say."""
    known: int = 0
    """How many other nodes it has heard of; 0 from one that does not say."""


class Refused(Message, frozen=True, kw_only=True):
    """Why the link is closed at once: wrong fleet, revoked, duplicate id, protocol too old.

    The dialler may send it in place of its Hello, where the dates of the acceptor's certificate are in doubt;
    the acceptor answers in kind, so that both know the other's time.
    """

    reason: str
    word: str = ""
    """The same for programs: ``revoked``, ``expired``, ``clock``, …"""
    time: float = 0.0
    """As in ``Hello``."""


class Digest(Kept, frozen=True, kw_only=True, gc=False):
    """One line of gossip: what the sender believes of a third node."""

    id: str
    state: PeerState
    incarnation: int
    addresses: tuple[str, ...] = ()
    wire_port: Port = 56002
    age_s: float = 0.0
    """How long ago the sender (or whom it heard it from) heard from the node itself."""


class Pong(Message, frozen=True, kw_only=True):
    """Proof of life: the sender's own facts and what it knows of others."""

    info: NodeInfo
    sample: Sample | None = None
    digest: tuple[Digest, ...] = ()
    crl_number: int = 0


class Ping(Message, frozen=True, kw_only=True):
    """Are you there? Carries the same as the answer, so both sides learn."""

    answer: ClassVar = Pong

    info: NodeInfo
    sample: Sample | None = None
    digest: tuple[Digest, ...] = ()
    crl_number: int = 0


class Goodbye(Message, frozen=True, kw_only=True):
    """The sender stops on purpose."""

    answer: ClassVar = Done


class Crl(Message, frozen=True, kw_only=True):
    """The newest revocation list, PEM."""

    pem: bytes


class GetCrl(Message, frozen=True, kw_only=True):
    """Send me your revocation list."""

    answer: ClassVar = Crl


# Dispatch: origin to target


class Offered(Message, frozen=True, kw_only=True):
    """The target's word on an offer, with a fresh sample; release 1 sends it with a refusal only."""

    accepted: bool
    cause: Literal["", "busy", "policy", "driver", "unsupported", "draining", "constraint", "storage"] = ""
    reason: str = ""
    sample: Sample | None = None


class MakeOffer(Message, frozen=True, kw_only=True):
    """Run this attempt. Idempotent by the offer's key."""

    answer: ClassVar = Offered

    offer: Offer
    secrets: dict[str, Secret] = msgspec.field(default_factory=dict)
    """Beside the offer, which the target keeps on its disk."""


class StopAttempt(Message, frozen=True, kw_only=True):
    """End an attempt; its report says how it ended. An unknown key is fine: it has ended."""

    answer: ClassVar = Done

    key: str
    cause: Literal["cancelled", "timed_out", "superseded"] = "cancelled"


class RunState(Kept, frozen=True, kw_only=True):
    """What a target knows of one attempt. Ages count back from now, so that clocks need not agree."""

    key: str
    state: AttemptState
    driver: str = ""
    sequence: int = 0
    started_age_s: float | None = None
    ended_age_s: float | None = None
    exit: Exit | None = None
    progress: str = ""
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""


class Runs(Message, frozen=True, kw_only=True):
    """The runs of the asked tasks that this node knows."""

    runs: tuple[RunState, ...]


class FindRuns(Message, frozen=True, kw_only=True):
    """Which attempts of these tasks do you know? Asked by an origin before it offers them again."""

    answer: ClassVar = Runs

    task_ids: tuple[str, ...]


# Dispatch: target to origin


class ReportTaken(Message, frozen=True, kw_only=True):
    """The report is on the origin's disk. ``known=False``: the origin has no such attempt, drop it."""

    sequence: int
    known: bool = True


class Report(Message, frozen=True, kw_only=True):
    """Something changed for an attempt; numbered and idempotent."""

    answer: ClassVar = ReportTaken

    run: RunState


class Renewed(Message, frozen=True, kw_only=True):
    """Keys whose lease goes on; every other asked key must be stopped."""

    keys: tuple[str, ...]


class Renew(Message, frozen=True, kw_only=True):
    """The sender still runs these attempts of yours."""

    answer: ClassVar = Renewed

    keys: tuple[str, ...]


# Any node for any other, on behalf of a caller


class TaskFound(Message, frozen=True, kw_only=True):
    """A task, or None where its origin does not know it."""

    task: Task | None


class GetTask(Message, frozen=True, kw_only=True):
    """A task of yours."""

    answer: ClassVar = TaskFound

    caller: Caller
    task_id: str


class WaitTask(Message, frozen=True, kw_only=True):
    """A task of yours, once it has ended or the request's deadline is near."""

    answer: ClassVar = TaskFound

    caller: Caller
    task_id: str
    wait_s: Annotated[float, msgspec.Meta(ge=0)]


class TasksFound(Message, frozen=True, kw_only=True):
    """Tasks, newest first; ``more`` where older ones did not fit into a frame."""

    tasks: tuple[Task, ...]
    more: bool = False


class ListTasks(Message, frozen=True, kw_only=True):
    """Your tasks."""

    answer: ClassVar = TasksFound

    caller: Caller
    which: TaskFilter


class CancelTask(Message, frozen=True, kw_only=True):
    """Cancel a task of yours."""

    answer: ClassVar = TaskFound

    caller: Caller
    task_id: str


class AuditFound(Message, frozen=True, kw_only=True):
    """Audit records, newest first; ``more`` where older ones did not fit into a frame."""

    records: tuple[PutAudit, ...]
    more: bool = False


class ListAudit(Message, frozen=True, kw_only=True):
    """Who did what at you?"""

    answer: ClassVar = AuditFound

    caller: Caller
    which: AuditFilter


class NodeStatus(Message, frozen=True, kw_only=True):
    """A node's own facts, fresh."""

    info: NodeInfo
    sample: Sample | None = None


class ChangeNode(Message, frozen=True, kw_only=True):
    """Drain, cordon or resume yourself."""

    answer: ClassVar = NodeStatus

    caller: Caller
    action: Literal["drain", "cordon", "resume"]


class ForgetNode(Message, frozen=True, kw_only=True):
    """Drop a dead or left node from your table."""

    answer: ClassVar = Done

    caller: Caller
    node_id: str


# Streams: one request on a connection of its own, answered by chunks


class Chunk(Message, frozen=True, kw_only=True):
    """A piece of output. ``offset`` is the position of its first byte in the stream as kept."""

    stream: Literal["stdout", "stderr"]
    offset: int
    data: bytes
    attempt: int = 0
    label: str = ""
    """Node name, where the output of several nodes is mixed."""
    tail: bool = False
    """Of the last part that the origin kept: the node where the task ran does not answer."""


class OutputEnd(Message, frozen=True, kw_only=True):
    """Nothing more comes, and why: ``ended``, ``tail-only``, ``not-following``."""

    why: str


class FollowOutput(Message, frozen=True, kw_only=True):
    """Stream the output of an attempt that runs or ran at you. Attempt None: the newest."""

    caller: Caller
    task_id: str
    attempt: int | None = None
    streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
    offset: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    tail: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] | None = None
    """Only the last N lines."""
    follow: bool = False


class Happened(Message, frozen=True, kw_only=True):
    """One event."""

    event: Event


class FollowEvents(Message, frozen=True, kw_only=True):
    """Stream the events of one of your tasks (None: of all), after this number."""

    caller: Caller
    task_id: str | None = None
    after: int = 0


REQUESTS: tuple[type[Message], ...] = tuple(kind for kind in Message.__subclasses__() if kind.answer)
STREAMS: tuple[type[Message], ...] = (FollowOutput, FollowEvents)
TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__subclasses__()}
