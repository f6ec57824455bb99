"""One session on the database, and what it takes to commit entries in it: conflicts, refusals, repetitions."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Callable

from regstat_lib.batch import Arrival, Batch, Entry, set_aside_of
from regstat_lib.store import Conflict, Database, Rejected, Session, Unavailable

_log = logging.getLogger(__name__)

_CONFLICT_ATTEMPTS = 8


class Writer:
    """A session for one thread; `connect` it, `record`, and `disconnect` it when it has failed."""

    def __init__(
        self,
        database: Database,
        *,
        utc_now: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._utc_now = utc_now
        self._clock = clock
        self._sleep = sleep
        self._session: Session | None = None
        self._step_began: float | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a session that has not failed."""
        return self._session is not None

    def connect(self) -> None:
        """Opens a session; raises what `Database.connect` does."""
        self._session = self._database.connect()

    def disconnect(self) -> None:
        """Closes the session, if there is one."""
        self._step_began = None
        if self._session is not None:
            self._session.close()
            self._session = None

    def step_seconds(self) -> float:
        """For how long it has been at one transaction; 0 while it is at none. For any thread."""
        began = self._step_began
        return 0.0 if began is None else max(0.0, self._clock() - began)

    def record(self, entries: Sequence[Entry]) -> set[int]:
        """Commits entries; the positions of those that the database refused, and that were set aside."""
        refused: set[int] = set()
        try:
            self._commit(entries)
        except Rejected as error:
            refused = self._split(entries, error)
        self._step_began = None
        return refused

    def purge(self, events_before: str, set_aside_kept: int, limit: int) -> int:
        """What `Session.purge` does."""
        self._step_began = self._clock()
        gone = self._open().purge(events_before, set_aside_kept, limit)
        self._step_began = None
        return gone

    def _open(self) -> Session:
        if self._session is None:
            raise Unavailable(f"The {self._database.description} is not connected.")
        return self._session

    def _split(self, entries: Sequence[Entry], error: Rejected, offset: int = 0) -> set[int]:
        """Halves what was refused until only the entries at fault are left, and sets those aside."""
        if len(entries) == 1:
            _log.error("An event was set aside: %s", error)
            self._commit([set_aside_of(entries[0], str(error))])
            return {offset}
        refused: set[int] = set()
        middle = len(entries) // 2
        for start, half in ((0, entries[:middle]), (middle, entries[middle:])):
            try:
                self._commit(half)
            except Rejected as half_error:
                refused |= self._split(half, half_error, offset + start)
        return refused

    def _commit(self, entries: Sequence[Entry]) -> None:
        session = self._open()
        self._step_began = self._clock()
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                # Again after a conflict: the other one may have recorded some of it.
                session.record(Batch(_news(session, entries)), self._utc_now())
                return
            except Conflict:
                if attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                self._sleep(0.01 * 2**attempt)


def _news(session: Session, entries: Sequence[Entry]) -> Sequence[Entry]:
    """The entries without events that have no time of their own and were recorded already.

    The time of such an event is when it first came, so a repetition must not bring its facts again.
    """
    untimed = {entry.event.id for entry in entries if isinstance(entry, Arrival) and entry.untimed}
    if not untimed:
        return entries
    known = session.known_untimed(untimed)
    return [
        entry for entry in entries if not (isinstance(entry, Arrival) and entry.untimed and entry.event.id in known)
    ]
