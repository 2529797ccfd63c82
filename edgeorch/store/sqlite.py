"""The store on SQLite: one thread that commits everything waiting at once, one that answers what is asked.

Group commit: while a transaction is on its way to the disk, further calls queue; they share the next
transaction and its one flush. So the rate grows with the number of callers while each waits for at most two
flushes. A call alone costs one hop to the thread and back. What is read while others wait costs them no turn
of the loop either.
"""

import queue
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

from edgeorch.errors import StorageError
from edgeorch.model import Event, Run, Task
from edgeorch.seams import Seams, Tick
from edgeorch.store import (
    Again,
    AttemptChange,
    AuditFilter,
    Callback,
    DropTask,
    PutAudit,
    PutEvent,
    PutKey,
    PutSecrets,
    TaskChange,
    TaskFilter,
    rows,
)
from edgeorch.store.clock import StoreClock
from edgeorch.store.connection import code_of, hits_everyone, storage_error, storage_errors
from edgeorch.store.numbers import Numbers
from edgeorch.store.opening import Database, open_database
from edgeorch.store.stall import STALLED_S, Progress
from edgeorch.timing import Histogram, clock

T = TypeVar("T")
_NUMBERED = (PutEvent, Again)
"""Changes that get the number of an event each; what is not appended again leaves its number unused."""
_MAX = (1 << 63) - 1
"""The largest number that SQLite compares with; a caller's may be larger."""
_PRUNE_STEP = 200
"""Tasks or records forgotten per transaction, so that a large clean-up does not hold up commits."""
_LOOK_STEP = 2000
"""Rows looked at by one question, for the same reason."""


@dataclass(eq=False)
class _Call:
    """One caller's changes and what became of them; ``highest`` is the number of its last event."""

    statements: list[rows.Statement]
    highest: int
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Question:
    """What one caller wants to read, and what was found."""

    ask: Callable[[sqlite3.Connection], Any]
    found: Any = None
    error: Exception | None = None
    done: trio.Event = field(default_factory=trio.Event)

    def answer(self, connection: sqlite3.Connection) -> None:
        """Called in the reader thread."""
        try:
            self.found = self.ask(connection)
        except Exception as error:  # noqa: BLE001  the caller's, who waits in another thread
            self.error = error


@dataclass(frozen=True)
class Statistics:
    """Counters since the start.

    Attributes:
        commits: calls that were asked for.
        transactions: transactions that they shared.
        failures: calls that failed.
        waiting: calls not answered yet.
        commit_seconds: how long those that succeeded waited for their answer.
    """

    commits: int
    transactions: int
    failures: int
    waiting: int
    commit_seconds: Histogram = field(default_factory=Histogram)


