"""What each report says of small registries, on both engines; and its options, errors and exit statuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from envelopes import BLOB, IMAGE, INDEX, LAYER, change, digest_of, envelope, event, image
from running_daemon import ROOT

from regstat_lib.batch import Arrival, Batch, Entry, Learned
from regstat_lib.changes import Repository, changes_of
from regstat_lib.cli import database_to_read
from regstat_lib.envelope import parse_envelope
from regstat_lib.manifest import Contents, Link, contents_of_event
from regstat_lib.reports import command
from regstat_lib.reports.moments import NotAMoment, moment
from regstat_lib.reports.questions import REPORTS
from regstat_lib.store import Database

NOW = datetime(2027, 1, 1, tzinfo=timezone.utc)
REGISTRY = "registry.example"
CONFIG_1, LAYER_1, LAYER_2, LAYER_3 = (digest_of(name) for name in ("config", "layer 1", "layer 2", "layer 3"))
IMAGE_1, IMAGE_2, INDEX_1, ARTIFACT = (digest_of(name) for name in ("image 1", "image 2", "index", "artifact"))


class Registry:
    """A database that is told of a registry's events, and asked."""

    def __init__(self, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.flags = flags
        self._capsys = capsys
        self._database: Database = database_to_read(*self._named())
        self._session = self._database.connect()
        self.watched_since("2026-01-01 00:00:00")

    def _named(self) -> tuple[str | None, str | None]:
        return (self.flags[1], None) if self.flags[0] == "-sqlite" else (None, self.flags[1])

    def watched_since(self, moment: str) -> None:
        change(self.flags, f"update {{s}}watching set since = '{moment}.000000'")

    def tell(self, *events: dict[str, Any]) -> None:
        entries: list[Entry] = []
        for one in parse_envelope(envelope(*events)).events:
            assert one.timestamp is not None
            changes = changes_of(one, Repository(one.host, one.repository), one.timestamp)
            entries.append(Arrival(one, one.timestamp, False, changes))
        self._record(*entries)

    def learn(self, digest: str, contents: Contents, media_type: str = IMAGE, repository: str = "team/app") -> None:
        """As when the registry was asked for a manifest."""
        self._record(Learned(digest, contents, 500, media_type, Repository(REGISTRY, repository)))

    def _record(self, *entries: Entry) -> None:
        self._session.record(Batch(entries), "2026-12-31 00:00:00.000000")

    def report(self, *arguments: str) -> list[dict[str, Any]]:
        """The rows as the JSON format has them."""
        status, out, _ = self.run(*arguments, "--format", "json")
        assert status == 0
        return list(json.loads(out))

    def column(self, name: str, *arguments: str) -> list[Any]:
        return [row[name] for row in self.report(*arguments)]

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        try:
            status = command.main([*arguments, *self.flags], database_to_read, {}, NOW)
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def registry(database_flags: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    found = Registry(database_flags, capsys)
    yield found
    found.close()


def at(month: int, day: int = 1, **details: Any) -> dict[str, Any]:
    return {"timestamp": f"2026-{month:02}-{day:02}T10:00:00Z", **details}


def blobs(*digests: str, **details: Any) -> list[dict[str, Any]]:
    found = [event("push", digest, media_type=BLOB, **details) for digest in digests]
    for one in found:
        one["target"]["size"] = 10
    return found


def pushed(digest: str, *layers: str, tag: str = "", **details: Any) -> list[dict[str, Any]]:
    """An image's blobs and its manifest; sizes are 10 each and 500."""
    manifest = image(digest, *layers, tag=tag, **details)
    manifest["target"]["size"] = 500
    return [*blobs(*layers, **details), manifest]


def index(digest: str, *children: str, tag: str = "", **details: Any) -> dict[str, Any]:
    references = [{"mediaType": IMAGE, "digest": child, "size": 500} for child in children]
    found = event("push", digest, tag=tag, media_type=INDEX, references=references, **details)
    found["target"]["size"] = 300
    return found


def pull(digest: str, *, tag: str = "", method: str = "GET", media_type: str = IMAGE, **details: Any) -> dict[str, Any]:
    return event("pull", digest, tag=tag, media_type=media_type, method=method, **details)


def delete(digest: str = "", *, tag: str = "", **details: Any) -> dict[str, Any]:
    return event("delete", digest, tag=tag, **details)


# images


def test_an_image_has_its_place_its_times_and_its_size(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)), pull(IMAGE_1, tag="v1", **at(4)))
    assert registry.report("images") == [
        {
            "registry": REGISTRY,
            "repository": "team/app",
            "tag": "v1",
            "digest": IMAGE_1,
            "media_type": IMAGE,
            "pushed": "2026-03-01T10:00:00.000000Z",
            "last_pulled": "2026-04-01T10:00:00.000000Z",
            "size": 520,
            "platforms": 1,
        }
    ]


