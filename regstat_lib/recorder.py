"""One writer and group commit: whatever queued while the last commit ran is the next batch; there is no timer.

`submit` returns after the commit that holds its entries. When the database cannot be reached, it says so at once
while the recorder reconnects in the background.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Callable, NamedTuple

from regstat_lib.batch import Arrival, Batch, Entry, set_aside_of
from regstat_lib.envelope import SetAside
from regstat_lib.store import Conflict, Database, Rejected, SchemaTooNew, Session, StoreError, Unavailable, in_lines

_log = logging.getLogger(__name__)

# What bounds a transaction, and the memory for it; a body of 16 MiB brings some 16,000 events.
_BATCH_ENTRIES = 5_000
_CONFLICT_ATTEMPTS = 8
_RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SAME_OUTAGE_SECONDS = 30.0
# A registry gives up on an answer after a second, and sends again.
_SILENCE_SECONDS = 3.0
_PURGE_SECONDS = 60.0
_PURGE_LIMIT = 5_000


class Outcome(NamedTuple):
    """What became of the entries of one submit."""

    recorded: int
    set_aside: int


class Counters(NamedTuple):
    """What was done since the last time somebody asked."""

    recorded: int
    set_aside: int
    batches: int


class _Item:
    """Entries that wait for their commit, and the one that waits for them."""

    __slots__ = ("done", "entries", "failure", "outcome")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.outcome: Outcome | None = None
        self.failure: StoreError | None = None
        # A bare lock is the cheapest thing in Python that a thread can wait on.
        self.done = threading.Lock()
        self.done.acquire()


class Recorder:
    """The one writer of a daemon. `start` it, `submit` from any thread, `stop` it: what was accepted is committed."""

    def __init__(
        self,
        database: Database,
        *,
        utc_now: Callable[[], str],
        utc_before: Callable[[float], str],
        retention_seconds: float | None = None,
        set_aside_kept: int = 10_000,
        on_pending: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._utc_now = utc_now
        self._utc_before = utc_before
        self._retention_seconds = retention_seconds
        self._set_aside_kept = set_aside_kept
        self._on_pending = on_pending
        self._clock = clock
        self._wake = threading.Condition(threading.Lock())
        self._queue: deque[_Item] = deque()
        self._stopping = False
        self._session: Session | None = None
        self._outage: StoreError | None = Unavailable(f"The {database.description} was not reached yet.")
        self._ever_reached = False
        self._tried = threading.Event()
        self._step_began: float | None = None
        self._told, self._tell_again = "", 0.0
        self._next_purge = 0.0
        self._recorded = self._set_aside = self._batches = 0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begins to connect and to write; returns at once."""
        self._thread.start()

    def await_first_attempt(self, seconds: float) -> None:
        """Returns when it is known whether the database can be reached, or after `seconds`."""
        self._tried.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """Writes what was accepted, then ends; whether that was done within `seconds`."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            if self._outage is not None:
                return True  # nothing was accepted that is not answered
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def submit(self, entries: Sequence[Entry], timeout: float = 10.0) -> Outcome:
        """Records entries; when it returns, the transaction that holds them is committed.

        Raises Unavailable at once when the database is out of reach, and after `timeout` seconds when it is too slow:
        the entries may be committed later all the same, and submitting them again is harmless.
        """
        item = _Item(entries)
        with self._wake:
            if self._outage is not None:
                raise self._outage
            if self._stopping:
                raise Unavailable("regstat is stopping.")
            if self.step_seconds() > _SILENCE_SECONDS:
                # It neither answers nor breaks off: who waits as well only ties up a thread.
                raise Unavailable(f"The {self._database.description} is silent.")
            self._queue.append(item)
            if len(self._queue) == 1:
                self._wake.notify()
        if not item.done.acquire(timeout=timeout):
            raise Unavailable(f"The {self._database.description} did not commit within {timeout:g} seconds.")
        if item.failure is not None:
            raise item.failure
        assert item.outcome is not None
        return item.outcome

    def counters(self) -> Counters:
        """What was recorded since the last call."""
        with self._wake:
            counted = Counters(self._recorded, self._set_aside, self._batches)
            self._recorded = self._set_aside = self._batches = 0
        return counted

    def step_seconds(self) -> float:
        """For how long the writer has been at one transaction: 0 while it has nothing to do, infinite if it ended.

        Connecting does not count: an outage is not the writer's fault, and an upgrade may take long on many rows.
        """
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping:
            return math.inf
        began = self._step_began
        return 0.0 if began is None else max(0.0, self._clock() - began)

    def _run(self) -> None:
        attempt = 0
        while True:
            if self._session is None:
                reached = self._connect()
                self._tried.set()
                if reached:
                    attempt = 0
                    continue
                with self._wake:
                    if self._stopping:
                        return
                    self._wake.wait(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
                attempt += 1
                continue
            items = self._next_items()
            if items:
                self._write(items)
            elif self._stopping:
                self._session.close()
                return
            self._purge()

    def _next_items(self) -> list[_Item]:
        self._step_began = None
        with self._wake:
            if not self._queue and not self._stopping:
                self._wake.wait(_PURGE_SECONDS)
            items: list[_Item] = []
            count = 0
            while self._queue and (not items or count + len(self._queue[0].entries) <= _BATCH_ENTRIES):
                item = self._queue.popleft()
                items.append(item)
                count += len(item.entries)
        return items

    def _connect(self) -> bool:
        self._step_began = None
        try:
            session = self._database.connect()
        except StoreError as error:
            self._out_of_reach(error)
            return False
        except Exception as error:
            # A daemon that cannot go on must say so again and again rather than end a thread silently.
            _log.exception(
                "Connecting to the %s failed in a way that regstat does not know", self._database.description
            )
            self._out_of_reach(Unavailable(f"The {self._database.description} cannot be used: {error}."))
            return False
        self._session = session
        with self._wake:
            again = self._outage is not None and self._ever_reached
            self._outage = None
        self._told, self._tell_again = "", 0.0
        _log.info("%s the %s", "Reached again:" if again else "Recording to", self._database.description)
        self._ever_reached = True
        return True

    def _out_of_reach(self, error: StoreError) -> None:
        with self._wake:
            self._outage = error
            waiting, self._queue = list(self._queue), deque()
        for item in waiting:
            _settle(item, failure=error)
        # One outage has one line: a server that goes down or comes up says this and that within seconds.
        if str(error) != self._told and self._clock() >= self._tell_again:
            self._told, self._tell_again = str(error), self._clock() + _SAME_OUTAGE_SECONDS
            hint = "" if self._ever_reached or isinstance(error, SchemaTooNew) else self._database.alternative
            until = "Notifications are answered 503 until it is back; trying again."
            _log.error("%s", in_lines((str(error), until, hint)))

    def _write(self, items: list[_Item]) -> None:
        try:
            outcomes = self._record(items)
        except StoreError as error:
            if not isinstance(error, Unavailable):
                self._fail(items, error)
                return
            self._disconnect()
            if not self._connect():
                # The log was told why; that the connection broke as well would be a second line about one outage.
                for item in items:
                    _settle(item, failure=self._outage)
                return
            # The connection had died; the database had not. What was written already is written again harmlessly.
            try:
                outcomes = self._record(items)
            except StoreError as second:
                self._fail(items, second)
                return
        except Exception as error:
            _log.exception("Recording a batch failed in a way that regstat does not know")
            self._fail(items, Unavailable(f"Recording failed: {error}."))
            return
        with self._wake:
            self._recorded += sum(outcome.recorded for outcome in outcomes)
            self._set_aside += sum(outcome.set_aside for outcome in outcomes)
            self._batches += 1
        for item, outcome in zip(items, outcomes):
            _settle(item, outcome)
        if any(
            isinstance(entry, Arrival) and entry.changes.pending is not None for item in items for entry in item.entries
        ):
            self._on_pending()

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _fail(self, items: list[_Item], error: StoreError) -> None:
        self._disconnect()
        for item in items:
            _settle(item, failure=error)
        self._out_of_reach(error)

    def _record(self, items: list[_Item]) -> list[Outcome]:
        """Commits the entries of all items, those that the database refuses set aside; the outcome of each item."""
        entries = [entry for item in items for entry in item.entries]
        refused: set[int] = set()
        try:
            self._commit(entries)
        except Rejected as error:
            refused = self._split(entries, error)
        outcomes = []
        position = 0
        for item in items:
            aside = 0
            for entry in item.entries:
                aside += isinstance(entry, SetAside) or position in refused
                position += 1
            outcomes.append(Outcome(len(item.entries) - aside, aside))
        return outcomes

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
        assert self._session is not None
        self._step_began = self._clock()
        untimed = {entry.event.id for entry in entries if isinstance(entry, Arrival) and entry.untimed}
        if untimed:
            # The time of such an event is when it first came, so a repetition must not bring its facts again.
            known = self._session.known_untimed(untimed)
            entries = [
                entry
                for entry in entries
                if not (isinstance(entry, Arrival) and entry.untimed and entry.event.id in known)
            ]
        batch = Batch(entries)
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                self._session.record(batch, self._utc_now())
                return
            except Conflict:
                if attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                time.sleep(0.01 * 2**attempt)

    def _purge(self) -> None:
        if self._session is None or self._clock() < self._next_purge:
            return
        before = "0001-01-01 00:00:00.000000"
        if self._retention_seconds is not None:
            before = self._utc_before(self._retention_seconds)
        self._step_began = self._clock()
        try:
            gone = self._session.purge(before, self._set_aside_kept, _PURGE_LIMIT)
        except StoreError as error:
            _log.warning("Old events could not be removed: %s", error)
            self._disconnect()
            gone = 0
        # While there is more to remove, a little after each batch; notifications never wait for all of it.
        self._next_purge = self._clock() + (1.0 if gone == _PURGE_LIMIT else _PURGE_SECONDS)


def _settle(item: _Item, outcome: Outcome | None = None, failure: StoreError | None = None) -> None:
    item.outcome = outcome
    item.failure = failure
    item.done.release()
