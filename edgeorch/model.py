"""The data that the parts exchange: frozen, without I/O.

What a person writes (``TaskSpec`` and what it holds) refuses unknown fields. What nodes exchange and store
(everything else) ignores them, so that release N reads what N+1 wrote.
"""

import enum
import random
from typing import Annotated, Literal, TypeAlias

import msgspec

from edgeorch import secret
from edgeorch.seams import Tick

CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
NODE_ID_LENGTH = 10
_PAIRS = [high + low for high in CROCKFORD for low in CROCKFORD]
"""Two letters for ten bits at a time: an id is made for each task and each record of the audit trail."""

Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=65536)]
ShortText: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
# A $ alone would let a line feed follow.
SecretName: TypeAlias = Annotated[str, msgspec.Meta(pattern=rf"^{secret.NAME.pattern}$(?!\n)")]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=3.2e9)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Moment: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799.0)]
"""Seconds since the epoch, up to the year 9999: a peer's words end up in calendars."""

DEADLINE_S = 604_800.0
"""Of a task that names none."""

Role: TypeAlias = Literal["none", "read", "submit", "admin"]
ROLES: tuple[Role, ...] = ("none", "read", "submit", "admin")


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a person writes: a typo is an error."""


class Kept(msgspec.Struct, frozen=True):
    """Base of what nodes exchange and store: unknown fields are ignored."""


# What to run


class ContainerService(Written, frozen=True, kw_only=True, tag_field="driver", tag="container"):
    """A container: the image, ``docker run`` options before it and the arguments after it."""

    image: ShortText
    options: tuple[Text, ...] = ()
    args: tuple[Text, ...] = ()


class NativeService(Written, frozen=True, kw_only=True, tag_field="driver", tag="native"):
    """A program of the node, started without a shell."""

    argv: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    env: dict[ShortText, Text] = {}


Service: TypeAlias = ContainerService | NativeService


class ContainerFacts(Kept, frozen=True, kw_only=True):
    """What a container wants from its host, for ``policy``; empty where it wants nothing.

    Options are kept as the user would recognise them (``--cap-add NET_ADMIN``, ``--pid host``).
    """

    binds: tuple[str, ...] = ()
    """Host paths that it mounts: ``-v``, ``--mount type=bind``, local volumes made from a host folder."""
    volumes: tuple[str, ...] = ()
    """Volumes of the Engine that it mounts by name."""
    networks: tuple[str, ...] = ()
    """Networks of the Engine that it joins, but for those that every Engine has."""
    privileged: bool = False
    namespaces: tuple[str, ...] = ()
    """Options that share a namespace of the host or of another container."""
    capabilities: tuple[str, ...] = ()
    """Capabilities that it adds."""
    devices: tuple[str, ...] = ()
    """Devices of the host and device cgroup rules."""
    security_opts: tuple[str, ...] = ()
    """Security options that weaken the default (``seccomp=unconfined``)."""
    other: tuple[str, ...] = ()
    """Other options that reach beyond the container: ``--volumes-from``, ``--cgroup-parent``, …"""
    cpus: float = 0.0
    """CPUs that its options let it use; 0: they say nothing, infinite: they lift any limit."""
    memory: int = 0
    memory_swap: float = 0.0
    """The same of bytes of memory, and of memory and swap together."""
    option_files: tuple[str, ...] = ()
    """Files of the node that its options read: ``--env-file``, ``--label-file``, a seccomp profile."""


class Placement(Written, frozen=True, kw_only=True):
    """Where a task may run. ``self_`` (``self`` in JSON): may the accepting node itself be chosen."""

    constraints: tuple[Text, ...] = ()
    prefer: tuple[tuple[Text, Annotated[int, msgspec.Meta(ge=-100, le=100)]], ...] = ()
    mode: Literal["best", "spread", "all"] = "best"
    count: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    self_: bool = msgspec.field(default=True, name="self")
    node: ShortText | None = None


class Resources(Written, frozen=True, kw_only=True):
    """What the service needs: CPUs (may be a fraction) and memory in bytes."""

    cpus: Annotated[float, msgspec.Meta(ge=0, le=4096)] = 0.0
    memory: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0


class Cap(Kept, frozen=True, kw_only=True):
    """What a policy gives a task that leaves it open; 0 and None: without a limit."""

    resources: Resources = Resources()
    timeout_s: float | None = None


RetryReason: TypeAlias = Literal["node_lost", "rejected", "failed", "oom", "timed_out", "image_unavailable"]


class Retry(Written, frozen=True, kw_only=True):
    """When a task is tried again. ``max_attempts=1`` makes it run at most once."""

    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    on: tuple[RetryReason, ...] = ("node_lost", "rejected")
    backoff_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 1.0


_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_WRITE_ONLY = msgspec.Meta(extra_json_schema={"writeOnly": True})


class SecretBytes(Written, frozen=True, kw_only=True):
    """The content of a secret's file where it is no text."""

    base64: Annotated[bytes, msgspec.Meta(extra_json_schema={"writeOnly": True, "pattern": _BASE64})]