@pytest.mark.parametrize(
    "use",
    [
        pull(IMAGE_1, tag="v1", **at(5)),
        pull(IMAGE_1, **at(5)),
        pull(IMAGE_1, method="HEAD", **at(5)),
        pull(IMAGE_1, tag="v1", method="HEAD", **at(5)),
        pull(INDEX_1, media_type=INDEX, **at(5)),
        pull(INDEX_1, media_type=INDEX, method="HEAD", tag="multi", **at(5)),
        pull(INDEX_1, media_type=BLOB, **at(5)),
    ],
    ids=["by tag", "by digest", "HEAD by digest", "HEAD by tag", "of its index", "HEAD of its index", "as a blob"],
)
def test_last_pulled_is_any_use(registry: Registry, use: dict[str, Any]) -> None:
    registry.tell(
        *pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), index(INDEX_1, IMAGE_1, **at(3)), pull(IMAGE_1, **at(4))
    )
    registry.tell(use)
    (row,) = (row for row in registry.report("images") if row["tag"] == "v1")
    assert row["last_pulled"] == "2026-05-01T10:00:00.000000Z"
    # The same answer when the index is deleted since.
    registry.tell(delete(INDEX_1, **at(6)))
    (row,) = (row for row in registry.report("images") if row["tag"] == "v1")
    assert row["last_pulled"] == "2026-05-01T10:00:00.000000Z"


def test_an_image_in_several_indexes_was_used_when_the_last_of_them_was(registry: Registry) -> None:
    indexes = [digest_of(f"index {number}") for number in range(4)]
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(2)))
    for number, one in enumerate(indexes):
        registry.tell(index(one, IMAGE_1, tag=f"multi{number}", **at(2)))
    # Two at one time, one that is deleted since and one that was never pulled.
    for one, month in zip(indexes, (4, 5, 5)):
        registry.tell(pull(one, media_type=INDEX, **at(month)))
    registry.tell(delete(indexes[1], **at(6)))
    used = [row["last_pulled"] for row in registry.report("images") if row["digest"] == IMAGE_1]
    assert used == ["2026-05-01T10:00:00.000000Z"]
    registry.tell(delete(tag="v1", **at(6)), *(delete(one, **at(6)) for one in indexes))
    (untagged,) = (row for row in registry.report("images", "--untagged") if row["digest"] == IMAGE_1)
    assert untagged["last_pulled"] == used[0]


def test_a_pull_of_an_index_counts_where_it_is_held_as_nothing_but_a_blob(registry: Registry) -> None:
    registry.tell(
        index(INDEX_1, IMAGE_1, **at(2)), *pushed(IMAGE_1, CONFIG_1, tag="v1", repository="team/web", **at(3))
    )
    registry.tell(pull(INDEX_1, media_type=BLOB, repository="team/web", **at(5)))
    assert registry.column("last_pulled", "images", "--repository", "team/web") == ["2026-05-01T10:00:00.000000Z"]


def test_a_pull_in_another_repository_is_no_use_of_the_image_here(registry: Registry) -> None:
    for repository in ("team/app", "team/web"):
        registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", repository=repository, **at(3)))
    registry.tell(pull(IMAGE_1, repository="team/web", **at(5)))
    assert registry.column("last_pulled", "images") == [None, "2026-05-01T10:00:00.000000Z"]


def test_a_blob_that_was_asked_for_is_no_pull_of_an_image(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)))
    registry.tell(event("pull", LAYER_1, method="HEAD", **at(5)), event("pull", LAYER_1, method="GET", **at(5)))
    assert registry.column("last_pulled", "images") == [None]


def test_unpulled_for_counts_from_the_push_of_what_was_never_pulled(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="old", **at(2)), *pushed(IMAGE_2, LAYER_1, tag="new", **at(12)))
    assert [(row["tag"], row["use"]) for row in registry.report("images", "--unpulled-for", "6mo")] == [
        ("old", "unused")
    ]
    registry.tell(pull(IMAGE_1, method="HEAD", **at(10)))
    assert registry.report("images", "--unpulled-for", "6mo") == []


def test_an_image_that_was_pushed_again_is_not_unused(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(2)), pull(IMAGE_1, **at(3)))
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(12)))
    assert registry.report("images", "--unpulled-for", "6mo") == []


def test_unpulled_for_longer_than_regstat_watches_is_unknown(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(2)))
    registry.watched_since("2026-09-15 08:00:00")
    assert registry.column("use", "images", "--unpulled-for", "6mo") == ["unknown"]
    assert registry.column("use", "images", "--unpulled-for", "3mo") == ["unused"]
    _, out, _ = registry.run("images", "--unpulled-for", "6mo")
    assert out.splitlines()[0] == "regstat has been watching since 2026-09-15 08:00:00 UTC."


