"""The database's schema as numbered steps, applied in order and never changed once released.

``PRAGMA user_version`` holds the number of the newest step that a database has seen. Steps only add
(tables, columns with defaults, indexes) or drop an index that no query names, so the previous release can
still open the file; a step that older code cannot live with raises ``compatible`` to its own number, and
older code then refuses the file.
"""

import sqlite3
from dataclasses import dataclass

from edgeorch.errors import StartError

APPLICATION_ID = 0x65644F72
"""``edOr``: tells our file from another program's (sqlite.org/fileformat.html, offset 68)."""


@dataclass(frozen=True)
class Step:
    """One numbered change of the schema.

    Attributes:
        number: its place, from 1 without gaps.
        compatible: the oldest step whose code can work with a database that has seen this one.
        sql: statements, separated by semicolons.
    """

    number: int
    compatible: int
    sql: str


# Bodies are whole structs in MessagePack; the other columns repeat what is looked up. tasks_list is wide on
# purpose: every listing is answered from it alone, and a change of state rewrites one entry next to its
# neighbours in time instead of one page in each of five indexes, which an SD card would feel.
STEPS = (
    Step(
        number=1,
        compatible=1,
        sql="""
            CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
            INSERT INTO meta VALUES ('compatible', 1), ('boot', 0), ('store_id', '');
            CREATE TABLE tasks (
                id TEXT PRIMARY KEY, state TEXT NOT NULL, name TEXT NOT NULL, node TEXT, parent TEXT,
                owner TEXT NOT NULL, ended_at REAL, body BLOB NOT NULL
            );
            CREATE INDEX tasks_list ON tasks (id, state, name, node, parent, owner);
            CREATE INDEX tasks_parent ON tasks (parent, id) WHERE parent IS NOT NULL;
            CREATE INDEX tasks_ended ON tasks (ended_at) WHERE ended_at IS NOT NULL;
            CREATE TABLE events (
                seq INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, body BLOB NOT NULL
            );
            CREATE INDEX events_task ON events (task, seq);
            CREATE TABLE keys (
                scope TEXT NOT NULL, key TEXT NOT NULL, expires_at REAL NOT NULL, body BLOB NOT NULL,
                PRIMARY KEY (scope, key)
            );
            CREATE TABLE callbacks (id TEXT PRIMARY KEY, created_at REAL NOT NULL, body BLOB NOT NULL);
            CREATE TABLE audit (number INTEGER PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
            CREATE INDEX audit_at ON audit (at);
            CREATE TABLE runs (key TEXT PRIMARY KEY, accepted_at REAL NOT NULL, body BLOB NOT NULL);
        """,
    ),
    Step(
        number=2,
        compatible=1,
        sql="CREATE TABLE secrets (task TEXT PRIMARY KEY, body BLOB NOT NULL)",
    ),
    Step(
        number=3,
        compatible=1,
        sql="""
            CREATE TABLE ended_runs (
                task TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, body BLOB NOT NULL,
                PRIMARY KEY (task, number)
            ) WITHOUT ROWID;
            CREATE INDEX ended_runs_at ON ended_runs (at);
        """,
    ),
    Step(
        number=4,
        compatible=1,
        sql="""
            ALTER TABLE audit ADD COLUMN id TEXT;
            CREATE INDEX audit_id ON audit (id) WHERE id IS NOT NULL;
        """,
    ),
    Step(
        number=5,
        compatible=1,
        sql="""
            ALTER TABLE keys ADD COLUMN boot INTEGER;
            ALTER TABLE keys ADD COLUMN tick REAL;
            CREATE TABLE marks (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
        """,
    ),
    # Since then tasks.ended_at and ended_runs.at are by the store's own clock, as kept is: by it they go.
    Step(
        number=6,
        compatible=1,
        sql="""
            ALTER TABLE audit ADD COLUMN kept REAL;
            CREATE INDEX audit_undated ON audit (number) WHERE kept IS NULL;
        """,
    ),
    # Nothing looks records up by the wall clock any more: a page less for each task that is accepted.
    Step(number=7, compatible=1, sql="DROP INDEX audit_at"),
)


def version_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """Whose file it is, and the newest step it has seen."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (seen,) = connection.execute("PRAGMA user_version").fetchone()
    return owner, seen


def migrate(connection: sqlite3.Connection, steps: tuple[Step, ...] = STEPS) -> None:
    """Bring a database up to the newest step, each step in a transaction of its own.

    Raises:
        StartError: the file is another program's, or was written by a release that ours cannot follow.
        sqlite3.Error: the disk.
    """
    owner, seen = version_of(connection)
    if owner != APPLICATION_ID and (
        owner or seen or connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    ):
        raise StartError(
            "the database file belongs to another program", hint="move it away or set node.state_dir"
        )
    if seen > steps[-1].number:
        (oldest,) = connection.execute("SELECT value FROM meta WHERE name = 'compatible'").fetchone()
        if oldest > steps[-1].number:
            raise StartError(
                f"the database was written by a newer release (schema {seen}, ours is {steps[-1].number})",
                hint="install that release again, or restore a backup from before it",
            )
        return
    for step in steps[seen:]:
        # executescript runs the statements as they stand, so the transaction is part of the script.
        connection.executescript(
            f"""BEGIN IMMEDIATE; {step.sql};
            UPDATE meta SET value = {step.compatible} WHERE name = 'compatible';
            PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {step.number}; COMMIT"""  # noqa: S608  our own numbers
        )