SecretValue: TypeAlias = Annotated[str, _WRITE_ONLY] | SecretBytes | None
"""Given as text or bytes; None once the node has taken it, which is all that anybody is shown."""


class TaskSpec(Written, frozen=True, kw_only=True):
    """One request to run a service, as accepted by ``POST /api/v1/tasks``."""

    name: ShortText
    service: Annotated[tuple[Service, ...], msgspec.Meta(min_length=1, max_length=16)]
    placement: Placement = Placement()
    resources: Resources = Resources()
    timeout_s: Seconds | None = None
    deadline_s: Seconds = DEADLINE_S
    priority: Annotated[int, msgspec.Meta(ge=0, le=100)] = 50
    retry: Retry = Retry()
    on_disconnect: Literal["stop", "keep"] = "stop"
    callback_url: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    metadata: dict[ShortText, Text] = {}
    secrets: Annotated[dict[SecretName, SecretValue], msgspec.Meta(max_length=secret.MAX_COUNT)] = {}
    """Files in memory for the service; see ``dispatch.requests.Submission``."""


# Tasks and attempts


class TaskState(enum.StrEnum):
    """States of a task; the machine is in ``lifecycle``."""

    WAITING = "waiting"
    PLACING = "placing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self not in (TaskState.WAITING, TaskState.PLACING, TaskState.RUNNING)


class AttemptState(enum.StrEnum):
    """States of an attempt; the machine is in ``lifecycle``."""

    OFFERED = "offered"
    REFUSED = "refused"
    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    SUPERSEDED = "superseded"

    @property
    def terminal(self) -> bool:
        """Whether nothing changes any more."""
        return self not in (AttemptState.OFFERED, AttemptState.PREPARING, AttemptState.RUNNING)


class Attempt(Kept, frozen=True, kw_only=True):
    """One try of a task on one node, as its origin knows it. Times are seconds since the epoch."""

    number: int
    node: str
    node_name: str
    state: AttemptState
    driver: str = ""
    offered_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    cause: str = ""
    """Short word for retry rules: ``failed``, ``oom``, ``timed_out``, ``image_unavailable``, …"""
    silent: bool = False
    """It has certainly printed nothing; no folder of it may be left."""


class Caller(Kept, frozen=True, kw_only=True):
    """Who asks: the token's name and role, and the node that checked it (``via``, empty for this one)."""

    token: str
    role: Role
    via: str = ""
    loopback: bool = False
    address: str = ""
    """Where the request came from, as the node saw it that checked the token."""

    def may(self, role: Role) -> bool:
        """Whether this caller's role is at least ``role``."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Task(Kept, frozen=True, kw_only=True):
    """One accepted request, as its origin keeps it. ``spec`` is the accepted JSON, byte for byte."""

    id: str
    name: str
    state: TaskState
    origin: str
    caller: Caller
    created_at: Moment
    spec: bytes
    reason: str = ""
    ended_at: Moment | None = None
    exit_code: int | None = None
    parent: str | None = None
    priority: int = 50
    cancelling: bool = False
    attempts: tuple[Attempt, ...] = ()
    requires: tuple[str, ...] = ()
    service_id: int | None = None
    """The original API's ServiceID, where the task came in by that route."""
    created_tick: Tick | None = None
    stdout_tail: bytes = b""
    stderr_tail: bytes = b""

    @property
    def current(self) -> Attempt | None:
        """The newest attempt, or None."""
        return self.attempts[-1] if self.attempts else None


class Exit(Kept, frozen=True, kw_only=True):
    """How an attempt ended. ``cause`` is empty for exit code 0, else a word of ``Attempt.cause``.

    ``silent``: it has certainly printed nothing, so that nobody has to look.
    """

    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    reason: str = ""
    silent: bool = False


class Offer(Kept, frozen=True, kw_only=True):
    """The request of an origin to a target to run one attempt."""

    task_id: str
    number: int
    origin: str
    name: str
    spec: bytes
    caller: Caller
    origin_name: str = ""
    requires: tuple[str, ...] = ()
    lease_s: Seconds | None = None
    """The target ends the attempt when it has not heard from the origin for this long; None: never."""
    timeout_s: Seconds | None = None
    cap: Resources = Resources()
    """Limits, by policy, of what the spec leaves open; 0: none."""

    @property
    def key(self) -> str:
        """``TASKID.NUMBER``: safe in paths, labels and URLs."""
        return f"{self.task_id}.{self.number}"


class Handle(Kept, frozen=True, kw_only=True):
    """What a driver needs to find its running service again after a restart of the daemon."""

    driver: str
    ref: str
    """Container id, or the attempt's key at the runner."""
    stdout: str
    stderr: str
    """Absolute paths of the capped output files."""


class Run(Kept, frozen=True, kw_only=True):
    """One attempt as its target keeps it, until the origin has acknowledged its end."""

    offer: Offer
    state: AttemptState
    driver: str = ""
    handle: Handle | None = None
    accepted_at: float
    started_at: float | None = None
    started_tick: Tick | None = None
    ended_at: float | None = None
    exit: Exit | None = None
    sequence: int = 0
    """Number of the newest report; the origin ignores what is not newer."""
    acked: int = 0
    """Number of the newest report that the origin has on its disk."""


