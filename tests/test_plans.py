"""What a batch costs must not grow with the database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from regstat_lib.store.sql_text import Statement
from regstat_lib.store.sqlite import SqliteDatabase, _script

# A repository is deleted as a whole so seldom that no index is kept for it.
WHOLE_REPOSITORIES = {"staged_repositories"}


def scanned(connection: sqlite3.Connection, sql: str) -> set[str]:
    """The tables of the file that SQLite would read from end to end, by the program it makes of the statement."""
    tables = dict(connection.execute("select rootpage, tbl_name from sqlite_master where rootpage > 0").fetchall())
    parameters = {"now": ""} if ":now" in sql else {}
    cursors: dict[int, str] = {}
    found = set()
    for _, opcode, p1, p2, p3, *_ in connection.execute(f"explain {sql}", parameters):
        if opcode in ("OpenRead", "OpenWrite", "ReopenIdx"):
            if p3 == 0:  # the file; 1 is the temporary tables
                cursors[p1] = str(tables.get(p2, "?"))
            else:
                cursors.pop(p1, None)
        elif opcode in ("OpenEphemeral", "OpenAutoindex", "OpenPseudo"):
            cursors.pop(p1, None)
        elif opcode in ("Rewind", "Last") and p1 in cursors:
            found.add(cursors[p1])
    return found


@pytest.mark.parametrize(("statement", "sql"), _script(), ids=[" ".join(sql.split())[:60] for _, sql in _script()])
def test_no_statement_of_a_batch_reads_a_whole_table(sqlite_path: Path, statement: Statement, sql: str) -> None:
    if set(statement.only_if) == WHOLE_REPOSITORIES:
        pytest.skip("runs only when a whole repository was deleted")
    session = SqliteDatabase(sqlite_path).connect()
    try:
        assert scanned(session._connection, sql) == set()
    finally:
        session.close()