def test_an_image_first_seen_within_the_time_asked_for_is_unknown(registry: Registry) -> None:
    # Its index was pushed with it in it; of its own push, and of what was before, nothing is known.
    registry.tell(index(INDEX_1, IMAGE_1, **at(11)))
    registry.tell(event("push", IMAGE_1, tag="v1", media_type=IMAGE, references=[], **at(2)))
    change(registry.flags, f"update {{s}}holdings set first_seen = '2026-11-01 10:00:00' where digest = '{IMAGE_1}'")
    assert registry.column("use", "images", "--unpulled-for", "6mo", "--sort", "use") == ["unknown"]


def test_a_pull_of_a_manifest_with_unknown_contents_may_have_been_a_use(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(2)))
    registry.tell(event("push", INDEX_1, media_type=INDEX, **at(2)), pull(INDEX_1, media_type=INDEX, **at(11)))
    assert registry.column("use", "images", "--unpulled-for", "6mo") == ["unknown"]
    registry.learn(INDEX_1, Contents((), True), INDEX)
    assert registry.column("use", "images", "--unpulled-for", "6mo") == ["unused"]


def test_pushed_before_takes_a_duration_or_a_date(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="old", **at(2)), *pushed(IMAGE_2, LAYER_1, tag="new", **at(12)))
    assert registry.column("tag", "images", "--pushed-before", "90d") == ["old"]
    assert registry.column("tag", "images", "--pushed-before", "2026-12-15") == ["new", "old"]
    assert registry.column("tag", "images", "--pushed-before", "1y") == []


def test_the_size_of_an_index_has_each_part_once(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, **at(3)), *pushed(IMAGE_2, LAYER_2, LAYER_1, **at(3)))
    registry.tell(index(INDEX_1, IMAGE_1, IMAGE_2, tag="v1", **at(3)))
    (row,) = registry.report("images")
    assert (row["size"], row["platforms"]) == (300 + 2 * 500 + 3 * 10, 2)


def test_the_size_of_an_index_is_known_as_soon_as_its_children_are_in_whatever_order_they_are_learned(
    registry: Registry,
) -> None:
    registry.tell(index(INDEX_1, IMAGE_1, IMAGE_2, tag="v1", **at(3)))
    assert registry.column("size", "images") == [None]
    registry.tell(*pushed(IMAGE_2, LAYER_2, LAYER_1, **at(4)))
    assert registry.column("size", "images") == [None]
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, **at(5)))
    (row,) = registry.report("images")
    assert (row["size"], row["platforms"]) == (300 + 2 * 500 + 3 * 10, 2)
    # Deleted parts are parts all the same.
    registry.tell(delete(IMAGE_1, **at(6)), delete(LAYER_2, **at(6)))
    assert registry.column("size", "images") == [row["size"]]


def test_a_size_that_is_not_known_is_unknown_and_never_zero(registry: Registry) -> None:
    registry.tell(event("push", IMAGE_1, tag="v1", media_type=IMAGE, **at(3)))
    assert registry.column("size", "images") == [None]
    assert "unknown" in registry.run("images")[1]
    (summary,) = registry.report("summary")
    assert (summary["bytes"], summary["unknown_sizes"]) == (None, 1)
    registry.tell(*blobs(LAYER_1, **at(4)))
    (summary,) = registry.report("summary")
    assert (summary["bytes"], summary["unknown_sizes"]) == (10, 1)
    (usage,) = registry.report("repositories")
    assert (usage["bytes"], usage["unknown_sizes"]) == (10, 1)


def test_untagged_images_are_listed_apart(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), *pushed(IMAGE_2, LAYER_1, **at(3)))
    assert registry.column("digest", "images") == [IMAGE_1]
    assert registry.column("digest", "images", "--untagged") == [IMAGE_2]


# untagged manifests


def test_a_manifest_is_untagged_when_nothing_names_it(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)))
    assert registry.report("untagged-manifests") == []
    # The tag moves on.
    registry.tell(*pushed(IMAGE_2, LAYER_1, tag="v1", **at(4)))
    (row,) = registry.report("untagged-manifests")
    assert (row["digest"], row["doubt"]) == (IMAGE_1, None)
    registry.tell(delete(tag="v1", **at(5)))
    assert sorted(registry.column("digest", "untagged-manifests")) == sorted((IMAGE_1, IMAGE_2))


def test_a_child_of_an_index_is_not_untagged_until_the_index_is_gone(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, **at(3)), index(INDEX_1, IMAGE_1, tag="v1", **at(3)))
    assert registry.report("untagged-manifests") == []
    registry.tell(delete(INDEX_1, **at(4)))
    assert registry.column("digest", "untagged-manifests") == [IMAGE_1]


def test_an_artifact_is_not_untagged_while_its_subject_lives(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), event("push", ARTIFACT, media_type=IMAGE, **at(3)))
    registry.learn(ARTIFACT, Contents((Link(IMAGE_1, "subject", IMAGE, 500),), True))
    assert registry.report("untagged-manifests") == []
    registry.tell(delete(IMAGE_1, **at(4)))
    assert registry.column("digest", "untagged-manifests") == [ARTIFACT]