class SqliteStore:
    """A ``LocalStore`` in one SQLite file.

    ``serve`` opens it; other methods raise ``StorageError`` before and after. A caller that is cancelled
    while its commit is under way does not learn the outcome: all of its changes are applied or none.
    """

    def __init__(self, path: Path, seams: Seams | None = None) -> None:
        self._path = path
        self._seams = seams or Seams()
        # Callers wait for their answer, so the queue holds at most one call per waiting task.
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(1)
        self._database: Database | None = None
        self._closed = True
        self._commits = self._answered = self._transactions = self._failures = 0
        self._writes, self._reads = Progress(), Progress()
        self._took = Histogram()
        self._failure = ""
        """Why the newest commit failed; empty when it did not."""

    @property
    def problem(self) -> str:
        """What is wrong with the store now; empty where nothing is."""
        return f"store stalled {self.still_s:.0f} s" if self.still_s >= STALLED_S else self._failure

    @property
    def still_s(self) -> float:
        """Seconds since something was last done of what is to be done; 0 where nothing is."""
        return max(self._writes.still_s, self._reads.still_s)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the database, commit what is asked for, and close it when cancelled.

        Stop it after everything that may still commit: what is queued by then is written, later calls fail.

        Raises:
            StartError: see ``open_database``.
        """
        new_id = f"{self._seams.rng.getrandbits(80):020x}"
        database = self._database = await trio.to_thread.run_sync(
            open_database, self._path, self._seams, new_id, limiter=self._writing
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_writer, database.writer, database.numbers)
                nursery.start_soon(self._run_reader, database.reader)
                self._closed = False
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._closed = True
                    self._queue.put(None)
                    self._questions.put(None)
        finally:
            with trio.CancelScope(shield=True):  # bounded by one read and one checkpoint
                await trio.to_thread.run_sync(database.reader.close, limiter=self._reading)
                await trio.to_thread.run_sync(database.close, limiter=self._writing)

    async def _run_writer(self, connection: sqlite3.Connection, numbers: Numbers) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope(shield=True):  # the thread ends by the None that serve() queues
            await trio.to_thread.run_sync(
                self._write, connection, numbers, token, limiter=self._writing, thread_name="edgeorch-store"
            )

    def _write(
        self, connection: sqlite3.Connection, numbers: Numbers, token: trio.lowlevel.TrioToken
    ) -> None:
        """The writer thread: take all that waits, commit it together, wake its callers."""
        stopping = False
        while not stopping:
            taken = [self._queue.get()]
            while not self._queue.empty():
                taken.append(self._queue.get())
            calls = [call for call in taken if call is not None]
            stopping = len(calls) < len(taken)
            self._transactions += _apply(connection, calls, numbers)
            token.run_sync_soon(self._wake, calls)

    async def _run_reader(self, connection: sqlite3.Connection) -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope(shield=True):  # as above
            await trio.to_thread.run_sync(
                self._answer, connection, token, limiter=self._reading, thread_name="edgeorch-reads"
            )

    def _answer(self, connection: sqlite3.Connection, token: trio.lowlevel.TrioToken) -> None:
        """The reader thread."""
        while (question := self._questions.get()) is not None:
            question.answer(connection)
            token.run_sync_soon(self._tell, question)

    def _tell(self, question: _Question) -> None:
        self._reads.answered()
        question.done.set()

    def _wake(self, calls: list[_Call]) -> None:
        for call in calls:
            self._answered += 1
            self._failures += call.error is not None
            call.done.set()
        if calls:
            self._writes.answered(len(calls))

    async def _submit(self, statements: list[rows.Statement], highest: int = 0) -> None:
        if self._closed:
            raise StorageError("the node is stopping and stores nothing more")
        if not statements:
            await trio.lowlevel.checkpoint()
            return
        if self.still_s >= STALLED_S:
            # Nobody who waits is lost, and the queue does not grow for as long as a disk hangs.
            await trio.lowlevel.checkpoint()
            raise StorageError(self.problem, hint="the disk does not answer: see the kernel's log")
        call = _Call(statements, highest)
        self._commits += 1
        self._writes.asked()
        begun = clock()
        self._queue.put(call)
        await call.done.wait()
        if isinstance(call.error, sqlite3.Error):
            error = storage_error(call.error)
            self._failure = error.detail
            raise error from call.error
        if call.error is not None:
            raise call.error
        self._failure = ""
        self._took.since(begun)

    async def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed or self._database is None:
            raise StorageError("the node is stopping and reads nothing more")
        question = _Question(ask)
        self._reads.asked()
        self._questions.put(question)
        await question.done.wait()
        with storage_errors():
            if question.error is not None:
                raise question.error
        found: T = question.found
        return found

    @property
    def _opened(self) -> Database:
        if self._database is None:
            raise StorageError("the database is not open yet")
        return self._database

    @property
    def _clock(self) -> StoreClock:
        return self._opened.clock

    # TaskStore

    @property
    def marks(self) -> Mapping[str, int]:
        """See ``TaskStore``."""
        return self._database.marks if self._database else {}

    async def commit(self, changes: Sequence[TaskChange]) -> None:
        """See ``TaskStore``."""
        await self.commit_both(changes, ())

    async def task(self, task_id: str) -> Task | None:
        """See ``TaskStore``."""
        return await self._read(
            lambda db: _one(db, rows.TASK, "SELECT body FROM tasks WHERE id = ?", task_id)
        )

    async def tasks(self, which: TaskFilter) -> list[Task]:
        """See ``TaskStore``."""
        return await self._read(lambda db: _all(db, rows.TASK, *rows.listing(which)))

    async def open_tasks(self) -> list[Task]:
        """See ``TaskStore``."""
        return await self._read(lambda db: _all(db, rows.TASK, rows.OPEN_TASKS))

    async def children(self, parent: str) -> list[Task]:
        """See ``TaskStore``."""
        sql = "SELECT body FROM tasks WHERE parent = ? ORDER BY id"
        return await self._read(lambda db: _all(db, rows.TASK, sql, (parent,)))

    async def key(self, scope: str, key: str, now: float, tick: Tick | None = None) -> PutKey | None:
        """See ``TaskStore``."""
        sql, values = rows.key_of(scope, key, now, tick)
        return await self._read(lambda db: _one(db, rows.KEY, sql, *values))

    async def events(self, task_id: str | None, after: int, limit: int) -> list[Event]:
        """See ``TaskStore``."""
        where, values = ("task = ? AND ", (task_id,)) if task_id is not None else ("", ())
        sql = f"SELECT seq, body FROM events WHERE {where}seq > ? ORDER BY seq LIMIT ?"  # noqa: S608  our own words
        return await self._read(
            lambda db: rows.events(db.execute(sql, (*values, min(after, _MAX), max(limit, 0))))
        )

    async def callbacks(self) -> list[Callback]:
        """See ``TaskStore``."""
        sql = "SELECT body FROM callbacks ORDER BY rowid"
        return await self._read(lambda db: _all(db, rows.CALLBACK, sql))

    async def audit(self, which: AuditFilter) -> list[PutAudit]:
        """See ``TaskStore``."""
        return await self._read(lambda db: _all(db, rows.AUDIT, *rows.audited(which)))

    async def name_audit(self, node_id: str) -> int:
        """See ``TaskStore``. Works in steps, so that commits go on meanwhile."""
        last = named = 0
        while step := await self._read(lambda db: db.execute(rows.NAMELESS, (last,)).fetchall()):  # noqa: B023  read at once
            last = step[-1][0]
            statements = [put for number, body in step for put in rows.named(number, body, node_id)]
            await self._submit(statements)
            named += len(statements)
        return named

    async def prune_audit(self, older_s: float, max_bytes: int) -> None:
        """See ``TaskStore``. Works in steps, so that commits go on meanwhile."""
        since = self._clock.now() - older_s
        aged = await self._read(lambda db: _number(db, rows.AGED_AUDIT, since))
        below = max(aged or 0, await self._crowded_audit(max_bytes))
        while last := await self._read(lambda db: _number(db, rows.AUDIT_STEP, below, _PRUNE_STEP)):
            await self._submit([(rows.DROP_AUDIT, (last,))])

    async def _crowded_audit(self, max_bytes: int) -> int:
        """Below this number are the oldest audit records of more than so many bytes."""
        before, size = _MAX, 0
        while step := await self._read(
            lambda db: db.execute(rows.AUDIT_SIZES, (before, _LOOK_STEP)).fetchall()  # noqa: B023  read at once
        ):
            for before, length in step:
                size += length
                if size > max_bytes:
                    return int(before) + 1
        return 0

    async def secrets(self, task_id: str) -> bytes | None:
        """See ``TaskStore``."""
        sql = "SELECT body FROM secrets WHERE task = ?"
        found = await self._read(lambda db: _one(db, rows.SECRETS, sql, task_id))
        return found.sealed if found else None

    async def sealed(self) -> list[PutSecrets]:
        """See ``TaskStore``."""
        return await self._read(lambda db: _all(db, rows.SECRETS, "SELECT body FROM secrets ORDER BY task"))

    async def prune(self, older_s: float) -> list[str]:
        """See ``TaskStore``. Works in steps, so that commits go on meanwhile."""
        ended_before = self._clock.now() - older_s
        await self._submit(
            [
                rows.expired_keys(self._seams.wall(), self._seams.tick()),
                (rows.DROP_STRAY_SECRETS, ()),
                ("DELETE FROM ended_runs WHERE at < ?", (ended_before,)),
                (rows.NOTE, (self._clock.note(),)),
            ]
        )
        gone: list[str] = []
        sql, values = rows.prunable(ended_before, _PRUNE_STEP)
        while step := await self._read(lambda db: [task_id for (task_id,) in db.execute(sql, values)]):
            await self._submit(rows.statements(DropTask(task_id=task_id) for task_id in step))
            gone += step
        return gone

    # AttemptStore

    @property
    def store_id(self) -> str:
        """See ``AttemptStore``."""
        return self._database.store_id if self._database else ""

    @property
    def boot(self) -> int:
        """See ``AttemptStore``."""
        return self._database.boot if self._database else 0

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged predecessor went at this start: the node must then ask its peers what it forgot."""
        return self._database.set_aside if self._database else None

    async def commit_runs(self, changes: Sequence[AttemptChange]) -> None:
        """See ``AttemptStore``."""
        await self.commit_both((), changes)

    async def run(self, key: str) -> Run | None:
        """See ``AttemptStore``."""
        return await self._read(lambda db: _one(db, rows.RUN, "SELECT body FROM runs WHERE key = ?", key))

    async def runs(self) -> list[Run]:
        """See ``AttemptStore``."""
        return await self._read(lambda db: _all(db, rows.RUN, rows.RUNS))

    async def ended_runs(self, task_ids: Sequence[str]) -> list[Run]:
        """See ``AttemptStore``."""
        return await self._read(lambda db: _all(db, rows.RUN, *rows.ended_runs(task_ids)))

    async def fresh(self, keys: Sequence[str], older_s: float) -> set[str]:
        """See ``AttemptStore``. Works in steps, so that other questions are answered meanwhile."""
        since, found = self._clock.now() - older_s, set[str]()
        for start in range(0, len(keys), _PRUNE_STEP):
            asked = [(key, rows.fresh(key, since)) for key in keys[start : start + _PRUNE_STEP]]

            def ask(db: sqlite3.Connection) -> set[str]:
                return {key for key, query in asked if db.execute(*query).fetchone()[0]}  # noqa: B023  asked at once

            found |= await self._read(ask)
        return found

    # LocalStore

    async def commit_both(self, tasks: Sequence[TaskChange], runs: Sequence[AttemptChange]) -> None:
        """See ``LocalStore``."""
        database = self._opened
        numbers = database.numbers.take(sum(isinstance(change, _NUMBERED) for change in tasks))
        todo = rows.statements([*tasks, *runs], database.clock.now(), numbers)
        await self._submit(todo, numbers.stop - 1)

    def statistics(self) -> Statistics:
        """Counters for the metrics."""
        waiting = self._commits - self._answered
        return Statistics(self._commits, self._transactions, self._failures, waiting, self._took)


