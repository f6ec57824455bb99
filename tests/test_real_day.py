"""End to end: a random day on a real registry, and then every tag, manifest, link and blob in it against the tables.

REGSTAT_DAYS=N in the environment makes N days for each kind of database and registry instead of three.
"""

from __future__ import annotations

import json
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Callable

import pg8000.native
import pytest
from crawl import Content, Held, crawl
from real_registry import free_port, needs_registry, run_registry
from registry_day import Ledger, Thing, Window, day
from running_daemon import run_daemon

pytestmark = needs_registry

Row = tuple[object, ...]
Read = Callable[[str], list[Row]]

SEEDS = range(1, 1 + int(os.environ.get("REGSTAT_DAYS", "3")))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("include_references", [False, True], ids=["fetched", "includereferences"])
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_after_a_day_the_tables_say_what_the_registry_holds(
    engine: str, include_references: bool, seed: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    flags, reading = _database(engine, request)
    port = free_port()
    alias = f"registry.example:{port}"
    equivalents = tmp_path / "equivalents.json"
    equivalents.write_text(json.dumps({f"127.0.0.1:{port}": [alias]}))
    with run_daemon(*flags, "-equiv-registries", str(equivalents)) as daemon:
        notify = f"http://127.0.0.1:{daemon.port}"
        with run_registry(tmp_path / "registry", notify, include_references=include_references, port=port) as registry:
            ledger = day(seed, registry, aliases=(alias,))
            registry.await_delivered()
            held = crawl(registry, ledger)
            # What the crawl asks for is notified of as well, and must change nothing.
            registry.await_delivered()
            with reading() as read:
                found = _differences_left(read, held, ledger, seconds=20)
        day_and_log = ["", "The day:", *ledger.done, "", daemon.log()[-4000:]]
        assert not found, "\n".join([f"{len(found)} differences after day {seed}:", *found, *day_and_log])


def test_the_same_seed_makes_the_same_day(tmp_path: Path) -> None:
    days: list[tuple[Ledger, Held]] = []
    port = free_port()
    for directory in ("first", "second"):
        with run_registry(tmp_path / directory, port=port) as registry:
            ledger = day(7, registry, operations=30)
            days.append((ledger, crawl(registry, ledger)))
    (first, first_held), (second, second_held) = days
    assert first.done == second.done
    assert first_held == second_held


def test_the_crawl_finds_each_manifest_as_it_was_pushed(tmp_path: Path) -> None:
    with run_registry(tmp_path) as registry:
        ledger = day(8, registry)
        held = crawl(registry, ledger)
    for digest, content in held.contents.items():
        pushed = ledger.manifests[digest]
        assert content == Content(pushed.media_type, pushed.size, pushed.references)
    assert held.tags == {place: digest for place, digest in ledger.tags.items() if place in held.tags}


def _database(
    engine: str, request: pytest.FixtureRequest
) -> tuple[tuple[str, str], Callable[[], AbstractContextManager[Read]]]:
    """The flags that name a new database, and what opens it for reading."""
    if engine == "sqlite":
        file: Path = request.getfixturevalue("sqlite_path")
        return ("-sqlite", str(file)), lambda: reading_sqlite(file)
    conn_str: str = request.getfixturevalue("pg_conn_str")
    return ("-pg-conn-str", conn_str), lambda: reading_postgres(conn_str)


@contextmanager
def reading_sqlite(file: Path) -> Iterator[Read]:
    """Runs queries in which {s} stands before the name of a table. Each one sees what is committed by then."""
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        yield lambda query: list(connection.execute(query.format(s="")))


@contextmanager
def reading_postgres(conn_str: str) -> Iterator[Read]:
    """As reading_sqlite; conn_str is in libpq keywords."""
    keywords = dict(word.split("=", 1) for word in shlex.split(conn_str))
    connection = pg8000.native.Connection(
        user=keywords["user"],
        password=keywords.get("password"),
        host=keywords.get("host", "localhost"),
        port=int(keywords.get("port", "5432")),
        database=keywords.get("dbname", keywords["user"]),
    )
    try:
        yield lambda query: [tuple(row) for row in connection.run(query.format(s="regstat."))]
    finally:
        connection.close()


def _differences_left(read: Read, held: Held, ledger: Ledger, seconds: float) -> list[str]:
    """What is still different when the daemon had that long to fetch what it has to."""
    deadline = time.monotonic() + seconds
    while (found := differences(read, held, ledger)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def differences(read: Read, held: Held, ledger: Ledger) -> list[str]:
    """Each way in which the tables do not say what the registry holds and what the day did, a line each."""
    pending = read("select digest, given_up, last_error from {s}pending_manifests")
    # A manifest that was deleted before it could be asked for: nobody can say any more what it referenced.
    unknown = {str(digest) for digest, *_ in pending} - held.live_manifests()
    return [
        *_unequal("tags", _tags(held), read("select name, registry, repository, tag, manifest_digest from {s}tags")),
        *_unequal(
            "manifests",
            {(digest, content.media_type, content.size) for digest, content in held.contents.items()},
            read("select digest, media_type, size from {s}manifests"),
        ),
        # The registry leaves out the size of an empty blob.
        *_unequal(
            "blobs",
            {(digest, size or None) for digest, size in held.sizes.items()},
            [(digest, size or None) for digest, size in read("select digest, size from {s}blobs")],
        ),
        *_link_differences(read, held, ledger, unknown),
        *_deletion_differences(read, held, ledger),
        *_time_differences(read, ledger, unknown),
        *_unequal("pending_manifests", set(), [row for row in pending if row[0] not in unknown]),
        *_unequal("set aside", set(), read("select reason, event from {s}set_aside")),
    ]


def _unequal(table: str, expected: set[Row], rows: list[Row]) -> list[str]:
    """Lines for the rows that are missing from a table, that are in it and should not be, and that are in it twice."""
    actual = set(rows)
    return [
        *(f"{table}: missing {row}" for row in sorted(expected - actual, key=repr)),
        *(f"{table}: should not be there {row}" for row in sorted(actual - expected, key=repr)),
        *(f"{table}: twice {row}" for row in sorted({row for row in rows if rows.count(row) > 1}, key=repr)),
    ]


def _tags(held: Held) -> set[Row]:
    return {
        (f"{held.registry}/{repository}:{tag}", held.registry, repository, tag, digest)
        for (repository, tag), digest in held.tags.items()
    }


def _link_differences(read: Read, held: Held, ledger: Ledger, unknown: set[str]) -> list[str]:
    live = held.live_manifests() | held.live_blobs()
    ever: set[Row] = {
        (manifest.digest, reference.digest)
        for manifest in ledger.manifests.values()
        for reference in manifest.references
        if reference.role != "foreign"
    }
    whole = {link for link in held.links() | held.foreign_links() if link[1] in live}
    deleted = read("select manifest_digest, blob_digest from {s}deleted_manifest_blob")
    unknowable = {link for link in ever if link[0] in unknown} - set(deleted)
    return [
        *_unequal("manifest_blob", set(whole), read("select manifest_digest, blob_digest from {s}manifest_blob")),
        *_unequal("deleted_manifest_blob", ever - whole - unknowable, deleted),
    ]


def _deletion_differences(read: Read, held: Held, ledger: Ledger) -> list[str]:
    """All that was deleted and is gone is in the audit trail, and all in the trail was deleted once."""
    found = []
    live_names: dict[str, set[str]] = {
        "manifest": set(held.live_manifests()),
        "blob": set(held.live_blobs()),
        "tag": {f"{repository}:{tag}" for repository, tag in held.tags},
    }
    columns = {"manifest": "digest", "blob": "digest", "tag": "repository || ':' || tag"}
    for kind, column in columns.items():
        rows = {str(name): deleted for name, deleted in read(f"select {column}, deleted from {{s}}deleted_{kind}s")}
        deletions = {thing.name: window for thing, window in ledger.deleted.items() if thing.kind == kind}
        gone = deletions.keys() - live_names[kind]
        found += [f"deleted_{kind}s: missing {name}" for name in sorted(gone - rows.keys())]
        found += [f"deleted_{kind}s: never deleted {name}" for name in sorted(rows.keys() - deletions.keys())]
        found += [
            f"deleted_{kind}s: {name} deleted at {rows[name]}, but it was {window.start} to {window.end}"
            for name, window in deletions.items()
            if name in gone and name in rows and not _within(_time(rows[name]), window)
        ]
    last = {
        (f"{ledger.registry}/{repository}:{tag}", digest)
        for (repository, tag), digest in ledger.tags.items()
        if (repository, tag) not in held.tags
    }
    trail = read("select name, manifest_digest from {s}deleted_tags where name not in (select name from {s}tags)")
    return found + _unequal("deleted_tags", set(last), trail)


def _time_differences(read: Read, ledger: Ledger, unknown: set[str]) -> list[str]:
    found = []
    manifest_rows = read("select digest, pushed, pulled from {s}manifests")
    tag_rows = read("select repository || ':' || tag, pushed, pulled from {s}tags")
    for kind, rows in (("manifest", manifest_rows), ("tag", tag_rows)):
        for name, pushed, pulled in rows:
            thing = Thing(kind, str(name))
            if not _within(_time(pushed), ledger.pushed.get(thing)):
                found.append(f"{kind}s: {name} pushed at {pushed}, but it was {ledger.pushed.get(thing)}")
            if not _within(_time(pulled), ledger.pulled.get(thing)):
                found.append(f"{kind}s: {name} pulled at {pulled}, but it was {ledger.pulled.get(thing)}")
    for name, pushed, pulled in read("select digest, pushed, pulled from {s}blobs"):
        digest = str(name)
        upload, time_pushed = ledger.pushed.get(Thing("blob", digest)), _time(pushed)
        if time_pushed is None or (upload and time_pushed < upload.start):
            found.append(f"blobs: {digest} pushed at {pushed}, but it was {upload}")
        newest = _newest_pull(ledger, digest, ledger.manifests.keys())
        certain = _newest_pull(ledger, digest, ledger.manifests.keys() - unknown)
        if newest != certain and newest is not None:
            # Nobody can say that the newest pull was one of this blob; a client may have asked for it by itself then.
            if certain is None and pulled is None:
                continue
            newest = Window(certain.start if certain else datetime.min, newest.end)
        if not _within(_time(pulled), newest):
            found.append(f"blobs: {digest} pulled at {pulled}, but it was {newest}")
    return found


def _newest_pull(ledger: Ledger, blob: str, manifests: AbstractSet[str]) -> Window | None:
    """When a blob was last downloaded, or one of these manifests that link it was last pulled."""
    # The entries of a build cache's index are blobs.
    linking = [m for m in ledger.manifests.values() if blob in (*m.blobs(), *m.children())]
    things = [Thing("blob", blob), *(Thing("manifest", m.digest) for m in linking if m.digest in manifests)]
    return max((ledger.pulled[thing] for thing in things if thing in ledger.pulled), default=None)


def _within(moment: datetime | None, window: Window | None) -> bool:
    """Whether a column has a time in the window; where there is no window, whether it is null."""
    if moment is None or window is None:
        return moment is None and window is None
    return window.start <= moment <= window.end


def _time(value: object) -> datetime | None:
    assert value is None or isinstance(value, (str, datetime))
    return datetime.fromisoformat(value) if isinstance(value, str) else value
