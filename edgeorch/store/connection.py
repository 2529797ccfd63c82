"""Connections to the database file, and SQLite's errors in our words."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeorch.errors import StorageError

_SHARED = {
    sqlite3.SQLITE_BUSY: ("another program holds the database", "close the program that has it open"),
    sqlite3.SQLITE_LOCKED: ("another program holds the database", "close the program that has it open"),
    sqlite3.SQLITE_READONLY: ("the database is read-only", "check the file's owner and the mount options"),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "check the disk and the kernel's log"),
    sqlite3.SQLITE_CANTOPEN: ("the database cannot be opened", "check the folder's owner and permissions"),
    sqlite3.SQLITE_CORRUPT: ("the database is damaged", "restart the node: it carries over what can be read"),
    sqlite3.SQLITE_NOTADB: ("the database is damaged", "restart the node: it carries over what can be read"),
}
_FULL = ("the disk is full", "free some space on the node")
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PAGE_BYTES = 2048
"""Of a database made anew; an older one keeps the size that it has. What a task changes goes to the log in
whole pages, of which it fills a part: half of SQLite's usual size is half of that, and half the wear of an SD
card. With smaller ones, transactions of many tasks are slower."""


def code_of(error: BaseException) -> int:
    """SQLite's primary result code (sqlite.org/rescode.html), or 0."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def hits_everyone(error: BaseException) -> bool:
    """Whether the error comes from the disk or the file, so that trying again call by call is of no use."""
    return code_of(error) in _SHARED


def storage_error(error: sqlite3.Error) -> StorageError:
    """What SQLite says, in our words."""
    code = code_of(error)
    known = _FULL if code == sqlite3.SQLITE_FULL else _SHARED.get(code)
    what, hint = known or ("the database refuses this", "")
    return StorageError(f"{what}: {error}", hint=hint)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Map SQLite's errors to ``StorageError``."""
    try:
        yield
    except sqlite3.Error as error:
        raise storage_error(error) from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits durably. Used by one thread at a time, not always the same."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 8388608")
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, not even by closing: a damaged file stays as it is."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.text_factory = lambda text: text.decode(errors="replace")  # the report on damage may quote it
    return connection
