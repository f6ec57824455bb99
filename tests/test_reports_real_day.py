"""After a random day of a real registry its reports say what a crawl of it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from crawl import Held, crawl
from real_registry import needs_registry, run_registry
from registry_day import day
from running_daemon import ROOT, run_daemon

pytestmark = needs_registry

SEEDS = range(1, 1 + int(os.environ.get("REGSTAT_DAYS", "2")))


def report(flags: list[str], *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "regstat.py"), "report", *arguments, "--format", "json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("include_references", [False, True], ids=["fetched", "includereferences"])
def test_reports_agree_with_a_crawl(
    database_flags: list[str], include_references: bool, seed: int, tmp_path: Path
) -> None:
    with run_daemon(*database_flags) as daemon:
        notify = f"http://127.0.0.1:{daemon.port}"
        with run_registry(tmp_path / "registry", notify, include_references=include_references) as registry:
            ledger = day(seed, registry)
            registry.await_delivered()
            held = crawl(registry, ledger)
            registry.await_delivered()
            deadline = time.monotonic() + 20
            while (found := differences(database_flags, held)) and time.monotonic() < deadline:
                time.sleep(0.2)
    assert not found, "\n".join([*found, "The day:", *ledger.done])


def differences(flags: list[str], held: Held) -> list[str]:
    """What a report lists and the crawl does not, and the other way round."""
    images = report(flags, "images")
    expected: dict[str, set[tuple[Any, ...]]] = {
        "tags": {(repository, tag, digest) for (repository, tag), digest in held.tags.items()},
        "sizes": {(digest, size) for digest in set(held.tags.values()) if (size := image_size(held, digest))},
        "repositories": {
            (repository, len(manifests), len(held.blobs[repository] - manifests), stored(held, repository))
            for repository, manifests in held.manifests.items()
            if manifests or held.blobs[repository]
        },
        "orphans": orphans(held),
        "untagged": untagged(held),
        "broken": broken(held),
    }
    known = {digest for digest, _ in expected["sizes"]}
    actual: dict[str, set[tuple[Any, ...]]] = {
        "tags": {(row["repository"], row["tag"], row["digest"]) for row in images},
        "sizes": {(row["digest"], row["size"]) for row in images if row["digest"] in known},
        "repositories": {
            (row["repository"], row["manifests"], row["blobs"], row["bytes"] or 0)
            for row in report(flags, "repositories")
        },
        "orphans": {(row["repository"], row["digest"]) for row in report(flags, "orphaned-blobs")},
        "untagged": {(row["repository"], row["digest"]) for row in report(flags, "untagged-manifests")},
        "broken": {
            (row["repository"], row["digest"], row["missing"])
            for row in report(flags, "broken-manifests")
            if row["state"] == "gone"
        },
    }
    return [
        f"{name}: {side} {row}"
        for name in expected
        for side, rows in (("missing", expected[name] - actual[name]), ("wrong", actual[name] - expected[name]))
        for row in sorted(rows, key=repr)
    ]


def image_size(held: Held, digest: str) -> int | None:
    """By the manifests; None when a part of it is gone, so that the crawl cannot say."""
    sizes = {digest: held.contents[digest].size}
    for reference in held.contents[digest].references:
        if reference.role in ("foreign", "subject"):
            continue
        inside = [reference]
        if reference.role == "child" and reference.digest not in held.sizes:
            if reference.digest not in held.contents:
                return None
            inside += held.contents[reference.digest].references
            if any(part.role == "child" for part in inside[1:]):
                return None
        for part in inside:
            size = held.sizes.get(part.digest) if part.size is None else part.size
            if part.role not in ("foreign", "subject"):
                if size is None:
                    return None
                sizes[part.digest] = size
    return sum(sizes.values())


def stored(held: Held, repository: str) -> int:
    sizes = {digest: held.sizes[digest] for digest in held.blobs[repository]}
    sizes.update({digest: held.contents[digest].size for digest in held.manifests[repository]})
    return sum(sizes.values())


def orphans(held: Held) -> set[tuple[Any, ...]]:
    referenced = {digest for _, digest in held.links() | held.foreign_links()} | held.live_manifests()
    return {(repository, digest) for repository, blobs in held.blobs.items() for digest in blobs - referenced}


def untagged(held: Held) -> set[tuple[Any, ...]]:
    live = held.live_manifests()
    references = [(digest, one) for digest, content in held.contents.items() for one in content.references]
    inside = {one.digest for _, one in references if one.role != "subject"}
    attached = {digest for digest, one in references if one.role == "subject" and one.digest in live}
    tagged = {(repository, digest) for (repository, _), digest in held.tags.items()}
    return {
        (repository, digest)
        for repository, manifests in held.manifests.items()
        for digest in manifests - inside - attached
        if (repository, digest) not in tagged
    }


def broken(held: Held) -> set[tuple[Any, ...]]:
    return {
        (repository, digest, one.digest)
        for repository, manifests in held.manifests.items()
        for digest in manifests
        for one in held.contents[digest].references
        if one.role not in ("foreign", "subject") and one.digest not in held.blobs[repository] | manifests
    }
