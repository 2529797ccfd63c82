"""Make the database file: a new one, or one that carries over what can be read of a damaged one.

A damaged file is never opened for writing. Its readable rows go into a new file beside it, and only when that
is complete and on disk do the two change places; a crash at any point leaves either the old state or
``PATH.carried``, which the next start puts in place. So the node never starts silently empty.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edgeorch.errors import StorageError
from edgeorch.store import AttemptChange, EndRun, PutCallback, PutRun, PutTask, TaskChange, rows
from edgeorch.store.connection import DAMAGE, code_of, connect, connect_read_only
from edgeorch.store.migrations import APPLICATION_ID, STEPS, migrate, version_of
from edgeorch.store.wal import unread

log = structlog.get_logger()

_TABLES: dict[str, Callable[[bytes], TaskChange | AttemptChange]] = {
    "tasks": lambda body: PutTask(task=rows.TASK.decode(body)),
    "runs": lambda body: PutRun(run=rows.RUN.decode(body)),
    "ended_runs": lambda body: EndRun(run=rows.RUN.decode(body)),
    "keys": rows.KEY.decode,
    "callbacks": lambda body: PutCallback(callback=rows.CALLBACK.decode(body)),
    "audit": rows.AUDIT.decode,
    "secrets": rows.SECRETS.decode,
}
"""How a row of each table becomes a change again; events keep their numbers and go their own way."""


def prepare(path: Path, now: float) -> Path | None:
    """Leave a sound database at ``path``; where the damaged one went, if there was one."""
    fresh, carried = Path(f"{path}.new"), Path(f"{path}.carried")
    for leftover in (fresh, *_companions(fresh)):
        leftover.unlink(missing_ok=True)
    if not carried.exists():
        wrong = _damage(path)
        if wrong is None and path.exists():
            return None
        counts = _make(fresh, path if wrong else None, now)
        if wrong:
            log.error("the database is damaged", path=str(path), reason=wrong, carried_over=counts)
        fresh.replace(carried)
        _sync(path.parent)
    return _swap(path, carried, now)


def _companions(path: Path) -> tuple[Path, Path]:
    return Path(f"{path}-wal"), Path(f"{path}-shm")


def _swap(path: Path, carried: Path, now: float) -> Path | None:
    """Put the complete new file in place of the old one, which keeps its content under another name."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    aside, count = Path(f"{path}.corrupt-{stamp}"), 1
    while aside.exists():
        aside, count = Path(f"{path}.corrupt-{stamp}-{count}"), count + 1
    old = False
    # The log goes first: beside the new file, SQLite would replay it there.
    for companion, target in zip(_companions(path), _companions(aside), strict=True):
        if companion.exists():
            companion.rename(target)
            old = True
    if path.exists():
        os.link(path, aside)
        old = True
    _sync(path.parent)
    carried.replace(path)
    _sync(path.parent)
    if not old:
        log.info("made a new database", path=str(path))
    else:
        log.error(
            "the database was damaged: it was set aside, what could be read is in the new one",
            kept=str(aside),
        )
    return aside if old else None


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _damage(path: Path) -> str | None:
    """What is wrong with the file at ``path``, or None."""
    if not path.exists():
        return "the file is missing, its log is not" if _companions(path)[0].exists() else None
    if path.stat().st_size == 0:
        # We put files in place whole, so an empty one was emptied.
        return "the file is empty"
    try:
        with closing(connect_read_only(path)) as connection:
            return _check(connection) or unread(path)
    except StorageError as error:
        return error.detail
    except UnicodeDecodeError:
        return "the schema is not text"
    except sqlite3.DatabaseError as error:
        # SQLITE_ERROR: our own queries found a table missing.
        if code_of(error) not in (*DAMAGE, sqlite3.SQLITE_ERROR):
            raise
        return str(error)


def _check(connection: sqlite3.Connection) -> str | None:
    found: str = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        return found
    if version_of(connection) == (APPLICATION_ID, STEPS[-1].number):  # else migrate() decides
        for (body,) in connection.execute(rows.OPEN_TASKS):
            rows.decode(rows.TASK, body)
        for (body,) in connection.execute(rows.RUNS):
            rows.decode(rows.RUN, body)
    return None


def _make(fresh: Path, damaged: Path | None, now: float) -> dict[str, int]:
    """A new file with what can be read of the damaged one; how many rows of each table."""
    counts = dict.fromkeys((*_TABLES, "events"), 0)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(connect(fresh)) as connection:
        migrate(connection)
        if damaged is None:
            return counts
        connection.execute("BEGIN IMMEDIATE")
        # Numbers of lost events must not come again. Counted from 1 at under a thousand a second they never
        # reach the milliseconds since the epoch.
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (int(now * 1000),))
        # SQLite deletes the log of an empty database; both stay as they are for whoever looks into it.
        if damaged.exists() and damaged.stat().st_size:
            with (
                suppress(sqlite3.DatabaseError, UnicodeDecodeError),
                closing(connect_read_only(damaged)) as source,
            ):
                _carry_over(source, connection, counts)
        connection.execute("COMMIT")
    return counts


def _carry_over(source: sqlite3.Connection, target: sqlite3.Connection, counts: dict[str, int]) -> None:
    """Copy every row that can still be read and understood."""
    for table, change in _TABLES.items():
        for _number, body in _readable(source, table):
            with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
                for sql, values in rows.statements([change(body)]):
                    target.execute(sql, values)
                counts[table] += 1
    for number, body in _readable(source, "events"):
        for event in rows.events([(number, body)]):
            target.execute(*rows.keep_event(event))
            counts["events"] += 1
    with suppress(sqlite3.DatabaseError):
        for name in ("boot", "store_id", "clock"):
            for row in source.execute("SELECT name, value FROM meta WHERE name = ?", (name,)).fetchall():
                target.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", row)
        for name, number in source.execute("SELECT name, number FROM marks").fetchall():
            target.execute("INSERT INTO marks (name, number) VALUES (?, ?)", (name, number))


def _readable(source: sqlite3.Connection, table: str) -> Iterator[tuple[int, Any]]:
    """Rows (number, body) up to the first unreadable page, then from the end back to the last one."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        try:
            query = f"SELECT rowid, body FROM {table} NOT INDEXED ORDER BY rowid {order}"  # noqa: S608  our own words
            for number, body in source.execute(query):
                if number in seen:
                    return
                seen.add(number)
                yield number, body
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            continue
        return
