"""A database of any earlier version is brought to this one, every row kept, and is then like a new one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from envelopes import DELETED, LIVE, pg_connect, rows, tables
from running_daemon import await_condition

from regstat_lib.batch import Arrival, Batch
from regstat_lib.changes import Repository, changes_of
from regstat_lib.cli import database_to_read
from regstat_lib.envelope import parse_envelope
from regstat_lib.reports import command
from regstat_lib.reports.questions import REPORTS
from regstat_lib.store import Session, postgres, schema, sql_text, sqlite
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
    """Every column of every table and view; in a view of SQLite it has no type of its own."""
    if flags[0] == "-sqlite":
        names = rows(flags, "select name, type from sqlite_master where type in ('table', 'view')")
        return {
            (name, *column[1 : 4 if kind == "table" else 2])
            for name, kind in names
            for column in rows(flags, f"pragma table_info({name})")
        }
    query = "select table_name, column_name, data_type from information_schema.columns where table_schema = 'regstat'"
    return set(rows(flags, query))


@contextmanager
def as_of(version: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """regstat makes, and writes to, the schema of that version."""
    script = sql_text.read("record.sql")
    for newer in range(version + 1, schema.SCHEMA_VERSION + 1):
        script = script.partition(f"-- From here on: since version {newer}.\n")[0]
        script = re.sub(rf"^.* -- since version {newer}\n", "", script, flags=re.MULTILINE)
    with monkeypatch.context() as then:
        then.setattr(schema, "_UPGRADES", schema._UPGRADES[:version])
        then.setattr(sqlite, "SCHEMA_VERSION", version)
        then.setattr(postgres, "SCHEMA_VERSION", version)
        then.setitem(sql_text._TEXTS, "record.sql", script)
        for made_of_script in (sqlite._script, postgres._record_function):
            made_of_script.cache_clear()
        yield
    for made_of_script in (sqlite._script, postgres._record_function):
        made_of_script.cache_clear()


def record_day(flags: list[str]) -> None:
    session = connect(flags)
    for batch in recorded_day():
        session.record(batch, "2026-11-23 20:00:00.000000")
    session.close()


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_an_earlier_version_keeps_its_rows_and_gets_the_shape_of_a_new_database(
    version: int, database_flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_of(version, monkeypatch):
        record_day(database_flags)
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


def upgraded_and_new(version: int, flags: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records a day in that version and upgrades it; the flags of a new database with the same day."""
    with as_of(version, monkeypatch):
        record_day(flags)
    connect(flags).close()
    new = ["-sqlite", str(directory / "new.db")]
    record_day(new)
    return new


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_what_is_kept_of_contents_is_as_if_they_had_been_learned_by_this_version(
    version: int, database_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = upgraded_and_new(version, database_flags, tmp_path, monkeypatch)
    query = "select manifest_digest, complete, size, platforms from {s}contents"
    assert sorted(rows(database_flags, query)) == sorted(rows(new, query))
    assert any(row[2] for row in rows(new, query))


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_an_upgraded_database_answers_as_a_new_one(
    version: int,
    database_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = upgraded_and_new(version, database_flags, tmp_path, monkeypatch)
    questions = [[name] for name in REPORTS if name not in ("history", "summary")]
    questions += [["images", "--untagged"], ["repositories", "--limit", "2"], ["activity", "--by", "repository"]]
    for question in questions:
        answers = []
        for flags in (database_flags, new):
            assert command.main([*question, *flags, "--format", "jsonl"], database_to_read, {}) == 0
            answers.append(capsys.readouterr().out)
        assert answers[0] == answers[1]


def test_an_upgrade_waits_for_the_turn_of_an_older_regstat_that_is_yet_to_write_the_log(
    pg_conn_str: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    with as_of(3, monkeypatch):
        connect(flags).close()
    upgraded: list[Session] = []
    upgrade = threading.Thread(target=lambda: upgraded.append(connect(flags)))
    waiting = "select 1 from pg_locks where not granted"
    with closing(pg_connect(pg_conn_str)) as older:
        older.run("begin")
        older.run(f"select pg_advisory_xact_lock({postgres._WRITER_LOCK})")
        upgrade.start()
        await_condition(lambda: rows(flags, waiting), 10, "the upgrade waits for its turn")
        older.run(
            "insert into regstat.events (timestamp, id, action, registry, repository, received)"
            " values (now(), 'late', 'push', 'registry.example', 'team/app', now())"
        )
        older.run("commit")
    upgrade.join(30)
    assert len(upgraded) == 1
    upgraded[0].close()
    assert rows(flags, "select id from {s}events") == [("late",)]
