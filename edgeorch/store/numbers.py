"""The numbers of events: each is given out once, over restarts, lost transactions and other releases.

``events.seq`` is AUTOINCREMENT: SQLite keeps a mark in ``sqlite_sequence``, up to which it makes no number,
and moves it for each number above (sqlite.org/autoinc.html). One that is put ahead spares nearly every
transaction a page. Should it be lost with a transaction that is rolled back, SQLite moves it by itself again.
"""

import sqlite3

AHEAD = 1000
"""Numbers set aside at once. What is left of them at the end of the node is never given out."""

_KNOWN = """SELECT COALESCE(MAX(seq), 0)
    FROM (SELECT seq FROM sqlite_sequence WHERE name = 'events' UNION ALL SELECT MAX(seq) FROM events)"""
_FIRST_MARK = """INSERT INTO sqlite_sequence (name, seq)
    SELECT 'events', 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'events')"""
_MARK = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'"


class Numbers:
    """Numbers above all that any release has given out in this database.

    Args:
        connection: in a transaction.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        connection.execute(_FIRST_MARK)
        (self._last,) = connection.execute(_KNOWN).fetchone()
        self._marked = self._last

    def take(self, count: int) -> range:
        """The next numbers. Whoever takes them commits in the order of taking."""
        taken = range(self._last + 1, self._last + 1 + count)
        self._last += count
        return taken

    def mark(self, cursor: sqlite3.Cursor, highest: int) -> None:
        """See to the mark in the transaction that stores events up to this number."""
        if highest > self._marked:
            self._marked = highest + AHEAD
            cursor.execute(_MARK, (self._marked,))