class Event(Kept, frozen=True, kw_only=True):
    """One thing that happened to a task at its origin. ``seq`` only grows, per node and store."""

    seq: int = 0
    task: str
    at: Moment
    type: str
    """``state``, ``attempt``, ``progress``."""
    data: dict[str, str | int | float | bool | None]


# Nodes


class NodeInfo(Kept, frozen=True, kw_only=True):
    """What a node says of itself; changes seldom. Memory in bytes."""

    id: str
    name: str
    fleet: str
    version: str
    features: tuple[str, ...] = ()
    arch: str = ""
    os: str = ""
    cpus: int = 1
    memory: int = 0
    drivers: dict[str, str] = {}
    """Driver name to the version of what is behind it; only drivers that work now."""
    limits: tuple[str, ...] = ()
    """What limits native services, by what: ``cgroup:memory``, ``rlimit:processes`` and the like."""
    task_isolation: str = ""
    """What keeps native services apart: ``landlock`` or ``none``; empty without them."""
    labels: dict[str, str] = {}
    addresses: tuple[str, ...] = ()
    api_port: Port = 56001
    wire_port: Port = 56002
    weight: float = 1.0
    store_id: str = ""
    boot: int = 0
    incarnation: int = 0
    state: Literal["ready", "cordoned", "draining"] = "ready"
    cert_expires_at: Moment = 0.0


class Sample(Kept, frozen=True, kw_only=True):
    """What a node measures of itself every 2 s. Fractions are 0..1, memory and disk in bytes."""

    at: float
    cpu_busy: float
    cpu_mhz: float
    cpus: int
    load1: float
    memory_total: int
    memory_available: int
    disk_free: int
    temperature_c: float | None = None
    slots: int
    slots_used: int
    cpus_promised: float = 0.0
    cpus_wanted: float = -1.0
    """CPUs that what runs here uses now (``scoring.cpus_wanted``); less than 0: it does not say."""
    memory_promised: int = 0
    queued: int = 0
    bandwidth_mbps: float = 0.0
    """Link speed of the fastest used interface, for the original formula."""


class PeerState(enum.StrEnum):
    """What membership believes of a node."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Peer(Kept, frozen=True, kw_only=True):
    """One node of the fleet as this node sees it. Ages and round trips in seconds."""

    info: NodeInfo
    state: PeerState
    since: float
    """Wall time of the last change of ``state``."""
    sample: Sample | None = None
    sample_at: float = 0.0
    """This node's monotonic clock when the sample arrived."""
    rtt_s: float = 0.0
    address: str = ""
    """The address that the newest link uses."""
    reason: str = ""


class Score(Kept, frozen=True, kw_only=True):
    """How well a node suits a spec; higher is better, 0 means not at all. ``reasons`` are for people."""

    value: float
    reasons: tuple[str, ...] = ()


class Ranked(Kept, frozen=True, kw_only=True):
    """One line of a ranking: ``refusal`` says why the node cannot be chosen, empty where it can."""

    node: str
    node_name: str
    driver: str = ""
    score: Score
    refusal: str = ""


def new_node_id(rng: random.Random) -> str:
    """Ten random base32 characters: 50 bits, made once per node."""
    return "".join(rng.choices(CROCKFORD, k=NODE_ID_LENGTH))


def ulid(wall: float, bits: int, node_id: str) -> str:
    """``ULID-NODEID`` with 80 bits that tell it from others of the same millisecond."""
    return ulid_of((int(wall * 1000) & ((1 << 48) - 1)) << 80 | bits & ((1 << 80) - 1), node_id)


def ulid_of(number: int, node_id: str) -> str:
    """``ULID-NODEID`` of a number: milliseconds since the epoch, then 80 bits.

    In lower case (ULID: github.com/ulid/spec): it sorts by time and names its origin.
    """
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)]) + f"-{node_id}"


def number_of(name: str) -> int:
    """The number in a ``ULID-NODEID``."""
    number = 0
    for letter in name.partition("-")[0]:
        number = number << 5 | CROCKFORD.index(letter)
    return number


def origin_of(task_id: str) -> str:
    """The node id inside a task id.

    Raises:
        ValueError: the text is not a task id.
    """
    ulid, dash, node_id = task_id.partition("-")
    letters = set(ulid + node_id)
    if not dash or len(ulid) != 26 or len(node_id) != NODE_ID_LENGTH or not letters <= set(CROCKFORD):
        raise ValueError(f"{task_id!r} is not a task id")
    return node_id


def attempt_of(key: str) -> tuple[str, int]:
    """Task id and number in an attempt's key (``Offer.key``); number -1 where there is none."""
    task_id, _, text = key.rpartition(".")
    # More digits are a peer's joke; int() takes digits of other scripts, and raises at superscripts.
    return task_id, int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
