"""A database of any earlier version is brought to this one, every row kept, and is then like a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envelopes import DELETED, LIVE, rows, tables

from regstat_lib.batch import Arrival, Batch
from regstat_lib.changes import Repository, changes_of
from regstat_lib.envelope import parse_envelope
from regstat_lib.store import Session, postgres, schema, sqlite
from regstat_lib.store.connection_string import parse_connection_string

DAY = Path(__file__).parent / "data" / "busy-day-references.jsonl"
FACTS = {
    "events": "id, action, repository, digest, tag",
    "holdings": "digest, repository_id, pushed, pulled, as_blob, as_manifest, deleted",
    "sightings": "repository_id, tag, sighted, manifest_digest",
}


def connect(flags: list[str]) -> Session:
    if flags[0] == "-sqlite":
        return sqlite.SqliteDatabase(Path(flags[1])).connect()
    return postgres.PostgresDatabase(parse_connection_string(flags[1], {})).connect()


def recorded_day() -> Iterator[Batch]:
    for line in DAY.read_text().splitlines():
        events = parse_envelope(json.loads(line)["body"].encode()).events
        yield Batch(
            Arrival(event, event.timestamp or "", False, changes_of(event, where, event.timestamp or ""))
            for event in events
            for where in [Repository(event.host, event.repository)]
        )


def shape(flags: list[str]) -> set[tuple[Any, ...]]:
    """Every column of every table and view."""
    if flags[0] == "-sqlite":
        names = rows(flags, "select name from sqlite_master where type in ('table', 'view')")
        return {(name, *column[1:4]) for (name,) in names for column in rows(flags, f"pragma table_info({name})")}
    query = "select table_name, column_name, data_type from information_schema.columns where table_schema = 'regstat'"
    return set(rows(flags, query))


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_an_earlier_version_keeps_its_rows_and_gets_the_shape_of_a_new_database(
    version: int, database_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as then:
        then.setattr(schema, "_UPGRADES", schema._UPGRADES[:version])
        then.setattr(sqlite, "SCHEMA_VERSION", version)
        then.setattr(postgres, "SCHEMA_VERSION", version)
        session = connect(database_flags)
        for batch in recorded_day():
            session.record(batch, "2026-11-23 20:00:00.000000")
        session.close()
    which = {**LIVE, **DELETED, **FACTS}
    before, old_shape = tables(database_flags, which), shape(database_flags)
    assert before["tags"]
    assert before["events"]

    connect(database_flags).close()

    assert tables(database_flags, which) == before
    assert shape(database_flags) >= old_shape
    if database_flags[0] == "-sqlite":
        new = ["-sqlite", database_flags[1] + ".new"]
        connect(new).close()
        assert shape(database_flags) == shape(new)
