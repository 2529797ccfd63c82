"""Changes as SQL statements, and rows back into structs. No I/O."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import msgspec
import structlog

from edgeorch.errors import StorageError
from edgeorch.model import Event, Run, Task, attempt_of, ulid
from edgeorch.seams import Tick
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

log = structlog.get_logger()
T = TypeVar("T")

Statement: TypeAlias = tuple[str, tuple[object, ...]]

_PUT_EVENT = "INSERT INTO events (seq, task, body) VALUES (?, ?, ?)"
_PUT_EVENT_AGAIN = """INSERT INTO events (seq, task, body) SELECT ?, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM events WHERE task = ? AND body = ?)"""

OPEN_TASKS = """SELECT body FROM tasks WHERE id IN (SELECT id FROM tasks INDEXED BY tasks_list
    WHERE state IN ('waiting', 'placing', 'running')) ORDER BY id"""
RUNS = "SELECT body FROM runs ORDER BY rowid"

_PUT_TASK = """INSERT INTO tasks (id, state, name, node, parent, owner, ended_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, name = excluded.name, node = excluded.node,
    parent = excluded.parent, owner = excluded.owner, body = excluded.body,
    ended_at = COALESCE(tasks.ended_at, excluded.ended_at)"""
_PUT_KEY = """INSERT INTO keys (scope, key, expires_at, boot, tick, body) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (scope, key) DO UPDATE SET expires_at = excluded.expires_at, boot = excluded.boot,
    tick = excluded.tick, body = excluded.body"""
_EXPIRED = "CASE WHEN boot = ? THEN tick <= ? ELSE expires_at <= ? END"
_PUT_MARK = """INSERT INTO marks (name, number) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET number = MAX(number, excluded.number)"""
_PUT_CALLBACK = """INSERT INTO callbacks (id, created_at, body) VALUES (?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, body = excluded.body"""
_PUT_RUN = """INSERT INTO runs (key, accepted_at, body) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET accepted_at = excluded.accepted_at, body = excluded.body"""

_PUT_SECRETS = """INSERT INTO secrets (task, body) VALUES (?, ?)
    ON CONFLICT (task) DO UPDATE SET body = excluded.body"""
_PUT_AUDIT = "INSERT INTO audit (at, id, kept, body) VALUES (?, ?, ?, ?)"
_PUT_AUDIT_AGAIN = """INSERT INTO audit (at, id, kept, body) SELECT ?, ?, ?, ?
    WHERE NOT EXISTS (SELECT 1 FROM audit WHERE id = ?)"""
AGED_AUDIT = """SELECT COALESCE(
    (SELECT number FROM audit WHERE kept >= ? ORDER BY number LIMIT 1),
    (SELECT MAX(number) + 1 FROM audit), 0)"""
"""Below this number all is older than a time of the store."""
AUDIT_SIZES = "SELECT number, LENGTH(body) FROM audit WHERE number < ? ORDER BY number DESC LIMIT ?"
AUDIT_STEP = "SELECT MAX(number) FROM (SELECT number FROM audit WHERE number < ? ORDER BY number LIMIT ?)"
DROP_AUDIT = "DELETE FROM audit WHERE number <= ?"
_DROPS: dict[type, str] = {
    DropRun: "DELETE FROM runs WHERE key = ?",
    DropCallback: "DELETE FROM callbacks WHERE id = ?",
    DropSecrets: "DELETE FROM secrets WHERE task = ?",
}
DROP_STRAY_SECRETS = """DELETE FROM secrets WHERE task NOT IN
    (SELECT id FROM tasks WHERE state IN ('waiting', 'placing', 'running'))"""
"""Left by a release that does not know the table."""
_PUT_ENDED_RUN = "INSERT OR REPLACE INTO ended_runs (task, number, at, body) VALUES (?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode
TASK = msgspec.msgpack.Decoder(Task)
EVENT = msgspec.msgpack.Decoder(Event)
KEY = msgspec.msgpack.Decoder(PutKey)
CALLBACK = msgspec.msgpack.Decoder(Callback)
SECRETS = msgspec.msgpack.Decoder(PutSecrets)
AUDIT = msgspec.msgpack.Decoder(PutAudit)
RUN = msgspec.msgpack.Decoder(Run)


def statements(
    changes: Iterable[TaskChange | AttemptChange], at: float | None = None, numbers: Iterable[int] = ()
) -> list[Statement]:
    """The SQL of each change, in order.

    Args:
        changes: what to store.
        at: the store's clock, else the times that people read serve.
        numbers: one for each event among the changes, even if it turns out to be there.
    """
    left = iter(numbers)
    return [statement for change in changes for statement in _statements(change, at, left)]


def _statements(  # noqa: C901  one case per change
    change: TaskChange | AttemptChange, at: float | None, numbers: Iterator[int]
) -> Iterator[Statement]:
    match change:
        case PutTask(task=task):
            node = task.current.node if task.current else None
            owner = task.caller.token
            row = (
                task.id,
                task.state.value,
                task.name,
                node,
                task.parent,
                owner,
                task.ended_at if at is None or task.ended_at is None else at,
                _encode(task),
            )
            yield _PUT_TASK, row
        case PutEvent(event=event):
            yield _PUT_EVENT, (next(numbers), event.task, _encode(event))
        case PutRun(run=run):
            yield _PUT_RUN, (run.offer.key, run.accepted_at, _encode(run))
        case DropRun(key=name) | DropCallback(id=name) | DropSecrets(task_id=name):
            yield _DROPS[type(change)], (name,)
        case EndRun(run=run):
            bare = bare_end(run)
            yield "DELETE FROM runs WHERE key = ?", (run.offer.key,)
            when = bare.ended_at if at is None else at
            yield _PUT_ENDED_RUN, (run.offer.task_id, run.offer.number, when, _encode(bare))
        case PutKey():
            tick = change.expires_tick
            expiry = (
                (change.expires_at, tick.boot or None, tick.at) if tick else (change.expires_at, None, None)
            )
            yield _PUT_KEY, (change.scope, change.key, *expiry, _encode(change))
        case PutMark():
            yield _PUT_MARK, (change.name, change.number)
        case PutCallback(callback=callback):
            yield _PUT_CALLBACK, (callback.id, callback.created_at, _encode(callback))
        case PutAudit():
            kept = change.at if at is None else at
            yield _PUT_AUDIT, (change.at, change.id or None, kept, _encode(change))
        case PutSecrets(task_id=task_id):
            yield _PUT_SECRETS, (task_id, _encode(change))
        case DropTask(task_id=task_id):
            yield "DELETE FROM events WHERE task = ?", (task_id,)
            yield _DROPS[DropSecrets], (task_id,)
            yield "DELETE FROM tasks WHERE id = ?", (task_id,)
        case Again():
            yield _again(change.change, at, numbers)


def _again(change: PutEvent | PutAudit, at: float | None, numbers: Iterator[int]) -> Statement:
    [(_, row)] = _statements(change, at, numbers)
    if isinstance(change, PutAudit):
        return _PUT_AUDIT_AGAIN, (*row, change.id)
    return _PUT_EVENT_AGAIN, (*row, *row[1:])


def key_of(scope: str, key: str, now: float, tick: Tick | None) -> Statement:
    """The query of a key that has not expired."""
    return (
        f"SELECT body FROM keys WHERE scope = ? AND key = ? AND NOT {_EXPIRED}",  # noqa: S608  our own words
        (scope, key, *_now(now, tick)),
    )


def expired_keys(now: float, tick: Tick | None) -> Statement:
    """What forgets keys that have expired."""
    return f"DELETE FROM keys WHERE {_EXPIRED}", _now(now, tick)  # noqa: S608  our own words


def _now(wall: float, tick: Tick | None) -> tuple[object, ...]:
    return (tick.boot, tick.at, wall) if tick else (None, None, wall)


def bare_end(run: Run) -> Run:
    """What is kept of an acknowledged run: how it ended, not what it was."""
    ended_at = run.accepted_at if run.ended_at is None else run.ended_at
    offer = msgspec.structs.replace(run.offer, spec=b"")
    return msgspec.structs.replace(run, offer=offer, handle=None, ended_at=ended_at)


def ended_runs(task_ids: Sequence[str]) -> Statement:
    """The query of acknowledged runs of some tasks."""
    marks = ", ".join("?" * len(task_ids))
    return f"SELECT body FROM ended_runs WHERE task IN ({marks}) ORDER BY task, number", tuple(task_ids)  # noqa: S608  our own words


def keep_event(event: Event) -> Statement:
    """An event with the number it already has; for carrying over from a damaged database."""
    return "INSERT OR IGNORE INTO events (seq, task, body) VALUES (?, ?, ?)", (
        event.seq,
        event.task,
        _encode(event),
    )


def listing(which: TaskFilter) -> Statement:
    """The query of a task listing: the filter runs on one narrow index, bodies are read for the hits only."""
    where: list[str] = []
    values: list[object] = []
    if which.states:
        where.append(f"state IN ({', '.join('?' * len(which.states))})")
        values += [state.value for state in which.states]
    for column in ("name", "node", "parent", "owner"):
        value = getattr(which, column)
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if which.before is not None:
        where.append("id < ?")
        values.append(which.before)
    hits = f"SELECT id FROM tasks INDEXED BY tasks_list WHERE {' AND '.join(where) or '1'}"  # noqa: S608  our own words
    return (
        f"SELECT body FROM tasks WHERE id IN ({hits} ORDER BY id DESC LIMIT ?) ORDER BY id DESC",  # noqa: S608  as above
        (*values, max(which.limit, 0)),
    )


def audited(which: AuditFilter) -> Statement:
    """The query of a listing of the audit trail."""
    where = "id IS NOT NULL AND at >= ?"
    values: list[object] = [which.since]
    if which.before is not None:
        where = f"{where} AND id < ?"
        values.append(which.before)
    sql = f"SELECT body FROM audit WHERE {where} ORDER BY id DESC, number DESC LIMIT ?"  # noqa: S608  our own words
    return sql, (*values, max(which.limit, 0))


NAMELESS = "SELECT number, body FROM audit WHERE id IS NULL AND number > ? ORDER BY number LIMIT 500"


def named(number: int, body: bytes, node_id: str) -> list[Statement]:
    """A record with an id by its place in the table, which no record of a start has; none where damaged."""
    return [
        (
            "UPDATE audit SET id = ?, body = ? WHERE number = ?",
            (named_id, _encode(msgspec.structs.replace(record, id=named_id)), number),
        )
        for record in decode_all(AUDIT, [(body,)])
        for named_id in [ulid(record.at, number, node_id)]
    ]


def dated(now: float) -> list[Statement]:
    """Times that an older release took from a wall clock: none may lie before the store, or last for ever."""
    return [
        ("UPDATE tasks SET ended_at = ? WHERE ended_at > ?", (now, now)),
        ("UPDATE ended_runs SET at = ? WHERE at > ?", (now, now)),
        ("UPDATE audit SET kept = MIN(at, ?) WHERE kept IS NULL", (now,)),
    ]


NOTE = "INSERT OR REPLACE INTO meta (name, value) VALUES ('clock', ?)"
"""Puts down ``StoreClock.note``."""
_FRESH = """SELECT EXISTS (SELECT 1 FROM runs WHERE key = ?)
    OR EXISTS (SELECT 1 FROM tasks WHERE id = ? AND (ended_at IS NULL OR ended_at >= ?))
    OR EXISTS (SELECT 1 FROM ended_runs WHERE task = ? AND number = ? AND at >= ?)"""


def fresh(key: str, since: float) -> Statement:
    """Whether an attempt is of something that has not ended, or ended since then."""
    task_id, number = attempt_of(key)
    return _FRESH, (key, task_id, since, task_id, number, since)


def prunable(ended_before: float, limit: int) -> Statement:
    """Ids of tasks that ended before a time of the store; a child waits for its parent, which ends last."""
    return (
        """SELECT id FROM tasks WHERE ended_at < ? AND state NOT IN ('waiting', 'placing', 'running')
        AND NOT EXISTS (SELECT 1 FROM tasks AS p WHERE p.id = tasks.parent
                        AND (p.ended_at IS NULL OR p.ended_at >= ?))
        ORDER BY ended_at, id LIMIT ?""",
        (ended_before, ended_before, limit),
    )


def decode(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    """One row's struct.

    Raises:
        StorageError: the row is damaged.
    """
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise StorageError(
            f"a row of the database cannot be read: {error}",
            hint="restart the node: it checks the database and carries over what can be read",
        ) from None


def decode_all(decoder: msgspec.msgpack.Decoder[T], rows: Iterable[tuple[bytes]]) -> list[T]:
    """Every row's struct; a damaged one is logged and left out, so that it does not hide the others."""
    found = []
    for (body,) in rows:
        try:
            found.append(decode(decoder, body))
        except StorageError as error:
            log.error("left a damaged row out of a listing", error=error.detail)  # noqa: TRY400  all is said
    return found


def events(rows: Iterable[tuple[int, bytes]]) -> list[Event]:
    """Events with the numbers that their rows have."""
    return [
        msgspec.structs.replace(event, seq=seq)
        for seq, body in rows
        for event in decode_all(EVENT, [(body,)])
    ]
