"""The origin's open tasks, and the only place where their states change.

A change is made in memory first, at once, and then committed: whoever comes next builds on it. Where the disk
does not take it, the change stays with the entry and goes with the next commit; nothing is acknowledged to a
target or a caller before it is on disk.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar, cast

import msgspec
import structlog
import trio

from edgeorch.dispatch.books import Books
from edgeorch.dispatch.entry import Entry
from edgeorch.dispatch.ids import Ids
from edgeorch.dispatch.queue import Queue, shape_of
from edgeorch.errors import StorageError
from edgeorch.lifecycle import EVENT_OF_STATE, Effect, TaskEvent, step_attempt, step_task, task_event
from edgeorch.model import Attempt, AttemptState, Caller, Event, Task, TaskSpec, TaskState, attempt_of
from edgeorch.seams import Seams
from edgeorch.secret import Secret
from edgeorch.store import (
    Again,
    AttemptChange,
    DropSecrets,
    LocalStore,
    PutAudit,
    PutEvent,
    PutTask,
    TaskChange,
)
from edgeorch.store.sealing import Sealer
from edgeorch.wire.messages import RunState

log = structlog.get_logger()

KEPT_REFUSALS = 8
"""Refused attempts kept per task: enough to see why, bounded for a task that is refused for a week."""
RECENT = 256
SETTLE_S = 120.0
"""The attempt of an ended task (past its deadline) may take this long to report its own end."""
LATE_REASON = "a late result came after the attempt had been given up"


class Notifier(Protocol):
    """What makes a status callback of a change; ``callbacks`` is the real one."""

    def changes(self, task: Task, spec: TaskSpec, kind: str) -> Sequence[TaskChange]:
        """Rows for the outbox, committed with the change. ``kind`` is ``started`` or ``ended``."""
        ...

    def wake(self) -> None:
        """There is something new in the outbox."""
        ...

    def take_back(self, changes: Sequence[TaskChange]) -> None:
        """These will not be committed, nor will what was made of them."""
        ...


class Ledger:
    """Open tasks by id.

    Attributes:
        recent: the last tasks that left ``open``, and so change no more: who waits for a whole batch asks for
            most of them when they have ended, and would read each from the disk.
        happened: set whenever numbered events were committed; replaced by a new event each time.
        on_queue: called with an entry that has to be placed again, after ``seconds``.
        deadline_s: how long a task may take from its acceptance.
        next_deadline: no open task has to have ended before this boot time.
        watched: open tasks that have an attempt, and maybe some that have ended since: those with a lease.
        refused: tasks of which the disk did not take a change.
        held: open tasks by token; of one that runs on several nodes only the parent.
        on_end: called with an entry whose task has ended and is on disk.
    """

    def __init__(self, store: LocalStore, sealer: Sealer, notifier: Notifier, seams: Seams) -> None:
        self.store = store
        self.sealer = sealer
        self.notifier = notifier
        self.seams = seams
        self.ids = Ids(seams)
        self.books = Books()
        self.queue = Queue()
        self.open: dict[str, Entry] = {}
        self.recent: dict[str, Task] = {}
        self.happened = trio.Event()
        self.on_queue: Callable[[Entry, float], None] = lambda _entry, _seconds: None
        self.on_end: Callable[[Entry], None] = lambda _entry: None
        self.deadline_s: Callable[[TaskSpec, Caller], float] = lambda spec, _caller: spec.deadline_s
        self.held: Counter[str] = Counter()
        self.next_deadline = math.inf
        self.watched: dict[str, Entry] = {}
        self.refused: dict[str, Entry] = {}
        self.ended = 0

    def admit(self, task: Task, spec: TaskSpec) -> Entry:
        """Take a task into memory; the caller commits it."""
        # A deep queue is mostly of one kind: what its tasks have in common is kept once.
        task = msgspec.structs.replace(
            task,
            name=_kept_once(task.name),
            spec=_kept_once(task.spec),
            origin=_kept_once(task.origin),
            caller=_kept_once(task.caller),
            reason=_kept_once(task.reason),
            created_tick=_kept_once(task.created_tick),
        )
        left = self.deadline_s(spec, task.caller) - self.seams.age(task.created_at, task.created_tick)
        entry = Entry(
            task=task,
            shape=shape_of(spec),
            deadline=self.seams.boottime() + max(left, 0.0),
            saved=task,
        )
        self.open[task.id] = entry
        self.next_deadline = min(self.next_deadline, entry.deadline)
        self._hold(task, 1)
        return entry

    def drop(self, entry: Entry) -> None:
        """Undo ``admit`` for a task that could not be committed."""
        self._hold(entry.task, -1)
        self.open.pop(entry.task.id, None)
        self.books.release(entry.task.id)
        self.queue.remove(entry)

    async def secrets_of(self, task_id: str) -> dict[str, Secret]:
        """The secrets of an open task: read when an attempt needs them, not kept in memory.

        Raises:
            StorageError: they cannot be read, or not opened.
        """
        entry = self.open.get(task_id)
        if entry is None or not entry.spec.secrets:
            return {}
        owner = entry.task.parent or task_id
        return self.sealer.open(owner, await self.store.secrets(owner))

    def event(self, task: Task, kind: str, **data: str | float | bool | None) -> PutEvent:
        """An event of a task, to be committed with the change that it tells of."""
        return PutEvent(event=Event(task=task.id, at=self.seams.wall(), type=kind, data=dict(data)))

    def state_changes(self, entry: Entry) -> list[TaskChange]:
        """The task's row and the event that tells its state."""
        task = entry.task
        return [
            PutTask(task=task),
            self.event(task, "state", state=str(task.state), reason=task.reason, exit_code=task.exit_code),
        ]

    def add_attempt(self, entry: Entry, attempt: Attempt) -> list[TaskChange]:
        """A new attempt, offered or already taken by this node itself: the task is being placed."""
        refused = [one for one in entry.task.attempts if one.state is AttemptState.REFUSED]
        dropped = refused[: max(len(refused) - KEPT_REFUSALS, 0)]
        kept = tuple(one for one in entry.task.attempts if one not in dropped)
        entry.update(attempts=(*kept, attempt), state=TaskState.PLACING, reason="")
        self.watched[entry.task.id] = entry
        entry.unreachable_at = None
        return [*self.state_changes(entry), self._attempt_event(entry, attempt)]

    def move_attempt(
        self, entry: Entry, number: int, state: AttemptState, **facts: object
    ) -> tuple[list[TaskChange], tuple[Effect, ...]]:
        """Bring an attempt, and with it the task, to a new state in memory.

        Returns:
            The changes to commit (none where nothing changes) and the effects to carry out afterwards.
        """
        attempt = entry.attempt(number)
        if attempt is None:
            return [], ()
        new = step_attempt(attempt.state, EVENT_OF_STATE[state])
        if new is None:
            if attempt.state is AttemptState.LOST and state.terminal and state is not AttemptState.LOST:
                late = msgspec.structs.replace(attempt, state=AttemptState.SUPERSEDED, reason=LATE_REASON)
                return list(self._put_attempt(entry, late)), ()
            return [], ()
        moved = msgspec.structs.replace(attempt, state=new, **facts)
        changes: list[TaskChange] = self._put_attempt(entry, moved)
        if entry.task.state.terminal or entry.task.attempts[-1].number != number:
            return changes, ()
        counted = sum(one.state is not AttemptState.REFUSED for one in entry.task.attempts)
        event = task_event(
            new, moved.cause, entry.spec.retry, counted=counted, cancelling=entry.task.cancelling
        )
        if event is None:
            return changes, ()
        more, effects = self.move_task(entry, event, moved.reason, exit_code=moved.exit_code)
        return [*more, *changes[1:]] if more else changes, effects

    def move_task(
        self, entry: Entry, event: TaskEvent, reason: str, *, exit_code: int | None = None
    ) -> tuple[list[TaskChange], tuple[Effect, ...]]:
        """Bring the task to a new state in memory; see ``move_attempt``."""
        step = step_task(entry.task.state, event)
        if step is None:
            return [], ()
        ended = step.state.terminal
        entry.update(
            state=step.state,
            reason=reason,
            exit_code=exit_code if ended else None,
            ended_at=self.seams.wall() if ended else None,
        )
        if ended:
            self._hold(entry.task, -1)
        changes = self.state_changes(entry)
        if ended and entry.spec.secrets and entry.task.parent is None:
            changes.append(DropSecrets(task_id=entry.task.id))
        for effect in step.effects:
            if effect in (Effect.NOTIFY_STARTED, Effect.NOTIFY_ENDED):
                kind = effect.removeprefix("notify_")
                changes.extend(self.notifier.changes(entry.task, entry.spec, kind))
        return changes, step.effects

    async def commit(
        self,
        entry: Entry,
        changes: Sequence[TaskChange],
        effects: Sequence[Effect] = (),
        runs: Sequence[AttemptChange] = (),
    ) -> None:
        """Make changes of one task durable and carry out their effects.

        Whoever is cancelled here (a peer's question that ran out of time) does not know what is on disk: the
        changes wait for the next commit then, as after a failure, so that nothing is acknowledged without it.

        Raises:
            StorageError: the changes wait with the entry for the next commit; effects are carried out all
                the same, because memory has already moved on.
        """
        late = bool(entry.unsaved)
        todo = self._todo(entry, changes)
        record, revision = entry.task, entry.revision
        try:
            await self.store.commit_both(todo, runs)
        except (StorageError, trio.Cancelled) as error:
            self._not_saved(entry, todo, error)
            self._carry_out(entry, effects)
            raise
        self.saved(entry, record, revision)
        self._carry_out(entry, effects)
        if late:
            # A callback among them, or the end of a child, was looked for on the disk before it was there.
            self.notifier.wake()
            if record.state.terminal:
                self.on_end(entry)
        if record.state.terminal and record is entry.task and not entry.unsaved and self._settled(entry):
            self.open.pop(entry.task.id, None)
            self._remember(record)

    def _remember(self, task: Task) -> None:
        if not task.stdout_tail and not task.stderr_tail:
            self.recent[task.id] = task
            if len(self.recent) > RECENT:
                del self.recent[next(iter(self.recent))]

    async def commit_all(self, parts: Sequence[tuple[Entry, Sequence[TaskChange]]]) -> None:
        """Make changes of several open tasks durable in one transaction; see ``commit``."""
        late = any(entry.unsaved for entry, _ in parts)
        todos = [self._todo(entry, changes) for entry, changes in parts]
        records = [(entry, entry.task, entry.revision) for entry, _ in parts]
        try:
            await self.store.commit([change for todo in todos for change in todo])
        except (StorageError, trio.Cancelled) as error:
            for (entry, _), todo in zip(parts, todos, strict=True):
                self._not_saved(entry, todo, error)
            raise
        for entry, record, revision in records:
            self.saved(entry, record, revision)
        if late:
            self.notifier.wake()

    def put_off(self, entry: Entry, changes: Sequence[TaskChange]) -> None:
        """Let the next commit of the task take these; whoever calls this sees to it that one comes."""
        later = [one for one in changes if not isinstance(one, PutTask)]
        entry.put_off = [*entry.put_off, *later]

    def _todo(self, entry: Entry, changes: Sequence[TaskChange]) -> Sequence[TaskChange]:
        """The changes, with what the disk has refused before, and what was put off."""
        if not entry.unsaved and not entry.put_off:
            return changes
        earlier = [*entry.unsaved, *entry.put_off]
        entry.unsaved = entry.put_off = ()
        if not any(isinstance(one, PutTask) and one.task is entry.task for one in changes):
            # The row as it is now, not as it was when the disk refused it.
            earlier.insert(0, PutTask(task=entry.task))
        return [*earlier, *changes]

    def _not_saved(self, entry: Entry, todo: Sequence[TaskChange], error: BaseException) -> None:
        refused = [one for one in todo if not isinstance(one, PutTask)]
        if isinstance(error, trio.Cancelled):
            # They may be on their way to the disk all the same.
            refused = [Again(change=one) if isinstance(one, PutEvent | PutAudit) else one for one in refused]
        entry.unsaved = [*refused, *entry.unsaved]
        if entry.unsaved:
            self.refused[entry.task.id] = entry

    def saved(self, entry: Entry, record: Task, revision: int) -> None:
        """A record is on disk: callers may be told, followers of events wake.

        Two commits of one task may be on disk together, and their tasks go on in any order: the older record
        never replaces the newer one.
        """
        if revision >= entry.saved_revision:
            entry.saved, entry.saved_revision = record, revision
        entry.signal()
        self.happened.set()
        self.happened = trio.Event()

    async def take_report(self, node: str, run: RunState, runs: Sequence[AttemptChange] = ()) -> bool:
        """A target's word on an attempt. Idempotent; returns whether the origin knows the attempt.

        Raises:
            StorageError: nothing is acknowledged; the target tells it again.
        """
        task_id, number = attempt_of(run.key)
        entry = self.open.get(task_id)
        if entry is None:
            if runs:
                await self.store.commit_runs(runs)
            return await self._late(task_id, number, node, run)
        attempt = entry.attempt(number)
        if attempt is None or attempt.node != node:
            log.warning(
                "ignored a report on an attempt that the sender does not hold", key=run.key, node=node
            )
            return False
        changes: list[TaskChange] = []
        effects: tuple[Effect, ...] = ()
        if run.sequence > entry.sequences.get(number, 0):
            entry.sequences = {**entry.sequences, number: run.sequence}
            if run.stdout_tail or run.stderr_tail:
                entry.update(stdout_tail=run.stdout_tail, stderr_tail=run.stderr_tail)
            changes, effects = self._reported(entry, attempt, run)
        if not changes and entry.saved_revision < entry.revision:
            # Told before, and perhaps still on its way: acknowledged is only what has arrived on the disk.
            changes = [PutTask(task=entry.task)]
        if changes or entry.unsaved or runs:
            await self.commit(entry, changes, effects, runs)
        return True

    def _reported(
        self, entry: Entry, attempt: Attempt, run: RunState
    ) -> tuple[list[TaskChange], tuple[Effect, ...]]:
        """See ``move_attempt``. An end that nobody told the start of before, tells both."""
        facts = self._facts(attempt, run)
        begun: list[TaskChange] = []
        effects: tuple[Effect, ...] = ()
        if run.state.terminal and "started_at" in facts:
            start = {"driver": facts["driver"], "started_at": facts["started_at"]}
            begun, effects = self.move_attempt(entry, attempt.number, AttemptState.RUNNING, **start)
        changes, more = self.move_attempt(entry, attempt.number, run.state, **facts)
        if changes:
            # One row holds both.
            begun = [one for one in begun if not isinstance(one, PutTask)]
        return [*begun, *changes], (*effects, *more)

    async def take_progress(self, node: str, run: RunState) -> None:
        """A line for people on an attempt that is being prepared; an event and nothing else."""
        task_id, number = attempt_of(run.key)
        entry = self.open.get(task_id)
        if entry is None:
            return
        attempt = entry.attempt(number)
        if attempt is not None and attempt.node == node and not attempt.state.terminal:
            event = self.event(entry.task, "progress", text=run.progress[:500], number=attempt.number)
            await self.commit(entry, [event])

    async def _late(self, task_id: str, number: int, node: str, run: RunState) -> bool:
        """A report on a task that has ended: it changes only its attempt."""
        task = await self.store.task(task_id)
        if task is None:
            return False
        for attempt in task.attempts:
            if attempt.number == number and attempt.node == node and not attempt.state.terminal:
                state = run.state if run.state.terminal else attempt.state
                new = msgspec.structs.replace(attempt, state=state, **self._facts(attempt, run))
                attempts = tuple(new if one.number == number else one for one in task.attempts)
                late = msgspec.structs.replace(task, attempts=attempts)
                await self.store.commit([PutTask(task=late)])
        return True

    def _facts(self, attempt: Attempt, run: RunState) -> dict[str, object]:
        """Fields of the attempt that a report fills; the origin stamps the times."""
        now = self.seams.wall()
        facts: dict[str, object] = {"driver": run.driver or attempt.driver}
        if run.started_age_s is not None and attempt.started_at is None:
            facts["started_at"] = _ago(run.started_age_s, now)
        if run.ended_age_s is not None:
            facts["ended_at"] = _ago(run.ended_age_s, now)
        if run.exit is not None:
            end = run.exit
            facts |= {
                "exit_code": end.exit_code,
                "signal": end.signal,
                "cause": end.cause,
                "reason": end.reason,
                "silent": end.silent,
            }
        return facts

    def _hold(self, task: Task, change: int) -> None:
        if task.parent is None:
            self.held[task.caller.token] += change
            if not self.held[task.caller.token]:
                del self.held[task.caller.token]

    def _put_attempt(self, entry: Entry, attempt: Attempt) -> list[TaskChange]:
        attempts = tuple(attempt if one.number == attempt.number else one for one in entry.task.attempts)
        entry.update(attempts=attempts)
        return [PutTask(task=entry.task), self._attempt_event(entry, attempt)]

    def _attempt_event(self, entry: Entry, attempt: Attempt) -> PutEvent:
        return self.event(
            entry.task,
            "attempt",
            number=attempt.number,
            state=str(attempt.state),
            node=attempt.node,
            node_name=attempt.node_name,
            driver=attempt.driver,
            reason=attempt.reason,
            exit_code=attempt.exit_code,
        )

    def _carry_out(self, entry: Entry, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if effect is Effect.RELEASE:
                self.books.ended(entry.task.id, trio.current_time())
                entry.expires = math.inf
                if entry.task.state.terminal and not self._settled(entry):
                    # Its attempt still runs elsewhere; where nobody ever tells how it ended, forget it.
                    entry.expires = self.seams.boottime() + SETTLE_S
            elif effect is Effect.QUEUE:
                self.on_queue(entry, self._backoff(entry))
            elif effect is Effect.NOTIFY_STARTED:
                self.notifier.wake()
            elif effect is Effect.NOTIFY_ENDED:
                self.notifier.wake()
                self.queue.remove(entry)
                self.ended += 1
                task = entry.task
                log.info(
                    "ended", task=task.id, state=str(task.state), exit_code=task.exit_code, reason=task.reason
                )
                self.on_end(entry)

    def _backoff(self, entry: Entry) -> float:
        """Seconds until the next try: none after a refusal, else doubling from ``retry.backoff_s``."""
        last = entry.task.current
        if last is None or last.state is AttemptState.REFUSED:
            return 0.0
        counted = sum(one.state is not AttemptState.REFUSED for one in entry.task.attempts)
        longest: float = min(entry.spec.retry.backoff_s * 2.0 ** min(counted - 1, 10), 300.0)
        return longest * self.seams.rng.uniform(0.5, 1.0)

    @staticmethod
    def _settled(entry: Entry) -> bool:
        """Whether no attempt can still change."""
        return all(one.state.terminal for one in entry.task.attempts)


_Shared = TypeVar("_Shared", bound=Hashable)


def _same(value: _Shared) -> _Shared:
    return value


_kept_once = cast("Callable[[_Shared], _Shared]", functools.lru_cache(maxsize=1024)(_same))
"""An equal value that was seen before, else this one."""


def _ago(age: float, now: float) -> float:
    """When something was that old; a peer's age that cannot be (NaN too) counts as none."""
    return now - age if 0 <= age <= now else now
