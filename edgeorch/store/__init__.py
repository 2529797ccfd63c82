"""What a node must not forget: two protocols and the changes that they take.

``TaskStore`` is the origin's memory (tasks, sealed secrets, idempotency keys, events, callbacks, audit).
``AttemptStore`` is the target's (what runs here, reports not yet acknowledged) and is always local. Both take
a list of changes as one transaction; when ``commit`` returns, the changes survive power loss.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, TypeAlias

import msgspec

from edgeorch.model import Event, Kept, Moment, Run, Task, TaskState
from edgeorch.seams import Tick


class PutTask(Kept, frozen=True, kw_only=True):
    """Insert or replace a task."""

    task: Task


class DropTask(Kept, frozen=True, kw_only=True):
    """Forget an ended task, with its events and secrets."""

    task_id: str


class PutEvent(Kept, frozen=True, kw_only=True):
    """Append an event; the store assigns ``seq`` and passes the numbered event to its subscribers."""

    event: Event


class PutKey(Kept, frozen=True, kw_only=True):
    """Remember an Idempotency-Key. ``scope`` is the token's name, ``body`` the SHA-256 of the body."""

    scope: str
    key: str
    body: bytes
    task_ids: tuple[str, ...]
    expires_at: float
    expires_tick: Tick | None = None
    """Decides within that boot of the machine, whatever the wall clock says."""


class Callback(Kept, frozen=True, kw_only=True):
    """One status callback that waits to be delivered."""

    id: str
    task_id: str
    number: int
    """Grows with each callback of a task: the order in which they are delivered."""
    url: str
    loopback: bool = False
    """Whether the task came over loopback: only then may the callback go there."""
    body: bytes
    created_at: float
    created_tick: Tick | None = None


class PutCallback(Kept, frozen=True, kw_only=True):
    """Add a callback to the outbox."""

    callback: Callback


class DropCallback(Kept, frozen=True, kw_only=True):
    """A callback was delivered or given up."""

    id: str


class PutAudit(Kept, frozen=True, kw_only=True):
    """Remember who did what. ``id`` is ``ULID-NODEID``: it sorts by time and names the node of the record."""

    id: str = ""
    at: Moment
    token: str
    role: str = ""
    address: str = ""
    via: str = ""
    action: str
    subject: str
    detail: str = ""
    count: int = 1


class PutMark(Kept, frozen=True, kw_only=True):
    """No number up to this one is given out again under a name; a lower mark changes nothing."""

    name: str
    number: int


class PutSecrets(Kept, frozen=True, kw_only=True):
    """Keep the secrets of a task or of a parent for all its children, sealed."""

    task_id: str
    sealed: bytes


class DropSecrets(Kept, frozen=True, kw_only=True):
    """The task has ended: nobody needs its secrets any more."""

    task_id: str


class PutRun(Kept, frozen=True, kw_only=True):
    """Insert or replace what this node runs for an origin."""

    run: Run


class DropRun(Kept, frozen=True, kw_only=True):
    """The origin has acknowledged the end, and it is this node itself: forget the run."""

    key: str


class EndRun(Kept, frozen=True, kw_only=True):
    """Another node has acknowledged the end: of the run only how it ended is kept.

    A node that is restored from a backup asks for it, so that nothing is run again.
    """

    run: Run


class Again(Kept, frozen=True, kw_only=True):
    """To be appended unless it was by an earlier commit, whose caller was cancelled before it was told."""

    change: PutEvent | PutAudit


TaskChange: TypeAlias = (
    PutTask
    | DropTask
    | PutEvent
    | PutKey
    | PutMark
    | PutCallback
    | DropCallback
    | PutAudit
    | PutSecrets
    | DropSecrets
    | Again
)
AttemptChange: TypeAlias = PutRun | DropRun | EndRun


class TaskFilter(Kept, frozen=True, kw_only=True):
    """Which tasks to list, newest first. ``before`` is a task id: only older ones."""

    states: tuple[TaskState, ...] = ()
    name: str | None = None
    node: str | None = None
    """Node id: tasks whose newest attempt is there."""
    parent: str | None = None
    owner: str | None = None
    """Token name."""
    before: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 100


