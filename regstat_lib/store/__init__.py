"""The database: what is kept, in Postgres or SQLite. The only room that knows a driver's errors.

`Database.connect()` gives a `Session`, which one thread uses at a time. Everything a session raises is one of the
errors here, so that the rooms before it need not know which engine is behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Callable, NamedTuple, Protocol

from regstat_lib.batch import Batch


class StoreError(Exception):
    """Base of everything that a database can answer but what it was asked for."""


class Unavailable(StoreError):
    """The database cannot be reached, or cannot do its work now; the text is a sentence for its operator."""


class Conflict(StoreError):
    """The transaction lost against another one (deadlock, serialisation): the same again will do."""


class Rejected(StoreError):
    """The database will never take this batch: a value in it is at fault."""


class SchemaTooNew(StoreError):
    """The database was upgraded by a newer regstat; this one must not write to it."""


class SchemaTooOld(StoreError):
    """The database lacks what is asked for until a daemon of this version has been started on it."""


class PendingManifest(NamedTuple):
    """A manifest whose contents the registry is to be asked for."""

    digest: str
    repository_id: int
    registry: str
    repository: str
    url: str
    host: str
    attempts: int


class Session(Protocol):
    """One connection. Times are texts of UTC as `Event.timestamp` has them."""

    def record(self, batch: Batch, now: str) -> None:
        """Writes a batch in one transaction; when it returns, the batch is committed and durable."""

    def known_untimed(self, ids: Collection[str]) -> set[str]:
        """Those of `ids` that the log has as events without a time."""

    def claim_pending(self, now: str, until: str, limit: int, busy: Collection[str]) -> list[PendingManifest]:
        """Up to `limit` due manifests of registries that are not `busy`; no session gets them again before `until`."""

    def extend_claims(self, claimed: Collection[PendingManifest], until: str) -> None:
        """Moves the time before which no session gets these manifests again: ahead, or to now to let them go."""

    def postpone(self, pending: PendingManifest, next_attempt: str, error: str) -> None:
        """Keeps a claimed manifest for a later attempt, with what happened at this one."""

    def give_up(self, pending: PendingManifest, now: str, error: str) -> None:
        """Asks for a claimed manifest no more, until a new event names it; the reason is kept."""

    def purge(self, events_before: str, set_aside_kept: int, limit: int) -> int:
        """Removes up to `limit` events of the log older than that time and all but the newest set-aside ones."""

    def close(self) -> None:
        """Ends the connection; never raises."""


# What takes the rows of an answer.
Sink = Callable[[Sequence[Sequence[Any]]], object]


class Reading(Protocol):
    """A connection that only reads, all of it in one state of the database.

    SQL is the wording of the `.sql` files, with their `{names}` and `?` for each parameter. A value is None, a number
    or a text; one that is a text in Postgres may be so here too, and times are texts that may lack trailing zeros.
    """

    def stream(self, sql: str, parameters: Sequence[str | int], sink: Sink) -> None:
        """Gives the rows to `sink` as they come, some at a time, so that memory does not grow with their number. What
        `sink` raises ends it, and the session with it."""

    def matches(self, column: str, glob: str) -> tuple[str, str]:
        """A condition that `column` is like `glob` (`*` and `?`, as SQL) and its parameter."""

    def close(self) -> None:
        """Ends the connection; never raises."""


class Database(Protocol):
    """A database that sessions can be opened on."""

    @property
    def description(self) -> str:
        """What an operator knows it by: host and database, or file; never a password."""

    @property
    def alternative(self) -> str:
        """A sentence on what an operator can use instead when it was never reached; empty when there is nothing."""

    @property
    def writers(self) -> int:
        """How many sessions that record at a time are of use: more than one where they can overlap."""

    def connect(self) -> Session:
        """A new session on the database, whose schema is made or upgraded when it must be.

        Raises Unavailable when it cannot be reached, SchemaTooNew when this regstat is too old for it.
        """

    def read(self) -> Reading:
        """A new session that only reads and changes nothing, the schema included.

        Raises Unavailable, SchemaTooNew, or SchemaTooOld when a daemon of this version was never started on it.
        """


def in_lines(parts: Iterable[str]) -> str:
    """Sentences as one line for the log."""
    return " ".join(" ".join(parts).split())
