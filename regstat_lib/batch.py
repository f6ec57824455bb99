"""Changes -> one batch: the facts of many events, folded to one row for a key. Pure.

Folding is what the tables do with facts anyway (the newest time wins), so a hundred pulls of one tag cost the
database one row. Rows are sorted by their keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Union

from regstat_lib.changes import Changes, Holding, Pending, Repository, Sighting
from regstat_lib.envelope import Event, SetAside, event_to_json
from regstat_lib.manifest import Contents


class Arrival(NamedTuple):
    """An event on its way into the log: with its repository, its time, and what it changes."""

    event: Event
    at: str
    untimed: bool  # the sender gave no time; `at` is when it came
    changes: Changes


class Learned(NamedTuple):
    """The contents of a manifest that the registry was asked for."""

    manifest_digest: str
    contents: Contents
    size: int
    media_type: str
    repository: Repository


Entry = Union[Arrival, Learned, SetAside]


class Batch:
    """Facts by key. `add` folds one entry in; the order of entries does not matter."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.events: dict[tuple[str, str], Arrival] = {}
        self.set_aside: list[SetAside] = []
        self.holdings: dict[tuple[Repository, str], Holding] = {}
        self.sightings: dict[tuple[Repository, str], Sighting] = {}
        self.deleted_repositories: dict[Repository, str] = {}
        self.contents: dict[str, Contents] = {}
        self.pending: dict[tuple[Repository, str], Pending] = {}
        for entry in _first_arrivals(entries):
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Folds an arrived event, the contents of a manifest, or something set aside into the batch."""
        if isinstance(entry, Arrival):
            self._add_arrival(entry)
        elif isinstance(entry, SetAside):
            self.set_aside.append(entry)
        else:
            self._learn(entry.manifest_digest, entry.contents)
            self._hold(
                (entry.repository, entry.manifest_digest),
                Holding(None, None, None, None, None, None, entry.size, entry.media_type or None),
            )

    def repositories(self) -> set[Repository]:
        """Every repository that a row of the batch is about."""
        found = {repository for repository, _ in self.holdings}
        found.update(repository for repository, _ in self.sightings)
        found.update(self.deleted_repositories)
        return found

    def _add_arrival(self, arrival: Arrival) -> None:
        self.events[arrival.at, arrival.event.id] = arrival
        changes = arrival.changes
        repository = changes.repository
        if changes.holding is not None:
            self._hold((repository, changes.digest), changes.holding)
        if changes.sighting is not None:
            key = repository, changes.tag
            other = self.sightings.get(key)
            self.sightings[key] = changes.sighting if other is None else newest_sighting(other, changes.sighting)
        if changes.repository_deleted is not None:
            before = self.deleted_repositories.get(repository, "")
            self.deleted_repositories[repository] = max(before, changes.repository_deleted)
        if changes.contents is not None:
            self._learn(changes.digest, changes.contents)
        if changes.pending is not None:
            self.pending[repository, changes.digest] = changes.pending

    def _hold(self, key: tuple[Repository, str], holding: Holding) -> None:
        other = self.holdings.get(key)
        self.holdings[key] = holding if other is None else newest_holding(other, holding)

    def _learn(self, digest: str, contents: Contents) -> None:
        other = self.contents.get(digest)
        self.contents[digest] = contents if other is None else merged_contents(other, contents)


def newest_holding(one: Holding, other: Holding) -> Holding:
    """Both facts as one."""
    return Holding(
        _newest(one.pushed, other.pushed),
        _newest(one.pulled, other.pulled),
        _oldest(one.first_seen, other.first_seen),
        _newest(one.as_blob, other.as_blob),
        _newest(one.as_manifest, other.as_manifest),
        _newest(one.deleted, other.deleted),
        one.size if other.size is None else other.size if one.size is None else max(one.size, other.size),
        _newest(one.media_type, other.media_type),
        _oldest(one.first_pushed, other.first_pushed),
    )


def newest_sighting(one: Sighting, other: Sighting) -> Sighting:
    """Both facts as one; of two sightings at one time the greater digest counts, here as in the tables."""
    newest = max(one, other, key=lambda sighting: (sighting.sighted or "", sighting.manifest_digest or ""))
    return Sighting(
        newest.sighted,
        newest.manifest_digest,
        _newest(one.pushed, other.pushed),
        _newest(one.pulled, other.pulled),
        _oldest(one.first_seen, other.first_seen),
        _newest(one.deleted, other.deleted),
    )


def merged_contents(one: Contents, other: Contents) -> Contents:
    """What two sources tell of one manifest: every link, with what either knows of it; the complete one goes first."""
    first, second = (other, one) if other.complete and not one.complete else (one, other)
    links = {link.digest: link for link in second.links}
    for link in first.links:
        known = links.get(link.digest, link)
        links[link.digest] = link._replace(
            media_type=link.media_type or known.media_type, size=known.size if link.size is None else link.size
        )
    return Contents(tuple(links[digest] for digest in sorted(links)), first.complete)


def _first_arrivals(entries: Iterable[Entry]) -> list[Entry]:
    """The entries without repetitions of an event that has no time of its own: its time is when it first came."""
    entries = list(entries)
    first: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, Arrival) and entry.untimed:
            first[entry.event.id] = min(entry.at, first.get(entry.event.id, entry.at))
    if not first:
        return entries
    return [
        entry
        for entry in entries
        if not (isinstance(entry, Arrival) and entry.untimed and entry.at != first[entry.event.id])
    ]


def _newest(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return other if one is None else one
    return one if one > other else other


def _oldest(one: str | None, other: str | None) -> str | None:
    if one is None or other is None:
        return other if one is None else one
    return one if one < other else other


def set_aside_of(entry: Entry, reason: str) -> SetAside:
    """What is kept of an entry that the database refused, and the reason it gave."""
    if isinstance(entry, Arrival):
        return SetAside(reason, event_to_json(entry.event))
    if isinstance(entry, Learned):
        return SetAside(reason, '"the contents of manifest ' + ascii(entry.manifest_digest)[1:-1] + '"')
    return SetAside(reason, '"an event that was set aside before"')
