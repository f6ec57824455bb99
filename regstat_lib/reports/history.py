"""The history of a tag: the events of the log -> what it pointed to, from when to when. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from regstat_lib.reports.questions import Matches, Parameter, Question, place

Row = Sequence[Any]


class BadImage(ValueError):
    """The text names no tag of a repository."""


class Image(NamedTuple):
    """A tag; without a registry, that of every registry."""

    registry: str | None
    repository: str
    tag: str


def parse_image(text: str) -> Image:
    """`[registry/]repository[:tag]`, the tag being `latest` when it is not given, as Docker has it.

    The first part is a registry when it has a dot or a colon or is localhost (distribution/reference, "domain").
    """
    place, separator, tag = text.rpartition(":")
    if not separator or "/" in tag:
        place, tag = text, "latest"
    first, slash, rest = place.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        image = Image(first, rest, tag)
    else:
        image = Image(None, place, tag)
    if not image.repository or not image.tag or "@" in text:
        raise BadImage(f'"{text}" names no tag: it must be like registry.example:5000/team/app:v1 or team/app:v1')
    return image


def events_query(image: Image, question: Question, matches: Matches) -> tuple[str, tuple[Parameter, ...]]:
    """The events that say where the tag pointed, used it or may have ended it; of each registry in turn, by time."""
    conditions, parameters = _conditions(image, question, matches)
    return (
        "select registry, repository, timestamp, action, tag, digest, method, actor, address, agent"
        " from {s}counted_events where (tag = ? or (tag is null and action = 'delete')) and "
        f"{conditions} order by registry {{c}}, timestamp, id",
        (image.tag, *parameters),
    )


def standing_query(image: Image, question: Question, matches: Matches) -> tuple[str, tuple[Parameter, ...]]:
    """What the tables say of the tag, in case that the log has forgotten it."""
    conditions, parameters = _conditions(image, question, matches)
    return (
        "select registry, repository, tag, digest, pushed, last_pulled from {s}images"
        f" where tag = ? and {conditions} order by registry {{c}}",
        (image.tag, *parameters),
    )


def _conditions(image: Image, question: Question, matches: Matches) -> tuple[str, list[Parameter]]:
    conditions, parameters = place(question, matches)
    conditions.append("repository = ?")
    parameters.append(image.repository)
    if image.registry is not None:
        conditions.append("registry = ?")
        parameters.append(image.registry)
    return " and ".join(conditions), parameters


class _Period:
    """A time in which the tag pointed to one digest."""

    def __init__(self, event: _Event) -> None:
        self.since: str | None = event.timestamp
        self.digest = event.digest
        # A pull shows where the tag pointed and not who moved it there.
        self.mover = (event.actor, event.address, event.agent) if event.action == "push" else (None, None, None)
        self.until: str | None = None
        self.ended: str | None = None
        self.pulls = self.checks = 0
        self.last_pull: tuple[Any, ...] = (None, None, None, None)

    def row(self, registry: str, repository: str, tag: str) -> Row:
        return (
            registry, repository, tag, self.digest, self.since, self.until, self.ended, *self.mover,
            self.pulls, self.checks, *self.last_pull,
        )  # fmt: skip


class _Event(NamedTuple):
    registry: str
    repository: str
    timestamp: str
    action: str
    tag: str | None
    digest: str | None
    method: str | None
    actor: str | None
    address: str | None
    agent: str | None


class History:
    """Takes the rows of `events_query` in their order; `rows` are the periods then, newest first."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._periods: list[tuple[str, str, _Period]] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Takes events."""
        for row in rows:
            self._add(_Event(*row))

    def _add(self, event: _Event) -> None:
        current = self._current(event)
        if event.action == "delete":
            # By its tag, by its manifest, or with its whole repository.
            if current is not None and (event.tag or event.digest in (None, current.digest)):
                current.until, current.ended = event.timestamp, "deleted"
            return
        if current is None or current.digest != event.digest:
            if current is not None:
                current.until, current.ended = event.timestamp, "moved"
            current = _Period(event)
            self._periods.append((event.registry, event.repository, current))
        if event.action == "pull":
            if event.method == "HEAD":
                current.checks += 1
            else:
                current.pulls += 1
            current.last_pull = (event.timestamp, event.actor, event.address, event.agent)

    def _current(self, event: _Event) -> _Period | None:
        if not self._periods or self._periods[-1][:2] != (event.registry, event.repository):
            return None
        period = self._periods[-1][2]
        return period if period.until is None else None

    def rows(self, standing: Iterable[Row]) -> list[Row]:
        """The periods, newest first, and for tags of which the log knows nothing more what the tables know."""
        rows = [period.row(registry, repository, self._tag) for registry, repository, period in self._periods]
        known = {(registry, repository, period.digest) for registry, repository, period in self._periods}
        for registry, repository, tag, digest, pushed, pulled in standing:
            if (registry, repository, digest) not in known:
                rows.append((registry, repository, tag, digest, pushed, *(None,) * 7, pulled, None, None, None))
        return sorted(rows, key=lambda row: (str(row[4]), str(row[0]), str(row[3])), reverse=True)
