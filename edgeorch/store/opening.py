"""Open the database file: lock, check, repair, migrate, count the start."""

import fcntl
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeorch.errors import StartError
from edgeorch.seams import Seams
from edgeorch.store import rows
from edgeorch.store.clock import StoreClock, noted
from edgeorch.store.connection import connect, storage_error
from edgeorch.store.migrations import migrate
from edgeorch.store.numbers import Numbers
from edgeorch.store.repair import prepare


@dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
        writer: the connection that commits.
        reader: the connection that only reads.
        lock: file descriptor whose lock keeps a second node out.
        store_id: see ``AttemptStore``.
        boot: see ``AttemptStore``.
        marks: see ``TaskStore``.
        set_aside: where a damaged predecessor went at this start, or None.
        clock: by which it forgets.
        numbers: those that events get.
    """

    writer: sqlite3.Connection
    reader: sqlite3.Connection
    lock: int
    store_id: str
    boot: int
    marks: dict[str, int]
    set_aside: Path | None
    clock: StoreClock
    numbers: Numbers

    def close(self) -> None:
        """Move the write-ahead log into the database and let go of the files; the reader is closed before."""
        try:
            # On a full disk the log stays beside the file and is read at the next start.
            with suppress(sqlite3.Error):
                self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self.writer.close()
            os.close(self.lock)


def open_database(path: Path, seams: Seams, new_id: str) -> Database:
    """Open or make the database at ``path``. Blocks; run it in a thread.

    Args:
        path: the file; its folder is made (0700) when absent, the file with 0600.
        seams: clocks; the wall clock names a file that is set aside.
        new_id: ``store_id`` of a database made anew.

    Raises:
        StartError: another node uses the file, or it cannot be opened, or belongs to a newer release.
    """
    try:
        with ExitStack() as stack:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = _lock(path)
            stack.callback(os.close, lock)
            set_aside = prepare(path, seams.wall())
            writer = stack.enter_context(closing(connect(path)))
            migrate(writer)
            store_id, boot, clock, numbers = _start(writer, seams, new_id)
            marks = {
                str(name): int(number) for name, number in writer.execute("SELECT name, number FROM marks")
            }
            reader = stack.enter_context(closing(connect(path)))
            reader.execute("PRAGMA query_only = ON")
            stack.pop_all()
    except sqlite3.Error as error:
        mapped = storage_error(error)
        raise StartError(f"{path}: {mapped.detail}", hint=mapped.hint) from error
    except OSError as error:
        hint = "check node.state_dir, its owner and its disk"
        raise StartError(f"{error.filename or path}: {error.strerror}", hint=hint) from error
    return Database(writer, reader, lock, store_id, boot, marks, set_aside, clock, numbers)


def _lock(path: Path) -> int:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartError(f"another node uses {path}", hint="stop it, or set another node.state_dir") from None
    return lock


def _start(writer: sqlite3.Connection, seams: Seams, new_id: str) -> tuple[str, int, StoreClock, Numbers]:
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE meta SET value = ? WHERE name = 'store_id' AND value = ''", (new_id,))
    writer.execute("UPDATE meta SET value = value + 1 WHERE name = 'boot'")
    known = dict(writer.execute("SELECT name, value FROM meta").fetchall())
    (newest_end,) = writer.execute("SELECT MAX(ended_at) FROM tasks").fetchone()
    clock = StoreClock(seams, noted(known.get("clock"), newest_end, seams.wall()))
    for sql, values in (*rows.dated(clock.now()), (rows.NOTE, (clock.note(),))):
        writer.execute(sql, values)
    numbers = Numbers(writer)
    writer.execute("COMMIT")
    return str(known["store_id"]), int(known["boot"]), clock, numbers
