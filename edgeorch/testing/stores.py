"""The store's twins for tests: one in memory, without threads, and one that fails on demand."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from edgeorch.errors import StorageError
from edgeorch.model import Event, Run, Task, attempt_of, ulid
from edgeorch.seams import Seams, Tick
from edgeorch.store import (
    Again,
    AttemptChange,
    AuditFilter,
    Callback,
    DropCallback,
    DropRun,
    DropSecrets,
    DropTask,
    EndRun,
    LocalStore,
    PutAudit,
    PutCallback,
    PutEvent,
    PutKey,
    PutMark,
    PutRun,
    PutSecrets,
    PutTask,
    TaskChange,
    TaskFilter,
)
from edgeorch.store.clock import StoreClock, noted
from edgeorch.store.rows import bare_end

T = TypeVar("T")


class MemoryStore:
    """A ``LocalStore`` in memory: the rules of ``SqliteStore``, and every call is one Trio checkpoint.

    Nothing waits on a thread, so it may be used with Trio's MockClock.
    """

    def __init__(self, seams: Seams | None = None, *, store_id: str = "memory", boot: int = 1) -> None:
        self._seams = seams or Seams()
        self.store_id = store_id
        self.boot = boot
        self.set_aside: Path | None = None
        self._seq = 0
        self._tasks: dict[str, Task] = {}
        self._events: list[Event] = []
        self._keys: dict[tuple[str, str], PutKey] = {}
        self._callbacks: dict[str, Callback] = {}
        self._audit: list[PutAudit] = []
        self._runs: dict[str, Run] = {}
        self._secrets: dict[str, PutSecrets] = {}
        self._ended_runs: dict[tuple[str, int], Run] = {}
        self._marks: dict[str, int] = {}
        self.marks: Mapping[str, int] = {}
        self.clock = StoreClock(self._seams, None)
        self._ends: dict[str, float] = {}
        self._run_ends: dict[tuple[str, int], float] = {}
        self._noted: list[float] = []
        """By the store's clock: when tasks and acknowledged runs had ended, when audit records came."""

    def reopened(self) -> "MemoryStore":
        """The store as the next start of the node finds it; later changes to one do not show in the other."""
        twin = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, dict | list):
                setattr(twin, name, copy(value))
        twin.boot += 1
        twin.marks = dict(self._marks)
        twin.clock = StoreClock(self._seams, noted(self.clock.note(), None, self._seams.wall()))
        return twin

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take the place of ``SqliteStore.serve``: nothing to open, nothing to close."""
        task_status.started()
        await trio.sleep_forever()

    async def commit(self, changes: Sequence[TaskChange]) -> None:
        """See ``TaskStore``."""
        await self.commit_both(changes, ())

    async def commit_runs(self, changes: Sequence[AttemptChange]) -> None:
        """See ``AttemptStore``."""
        await self.commit_both((), changes)

    async def commit_both(self, tasks: Sequence[TaskChange], runs: Sequence[AttemptChange]) -> None:
        """See ``LocalStore``."""
        changes = [*tasks, *runs]
        msgspec.msgpack.encode(changes)  # what cannot be stored fails here, before anything is applied
        await trio.lowlevel.checkpoint()
        for change in changes:
            if not isinstance(change, Again):
                self._apply(change)
            elif not self._has(change.change):
                self._apply(change.change)

    def _has(self, change: PutEvent | PutAudit) -> bool:
        if isinstance(change, PutAudit):
            return change.id in {one.id for one in self._audit}
        return change.event in [msgspec.structs.replace(one, seq=0) for one in self._events]

    def _apply(self, change: TaskChange | AttemptChange) -> None:  # noqa: C901  one case per change
        match change:
            case PutTask(task=task):
                self._tasks[task.id] = task
                if task.ended_at is not None:
                    self._ends.setdefault(task.id, self.clock.now())
            case DropTask(task_id=task_id):
                self._tasks.pop(task_id, None)
                self._ends.pop(task_id, None)
                self._secrets.pop(task_id, None)
                self._events = [event for event in self._events if event.task != task_id]
            case PutEvent(event=event):
                self._seq += 1
                self._events.append(msgspec.structs.replace(event, seq=self._seq))
            case PutKey():
                self._keys[change.scope, change.key] = change
            case PutMark(name=name, number=number):
                self._marks[name] = max(number, self._marks.get(name, 0))
            case PutCallback(callback=callback):
                self._callbacks[callback.id] = callback
            case PutAudit():
                self._audit.append(change)
                self._noted.append(self.clock.now())
            case PutSecrets(task_id=task_id):
                self._secrets[task_id] = change
            case PutRun(run=run):
                self._runs[run.offer.key] = run
            case DropRun(key=name) | DropCallback(id=name) | DropSecrets(task_id=name):
                kept: dict[type, dict[str, Any]] = {
                    DropRun: self._runs,
                    DropCallback: self._callbacks,
                    DropSecrets: self._secrets,
                }
                kept[type(change)].pop(name, None)
            case EndRun(run=run):
                self._runs.pop(run.offer.key, None)
                key = (run.offer.task_id, run.offer.number)
                self._ended_runs[key], self._run_ends[key] = bare_end(run), self.clock.now()

    async def task(self, task_id: str) -> Task | None:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        return self._tasks.get(task_id)

    async def tasks(self, which: TaskFilter) -> list[Task]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        found = [self._tasks[task_id] for task_id in sorted(self._tasks, reverse=True)]
        return [task for task in found if _matches(task, which)][: max(which.limit, 0)]

    async def open_tasks(self) -> list[Task]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        return [task for _, task in sorted(self._tasks.items()) if not task.state.terminal]

    async def children(self, parent: str) -> list[Task]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        return [task for _, task in sorted(self._tasks.items()) if task.parent == parent]

    async def key(self, scope: str, key: str, now: float, tick: Tick | None = None) -> PutKey | None:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        found = self._keys.get((scope, key))
        return found if found and not _expired(found, now, tick) else None

    async def events(self, task_id: str | None, after: int, limit: int) -> list[Event]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        found = [e for e in self._events if e.seq > after and (task_id is None or e.task == task_id)]
        return found[: max(limit, 0)]

    async def callbacks(self) -> list[Callback]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        return list(self._callbacks.values())

    async def audit(self, which: AuditFilter) -> list[PutAudit]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        found = sorted((one for one in reversed(self._audit) if one.id), key=lambda one: one.id, reverse=True)
        found = [
            one for one in found if one.at >= which.since and not (which.before and one.id >= which.before)
        ]
        return found[: max(which.limit, 0)]

    async def name_audit(self, node_id: str) -> int:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        nameless = [index for index, record in enumerate(self._audit) if not record.id]
        for index in nameless:
            record = self._audit[index]
            named = ulid(record.at, index + 1, node_id)
            self._audit[index] = msgspec.structs.replace(record, id=named)
        return len(nameless)

    async def prune_audit(self, older_s: float, max_bytes: int) -> None:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        kept = size = 0
        for record, noted_at in zip(reversed(self._audit), reversed(self._noted), strict=True):
            size += len(msgspec.msgpack.encode(record))
            if size > max_bytes or noted_at < self.clock.now() - older_s:
                break
            kept += 1
        gone = len(self._audit) - kept
        del self._audit[:gone], self._noted[:gone]

    async def secrets(self, task_id: str) -> bytes | None:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        found = self._secrets.get(task_id)
        return found.sealed if found else None

    async def sealed(self) -> list[PutSecrets]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        return [one for _, one in sorted(self._secrets.items())]

    async def prune(self, older_s: float) -> list[str]:
        """See ``TaskStore``."""
        await trio.lowlevel.checkpoint()
        before = self.clock.now() - older_s
        now = (self._seams.wall(), self._seams.tick())
        self._keys = {name: key for name, key in self._keys.items() if not _expired(key, *now)}
        known = self._tasks
        self._secrets = {
            name: kept
            for name, kept in self._secrets.items()
            if name in known and not known[name].state.terminal
        }
        for key in [key for key, at in self._run_ends.items() if at < before]:
            del self._ended_runs[key], self._run_ends[key]
        gone = [task for task in self._tasks.values() if self._prunable(task, before)]
        gone.sort(key=lambda task: (self._ends[task.id], task.id))
        for task in gone:
            self._apply(DropTask(task_id=task.id))
        return [task.id for task in gone]

    def _prunable(self, task: Task, before: float) -> bool:
        parent = self._tasks.get(task.parent or "")
        return task.state.terminal and all(
            self._ends.get(one.id, before) < before for one in (task, parent) if one
        )

    async def run(self, key: str) -> Run | None:
        """See ``AttemptStore``."""
        await trio.lowlevel.checkpoint()
        return self._runs.get(key)

    async def runs(self) -> list[Run]:
        """See ``AttemptStore``."""
        await trio.lowlevel.checkpoint()
        return list(self._runs.values())

    async def ended_runs(self, task_ids: Sequence[str]) -> list[Run]:
        """See ``AttemptStore``."""
        await trio.lowlevel.checkpoint()
        return [run for (task_id, _), run in sorted(self._ended_runs.items()) if task_id in task_ids]

    async def fresh(self, keys: Sequence[str], older_s: float) -> set[str]:
        """See ``AttemptStore``."""
        await trio.lowlevel.checkpoint()
        before = self.clock.now() - older_s
        return {
            key
            for key in keys
            for task_id, number in [attempt_of(key)]
            if key in self._runs
            or (task_id in self._tasks and self._ends.get(task_id, before) >= before)
            or ((task_id, number) in self._run_ends and self._run_ends[task_id, number] >= before)
        }


def _expired(key: PutKey, now: float, tick: Tick | None) -> bool:
    noted = key.expires_tick
    if noted is not None and tick is not None and noted.boot and noted.boot == tick.boot:
        return noted.at <= tick.at
    return key.expires_at <= now


def _matches(task: Task, which: TaskFilter) -> bool:
    wanted = (
        (which.name, task.name),
        (which.node, task.current.node if task.current else None),
        (which.parent, task.parent),
        (which.owner, task.caller.token),
    )
    return (
        (not which.states or task.state in which.states)
        and all(value is None or value == actual for value, actual in wanted)
        and (which.before is None or task.id < which.before)
    )


class FailingStore:
    """A ``LocalStore`` whose commits raise ``StorageError`` on demand; nothing of a failed commit is kept.

    Attributes:
        commits: commits asked for so far, failed ones included; the first is number 1.
        fail_at: numbers of the commits that fail.
        failing: while true every commit fails, as on a full disk.
    """

    def __init__(self, inner: LocalStore, *, fail_at: Iterable[int] = (), failing: bool = False) -> None:
        self._inner = inner
        self.commits = 0
        self.fail_at = set(fail_at)
        self.failing = failing

    def _gate(self) -> None:
        self.commits += 1
        if self.failing or self.commits in self.fail_at:
            raise StorageError(f"the disk is full (commit {self.commits})", hint="this failure was asked for")

    async def commit(self, changes: Sequence[TaskChange]) -> None:
        """See ``TaskStore``."""
        await self.commit_both(changes, ())

    async def commit_runs(self, changes: Sequence[AttemptChange]) -> None:
        """See ``AttemptStore``."""
        await self.commit_both((), changes)

    async def commit_both(self, tasks: Sequence[TaskChange], runs: Sequence[AttemptChange]) -> None:
        """See ``LocalStore``."""
        await trio.lowlevel.checkpoint()
        self._gate()
        await self._inner.commit_both(tasks, runs)

    async def prune(self, older_s: float) -> list[str]:
        """See ``TaskStore``. Counts as a commit."""
        await trio.lowlevel.checkpoint()
        self._gate()
        return await self._inner.prune(older_s)

    @property
    def store_id(self) -> str:
        """See ``AttemptStore``."""
        return self._inner.store_id

    @property
    def boot(self) -> int:
        """See ``AttemptStore``."""
        return self._inner.boot

    @property
    def marks(self) -> Mapping[str, int]:
        """See ``TaskStore``."""
        return self._inner.marks

    async def task(self, task_id: str) -> Task | None:
        """See ``TaskStore``."""
        return await self._inner.task(task_id)

    async def tasks(self, which: TaskFilter) -> list[Task]:
        """See ``TaskStore``."""
        return await self._inner.tasks(which)

    async def open_tasks(self) -> list[Task]:
        """See ``TaskStore``."""
        return await self._inner.open_tasks()

    async def children(self, parent: str) -> list[Task]:
        """See ``TaskStore``."""
        return await self._inner.children(parent)

    async def key(self, scope: str, key: str, now: float, tick: Tick | None = None) -> PutKey | None:
        """See ``TaskStore``."""
        return await self._inner.key(scope, key, now, tick)

    async def events(self, task_id: str | None, after: int, limit: int) -> list[Event]:
        """See ``TaskStore``."""
        return await self._inner.events(task_id, after, limit)

    async def callbacks(self) -> list[Callback]:
        """See ``TaskStore``."""
        return await self._inner.callbacks()

    async def audit(self, which: AuditFilter) -> list[PutAudit]:
        """See ``TaskStore``."""
        return await self._inner.audit(which)

    async def name_audit(self, node_id: str) -> int:
        """See ``TaskStore``. Counts as a commit."""
        await trio.lowlevel.checkpoint()
        self._gate()
        return await self._inner.name_audit(node_id)

    async def prune_audit(self, older_s: float, max_bytes: int) -> None:
        """See ``TaskStore``. Counts as a commit."""
        await trio.lowlevel.checkpoint()
        self._gate()
        await self._inner.prune_audit(older_s, max_bytes)

    async def secrets(self, task_id: str) -> bytes | None:
        """See ``TaskStore``."""
        return await self._inner.secrets(task_id)

    async def sealed(self) -> list[PutSecrets]:
        """See ``TaskStore``."""
        return await self._inner.sealed()

    async def run(self, key: str) -> Run | None:
        """See ``AttemptStore``."""
        return await self._inner.run(key)

    async def runs(self) -> list[Run]:
        """See ``AttemptStore``."""
        return await self._inner.runs()

    async def ended_runs(self, task_ids: Sequence[str]) -> list[Run]:
        """See ``AttemptStore``."""
        return await self._inner.ended_runs(task_ids)

    async def fresh(self, keys: Sequence[str], older_s: float) -> set[str]:
        """See ``AttemptStore``."""
        return await self._inner.fresh(keys, older_s)