def _one(
    connection: sqlite3.Connection, decoder: msgspec.msgpack.Decoder[T], sql: str, *values: object
) -> T | None:
    row = connection.execute(sql, values).fetchone()
    return rows.decode(decoder, row[0]) if row else None


def _number(connection: sqlite3.Connection, sql: str, *values: object) -> int | None:
    found: int | None = connection.execute(sql, values).fetchone()[0]
    return found


def _all(
    connection: sqlite3.Connection,
    decoder: msgspec.msgpack.Decoder[T],
    sql: str,
    values: tuple[object, ...] = (),
) -> list[T]:
    return rows.decode_all(decoder, connection.execute(sql, values))


def _apply(
    connection: sqlite3.Connection, calls: list[_Call], numbers: Numbers, *, again: bool = False
) -> int:
    """Commit the calls together, or, where one of them cannot be stored, each by itself.

    A failed statement may end the whole transaction (sqlite.org/lang_transaction.html, "response to errors"),
    so there is nothing to gain from savepoints: going over the calls again is the rare case.

    Returns:
        Transactions used.
    """
    if not calls:
        return 0
    begun, cursor = False, connection.cursor()
    try:
        cursor.execute("BEGIN IMMEDIATE")
        begun = True
        for call in calls:
            numbers.mark(cursor, call.highest)
            for sql, values in call.statements:
                cursor.execute(sql, values)
        cursor.execute("COMMIT")
    except (sqlite3.Error, ValueError, OverflowError) as error:
        _roll_back(connection)
        if code_of(error) == sqlite3.SQLITE_FULL and not again:
            # The log starts anew once the database has taken it over; that may be all the space needed.
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return 1 + _apply(connection, calls, numbers, again=True)
        if begun and len(calls) > 1 and not hits_everyone(error):
            return 1 + sum(_apply(connection, [call], numbers, again=again) for call in calls)
        for call in calls:
            call.error = error
    return 1


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):  # the first error is the one to tell
            connection.execute("ROLLBACK")
