"""A database that the original left, taken over in place: every row is kept, and later events act on them."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from envelopes import (
    DELETED,
    IMAGE,
    INDEX,
    LIVE,
    at,
    change,
    digest_of,
    envelope,
    event,
    image,
    pg_connect,
    rows,
    tables,
)
from running_daemon import RunningDaemon, await_condition, run_daemon

DUMP = Path(__file__).resolve().parent / "data" / "original-database.sql"
REGISTRY = "127.0.0.1:5730"
# What the dump has, by what it is.
APP_10 = "sha256:e04ae8e7898de62238c2fe792733a11e61a5eea421d63e1102b2a12d5921d8f2"
APP_11 = "sha256:d23dc38fd0e23538f2c9e875cbeed97aa9ec8fde086f5c31f96a8bb551acc029"
WEB = "sha256:ea40006f5a628dc224a1fc8bd80d0024c8e9cd921f8eacdb6fdd762fff70af4e"
JOB = "sha256:08d4c9d4404f1853a195f7cc60196bd501e0474c8e715ca6cd9687d58279d6bd"
WEB_BLOB = "sha256:30ff5beece9bb3ef7df9d2b5269e565428b4a81b911c7c593b6dc3a04f1b9fca"
WEB_DELETED_BLOB = "sha256:42f18e9081af1e0342dd13544d2948736d235fdce2f5ad8132ecdcc78ce04a0b"
SHARED_BLOB = "sha256:b1e710cf2ff5f6867dcd789f64b2eb92063754dba395d0fe204ad3b89cb42178"
JOB_BLOBS = {
    "sha256:cc5499ba734c91acef8970b6cb4e16f0f45565abfcc50272b5c1517ae51c6ddf",
    "sha256:89c5d035f49a8c1e6b7294584679bd156c81d1e223e5ce350c433c78cf88ec56",
    "sha256:de5e501480cd2893aa0e8262ac5422818a291c9953bdf26986ec675f271d1d12",
}
# Later than everything in the dump.
LATER = "2026-12-01T00:00:00Z"
LATEST = "2026-12-02T00:00:00Z"

# What a database in use may have beside what the dump has.
ODD_ROWS = (
    # One digest live and deleted; tags without a tag; a name of another make.
    f"insert into regstat.deleted_blobs values ('{SHARED_BLOB}', '2026-11-20 10:00', null, '2026-11-20 11:00')",
    f"insert into regstat.deleted_manifests values ('{WEB}', '2026-11-20 10:00', null, '2026-11-20 11:00')",
    f"insert into regstat.tags values ('{REGISTRY}/team/web:', '{REGISTRY}', 'team/web', '', '{WEB}',"
    " '2026-11-21 10:00', null)",
    f"insert into regstat.tags values ('{REGISTRY}/team/web@null', '{REGISTRY}', 'team/web', null, '{WEB}',"
    " '2026-11-21 10:00', '2026-11-21 11:00')",
    f"insert into regstat.deleted_tags values ('{REGISTRY}/team/app:1.0', '{REGISTRY}', 'team/app', '1.0', '{JOB}',"
    " '2026-11-19 10:00', null, '2026-11-19 11:00')",
    f"insert into regstat.deleted_tags values ('{REGISTRY}/old/x:', '{REGISTRY}', 'old/x', null, '{JOB}',"
    " '2026-11-19 10:00', null, '2026-11-19 11:00')",
    "create view public.newest as select t.name, t.pushed, m.pulled, b.blob_digest from regstat.tags t"
    " join regstat.manifests m on m.digest = t.manifest_digest"
    " join regstat.manifest_blob b on b.manifest_digest = m.digest",
    "create view regstat.gone as select * from regstat.deleted_manifest_blob",
    "grant usage on schema regstat to reader_of_regstat",
    "grant select on all tables in schema regstat to reader_of_regstat",
)


@pytest.fixture(params=["postgres", "debian-postgres"])
def original(request: pytest.FixtureRequest) -> list[str]:
    """The flags of a database as the original left it."""
    debian = request.param == "debian-postgres"
    server = request.getfixturevalue("debian_postgres_server" if debian else "postgres_server")
    connection_string = server.new_database()
    dump = re.sub(r"^--.*$", "", DUMP.read_text(), flags=re.MULTILINE)
    with closing(pg_connect(connection_string)) as connection:
        for statement in re.split(r";\s*$", dump, flags=re.MULTILINE):
            # Settings of a session, some of which only the server knows that the dump is from.
            if statement.strip() and not statement.strip().startswith(("SET ", "SELECT pg_catalog.set_config")):
                connection.run(statement)
        if not connection.run("select 1 from pg_roles where rolname = 'reader_of_regstat'"):
            connection.run("create role reader_of_regstat login")
    return ["-pg-conn-str", connection_string]


def post(daemon: RunningDaemon, *events: dict[str, Any]) -> None:
    """Posts events of a repository of the dump, when the daemon has its database."""
    await_condition(lambda: daemon.post(envelope())[0] == 200, 20, "the daemon answers")
    body = envelope(*events)
    await_condition(lambda: daemon.post(body)[0] == 200, 20, "the daemon records")


def taken_over(flags: list[str]) -> list[tuple[Any, ...]]:
    return rows(flags, "select version from {s}schema_version")


def await_taken_over(daemon: RunningDaemon) -> None:
    await_condition(lambda: "Recording to" in daemon.log(), 20, "the daemon has taken the database over")


def shape(flags: list[str]) -> list[tuple[Any, ...]]:
    """Every column, constraint and index of the schema, and the privileges."""
    return [
        *rows(
            flags,
            "select table_name, column_name, ordinal_position, data_type from information_schema.columns"
            " where table_schema = 'regstat' order by 1, 3",
        ),
        *rows(
            flags,
            "select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint"
            " where connamespace = 'regstat'::regnamespace order by 1, 2",
        ),
        *rows(flags, "select indexname, indexdef from pg_indexes where schemaname = 'regstat' order by 1"),
    ]


@pytest.mark.parametrize("odd", [False, True], ids=["as it was", "with odd rows"])
def test_every_row_is_still_there(original: list[str], odd: bool) -> None:
    if odd:
        change(original, *ODD_ROWS)
    before = tables(original, {**LIVE, **DELETED})
    assert all(before.values())
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        assert tables(original, {**LIVE, **DELETED}) == before
        assert (
            rows(
                original,
                "select manifest_digest, blob_digest from {s}deleted_manifest_blob where deleted is null",
            )
            == []
        )
        assert rows(original, "select conname from pg_constraint where contype = 'f'") == []
        # An event of something else changes none of them.
        post(daemon, event("push", digest_of("something else"), repository="else/where"))
        after = tables(original, {**LIVE, **DELETED})
        assert {name: before[name] - after[name] for name in before} == {name: set() for name in before}
        assert "Traceback" not in daemon.log()
    # And started once more.
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        assert tables(original, {**LIVE, **DELETED}) == after


def test_columns_come_first_and_in_the_order_that_people_rely_on(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
    expected = {**LIVE, **DELETED, "deleted_manifest_blob": "manifest_digest, blob_digest, deleted"}
    for table, columns in expected.items():
        found = rows(
            original,
            "select column_name from information_schema.columns where table_schema = 'regstat' and table_name = :table"
            " order by ordinal_position",
            table=table,
        )
        assert [name for (name,) in found][: columns.count(",") + 1] == columns.split(", ")


def test_views_and_grants_survive(original: list[str]) -> None:
    change(original, *ODD_ROWS)
    newest = set(rows(original, "select * from public.newest"))
    gone = set(rows(original, "select * from regstat.gone"))
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        reader = [original[0], original[1].replace("user=postgres", "user=reader_of_regstat")]
        assert set(rows(original, "select * from public.newest")) == newest
        assert set(rows(original, "select * from regstat.gone")) == gone
        for table in (*LIVE, *DELETED):
            assert rows(reader, f"select count(*) from {{s}}{table}")[0][0] > 0


def test_every_tag_of_a_repository_counts_whatever_its_name(original: list[str]) -> None:
    change(original, *ODD_ROWS)
    query = "select registry, repository, count(*) from {s}tags group by registry, repository order by 1, 2"
    tags = rows(original, query)
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        assert (
            rows(original, "select registry, repository, tags from {s}repositories where tags > 0 order by 1, 2")
            == tags
        )
        assert max(count for _, _, count in tags) >= 3


def test_a_pull_of_a_known_tag_is_noted_on_it_its_manifest_and_its_blobs(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        pull = event("pull", WEB, tag="latest", host=REGISTRY, repository="team/web", timestamp=LATER, media_type=IMAGE)
        post(daemon, pull)
        when = "2026-12-01 00:00:00"
        assert rows(original, "select pulled::text, pushed::text from {s}tags where repository = 'team/web'") == [
            (when, "2026-11-23 16:56:30.640143")
        ]
        assert rows(original, f"select pulled::text from {{s}}manifests where digest = '{WEB}'") == [(when,)]
        assert rows(
            original,
            f"select count(*) from {{s}}blobs where pulled = '{when}' and digest in ('{WEB_BLOB}', '{SHARED_BLOB}')",
        ) == [(2,)]


def test_a_deletion_of_a_known_manifest_moves_it_its_tags_and_its_links(original: list[str]) -> None:
    links = {row for row in tables(original)["manifest_blob"] if row[0] == APP_11}
    with run_daemon(*original) as daemon:
        post(daemon, event("delete", APP_11, host=REGISTRY, repository="team/app", timestamp=LATER))
        found = tables(original, {**LIVE, **DELETED})
        assert APP_11 not in {row[0] for row in found["manifests"]}
        assert APP_11 in {row[0] for row in found["deleted_manifests"]}
        names = {f"{REGISTRY}/team/app:latest", f"{REGISTRY}/team/app:1.1"}
        assert names & {row[0] for row in found["tags"]} == set()
        assert names <= {row[0] for row in found["deleted_tags"]}
        assert links & found["manifest_blob"] == set()
        assert links <= found["deleted_manifest_blob"]
        # The other tag of the repository is another manifest's.
        assert f"{REGISTRY}/team/app:1.0" in {row[0] for row in found["tags"]}
        assert rows(
            original,
            f"select distinct deleted::text from {{s}}deleted_manifest_blob where manifest_digest = '{APP_11}'",
        ) == [("2026-12-01 00:00:00",)]


def test_a_deletion_in_another_repository_leaves_it(original: list[str]) -> None:
    before = tables(original)
    with run_daemon(*original) as daemon:
        post(daemon, event("delete", APP_11, host=REGISTRY, repository="some/fork", timestamp=LATER))
        assert tables(original) == before


def test_a_deletion_of_a_known_blob_breaks_its_links(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        post(daemon, event("delete", WEB_BLOB, host=REGISTRY, repository="team/web", timestamp=LATER))
        found = tables(original, {**LIVE, **DELETED})
        assert WEB_BLOB not in {row[0] for row in found["blobs"]}
        assert WEB_BLOB in {row[0] for row in found["deleted_blobs"]}
        assert (WEB, WEB_BLOB) in found["deleted_manifest_blob"]
        assert (WEB, WEB_BLOB) not in found["manifest_blob"]
        assert WEB in {row[0] for row in found["manifests"]}


def test_learning_what_a_manifest_holds_does_not_bring_a_deleted_blob_back(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        # A pull that tells the contents is what a pull and the registry's answer to regstat are together.
        pull = image(WEB, WEB_BLOB, SHARED_BLOB, WEB_DELETED_BLOB, tag="latest", host=REGISTRY, repository="team/web")
        pull["action"], pull["timestamp"] = "pull", LATER
        post(daemon, pull)
        found = tables(original, {**LIVE, **DELETED})
        assert WEB_DELETED_BLOB not in {row[0] for row in found["blobs"]}
        assert (WEB, WEB_DELETED_BLOB) in found["deleted_manifest_blob"]
        assert {(WEB, WEB_BLOB), (WEB, SHARED_BLOB)} <= found["manifest_blob"]


def test_a_blob_that_nothing_links_can_be_deleted_from_any_repository(original: list[str]) -> None:
    blob = next(iter(JOB_BLOBS))
    with run_daemon(*original) as daemon:
        post(daemon, event("delete", blob, host=REGISTRY, repository="old/job", timestamp=LATER))
        found = tables(original, {**LIVE, **DELETED})
        assert blob not in {row[0] for row in found["blobs"]}
        assert blob in {row[0] for row in found["deleted_blobs"]}


def test_a_manifest_pushed_again_has_its_links_back(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        details = {"host": REGISTRY, "repository": "old/job", "timestamp": LATER}
        post(daemon, image(JOB, *sorted(JOB_BLOBS), tag="nightly", **details))
        found = tables(original, {**LIVE, **DELETED})
        assert JOB in {row[0] for row in found["manifests"]}
        assert {(JOB, blob) for blob in JOB_BLOBS} <= found["manifest_blob"]
        assert JOB not in {row[0] for row in found["deleted_manifest_blob"]}
        assert f"{REGISTRY}/old/job:nightly" in {row[0] for row in found["tags"]}


def test_a_blob_pushed_again_mends_the_manifest(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        post(daemon, event("push", WEB_DELETED_BLOB, host=REGISTRY, repository="team/web", timestamp=LATER))
        found = tables(original, {**LIVE, **DELETED})
        assert (WEB, WEB_DELETED_BLOB) in found["manifest_blob"]
        assert (WEB, WEB_DELETED_BLOB) not in found["deleted_manifest_blob"]


def test_a_known_tag_moves_and_an_older_event_moves_nothing(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        moved = digest_of("moved here")
        details = {"host": REGISTRY, "repository": "team/app", "tag": "1.0"}
        post(daemon, image(moved, digest_of("layer"), timestamp=LATER, **details))
        points_to = "select manifest_digest, pushed::text from {s}tags where name like '%team/app:1.0'"
        assert rows(original, points_to) == [(moved, "2026-12-01 00:00:00")]
        post(daemon, image(digest_of("late"), digest_of("layer"), timestamp=at(0), **details))
        assert rows(original, points_to) == [(moved, "2026-12-01 00:00:00")]
        post(daemon, event("delete", tag="1.0", host=REGISTRY, repository="team/app", timestamp=LATEST))
        assert rows(original, points_to) == []
        assert APP_10 in {row[0] for row in tables(original)["manifests"]}


def post_and_expect_recorded(daemon: RunningDaemon, *events: dict[str, Any]) -> None:
    """Posts, and nothing of it may be set aside."""
    assert daemon.post(envelope(*events)) == (200, {"recorded": len(events), "set_aside": 0})


def test_a_link_that_is_live_and_deleted_takes_what_a_push_tells_of_it(original: list[str]) -> None:
    change(original, f"insert into {{s}}deleted_manifest_blob values ('{WEB}', '{SHARED_BLOB}')")
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        post_and_expect_recorded(
            daemon, image(WEB, WEB_BLOB, SHARED_BLOB, tag="new", host=REGISTRY, repository="team/web", timestamp=LATER)
        )
        kinds = f"select kind from {{s}}manifest_blob where manifest_digest = '{WEB}' and blob_digest = '{SHARED_BLOB}'"
        assert rows(original, kinds) == [("layer",)]


def pull_of_job(*layers: str, **details: Any) -> dict[str, Any]:
    """A pull of the manifest that the original saw deleted, telling what it is made of."""
    pull = image(JOB, *layers, host=REGISTRY, repository="old/job", timestamp=LATER)
    pull["action"] = "pull"
    pull["target"]["references"][-1].update(details)
    return pull


def test_a_deleted_manifest_that_is_seen_again_may_have_blobs_that_the_original_never_knew(original: list[str]) -> None:
    with run_daemon(*original) as daemon:
        post_and_expect_recorded(daemon, pull_of_job(*JOB_BLOBS, digest_of("unknown to the original")))
        assert (JOB, digest_of("unknown to the original")) in tables(original, {**LIVE, **DELETED})["manifest_blob"]


@pytest.mark.parametrize("deletion_first", [True, False])
def test_a_blob_deleted_anywhere_is_not_brought_back_by_what_the_original_knew(
    original: list[str], deletion_first: bool
) -> None:
    blob = digest_of("unknown to the original")
    deletion = event("delete", blob, host=REGISTRY, repository="team/app", timestamp=LATER)
    events = [deletion, pull_of_job(*JOB_BLOBS, blob)]
    with run_daemon(*original) as daemon:
        for one in events if deletion_first else reversed(events):
            post_and_expect_recorded(daemon, one)
        assert blob not in {row[0] for row in tables(original, {**LIVE, **DELETED})["blobs"]}


def test_a_deleted_link_that_turns_out_to_be_a_foreign_layer_breaks_nothing_and_proves_nothing(
    original: list[str],
) -> None:
    blob = sorted(JOB_BLOBS)[-1]
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        post_and_expect_recorded(daemon, event("delete", blob, host=REGISTRY, repository="old/job", timestamp=LATEST))
        post_and_expect_recorded(daemon, pull_of_job(*sorted(JOB_BLOBS), urls=["https://elsewhere.example/layer"]))
        found = tables(original, {**LIVE, **DELETED})
        assert blob not in {row[0] for row in found["blobs"]}
        assert (JOB, blob) not in found["manifest_blob"]
        assert (JOB, blob) not in {row[:2] for row in found["deleted_manifest_blob"]}


def test_a_pull_of_an_index_that_the_original_saw_is_a_use_of_what_turns_out_to_be_its_image(
    original: list[str],
) -> None:
    of_many, child = digest_of("an index"), digest_of("its image")
    change(
        original,
        f"insert into regstat.manifests values ('{of_many}', '2026-11-20 10:00', '2026-11-22 10:00')",
        f"insert into regstat.manifests values ('{child}', '2026-11-20 10:00', null)",
        f"insert into regstat.blobs values ('{child}', '2026-11-20 10:00', null)",
        f"insert into regstat.manifest_blob values ('{of_many}', '{child}')",
        *(
            f"insert into regstat.tags values ('{REGISTRY}/team/web:{tag}', '{REGISTRY}', 'team/web', '{tag}',"
            f" '{digest}', '2026-11-20 10:00', null)"
            for tag, digest in (("all", of_many), ("one", child))
        ),
    )
    used = "select cast(last_pulled as text) from {s}images where repository = 'team/web' and tag = 'one'"
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        assert rows(original, used) == [(None,)]
        # Another repository tells what the index is made of.
        told = event("push", of_many, media_type=INDEX, repository="else/where", timestamp=LATER)
        told["target"]["references"] = [{"mediaType": IMAGE, "digest": child, "size": 500}]
        post(daemon, told)
        assert rows(original, used) == [("2026-11-22 10:00:00",)]


def test_an_upgrade_that_is_killed_leaves_the_database_as_it_was(original: list[str]) -> None:
    before, rows_before = shape(original), tables(original, {**LIVE, **DELETED})
    with closing(pg_connect(original[1])) as somebody:
        somebody.run("begin")
        # The upgrade changes many tables before it comes to this one, and waits there.
        somebody.run("lock table regstat.deleted_manifest_blob in access share mode")
        with run_daemon(*original) as daemon:
            waiting = "select count(*) from pg_locks where not granted and mode = 'AccessExclusiveLock'"
            await_condition(lambda: rows(original, waiting)[0][0], 20, "the upgrade waits in its middle")
            daemon.process.kill()
            daemon.process.wait()
        somebody.run("rollback")
    backends = "select count(*) from pg_stat_activity where application_name = 'regstat' and datname = current_catalog"
    await_condition(lambda: rows(original, backends) == [(0,)], 20, "Postgres has noticed")
    assert shape(original) == before
    assert tables(original, {**LIVE, **DELETED}) == rows_before
    with run_daemon(*original) as daemon:
        await_taken_over(daemon)
        assert tables(original, {**LIVE, **DELETED}) == rows_before


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(original: list[str]) -> None:
    change(original, "create table regstat.events (somebody text)")
    before, rows_before = shape(original), tables(original, {**LIVE, **DELETED})
    with run_daemon(*original) as daemon:
        await_condition(lambda: "503" in daemon.log(), 20, "the log has the reason")
        assert '"events" already exists' in daemon.log()
        assert "Traceback" not in daemon.log()
        assert daemon.post(envelope(event("push", digest_of("x"))))[0] == 503
        assert shape(original) == before
        assert tables(original, {**LIVE, **DELETED}) == rows_before
        change(original, "drop table regstat.events")
        post(daemon, event("push", digest_of("x")))


def test_a_newer_schema_is_refused_and_not_written_to(database_flags: list[str]) -> None:
    with run_daemon(*database_flags) as daemon:
        post(daemon, image(digest_of("kept"), digest_of("layer"), tag="kept"))
    before = tables(database_flags, {**LIVE, **DELETED})
    if database_flags[0] == "-sqlite":
        change(database_flags, "pragma user_version = 99")
    else:
        change(database_flags, "update {s}schema_version set version = 99")
    with run_daemon(*database_flags) as daemon:
        await_condition(lambda: "schema version 99" in daemon.log(), 10, "the log has the reason")
        status, answer = daemon.post(envelope(event("push", digest_of("new"))))
        assert status == 503
        assert "newer regstat" in answer["error"]
        assert "-sqlite FILE" not in daemon.log()
        assert len([line for line in daemon.log().splitlines() if "version 99" in line]) == 1
    assert tables(database_flags, {**LIVE, **DELETED}) == before


def test_a_daemon_whose_database_is_upgraded_by_another_stops_writing(database_flags: list[str]) -> None:
    with run_daemon(*database_flags) as daemon:
        post(daemon, event("push", digest_of("before")))
        if database_flags[0] == "-sqlite":
            change(database_flags, "pragma user_version = 99")
        else:
            change(database_flags, "update {s}schema_version set version = 99")
        assert daemon.post(envelope(event("push", digest_of("after"))))[0] == 503
        assert rows(database_flags, "select digest from {s}blobs") == [(digest_of("before"),)]
        assert "schema version 99" in daemon.log()