def test_a_manifest_beside_one_with_unknown_contents_is_doubtful(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, **at(3)), event("push", INDEX_1, media_type=INDEX, tag="v1", **at(3)))
    registry.tell(*pushed(IMAGE_2, CONFIG_1, repository="team/web", **at(3)))
    doubts = {row["digest"]: row["doubt"] for row in registry.report("untagged-manifests")}
    assert doubts == {IMAGE_1: "contents unknown", IMAGE_2: None}
    _, out, _ = registry.run("untagged-manifests")
    assert out.startswith("Manifests whose contents are not known: 1 (0 of them given up);")
    _, out, aside = registry.run("untagged-manifests", "--format", "jsonl")
    assert aside.startswith("Manifests whose contents are not known: 1")
    assert all(json.loads(line) for line in out.splitlines())


def test_a_manifest_whose_push_was_not_seen_may_have_a_tag(registry: Registry) -> None:
    registry.tell(pull(IMAGE_1, **at(3)))
    registry.learn(IMAGE_1, Contents((), True))
    assert registry.column("doubt", "untagged-manifests") == ["push not seen"]


# orphaned blobs


def test_a_blob_is_orphaned_when_no_live_manifest_references_it(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)), *blobs(LAYER_2, **at(3)))
    registry.tell(*pushed(IMAGE_2, LAYER_3, LAYER_1, tag="v2", **at(3)))
    assert registry.report("orphaned-blobs") == [
        {
            "registry": REGISTRY,
            "repository": "team/app",
            "digest": LAYER_2,
            "size": 10,
            "since": "2026-03-01T10:00:00.000000Z",
            "doubt": None,
        }
    ]
    registry.tell(delete(IMAGE_1, **at(6)))
    since = {row["digest"]: row["since"][:10] for row in registry.report("orphaned-blobs")}
    assert since == {CONFIG_1: "2026-06-01", LAYER_2: "2026-03-01"}


def test_an_orphan_is_doubtful_while_a_manifest_beside_it_has_unknown_contents(registry: Registry) -> None:
    registry.tell(*blobs(LAYER_1, **at(3)), *blobs(LAYER_2, repository="team/web", **at(3)))
    registry.tell(event("push", IMAGE_1, tag="v1", media_type=IMAGE, **at(3)))
    doubts = {row["digest"]: row["doubt"] for row in registry.report("orphaned-blobs")}
    assert doubts == {LAYER_1: "contents unknown", LAYER_2: None}
    registry.learn(IMAGE_1, contents_of_event(IMAGE, ()))
    assert registry.column("doubt", "orphaned-blobs") == [None, None]


def test_an_orphan_that_was_there_before_is_doubtful(registry: Registry) -> None:
    registry.tell(event("pull", LAYER_1, method="HEAD", **at(3)))
    assert registry.column("doubt", "orphaned-blobs") == ["push not seen"]


# broken manifests


def test_a_manifest_is_broken_when_a_blob_was_deleted(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)), delete(LAYER_1, **at(4)))
    (row,) = registry.report("broken-manifests")
    assert (row["digest"], row["missing"], row["kind"], row["state"], row["tags"]) == (
        IMAGE_1, LAYER_1, "layer", "gone", "v1",
    )  # fmt: skip
    assert row["gone"] == "2026-04-01T10:00:00.000000Z"
    registry.tell(*blobs(LAYER_1, **at(5)))
    assert registry.report("broken-manifests") == []


def test_an_index_is_broken_when_a_child_was_deleted(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, **at(3)), index(INDEX_1, IMAGE_1, tag="v1", **at(3)))
    registry.tell(delete(IMAGE_1, **at(4)))
    (row,) = registry.report("broken-manifests")
    assert (row["digest"], row["missing"], row["kind"], row["state"], row["tags"]) == (
        INDEX_1, IMAGE_1, "manifest", "gone", "v1",
    )  # fmt: skip


def test_a_broken_child_breaks_the_tags_of_its_index(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, **at(3)), index(INDEX_1, IMAGE_1, tag="v1", **at(3)))
    registry.tell(index(INDEX_1, IMAGE_1, tag="Z", **at(3)), delete(CONFIG_1, **at(4)))
    assert registry.column("tags", "broken-manifests") == ["Z v1"]


def test_a_blob_deleted_in_one_repository_breaks_only_what_is_there(registry: Registry) -> None:
    for repository in ("team/app", "team/web"):
        registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", repository=repository, **at(3)))
    registry.tell(delete(CONFIG_1, repository="team/web", **at(4)))
    assert registry.column("repository", "broken-manifests") == ["team/web"]


def test_a_part_that_was_never_seen_is_unknown_and_not_gone(registry: Registry) -> None:
    registry.tell(pull(INDEX_1, media_type=INDEX, tag="v1", **at(3)))
    registry.learn(INDEX_1, Contents((Link(IMAGE_1, "manifest", IMAGE, 500),), True), INDEX)
    (row,) = registry.report("broken-manifests")
    assert (row["missing"], row["state"], row["gone"]) == (IMAGE_1, "unknown", None)


