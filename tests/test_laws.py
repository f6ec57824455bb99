"""The laws of the tables: they are a function of the set of events, the same in every order and on every engine.

The events are few in kind and collide often: a handful of digests, tags and repositories, times that are equal or a
microsecond apart. REGSTAT_EXAMPLES sets how many sets of events each law is tried with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Union

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from model import NEVER, Happening, Lesson, Repository, last_used, tables
from postgres_server import PostgresServer

from regstat_lib import changes
from regstat_lib.batch import Arrival, Batch, Entry, Learned
from regstat_lib.manifest import Contents, Link, parse_manifest
from regstat_lib.recorder import Outcome, Settle
from regstat_lib.store.connection_string import parse_connection_string
from regstat_lib.store.postgres import PostgresDatabase, PostgresSession
from regstat_lib.store.sqlite import SqliteDatabase, SqliteSession
from regstat_lib.webhook import Answer, Webhook

EXAMPLES = int(os.environ.get("REGSTAT_EXAMPLES", "60"))
law = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

NOW = "2026-03-01 00:00:00.000000"
START = datetime(2026, 2, 1, 12, 0, 0)
LIVE = ("blobs", "manifests", "manifest_blob", "tags")
FUNCTIONS_OF_EVENTS = (*LIVE, "contents")
EVERY = (
    *LIVE,
    *(f"deleted_{name}" for name in LIVE),
    *(
        "repository_names",
        "holdings",
        "sightings",
        "contents",
        "foreign_layers",
        "pending_manifests",
        "events",
        "set_aside",
    ),
)

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA1_LAYER = "application/vnd.docker.container.image.rootfs.diff+x-gtar"
OCTET_STREAM = "application/octet-stream"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Manifest(NamedTuple):
    """A manifest of the generated registries: its type, its bytes, and what the model knows of its links."""

    media_type: str
    document: dict[str, Any]
    links: tuple[tuple[str, str], ...]

    def references(self) -> list[dict[str, Any]]:
        """What Docker distribution puts in `target.references`: config, layers, children; never the subject."""
        found = [self.document["config"]] if "config" in self.document else []
        for name in ("layers", "blobs", "manifests"):
            found += self.document.get(name, [])
        found += [descriptor(layer["blobSum"], SCHEMA1_LAYER) for layer in self.document.get("fsLayers", [])]
        return found


def descriptor(digest: str, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": len(digest), **more}


BLOBS = ("sha256:config", "sha256:layer-a", "sha256:layer-b", "sha256:foreign")
_CONFIG = descriptor("sha256:config", CONFIG)
_LAYER_A = descriptor("sha256:layer-a", LAYER)
_LAYER_B = descriptor("sha256:layer-b", LAYER)
MANIFESTS = {
    "sha256:image": Manifest(
        OCI_MANIFEST,
        {"config": _CONFIG, "layers": [_LAYER_A]},
        (("sha256:config", "config"), ("sha256:layer-a", "layer")),
    ),
    "sha256:image-with-foreign": Manifest(
        OCI_MANIFEST,
        {"config": _CONFIG, "layers": [_LAYER_B, descriptor("sha256:foreign", LAYER, urls=["https://else.where/"])]},
        (("sha256:config", "config"), ("sha256:layer-b", "layer"), ("sha256:foreign", "foreign")),
    ),
    "sha256:signature": Manifest(
        OCI_MANIFEST,
        {
            "config": descriptor("sha256:layer-b", "application/vnd.example.config"),
            "layers": [descriptor("sha256:foreign", "application/vnd.example.signature")],
            "subject": descriptor("sha256:image", OCI_MANIFEST),
        },
        (("sha256:layer-b", "config"), ("sha256:foreign", "layer"), ("sha256:image", "subject")),
    ),
    "sha256:index": Manifest(
        OCI_INDEX,
        {
            "manifests": [
                descriptor("sha256:image", OCI_MANIFEST),
                descriptor("sha256:image-with-foreign", OCI_MANIFEST),
            ]
        },
        (("sha256:image", "manifest"), ("sha256:image-with-foreign", "manifest")),
    ),
    "sha256:index-of-index": Manifest(
        OCI_INDEX,
        {"manifests": [descriptor("sha256:index", OCI_INDEX), descriptor("sha256:signature", OCI_MANIFEST)]},
        (("sha256:index", "manifest"), ("sha256:signature", "manifest")),
    ),
    "sha256:cache": Manifest(
        OCI_INDEX,
        {"manifests": [_LAYER_A, descriptor("sha256:cache-config", "application/vnd.buildkit.cacheconfig.v0")]},
        (("sha256:layer-a", "layer"), ("sha256:cache-config", "layer")),
    ),
    "sha256:unknown-index": Manifest(
        "application/vnd.example.index.v1+json",
        {"manifests": [descriptor("sha256:image", OCI_MANIFEST)]},
        (("sha256:image", "manifest"),),
    ),
    "sha256:artifact": Manifest(
        "application/vnd.oci.artifact.manifest.v1+json",
        {"blobs": [_LAYER_B], "subject": descriptor("sha256:index", OCI_INDEX)},
        (("sha256:layer-b", "layer"), ("sha256:index", "subject")),
    ),
    "sha256:schema1": Manifest(
        SCHEMA1,
        {"fsLayers": [{"blobSum": "sha256:layer-a"}, {"blobSum": "sha256:layer-b"}]},
        (("sha256:layer-a", "layer"), ("sha256:layer-b", "layer")),
    ),
}
CONTENTS = {digest: manifest.links for digest, manifest in MANIFESTS.items()}
# An event tells enough of these to know what each reference is; the others have to be asked for.
TELLING = {
    digest for digest, manifest in MANIFESTS.items() if manifest.media_type in (OCI_MANIFEST, OCI_INDEX, SCHEMA1)
}

Told = Union[Happening, Lesson]

repositories = st.sampled_from([Repository("one:5000", "app"), Repository("two", "app"), Repository("two", "lib/app")])
times = st.integers(1, 6)
tags = st.sampled_from(["latest", "v1"])
manifest_digests = st.sampled_from(sorted(MANIFESTS))
blob_digests = st.sampled_from([*BLOBS, *BLOBS, "sha256:image"])  # nobody keeps a manifest from being a blob too
no_text = st.just("")
seldom = st.sampled_from([False] * 9 + [True])

happenings = st.one_of(
    st.builds(
        Happening,
        action=st.sampled_from(["push", "push", "pull"]),
        repository=repositories,
        at=times,
        kind=st.just("manifest"),
        digest=manifest_digests,
        tag=st.one_of(no_text, tags),
        method=st.sampled_from(["GET", "HEAD"]),
        with_references=st.booleans(),
        own=seldom,
    ),
    st.builds(
        Happening,
        action=st.sampled_from(["push", "pull", "mount"]),
        repository=repositories,
        at=times,
        kind=st.just("blob"),
        digest=blob_digests,
        tag=no_text,
        method=st.sampled_from(["GET", "HEAD"]),
        with_references=st.just(False),
        own=seldom,
    ),
    st.builds(
        Happening,
        action=st.just("delete"),
        repository=repositories,
        at=times,
        kind=no_text,
        digest=st.one_of(no_text, blob_digests, manifest_digests, manifest_digests),
        tag=st.one_of(no_text, no_text, tags),
        method=no_text,
        with_references=st.just(False),
        own=st.just(False),
    ),
)
lessons = st.builds(Lesson, digest=manifest_digests, repository=repositories)
days = st.lists(st.one_of(happenings, happenings, happenings, lessons), max_size=14, unique=True)


def disturbed(day: Sequence[Told]) -> st.SearchStrategy[list[list[Told]]]:
    """The same in another order, some of it again, split into batches."""
    if not day:
        return st.just([])
    order = st.permutations([*day])
    return st.builds(
        lambda first, again, cuts: _cut([*first, *again], cuts),
        order,
        st.lists(st.sampled_from([*day]), max_size=4),
        st.lists(st.integers(0, len(day) + 4), max_size=6),
    )


def _cut(sequence: list[Told], cuts: list[int]) -> list[list[Told]]:
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(sequence)}), len(sequence)]
    return [sequence[start:end] for start, end in zip(edges, edges[1:])]


def timestamp(at: int, variant: int) -> str:
    """One of the ways to write this microsecond: offsets, and digits that the tables do not hold."""
    moment = START + timedelta(microseconds=at)
    offset, hours = (("Z", 0), ("+02:00", 2), ("-05:00", -5), ("z", 0))[variant % 4]
    digits = ("", "0", "001", "999")[variant // 4 % 4]
    return (moment + timedelta(hours=hours)).isoformat(timespec="microseconds") + digits + offset


def notification(happening: Happening) -> dict[str, Any]:
    """The happening as a registry sends it; the same happening always has the same id."""
    variant = sum(map(ord, repr(happening)))
    event: dict[str, Any] = {
        "id": repr(happening),
        "timestamp": timestamp(happening.at, variant),
        "action": happening.action,
        "target": {"repository": happening.repository.name},
        "request": {
            "host": happening.repository.registry,
            "method": happening.method or "DELETE",
            "useragent": "regstat/1.0" if happening.own else "containerd/1.7",
        },
    }
    target = event["target"]
    if happening.action == "delete":
        if variant % 2:  # as version 3 has it
            target.update(mediaType="", digest="")
    elif happening.kind == "blob":
        target["mediaType"] = OCTET_STREAM
        target["size"] = len(happening.digest)
        target["fromRepository"] = "elsewhere" if happening.action == "mount" else ""
    else:
        manifest = MANIFESTS[happening.digest]
        target["mediaType"] = manifest.media_type
        target["size"] = len(happening.digest)
        if happening.with_references:
            target["references"] = manifest.references()
    if happening.digest:
        target["digest"] = happening.digest
    if happening.tag:
        target["tag"] = happening.tag
    return event


class Catcher:
    """A recorder that only keeps what the webhook hands to it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def enqueue(self, entries: list[Entry], settle: Settle) -> None:
        self.entries += entries
        settle(Outcome(len(entries), 0))


