"""Asks registries for the manifests whose contents are not known, in the background, and submits what it learns.

What is pending is in the database, so nothing is lost with a process, and several daemons share the work: what one
has claimed, no other gets while the daemon lives. Each registry has its own few workers and its own pauses, so one
that is dead delays no other.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections import deque
from typing import Callable, Protocol

from regstat_lib.batch import Entry, Learned
from regstat_lib.changes import Repository
from regstat_lib.manifest import NotAManifest, parse_manifest
from regstat_lib.recorder import Outcome
from regstat_lib.registry import FetchedManifest, FetchError, ManifestSource, Trouble
from regstat_lib.retry import retry_of
from regstat_lib.store import Database, PendingManifest, Session, StoreError

_log = logging.getLogger(__name__)

_WORKERS = 16
_WORKERS_OF_A_REGISTRY = 4
_CLAIMED_AT_ONCE = 64
# A claim is extended for as long as its daemon lives: what a crash leaves behind is asked for soon afterwards.
_CLAIM_SECONDS = 10.0
_EXTEND_SECONDS = 3.0
_IDLE_SECONDS = 5.0
_RECONNECT_SECONDS = 2.0
_SAME_COMPLAINT_SECONDS = 3600.0


class Client(Protocol):
    """What the resolver needs of the registry client."""

    def fetch_manifest(self, source: ManifestSource) -> FetchedManifest:
        """The manifest; raises FetchError."""


class Submitter(Protocol):
    """What the resolver needs of the recorder."""

    def submit(self, entries: list[Entry]) -> Outcome:
        """Records the entries and returns when they are committed."""


class _Registry:
    """What is under way at one registry. Only the scheduler's thread touches it."""

    def __init__(self) -> None:
        self.waiting: deque[PendingManifest] = deque()
        self.in_flight: set[PendingManifest] = set()
        self.failures = 0
        self.spared_until = 0.0

    def room(self, now: float) -> bool:
        if now < self.spared_until:
            return False
        # After a failure one request at a time finds out whether the registry is back.
        return len(self.in_flight) < (_WORKERS_OF_A_REGISTRY if self.failures == 0 else 1)