def test_a_missing_subject_and_a_foreign_layer_break_nothing(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), event("push", ARTIFACT, media_type=IMAGE, **at(3)))
    links = (Link(IMAGE_1, "subject", IMAGE, 500), Link(LAYER_3, "foreign", LAYER, 10))
    registry.learn(ARTIFACT, Contents(links, True))
    registry.tell(delete(IMAGE_1, **at(4)))
    assert registry.report("broken-manifests") == []


# repositories, most-tagged, summary


def test_bytes_count_a_shared_blob_once_for_a_repository_and_once_for_the_registry(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)), *pushed(IMAGE_2, LAYER_2, LAYER_1, **at(3)))
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", repository="team/web", **at(4)))
    first, second = registry.report("repositories")
    assert (first["tags"], first["manifests"], first["blobs"], first["bytes"]) == (1, 2, 3, 1030)
    assert (first["only_here"], second["bytes"], second["only_here"]) == (510, 520, 0)
    assert second["last_push"] == "2026-04-01T10:00:00.000000Z"
    (summary,) = registry.report("summary")
    counts = {name: summary[name] for name in ("registries", "repositories", "tags", "manifests", "blobs", "bytes")}
    assert counts == {"registries": 1, "repositories": 2, "tags": 2, "manifests": 2, "blobs": 3, "bytes": 1030}
    # Another registry stores its own.
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", host="other.example", **at(4)))
    (summary,) = registry.report("summary")
    assert (summary["registries"], summary["manifests"], summary["bytes"]) == (2, 3, 1550)
    (summary,) = registry.report("summary", "--registry", "other*")
    assert (summary["registries"], summary["tags"], summary["bytes"]) == (1, 1, 520)


def test_a_blob_of_which_one_repository_knows_the_size_counts_with_it(registry: Registry) -> None:
    registry.tell(event("push", LAYER_1, media_type=BLOB, **at(3)), *blobs(LAYER_1, repository="team/web", **at(3)))
    (summary,) = registry.report("summary")
    assert (summary["blobs"], summary["bytes"], summary["unknown_sizes"]) == (1, 10, 0)


def test_what_was_deleted_counts_no_more(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), delete(IMAGE_1, **at(4)), delete(CONFIG_1, **at(4)))
    assert registry.report("repositories") == []
    (summary,) = registry.report("summary")
    assert (summary["repositories"], summary["tags"], summary["bytes"]) == (0, 0, 0)


def test_the_first_repositories_and_each_alone_are_as_in_the_whole_answer(registry: Registry) -> None:
    # Names of which one begins like another, one of them of two registries; the first of all holds nothing any more.
    for number, repository in enumerate(("a", "team/app", "team/app-2", "team/app/x", "z")):
        layer = digest_of(f"layer of {repository}")
        tags = [f"v{tag}" for tag in range(number)]
        for tag in tags or ["gone"]:
            registry.tell(*pushed(IMAGE_1, LAYER_1, layer, tag=tag, repository=repository, **at(3)))
    registry.tell(delete(repository="a", **at(4)), *pushed(IMAGE_2, CONFIG_1, tag="v1", host="other.example", **at(3)))
    everything = registry.report("repositories")
    assert [(row["repository"], row["tags"]) for row in everything] == [
        ("team/app", 1), ("team/app", 1), ("team/app-2", 2), ("team/app/x", 3), ("z", 4)
    ]  # fmt: skip
    for limit in range(1, 7):
        assert registry.report("repositories", "--limit", str(limit)) == everything[:limit]
    here = [row for row in everything if row["registry"] == REGISTRY and row["repository"] != "z"]
    where = ("--registry", "registry*", "--repository", "team*")
    assert registry.report("repositories", *where, "--limit", "2") == here[:2]
    assert registry.column("tags", "repositories", "--sort", "tags", "--limit", "2") == [4, 3]
    for repository in {row["repository"] for row in everything}:
        alone = [row for row in everything if row["repository"] == repository]
        assert registry.report("repositories", "--repository", repository) == alone
        largest = max(alone, key=lambda row: row["bytes"])
        named = ("--repository", repository, "--sort", "bytes", "--limit", "1")
        assert registry.report("repositories", *named) == [largest]
    assert registry.report("repositories", "--repository", "team/app", "--registry", "o*") == everything[:1]
    assert registry.report("repositories", "--repository", "team", "--limit", "2") == []


def test_most_tagged_counts_by_repository_or_manifest(registry: Registry) -> None:
    for tag in ("v1", "v2", "latest"):
        registry.tell(*pushed(IMAGE_1, CONFIG_1, tag=tag, repository="team/web", **at(3)))
    registry.tell(*pushed(IMAGE_2, CONFIG_1, tag="v1", **at(3)))
    assert [(row["repository"], row["tags"]) for row in registry.report("most-tagged")] == [
        ("team/web", 3),
        ("team/app", 1),
    ]
    assert [(row["digest"], row["tags"]) for row in registry.report("most-tagged", "--by", "manifest")] == [
        (IMAGE_1, 3),
        (IMAGE_2, 1),
    ]