class AuditFilter(Kept, frozen=True, kw_only=True):
    """Which audit records to list, newest first. ``before`` is a record's id: only older ones."""

    since: float = 0.0
    before: str | None = None
    limit: int = 100


class TaskStore(Protocol):
    """The origin's memory.

    Every method raises ``StorageError`` when the disk is full, read-only or failing; nothing of a failed
    ``commit`` is kept. Reads see every commit that has returned.
    """

    @property
    def marks(self) -> Mapping[str, int]:
        """The highest ``PutMark`` of each name when the store was opened."""
        ...

    async def commit(self, changes: Sequence[TaskChange]) -> None:
        """Apply all or nothing, durably. Events are numbered in the order of the calls."""
        ...

    async def task(self, task_id: str) -> Task | None:
        """One task."""
        ...

    async def tasks(self, which: TaskFilter) -> list[Task]:
        """Tasks, newest id first."""
        ...

    async def open_tasks(self) -> list[Task]:
        """Every task that has not ended, oldest first: what a start has to take up again."""
        ...

    async def children(self, parent: str) -> list[Task]:
        """The tasks of a parent, oldest first."""
        ...

    async def key(self, scope: str, key: str, now: float, tick: Tick | None = None) -> PutKey | None:
        """A remembered Idempotency-Key that has not expired."""
        ...

    async def events(self, task_id: str | None, after: int, limit: int) -> list[Event]:
        """Events with ``seq > after``, oldest first, of one task or all."""
        ...

    async def callbacks(self) -> list[Callback]:
        """The outbox in the order in which it was filled, whatever the clock said then."""
        ...

    async def audit(self, which: AuditFilter) -> list[PutAudit]:
        """Audit records, newest id first; those without one, of an older release, wait for ``name_audit``."""
        ...

    async def name_audit(self, node_id: str) -> int:
        """Give an id to this node's records of a release that gave none; how many."""
        ...

    async def prune_audit(self, older_s: float, max_bytes: int) -> None:
        """Forget audit records that are older, and the oldest of more than so many bytes."""
        ...

    async def secrets(self, task_id: str) -> bytes | None:
        """The sealed secrets of a task that has not ended."""
        ...

    async def sealed(self) -> list[PutSecrets]:
        """All of them."""
        ...

    async def prune(self, older_s: float) -> list[str]:
        """Forget tasks and acknowledged runs that ended longer ago, and expired keys.

        The store counts by a clock of its own (``store.clock``), whatever the wall clock does meanwhile.
        Returns the forgotten task ids.
        """
        ...


class AttemptStore(Protocol):
    """The target's memory; the rules of ``TaskStore`` hold."""

    @property
    def store_id(self) -> str:
        """Random id of this database: made with it, gone with it."""
        ...

    @property
    def boot(self) -> int:
        """How often this database has been opened, this time included."""
        ...

    async def commit_runs(self, changes: Sequence[AttemptChange]) -> None:
        """Apply all or nothing, durably."""
        ...

    async def run(self, key: str) -> Run | None:
        """One run by its key."""
        ...

    async def runs(self) -> list[Run]:
        """Everything that is not yet acknowledged by its origin, in the order in which it came."""
        ...

    async def ended_runs(self, task_ids: Sequence[str]) -> list[Run]:
        """How acknowledged runs of these tasks had ended, by key; without spec and handle."""
        ...

    async def fresh(self, keys: Sequence[str], older_s: float) -> set[str]:
        """Those of these attempts that ``prune`` would not forget, nor has forgotten."""
        ...


class LocalStore(TaskStore, AttemptStore, Protocol):
    """One database that holds both, so that one transaction can span them (origin is target)."""

    async def commit_both(self, tasks: Sequence[TaskChange], runs: Sequence[AttemptChange]) -> None:
        """Apply all of both or nothing, durably; see ``commit``."""
        ...