class Resolver:
    """`start` it once, `wake` it when something may be pending, `stop` it."""

    def __init__(
        self,
        database: Database,
        client: Client,
        recorder: Submitter,
        *,
        utc_after: Callable[[float], str],
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._client = client
        self._recorder = recorder
        self._utc_after = utc_after
        self._clock = clock
        self._chance = chance
        self._registries: dict[str, _Registry] = {}
        self._complaints: dict[tuple[str, Trouble], float] = {}
        self._finished: queue.SimpleQueue[tuple[PendingManifest, FetchError | None]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._workers = 0
        self._next_extension = 0.0
        self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)

    def start(self) -> None:
        """Begins to resolve what is pending; returns at once."""
        self._thread.start()

    def wake(self) -> None:
        """Says that something new may be pending."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Begins nothing more and lets go of what is claimed; what is under way stays pending."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        session: Session | None = None
        while not self._stopping:
            try:
                if session is None:
                    session = self._database.connect()
                self._wake.clear()
                self._settle(session)
                self._extend(session)
                self._claim(session)
                self._dispatch()
                self._wake.wait(self._idle_seconds())
            except StoreError as error:
                # The recorder, which needs the same database, has told the log.
                _log.debug("The resolver waits for the database: %s", error)
                if session is not None:
                    session.close()
                session = None
                self._wake.wait(_RECONNECT_SECONDS)
            except Exception:
                _log.exception("The resolver failed in a way that regstat does not know, and goes on")
                self._wake.wait(_RECONNECT_SECONDS)
        if session is not None:
            with contextlib.suppress(StoreError):
                session.extend_claims(self._claimed(), self._utc_after(0.0))
            session.close()

    def _idle_seconds(self) -> float:
        now = self._clock()
        ends = [r.spared_until - now for r in self._registries.values() if r.waiting and r.spared_until > now]
        if self._claimed():
            ends.append(max(0.0, self._next_extension - now))
        return min([_IDLE_SECONDS, *ends])

    def _claimed(self) -> list[PendingManifest]:
        return [pending for r in self._registries.values() for pending in (*r.waiting, *r.in_flight)]

    def _extend(self, session: Session) -> None:
        now = self._clock()
        if now < self._next_extension:
            return
        self._next_extension = now + _EXTEND_SECONDS
        claimed = self._claimed()
        if claimed:
            session.extend_claims(claimed, self._utc_after(_CLAIM_SECONDS))

    def _claim(self, session: Session) -> None:
        """Takes manifests of registries that have nothing waiting here; the others get theirs when they have."""
        now = self._clock()
        while True:
            busy = [name for name, r in self._registries.items() if r.waiting or not r.room(now)]
            claimed = session.claim_pending(
                self._utc_after(0.0), self._utc_after(_CLAIM_SECONDS), _CLAIMED_AT_ONCE, busy
            )
            for pending in claimed:
                self._registries.setdefault(pending.registry, _Registry()).waiting.append(pending)
            if len(claimed) < _CLAIMED_AT_ONCE:
                return

    def _dispatch(self) -> None:
        now = self._clock()
        for name, registry in list(self._registries.items()):
            while registry.waiting and registry.room(now) and self._workers < _WORKERS:
                pending = registry.waiting.popleft()
                registry.in_flight.add(pending)
                self._workers += 1
                # Not of a pool, whose threads Python waits for at its end, however long a registry lets them wait.
                threading.Thread(target=self._resolve, args=(pending,), name="resolver-worker", daemon=True).start()
            if not registry.waiting and not registry.in_flight and registry.failures == 0:
                del self._registries[name]

    def _resolve(self, pending: PendingManifest) -> None:
        """Runs in a thread of its own: fetches, parses, submits."""
        failure: FetchError | None = None
        try:
            fetched = self._client.fetch_manifest(
                ManifestSource(pending.registry, pending.repository, pending.digest, pending.url, pending.host)
            )
            outcome = self._recorder.submit([_learned(pending, fetched)])
            if outcome.set_aside:
                # It would be refused again.
                failure = FetchError(
                    Trouble.UNUSABLE,
                    pending.registry,
                    f"What manifest {pending.digest} of {pending.repository} references cannot be recorded; the table"
                    " set_aside says why.",
                )
        except FetchError as error:
            failure = error
        except NotAManifest as error:
            failure = FetchError(
                Trouble.UNUSABLE,
                pending.registry,
                f"What {pending.registry} has as manifest {pending.digest} of {pending.repository} is none: {error}.",
            )
        except StoreError:
            # It stays pending: it is asked for again when the claim has run out.
            pass
        except Exception as error:
            _log.exception("Asking %s for a manifest failed in a way that regstat does not know", pending.registry)
            failure = FetchError(Trouble.UNUSABLE, pending.registry, f"Asking {pending.registry} failed: {error}.")
        self._finished.put((pending, failure))
        self._wake.set()

    def _settle(self, session: Session) -> None:
        """Notes what became of the manifests whose workers are done."""
        while not self._finished.empty():
            pending, error = self._finished.get()
            registry = self._registries.setdefault(pending.registry, _Registry())
            registry.in_flight.discard(pending)
            self._workers -= 1
            if error is None:
                registry.failures = 0
                continue
            retry = retry_of(error.trouble, pending.attempts, registry.failures, error.retry_after, self._chance())
            if retry.spare_registry:
                registry.failures += 1
                registry.spared_until = max(registry.spared_until, self._clock() + retry.spare_registry)
            else:
                registry.failures = 0
            self._complain(error)
            if retry.after is None:
                session.give_up(pending, self._utc_after(0.0), str(error))
            else:
                session.postpone(pending, self._utc_after(retry.after), str(error))

    def _complain(self, error: FetchError) -> None:
        """One line for each registry and kind of trouble in an hour: a thousand manifests fail for one reason."""
        now = self._clock()
        if error.trouble is Trouble.GONE or now < self._complaints.get((error.registry, error.trouble), 0.0):
            _log.debug("%s", error)
            return
        if len(self._complaints) > 1000:
            self._complaints.clear()
        self._complaints[error.registry, error.trouble] = now + _SAME_COMPLAINT_SECONDS
        _log.warning("%s", error)


def _learned(pending: PendingManifest, fetched: FetchedManifest) -> Learned:
    return Learned(
        pending.digest,
        parse_manifest(fetched.body),
        len(fetched.body),
        fetched.media_type,
        Repository(pending.registry, pending.repository),
    )