@pytest.mark.parametrize("first", ["team/app", "team/web"])
def test_what_one_repository_holds_as_a_manifest_is_one_whichever_was_heard_of_first(
    first: str, registry: Registry
) -> None:
    told = {
        "team/app": pushed(IMAGE_1, repository="team/app", **at(3)),
        "team/web": blobs(IMAGE_1, repository="team/web", **at(3)),
    }
    told["team/web"][0]["target"]["size"] = 500
    registry.tell(*told.pop(first))
    registry.tell(*next(iter(told.values())))
    (summary,) = registry.report("summary")
    assert (summary["manifests"], summary["blobs"], summary["bytes"]) == (1, 0, 500)


def test_summary_says_what_is_pending_given_up_and_set_aside(registry: Registry) -> None:
    registry.tell(event("push", IMAGE_1, tag="v1", media_type=IMAGE, **at(3)))
    (summary,) = registry.report("summary")
    assert (summary["pending"], summary["given_up"], summary["set_aside"]) == (1, 0, 0)
    assert summary["first_event"] == summary["last_event"] == "2026-03-01T10:00:00.000000Z"
    change(
        registry.flags,
        "update {s}pending_manifests set given_up = '2026-05-01 00:00:00'",
        "insert into {s}set_aside (received, reason, event) values ('2026-05-01 00:00:00', 'odd', '{}')",
    )
    (summary,) = registry.report("summary")
    assert (summary["pending"], summary["given_up"], summary["set_aside"]) == (0, 1, 1)


# deletions, activity, history


def test_deletions_are_newest_first_and_say_who(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)))
    by = delete(IMAGE_1, **at(4), user_agent="cleaner/1")
    by["actor"] = {"name": "robot"}
    registry.tell(by, delete(CONFIG_1, **at(5)), delete(digest_of("never seen"), **at(6)))
    rows = registry.report("deletions")
    assert [(row["kind"], row["tag"], row["actor"], row["agent"]) for row in rows] == [
        ("unknown", None, None, "docker/24.0"),
        ("blob", None, None, "docker/24.0"),
        ("manifest", None, "robot", "cleaner/1"),
        ("tag", "v1", "robot", "cleaner/1"),
    ]
    assert [row["restored"] for row in rows] == [None] * 4
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(7)))
    assert registry.column("restored", "deletions")[1:] == ["2026-07-01T10:00:00.000000Z"] * 3


def test_a_deleted_repository_is_in_the_audit_trail(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), delete(**at(4)))
    assert sorted(registry.column("kind", "deletions")) == ["blob", "manifest", "repository", "tag"]


def test_activity_tells_downloads_from_checks_and_images_from_blobs(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", **at(3)), delete(LAYER_1, **at(4)))
    registry.tell(pull(IMAGE_1, **at(3)), pull(IMAGE_1, method="HEAD", **at(3)), pull(IMAGE_1, method="HEAD", **at(3)))
    registry.tell(event("pull", LAYER_1, method="GET", **at(3)), event("pull", LAYER_1, method="HEAD", **at(3)))
    assert registry.report("activity") == [
        {"day": "2026-04-01", "pushes": 0, "pulls": 0, "checks": 0, "deletes": 1, "blob_pushes": 0, "blob_pulls": 0},
        {"day": "2026-03-01", "pushes": 1, "pulls": 1, "checks": 2, "deletes": 0, "blob_pushes": 2, "blob_pulls": 1},
    ]


def test_activity_is_split_as_asked(registry: Registry) -> None:
    registry.tell(pull(IMAGE_1, **at(3)), pull(IMAGE_1, **at(3), user_agent="containerd/1.7"))
    registry.tell(pull(IMAGE_1, **at(3), repository="team/web"))
    by_agent = registry.report("activity", "--by", "agent")
    assert [(row["agent"], row["pulls"]) for row in by_agent] == [("containerd/1.7", 1), ("docker/24.0", 2)]
    by_repository = registry.report("activity", "--by", "repository")
    assert [(row["repository"], row["pulls"]) for row in by_repository] == [("team/app", 2), ("team/web", 1)]
    assert registry.column("actor", "activity", "--by", "actor") == [None]
    assert registry.column("pulls", "activity", "--repository", "team/w*") == [1]


def test_history_follows_a_tag(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)), pull(IMAGE_1, tag="v1", **at(4)))
    registry.tell(pull(IMAGE_1, tag="v1", method="HEAD", **at(5), user_agent="containerd/1.7"))
    registry.tell(*pushed(IMAGE_2, CONFIG_1, tag="v1", **at(6), user_agent="kaniko/1"), delete(IMAGE_2, **at(7)))
    # The push was missed; a pull shows where the tag points.
    registry.tell(pull(IMAGE_1, tag="v1", **at(8)))
    rows = registry.report("history", f"{REGISTRY}/team/app:v1")
    assert [(row["digest"], row["since"][5:7], row["until"] and row["until"][5:7], row["ended"]) for row in rows] == [
        (IMAGE_1, "08", None, None),
        (IMAGE_2, "06", "07", "deleted"),
        (IMAGE_1, "03", "06", "moved"),
    ]
    assert [row["agent"] for row in rows] == [None, "kaniko/1", "docker/24.0"]
    assert [(row["pulls"], row["checks"]) for row in rows] == [(1, 0), (0, 0), (1, 1)]
    assert (rows[2]["last_pulled"], rows[2]["pulled_with"]) == ("2026-05-01T10:00:00.000000Z", "containerd/1.7")
    assert registry.report("history", "team/app:v1") == rows
    assert registry.report("history", "team/app:v2") == []


