"""What a batch costs must not grow with the database."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from envelopes import IMAGE, INDEX, change, digest_of, envelope, event, image, rows
from postgres_server import PostgresServer
from running_daemon import await_condition, run_daemon

from regstat_lib.store.connection_string import parse_connection_string
from regstat_lib.store.postgres import PostgresDatabase
from regstat_lib.store.sql_text import Statement
from regstat_lib.store.sqlite import SqliteDatabase, _script


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


# In SQLite a repository is deleted as a whole too seldom for the index that finds what it holds.
WHOLE_REPOSITORIES = {"staged_repositories"}


@pytest.mark.parametrize(("statement", "sql"), _script(), ids=[" ".join(sql.split())[:60] for _, sql in _script()])
def test_no_statement_of_a_batch_reads_a_whole_table(sqlite_path: Path, statement: Statement, sql: str) -> None:
    session = SqliteDatabase(sqlite_path).connect()
    try:
        allowed = {"holdings"} if set(statement.only_if) == WHOLE_REPOSITORIES else set()
        assert scanned(session._connection, sql) <= allowed
    finally:
        session.close()


KNOWN = 20_000


def test_a_batch_reads_no_more_of_postgres_however_much_there_is(postgres_server: PostgresServer) -> None:
    flags = ["-pg-conn-str", postgres_server.new_database()]
    database = PostgresDatabase(parse_connection_string(flags[1], {}))
    database.connect().close()
    # Known blobs and manifests, and links of both kinds, of which a plan may think that to read them all is quick.
    change(
        flags,
        "insert into {s}repository_names (registry, repository) values ('registry.example.com:5000', 'known')",
        "insert into {s}holdings (digest, repository_id, pushed, first_seen, as_blob, as_manifest)"
        " select k.kind || i, r.id, now(), now(), case when kind = 'sha256:b' then now() end,"
        " case when kind = 'sha256:c' then now() end"
        f" from generate_series(1, {KNOWN}) i, (values ('sha256:b'), ('sha256:c')) k(kind), {{s}}repository_names r"
        " where r.repository = 'known'",
        "insert into {s}blobs (digest, pushed, first_seen, last_push)"
        " select digest, pushed, first_seen, pushed from {s}holdings where as_blob is not null",
        "insert into {s}manifests (digest, pushed, first_seen, last_push)"
        " select digest, pushed, first_seen, pushed from {s}holdings where as_manifest is not null",
        "insert into {s}contents (manifest_digest, complete) select digest, 1 from {s}manifests",
        "insert into {s}manifest_blob"
        f" select 'sha256:c' || i, 'sha256:b' || i, 'layer' from generate_series(1, {KNOWN}) i",
        "insert into {s}deleted_manifest_blob"
        f" select 'sha256:d' || i, 'sha256:e' || i, now(), 'layer' from generate_series(1, {KNOWN}) i",
    )
    bodies = [
        envelope(
            event("push", digest_of(f"blob {number}"), repository=f"app{number}"),
            event("push", "sha256:b7", repository=f"app{number}"),
            image(digest_of(f"image {number}"), digest_of(f"blob {number}"), "sha256:b9", tag="v1", repository="app"),
            image("sha256:c8", "sha256:b8", tag=f"v{number}", repository="app"),
            event("delete", digest_of(f"image {number - 1}"), repository="app"),
            event("delete", "sha256:c9", repository="known"),
            event("delete", repository=f"app{number - 1}"),
        )
        for number in range(8)
    ]
    before, pages_before = _rows_read(flags), _index_pages_read(flags)
    with run_daemon(*flags) as daemon:
        await_condition(lambda: daemon.post(bodies[0])[0] == 200, 10, "it records")
        for body in bodies[1:]:
            assert daemon.post(body)[0] == 200
    # A session tells what it read when it ends, at the latest.
    await_condition(lambda: not _others(flags), 10, "its sessions have ended")
    assert 0 < _rows_read(flags) - before < KNOWN / 4
    # Entries of an index that were looked at and not taken count as no rows.
    ((pages,),) = rows(flags, "select pg_relation_size('regstat.holdings_pkey') / 8192")
    assert 0 < _index_pages_read(flags) - pages_before < len(bodies) * pages


def _others(flags: list[str]) -> list[Any]:
    query = "select 1 from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    return list(rows(flags, query))


def _rows_read(flags: list[str]) -> int:
    """How many rows and index entries of the tables were read so far."""
    ((read,),) = rows(
        flags,
        "select coalesce(sum(seq_tup_read), 0) + coalesce(sum(i.read), 0) from pg_stat_user_tables t"
        " left join (select relid, sum(idx_tup_read) as read from pg_stat_user_indexes group by relid) i using (relid)"
        " where schemaname = 'regstat'",
    )
    return int(read)


def _index_pages_read(flags: list[str]) -> int:
    """How many pages of the indexes of what repositories hold were read so far."""
    query = "select sum(idx_blks_hit + idx_blks_read) from pg_statio_user_tables where relname = 'holdings'"
    ((read,),) = rows(flags, query)
    return int(read)


def test_a_pull_that_tells_what_is_known_writes_where_it_was_pulled_and_nowhere_else(pg_conn_str: str) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    index, child = digest_of("an index"), digest_of("its image")
    references = [{"mediaType": IMAGE, "digest": child, "size": 500}]

    def told(action: str, repository: str) -> bytes:
        one = event(action, index, media_type=INDEX, repository=repository)
        one["target"]["references"] = references
        return envelope(one)

    # Where a row is changes with whatever is written to it.
    places = (
        "select h.digest, cast(h.ctid as text) from {s}holdings h join {s}repository_names r on r.id = h.repository_id"
        " where r.repository {is} 'here' union all select l.blob_digest, cast(l.ctid as text) from {s}manifest_blob l"
        " union all select c.manifest_digest, cast(c.ctid as text) from {s}contents c"
    )
    with run_daemon(*flags) as daemon:
        await_condition(lambda: daemon.post(told("push", "here"))[0] == 200, 10, "it records")
        assert daemon.post(told("push", "elsewhere"))[0] == 200
        elsewhere, here = (set(rows(flags, places.replace("{is}", operator))) for operator in ("<>", "="))
        assert daemon.post(told("pull", "here"))[0] == 200
        assert set(rows(flags, places.replace("{is}", "<>"))) == elsewhere
        assert set(rows(flags, places.replace("{is}", "="))) != here
