"""A batch as rows: what `record.sql` stages, in the order of its columns, sorted by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regstat_lib.batch import Batch
from regstat_lib.changes import Repository

Row = tuple[Any, ...]


def staged_rows(batch: Batch, ids: Mapping[Repository, int]) -> dict[str, list[Row]]:
    """The rows of each staged relation that has any; `ids` has every repository of the batch."""
    rows: dict[str, list[Row]] = {}
    if batch.events:
        rows["staged_events"] = sorted(
            (
                at,
                event.id,
                event.action,
                changes.repository.registry,
                event.repository,
                event.digest or None,
                event.tag or None,
                event.media_type or None,
                event.size,
                event.from_repository or None,
                event.method or None,
                event.actor or None,
                event.address or None,
                event.user_agent or None,
                event.source or None,
                1 if untimed else None,
            )
            for event, at, untimed, changes in batch.events.values()
        )
    if batch.set_aside:
        rows["staged_aside"] = [tuple(entry) for entry in batch.set_aside]
    if batch.deleted_repositories:
        rows["staged_repositories"] = sorted(
            (ids[repository], deleted) for repository, deleted in batch.deleted_repositories.items()
        )
    if batch.contents:
        rows["staged_contents"] = sorted(
            (digest, 1 if contents.complete else 0) for digest, contents in batch.contents.items()
        )
        links = [
            (digest, link.digest, link.kind, link.media_type or None, link.size)
            for digest, contents in batch.contents.items()
            for link in contents.links
        ]
        if links:
            rows["staged_links"] = sorted(links, key=lambda row: row[:2])
    if batch.holdings:
        rows["staged_holdings"] = sorted(
            ((digest, ids[repository], *holding) for (repository, digest), holding in batch.holdings.items()),
            key=_key,
        )
        deletions = sorted(
            (digest, ids[repository], holding.deleted)
            for (repository, digest), holding in batch.holdings.items()
            if holding.deleted is not None
        )
        if deletions:
            rows["staged_deletions"] = deletions
    if batch.sightings:
        rows["staged_tags"] = sorted(
            ((ids[repository], tag, *sighting) for (repository, tag), sighting in batch.sightings.items()),
            key=_key,
        )
    if batch.pending:
        rows["staged_pending"] = sorted(
            (digest, ids[repository], pending.url, pending.host)
            for (repository, digest), pending in batch.pending.items()
        )
    return rows


def _key(row: Row) -> Row:
    return row[:2]