def test_history_knows_what_the_log_has_forgotten(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, tag="v1", **at(3)))
    change(registry.flags, "delete from {s}events")
    (row,) = registry.report("history", "team/app:v1")
    assert (row["digest"], row["since"], row["agent"]) == (IMAGE_1, "2026-03-01T10:00:00.000000Z", None)


# Options


def two_places(registry: Registry) -> None:
    registry.tell(*pushed(IMAGE_1, CONFIG_1, LAYER_1, tag="v1", repository="team/app", **at(3)))
    registry.tell(*pushed(IMAGE_2, CONFIG_1, tag="v1", repository="other/[x]%_", host="b.example", **at(4)))


def test_globs_pick_registries_and_repositories(registry: Registry) -> None:
    two_places(registry)
    assert registry.column("digest", "images", "--repository", "team/*") == [IMAGE_1]
    assert registry.column("digest", "images", "--repository", "*/[x]%_") == [IMAGE_2]
    assert registry.column("digest", "images", "--repository", "TEAM/*") == []
    assert registry.column("digest", "images", "--repository", "team_app") == []
    assert registry.column("digest", "images", "--registry", "?.example") == [IMAGE_2]
    assert registry.column("digest", "images", "--registry", "'; drop table tags; --") == []


@pytest.mark.parametrize("name", [name for name in REPORTS if name != "history"])
def test_every_report_takes_the_options_that_all_have(registry: Registry, name: str) -> None:
    two_places(registry)
    registry.tell(*blobs(LAYER_3, **at(3)), *pushed(INDEX_1, LAYER_2, **at(3)), delete(LAYER_1, **at(5)))
    everything = registry.report(name)
    assert everything
    for column in everything[0] if name != "summary" else ():
        one_way = registry.report(name, "--sort", column)
        other_way = registry.report(name, "--sort", column, "--reverse")
        assert sorted(map(str, one_way)) == sorted(map(str, other_way)) == sorted(map(str, everything))
        known = [row[column] for row in one_way if row[column] is not None]
        assert known in (sorted(known), sorted(known, reverse=True))
        assert [row[column] for row in one_way][: len(known)] == known
    assert registry.report(name, "--limit", "1") == everything[:1]
    assert registry.report(name, "--registry", "*", "--repository", "*") == everything
    lines = registry.run(name, "--format", "jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == everything
    assert len(registry.run(name, "--format", "csv")[1].splitlines()) == 1 + len(everything)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Say which report you want"),
        (["imagse"], 'There is no report "imagse"'),
        (["images", "--limit", "0"], "1 or more"),
        (["images", "--limt", "1"], "--limt"),
        (["images", "--format", "xml"], "table"),
        (["images", "--sort", "colour"], "last_pulled"),
        (["images", "--pushed-before", "yesterday"], "6mo"),
        (["repositories", "--untagged"], "option of images"),
        (["activity", "--by", "moon"], "repository, actor, agent"),
        (["images", "--by", "agent"], "most-tagged and activity"),
        (["images", "extra"], "only history"),
        (["history"], "history team/app:v1"),
        (["history", "team/app@sha256:1234"], "names no tag"),
        (["images", "--reverse"], "--sort"),
    ],
)
def test_a_wrong_option_exits_2_and_tells_the_right_ones(registry: Registry, arguments: list[str], told: str) -> None:
    status, out, err = registry.run(*arguments)
    assert (status, out) == (2, "")
    assert told in err
    if "report" in told:
        assert all(name in err for name in REPORTS)


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("REGSTAT_", "COLUMNS"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "regstat.py"), "report", *arguments],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=60,
    )


def test_a_database_that_cannot_be_read_exits_3(tmp_path: Path) -> None:
    missing = run_program("images", "-sqlite", str(tmp_path / "no" / "regstat.db"))
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "There is no SQLite database" in missing.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("no database at all, but a text that is longer than a header of SQLite is" * 3)
    assert run_program("images", "-sqlite", str(tmp_path / "text")).returncode == 3
    refused = run_program("images", "-pg-conn-str", "host=127.0.0.1 port=1 user=postgres sslmode=disable")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "Traceback" not in refused.stderr