def batch_of(told: Sequence[Told]) -> Batch:
    """What the daemon makes of happenings that it is told by the webhook, and of lessons."""
    catcher = Catcher()
    webhook = Webhook(catcher, {}, lambda: NOW)
    for one in told:
        if isinstance(one, Happening):
            answers: list[Answer] = []
            webhook.answer("POST", "/", json.dumps({"events": [notification(one)]}).encode(), answers.append)
            (answer,) = answers
            assert answer.status == 200
            assert b'"set_aside": 0' in answer.body
        else:
            manifest = MANIFESTS[one.digest]
            contents = parse_manifest(json.dumps(manifest.document).encode())
            where = changes.Repository(*one.repository)
            catcher.entries.append(Learned(one.digest, contents, len(one.digest), manifest.media_type, where))
    return Batch(catcher.entries)


Rows = frozenset[tuple[Any, ...]]


class Store:
    """A database of either engine, emptied and read for one example after the other."""

    def __init__(self, engine: str, sessions: Sequence[SqliteSession | PostgresSession]) -> None:
        self.engine = engine
        self.sessions = sessions

    def record(self, batches: Sequence[Sequence[Told]]) -> None:
        """Empties the tables, then records the batches, by each session in its turn."""
        self._empty()
        for number, told in enumerate(batches):
            self.sessions[number % len(self.sessions)].record(batch_of(told), NOW)

    def rows(self, table: str, columns: str = "*") -> Rows:
        """A table's rows, with names for the numbers of repositories and texts for times."""
        names, rows = self._query(f"select {columns} from {self._schema}{table}")
        if table in ("repository_names", "set_aside"):
            return frozenset(tuple(map(_text, row[1:])) for row in rows)
        if "repository_id" in names:
            at = names.index("repository_id")
            _, found = self._query(f"select id, registry, repository from {self._schema}repository_names")
            known = {row[0]: (row[1], row[2]) for row in found}
            rows = [(*row[:at], known[row[at]], *row[at + 1 :]) for row in rows]
        found_rows = [tuple(map(_text, row)) for row in rows]
        assert len(set(found_rows)) == len(found_rows)
        return frozenset(found_rows)

    @property
    def _schema(self) -> str:
        return "regstat." if self.engine == "postgres" else ""

    def _empty(self) -> None:
        statements = [f"delete from {self._schema}{table}" for table in EVERY if table != "repository_names"]
        statements.append(f"update {self._schema}repository_names set deleted = null")
        connection: Any = self.sessions[0]._connection
        if self.engine == "postgres":
            connection.run("set synchronous_commit = off")
            connection.run(f"do $$ begin {'; '.join(statements)}; end $$")
        else:
            connection.execute("begin")
            for statement in statements:
                connection.execute(statement)
            connection.execute("commit")

    def _query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        connection: Any = self.sessions[0]._connection
        if self.engine == "postgres":
            rows = [tuple(row) for row in connection.run(sql)]
            return [column["name"] for column in connection.columns], rows
        cursor = connection.execute(sql)
        return [column[0] for column in cursor.description], cursor.fetchall()


