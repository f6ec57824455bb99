"""Group commit: whatever queued while the last transaction ran is the next batch; there is no timer.

Who waits for a commit is told of it by the thread that made it: `enqueue` takes a callback, so that nobody has to be
woken first. When the database cannot be reached, it says so at once while the recorder reconnects in the background.

Where the engine gains by it, two writers take turns: while one waits until its commit is on the disk, the other's
transaction runs. The tables do not depend on the order of batches, so nothing else has to be the same. The first
writer leads: it alone judges whether the database can be reached, and gets what the other could not record.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Callable, NamedTuple, Union

from regstat_lib.batch import Arrival, Entry
from regstat_lib.envelope import SetAside
from regstat_lib.store import Database, SchemaTooNew, StoreError, Unavailable, in_lines
from regstat_lib.writer import Writer

_log = logging.getLogger(__name__)

# What bounds a transaction, and the memory for it.
_BATCH_ENTRIES = 1_000
# The next batch is prepared while one runs as soon as it would be as large, or of so many entries; before that, it is
# worth waiting for more.
_LARGE_BATCH = 64
_RECONNECT_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_SAME_OUTAGE_SECONDS = 30.0
# Whoever ends connections may end the next one as well; a database that can be connected to is no outage.
_WRITE_ATTEMPTS = 4
# A registry gives up on an answer after a second, and sends again.
_SILENCE_SECONDS = 3.0
_PURGE_SECONDS = 60.0
_PURGE_LIMIT = 5_000


class Outcome(NamedTuple):
    """What became of entries that are committed."""

    recorded: int
    set_aside: int


Settle = Callable[[Union[Outcome, StoreError]], None]
"""Is told what became of entries, or why they are not known to be committed."""


class Counters(NamedTuple):
    """What was done since the last time somebody asked."""

    recorded: int
    set_aside: int
    batches: int


class _Item(NamedTuple):
    """Entries that wait for their commit, and who waits for them."""

    entries: Sequence[Entry]
    settle: Settle

    def settled(self, outcome: Outcome | StoreError) -> None:
        """Tells it; whatever goes wrong there is nothing to the batch and its other items."""
        try:
            self.settle(outcome)
        except Exception:
            _log.exception("Answering after a commit failed in a way that regstat does not know")


class Recorder:
    """Where a daemon writes. `start` it, `enqueue` from any thread, `stop` it: what was accepted is committed."""

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
        self._utc_before = utc_before
        self._retention_seconds = retention_seconds
        self._set_aside_kept = set_aside_kept
        self._on_pending = on_pending
        self._clock = clock
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # there is something to write, or to end for
        self._again = threading.Condition(lock)  # it is time to connect, or to end
        self._queue: deque[_Item] = deque()
        self._queued = 0  # entries in the queue
        self._writing = 0  # writers with a batch
        self._running = 0  # entries of batches that others do not see yet
        self._stopping = False
        self._outage: StoreError | None = Unavailable(f"The {database.description} was not reached yet.")
        self._ever_reached = False
        self._tried = threading.Event()
        self._told, self._tell_again = "", 0.0
        self._next_purge = 0.0
        self._recorded = self._set_aside = self._batches = 0
        self._writers = [Writer(database, utc_now=utc_now, clock=clock) for _ in range(database.writers)]
        self._leader = self._writers[0]
        self._threads = [
            threading.Thread(
                target=self._lead if writer is self._leader else self._help,
                args=(writer,),
                name="recorder",
                daemon=True,
            )
            for writer in self._writers
        ]

    def start(self) -> None:
        """Begins to connect and to write; returns at once."""
        for thread in self._threads:
            thread.start()

    def await_first_attempt(self, seconds: float) -> None:
        """Returns when it is known whether the database can be reached, or after `seconds`."""
        self._tried.wait(seconds)

    def stop(self, seconds: float) -> bool:
        """Writes what was accepted, then ends; whether that was done within `seconds`."""
        with self._work:
            self._stopping = True
            self._work.notify_all()
            self._again.notify_all()
            if self._outage is not None:
                return True  # nothing was accepted that is not answered
        deadline = self._clock() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    def enqueue(self, entries: Sequence[Entry], settle: Settle) -> None:
        """Accepts entries, and calls `settle` once: when the transaction that holds them is committed and durable.

        It is called with a StoreError instead when that cannot be known; enqueueing them again is harmless. The call
        comes from a writer's thread and must not wait for anything. Raises Unavailable when the database is out of
        reach or silent, or the recorder is stopping: nothing was accepted then.
        """
        with self._work:
            if self._outage is not None:
                # Every raise of one exception adds to its traceback, which holds what each request held.
                raise self._outage.with_traceback(None)
            if self._stopping:
                raise Unavailable("regstat is stopping.")
            if all(writer.step_seconds() > _SILENCE_SECONDS for writer in self._writers):
                # It neither answers nor breaks off: who waits as well only ties up a thread.
                raise Unavailable(f"The {self._database.description} is silent.")
            self._queue.append(_Item(entries, settle))
            self._queued += len(entries)
            if self._queued >= min(self._running, _LARGE_BATCH) if self._running else len(self._queue) == 1:
                self._work.notify()

    def submit(self, entries: Sequence[Entry], timeout: float = 10.0) -> Outcome:
        """Enqueues entries and waits for their commit, but no longer than `timeout` seconds; raises StoreError."""
        settled: queue.SimpleQueue[Outcome | StoreError] = queue.SimpleQueue()
        self.enqueue(entries, settled.put)
        try:
            outcome = settled.get(timeout=timeout)
        except queue.Empty:
            raise Unavailable(f"The {self._database.description} did not commit within {timeout:g} seconds.") from None
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome

    def counters(self) -> Counters:
        """What was recorded since the last call."""
        with self._work:
            counted = Counters(self._recorded, self._set_aside, self._batches)
            self._recorded = self._set_aside = self._batches = 0
        return counted

    def step_seconds(self) -> float:
        """For how long a writer has been at one transaction: 0 while they have nothing to do, infinite if one ended.

        Connecting does not count: an outage is not the writer's fault, and an upgrade may take long on many rows.
        """
        if not self._stopping and any(thread.ident is not None and not thread.is_alive() for thread in self._threads):
            return math.inf
        return max(writer.step_seconds() for writer in self._writers)

    def _lead(self, writer: Writer) -> None:
        attempt = 0
        while True:
            if not writer.connected:
                reached = self._connect(writer)
                self._tried.set()
                if reached:
                    attempt = 0
                    continue
                with self._again:
                    if self._stopping:
                        return
                    self._again.wait(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
                attempt += 1
                continue
            items = self._take(writer)
            if items:
                self._write(writer, items)
            elif self._stopping:
                writer.disconnect()
                return
            self._purge(writer)

    def _help(self, writer: Writer) -> None:
        while True:
            with self._again:
                while self._outage is not None and not self._stopping:
                    self._again.wait()
                if self._stopping and not writer.connected:
                    return
            if not writer.connected:
                try:
                    writer.connect()
                except Exception as error:
                    # One writer will do, and what is wrong with the database the other one says.
                    _log.debug("No second connection to the %s: %s", self._database.description, error)
                    with self._again:
                        if not self._stopping:
                            self._again.wait(_RECONNECT_SECONDS[-1])
                continue
            items = self._take(writer)
            if not items:
                writer.disconnect()
                return
            try:
                self._record(writer, items)
            except Exception as error:
                _log.debug("The second connection to the %s failed: %s", self._database.description, error)
                writer.disconnect()
                self._hand_back(items)

    def _take(self, writer: Writer) -> list[_Item]:
        """The next batch; nothing when it is time to end, or for the leader to see what else there is to do."""
        leads = writer is self._leader
        with self._work:
            while not self._may_take(leads):
                # What the other one cannot record comes back to the leader.
                if self._stopping and not self._queue and not (leads and self._writing):
                    return []
                if self._queue and not leads and not self._running:
                    self._work.notify()
                if not self._work.wait(_PURGE_SECONDS if leads else None):
                    return []
            items: list[_Item] = []
            count = 0
            while self._queue and (not items or count + len(self._queue[0].entries) <= _BATCH_ENTRIES):
                if not leads and _has_untimed(self._queue[0]):
                    break
                item = self._queue.popleft()
                items.append(item)
                count += len(item.entries)
            self._queued -= count
            self._writing += 1
            self._running += count
        return items

    def _may_take(self, leads: bool) -> bool:
        if not self._queue or self._queued < min(self._running, _LARGE_BATCH):
            return False
        # Whether an untimed event was there before can only be told while nobody else records one.
        return leads or not _has_untimed(self._queue[0])

    def _connect(self, writer: Writer) -> bool:
        try:
            writer.connect()
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
        with self._again:
            again = self._outage is not None and self._ever_reached
            self._outage = None
            self._again.notify_all()
        self._told, self._tell_again = "", 0.0
        _log.info("%s the %s", "Reached again:" if again else "Recording to", self._database.description)
        self._ever_reached = True
        return True

    def _out_of_reach(self, error: StoreError) -> None:
        with self._work:
            self._outage = error
            waiting, self._queue, self._queued = list(self._queue), deque(), 0
        for item in waiting:
            item.settled(error)
        # One outage has one line: a server that goes down or comes up says this and that within seconds.
        if str(error) != self._told and self._clock() >= self._tell_again:
            self._told, self._tell_again = str(error), self._clock() + _SAME_OUTAGE_SECONDS
            hint = "" if self._ever_reached or isinstance(error, SchemaTooNew) else self._database.alternative
            until = "Notifications are answered 503 until it is back; trying again."
            _log.error("%s", in_lines((str(error), until, hint)))

    def _hand_back(self, items: list[_Item]) -> None:
        with self._work:
            outage = self._outage
            if outage is None:
                self._queue.extendleft(reversed(items))
                self._queued += sum(len(item.entries) for item in items)
            self._work.notify_all()
        if outage is not None:
            for item in items:
                item.settled(outage)

    def _write(self, writer: Writer, items: list[_Item]) -> None:
        for attempt in range(_WRITE_ATTEMPTS):
            if attempt:
                # The connection had died; the database had not. What was written already is written again harmlessly.
                with self._work:
                    self._writing += 1
                    self._running += sum(len(item.entries) for item in items)
            try:
                self._record(writer, items)
                return
            except StoreError as error:
                if not isinstance(error, Unavailable) or attempt == _WRITE_ATTEMPTS - 1:
                    self._fail(writer, items, error)
                    return
                writer.disconnect()
                if not self._connect(writer):
                    # The log was told why; that the connection broke as well would be a second line about one outage.
                    for item in items:
                        item.settled(self._outage or error)
                    return
            except Exception as error:
                _log.exception("Recording a batch failed in a way that regstat does not know")
                self._fail(writer, items, Unavailable(f"Recording failed: {error}."))
                return

    def _fail(self, writer: Writer, items: list[_Item], error: StoreError) -> None:
        writer.disconnect()
        for item in items:
            item.settled(error)
        self._out_of_reach(error)

    def _record(self, writer: Writer, items: list[_Item]) -> None:
        """Commits the entries of all items, those that the database refuses set aside, and settles the items."""
        entries = [entry for item in items for entry in item.entries]
        running = True

        def others_see_it() -> None:
            nonlocal running
            with self._work:
                if running:
                    running = False
                    self._running -= len(entries)
                    if self._queue:
                        self._work.notify()

        try:
            refused = writer.record(entries)
        finally:
            others_see_it()
            with self._work:
                self._writing -= 1
                if self._stopping:
                    self._work.notify_all()
        outcomes = []
        position = 0
        for item in items:
            aside = 0
            for entry in item.entries:
                aside += isinstance(entry, SetAside) or position in refused
                position += 1
            outcomes.append(Outcome(len(item.entries) - aside, aside))
        with self._work:
            self._recorded += sum(outcome.recorded for outcome in outcomes)
            self._set_aside += sum(outcome.set_aside for outcome in outcomes)
            self._batches += 1
        for item, outcome in zip(items, outcomes):
            item.settled(outcome)
        if any(isinstance(entry, Arrival) and entry.changes.pending is not None for entry in entries):
            self._on_pending()

    def _purge(self, writer: Writer) -> None:
        if not writer.connected or self._clock() < self._next_purge:
            return
        before = "0001-01-01 00:00:00.000000"
        if self._retention_seconds is not None:
            before = self._utc_before(self._retention_seconds)
        try:
            gone = writer.purge(before, self._set_aside_kept, _PURGE_LIMIT)
        except StoreError as error:
            _log.warning("Old events could not be removed: %s", error)
            writer.disconnect()
            gone = 0
        # While there is more to remove, a little after each batch; notifications never wait for all of it.
        self._next_purge = self._clock() + (1.0 if gone == _PURGE_LIMIT else _PURGE_SECONDS)


def _has_untimed(item: _Item) -> bool:
    return any(isinstance(entry, Arrival) and entry.untimed for entry in item.entries)