def test_a_schema_that_is_too_old_or_too_new_exits_3_and_says_so(database_flags: list[str]) -> None:
    if database_flags[0] == "-sqlite":
        change(database_flags, "create table other (x)")
    old = run_program("images", *database_flags)
    assert old.returncode == 3
    assert "start the daemon of this regstat on it once" in old.stderr
    named = (database_flags[1], None) if "-sqlite" in database_flags else (None, database_flags[1])
    database_to_read(*named).connect().close()
    newer = "pragma user_version = 99" if "-sqlite" in database_flags else "update {s}schema_version set version = 99"
    change(database_flags, newer)
    new = run_program("images", *database_flags)
    assert new.returncode == 3
    assert "use the newer regstat" in new.stderr


def test_the_database_comes_from_the_environment_too(registry: Registry) -> None:
    two_places(registry)
    name = "REGSTAT_SQLITE" if "-sqlite" in registry.flags else "REGSTAT_PG_CONN_STR"
    done = run_program("images", "-format=jsonl", **{name: registry.flags[1]})
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def test_a_reader_that_stops_early_is_no_error(registry: Registry) -> None:
    for number in range(300):
        registry.tell(*pushed(digest_of(f"image {number}"), CONFIG_1, tag=f"v{number}", **at(3)))
    program = [sys.executable, str(ROOT / "regstat.py"), "report", "images", "--format", "jsonl", *registry.flags]
    pipe = f"{shlex.join(program)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert "rror" not in done.stderr


def test_reading_leaves_a_sqlite_file_that_may_not_be_written_alone(sqlite_path: Path) -> None:
    database_to_read(str(sqlite_path), None).connect().close()
    before = sqlite_path.read_bytes()
    assert run_program("summary", "-sqlite", str(sqlite_path)).returncode == 0
    assert sqlite_path.read_bytes() == before


# Moments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12h", "2026-12-31 12:00:00.000000"),
        ("90d", "2026-10-03 00:00:00.000000"),
        ("2w", "2026-12-18 00:00:00.000000"),
        ("6mo", "2026-07-01 00:00:00.000000"),
        ("1y", "2026-01-01 00:00:00.000000"),
        ("2024-01-31", "2024-01-31 00:00:00.000000"),
        ("2024-01-31T12:00:00+02:00", "2024-01-31 10:00:00.000000"),
        ("2024-01-31T12:00:00Z", "2024-01-31 12:00:00.000000"),
    ],
)
def test_a_moment_is_a_duration_or_a_date(text: str, expected: str) -> None:
    assert moment(text, NOW) == expected


def test_a_month_before_the_31st_is_the_last_day_of_a_shorter_month() -> None:
    assert moment("1mo", datetime(2026, 3, 31, tzinfo=timezone.utc)).startswith("2026-02-28")


@pytest.mark.parametrize("text", ["", "d", "90", "90 days", "-1d", "999999y", "2024-13-01", "6m"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(NotAMoment, match="6mo"):
        moment(text, NOW)


# The README's examples

README = Path(os.environ.get("REGSTAT_README", str(ROOT / "README.md")))


def recorded_day() -> list[dict[str, Any]]:
    with (ROOT / "tests" / "data" / "busy-day-references.jsonl").open() as lines:
        return [event for line in lines for event in json.loads(json.loads(line)["body"])["events"]]


def example_queries() -> list[str]:
    text = README.read_text() if README.is_file() else ""
    blocks = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [query.strip() for block in blocks for query in re.split(r";\s*\n", block) if query.strip()]


def test_the_examples_of_the_readme_run_on_a_recorded_day(registry: Registry) -> None:
    queries = example_queries()
    if not any("regstat.images" in query for query in queries):
        pytest.skip("README.md has no example queries")
    assert len(queries) >= 7
    registry.tell(*recorded_day())
    from envelopes import rows

    for query in queries:
        if "-sqlite" in registry.flags:
            query = query.replace("regstat.", "").replace("now() - interval '90 days'", "datetime('now', '-90 days')")
            query = query.replace("now() - interval '6 months'", "datetime('now', '-6 months')")
        rows(registry.flags, query.rstrip(";"))


def test_both_engines_give_the_same_bytes(
    sqlite_path: Path, pg_conn_str: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for flags in (["-sqlite", str(sqlite_path)], ["-pg-conn-str", pg_conn_str]):
        registry = Registry(flags, capsys)
        registry.tell(*recorded_day())
        asked = [[name] for name in REPORTS if name != "history"]
        asked += [["images", "--untagged"], ["images", "--unpulled-for", "1h"], ["most-tagged", "--by", "manifest"]]
        asked += [["activity", "--by", by] for by in ("repository", "actor", "agent")]
        asked += [["history", "team0/app0:latest"]]
        answers.append([registry.run(*one, "--format", form) for one in asked for form in ("json", "csv", "table")])
        registry.close()
    assert answers[0] == answers[1]
    assert all(status == 0 and out for status, out, _ in answers[0])