def _text(value: Any) -> Any:
    return value.isoformat(" ", "microseconds") if isinstance(value, datetime) else value


@pytest.fixture(scope="module")
def sqlite() -> Iterator[Store]:
    session = SqliteDatabase(Path(":memory:")).connect()
    yield Store("sqlite", [session])
    session.close()


@pytest.fixture(scope="module")
def sqlite_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One file, two sessions."""
    database = SqliteDatabase(tmp_path_factory.mktemp("laws") / "regstat.db")
    sessions = [database.connect(), database.connect()]
    for session in sessions:
        session._connection.execute("pragma synchronous = off")
    yield Store("sqlite", sessions)
    for session in sessions:
        session.close()


@pytest.fixture(scope="module", params=["postgres_server", "debian_postgres_server"])
def postgres_shared(request: pytest.FixtureRequest) -> Iterator[Store]:
    """One database, two sessions."""
    server: PostgresServer = request.getfixturevalue(request.param)
    database = PostgresDatabase(parse_connection_string(server.new_database(), {}))
    sessions = [database.connect(), database.connect()]
    for session in sessions:
        session._connection.run("set synchronous_commit = off")
    yield Store("postgres", sessions)
    for session in sessions:
        session.close()


def said(at: int | None) -> str | None:
    return None if at is None else (START + timedelta(microseconds=at)).isoformat(" ", "microseconds")


def same_as_model(store: Store, day: Sequence[Told]) -> None:
    """The live tables are what the model says; what is live no more is in the trail."""
    expected = tables(day, CONTENTS, TELLING)
    for name in ("blobs", "manifests"):
        rows = {(digest, said(pushed), said(pulled)) for digest, pushed, pulled in getattr(expected, name)}
        assert store.rows(name, "digest, pushed, pulled") == rows, name
    assert store.rows("manifest_blob", "manifest_digest, blob_digest") == expected.manifest_blob
    rows_of_tags = {(*row[:5], said(row[5]), said(row[6])) for row in expected.tags}
    columns = "name, registry, repository, tag, manifest_digest, pushed, pulled"
    assert store.rows("tags", columns) == rows_of_tags
    assert store.rows("deleted_blobs", "digest") >= {(digest,) for digest in expected.dead_blobs}
    assert store.rows("deleted_manifests", "digest") >= {(digest,) for digest in expected.dead_manifests}
    assert store.rows("deleted_manifest_blob", "manifest_digest, blob_digest") == expected.dead_links
    assert store.rows("deleted_tags", "name, deleted") >= {(name, said(at)) for name, at in expected.dead_tags}


@given(days.flatmap(lambda day: st.tuples(st.just(day), disturbed(day))))
@law
def test_the_tables_are_what_the_rules_say(sqlite: Store, both: tuple[list[Told], list[list[Told]]]) -> None:
    day, batches = both
    sqlite.record(batches)
    same_as_model(sqlite, day)


HERE = Repository("two", "app")
INDEX_PUSHED = Happening("push", HERE, 1, "manifest", "sha256:index", with_references=True)
IMAGE_PUSHED_AGAIN = Happening("push", HERE, 5, "manifest", "sha256:image", with_references=True)
IMAGE_PULLED_AS_BLOB = Happening("pull", HERE, 6, "blob", "sha256:image", method="GET")
UNKNOWN_INDEX_PUSHED = Happening("push", HERE, 1, "manifest", "sha256:unknown-index", with_references=True)
UNKNOWN_INDEX_LEARNED = Lesson("sha256:unknown-index", HERE)
IMAGE_PUSHED = Happening("push", HERE, 1, "manifest", "sha256:image", tag="latest")
IMAGE_DELETED = Happening("delete", HERE, 2, digest="sha256:image")
INDEX_PULLED = Happening("pull", HERE, 5, "manifest", "sha256:index", method="GET", with_references=True)
UNKNOWN_INDEX_PULLED_BEFORE = Happening("pull", HERE, 3, "manifest", "sha256:unknown-index", method="GET")


@given(days.flatmap(lambda day: st.tuples(disturbed(day), disturbed(day))))
@example(([[INDEX_PUSHED], [IMAGE_PUSHED_AGAIN]], [[IMAGE_PUSHED_AGAIN], [INDEX_PUSHED]]))
@example(([[IMAGE_PUSHED_AGAIN], [IMAGE_PULLED_AS_BLOB]], [[IMAGE_PULLED_AS_BLOB], [IMAGE_PUSHED_AGAIN]]))
@example(([[UNKNOWN_INDEX_PUSHED], [UNKNOWN_INDEX_LEARNED]], [[UNKNOWN_INDEX_LEARNED], [UNKNOWN_INDEX_PUSHED]]))
@law
def test_order_repetition_and_batches_do_not_matter(
    sqlite: Store, orders: tuple[list[list[Told]], list[list[Told]]]
) -> None:
    one, other = orders
    sqlite.record(one)
    first = {table: sqlite.rows(table) for table in FUNCTIONS_OF_EVENTS}
    sqlite.record(other)
    assert {table: sqlite.rows(table) for table in FUNCTIONS_OF_EVENTS} == first


@given(days.flatmap(lambda day: st.tuples(st.just(day), disturbed(day))))
@example(
    (
        [INDEX_PULLED, UNKNOWN_INDEX_LEARNED, UNKNOWN_INDEX_PULLED_BEFORE, IMAGE_PUSHED],
        [[IMAGE_PUSHED], [INDEX_PULLED], [UNKNOWN_INDEX_LEARNED], [UNKNOWN_INDEX_PULLED_BEFORE]],
    )
)
@example(([INDEX_PUSHED, IMAGE_DELETED, INDEX_PULLED], [[INDEX_PUSHED], [IMAGE_DELETED], [INDEX_PULLED]]))
@law
def test_a_pull_of_an_index_is_a_use_of_its_images_in_whatever_order_they_come(
    sqlite: Store, both: tuple[list[Told], list[list[Told]]]
) -> None:
    day, batches = both
    sqlite.record(batches)

    def used(registry: str, repository: str, digest: str) -> int:
        return last_used(day, CONTENTS, TELLING, Repository(registry, repository), digest) or NEVER

    tagged = {
        (*row[1:5], said(max(row[6] or NEVER, used(row[1], row[2], row[4]))))
        for row in tables(day, CONTENTS, TELLING).tags
    }
    answered = sqlite.rows("tagged_images", "registry, repository, tag, digest, last_pulled")
    assert {(*row[:4], row[4] or said(NEVER)) for row in answered} == tagged
    newest = "max(coalesce(pulled, ''), coalesce(pulled_in_index, '')) as newest"
    for (registry, repository), digest, pulled in sqlite.rows("manifest_facts", f"repository_id, digest, {newest}"):
        assert (pulled or said(NEVER)) == said(used(registry, repository, digest))


@given(days.flatmap(disturbed))
@law
def test_both_engines_keep_the_same_rows(sqlite: Store, postgres_shared: Store, batches: list[list[Told]]) -> None:
    sqlite.record(batches)
    postgres_shared.record(batches)
    for table in EVERY:
        mine, theirs = sqlite.rows(table), postgres_shared.rows(table)
        if table == "repository_names":  # emptying leaves those of other examples
            mine, theirs = (frozenset(row for row in rows if row[-1] is not None) for rows in (mine, theirs))
        assert mine == theirs, table


@given(days.flatmap(disturbed))
@law
def test_two_daemons_on_one_database_end_as_one(sqlite: Store, sqlite_shared: Store, batches: list[list[Told]]) -> None:
    sqlite.record(batches)
    sqlite_shared.record(batches)
    for table in EVERY:
        mine, theirs = sqlite.rows(table), sqlite_shared.rows(table)
        if table == "repository_names":
            mine, theirs = (frozenset(row for row in rows if row[-1] is not None) for rows in (mine, theirs))
        assert mine == theirs, table


def without_time(at: str) -> list[Entry]:
    """An event that says no time, as it comes at `at`."""
    catcher = Catcher()
    event = notification(Happening("push", HERE, 1, "blob", "sha256:config"))
    del event["timestamp"]
    body = json.dumps({"events": [event]}).encode()
    Webhook(catcher, {}, lambda: at).answer("POST", "/", body, lambda _: None)
    return catcher.entries


def test_an_event_without_a_time_has_the_time_it_first_came_at_though_it_is_repeated_at_once(sqlite: Store) -> None:
    first, second = without_time("2026-03-01 00:00:01.000000"), without_time("2026-03-01 00:00:02.000000")
    for entries in ([*first, *second], [*second, *first]):
        sqlite.record([])
        sqlite.sessions[0].record(Batch(entries), NOW)
        assert sqlite.rows("blobs", "digest, pushed") == {("sha256:config", "2026-03-01 00:00:01.000000")}
        assert sqlite.rows("events", "id, timestamp") == {(_id_of(first), "2026-03-01 00:00:01.000000")}


def _id_of(entries: Sequence[Entry]) -> str:
    assert isinstance(entries[0], Arrival)
    return entries[0].event.id


def test_what_one_source_knows_of_a_link_is_kept_beside_another_in_one_batch_or_in_two(sqlite: Store) -> None:
    """Schema 1 says no sizes itself, the event that told of it did."""
    told = Happening("push", HERE, 1, "manifest", "sha256:schema1", with_references=True)
    learned = Lesson("sha256:schema1", HERE)
    found = []
    orders: list[list[list[Told]]] = [[[told], [learned]], [[learned], [told]], [[told, learned]], [[learned, told]]]
    for batches in orders:
        sqlite.record(batches)
        found.append({table: sqlite.rows(table) for table in LIVE})
    assert found == [found[0]] * 4
    assert ("sha256:layer-a", SCHEMA1_LAYER) in sqlite.rows("manifest_blob", "blob_digest, media_type")


def test_the_size_of_a_foreign_layer_is_known_whichever_source_told_of_it(sqlite: Store) -> None:
    digest, layer = "sha256:image-with-foreign", "sha256:foreign"
    told = Contents((Link(layer, "foreign", LAYER, None),), True)
    learned = parse_manifest(json.dumps(MANIFESTS[digest].document).encode())
    for sources in ((told, learned), (learned, told)):
        sqlite.record([])
        for contents in sources:
            entry = Learned(digest, contents, 100, OCI_MANIFEST, changes.Repository(*HERE))
            sqlite.sessions[0].record(Batch([entry]), NOW)
        assert sqlite.rows("foreign_layers", "blob_digest, size") == {(layer, len(layer))}
