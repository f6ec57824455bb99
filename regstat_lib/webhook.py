"""A request -> status and answer. What an HTTP request means to regstat, apart from sockets.

A registry sends again, for ever, what is answered with anything but 2xx or 3xx, and holds everything behind it. So
503 is for what cannot be kept now, 4xx for what is no envelope; never is a redirect given.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Callable, NamedTuple, Protocol

from regstat_lib.batch import Arrival, Entry
from regstat_lib.changes import Repository, changes_of, is_own
from regstat_lib.envelope import NotAnEnvelope, parse_envelope
from regstat_lib.recorder import Outcome, Settle
from regstat_lib.store import StoreError

_log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2


class Answer(NamedTuple):
    """An HTTP answer; the body is JSON."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Respond = Callable[[Answer], None]
"""Takes the answer to one request, in any thread, and never makes it wait."""


class Acceptor(Protocol):
    """What the webhook needs of the recorder."""

    def enqueue(self, entries: list[Entry], settle: Settle) -> None:
        """Records the entries and calls `settle` once when they are committed; raises StoreError instead."""


class Webhook:
    """Answers requests; holds no state of its own."""

    def __init__(
        self,
        recorder: Acceptor,
        equivalents: Mapping[str, str],
        utc_now: Callable[[], str],
        is_well: Callable[[], bool] = lambda: True,
    ) -> None:
        self._recorder = recorder
        self._is_well = is_well
        self._equivalents = equivalents
        self._utc_now = utc_now

    def answer(self, method: str, path: str, body: bytes, respond: Respond) -> None:
        """Answers a request whose body was read: calls `respond` once, after the commit if there is one to wait for.

        POST to any path will do: people configured all kinds.
        """
        if method == "POST":
            self._take(body, respond)
        elif method in ("GET", "HEAD") and path.partition("?")[0] == "/healthz":
            # For anybody who can reach the port: whether it is well, and nothing else.
            well = self._is_well()
            respond(Answer(200, b'{"healthy": true}') if well else Answer(503, b'{"healthy": false}'))
        else:
            sentence = f"This is a webhook for registry notifications: POST them, not {method}."
            respond(problem(405, sentence, (("Allow", "POST"),)))

    def _take(self, body: bytes, respond: Respond) -> None:
        try:
            envelope = parse_envelope(body)
        except NotAnEnvelope as error:
            _log.warning("A request was refused: %s", error)
            respond(problem(400, str(error)))
            return
        entries: list[Entry] = list(envelope.set_aside)
        for reason, _ in envelope.set_aside:
            _log.error("An event was set aside: %s", reason)
        ignored = 0
        now = ""
        for event in envelope.events:
            if is_own(event):
                ignored += 1
                continue
            at = event.timestamp
            if at is None:
                at = now = now or self._utc_now()
            registry = self._equivalents.get(event.host, event.host)
            repository = Repository(registry, event.repository)
            entries.append(Arrival(event, at, event.timestamp is None, changes_of(event, repository, at)))
        if _log.isEnabledFor(logging.DEBUG):
            # Here, because a slow log must not hold up the thread that commits.
            for event in envelope.events:
                _log.debug("%s %s %s %s", event.action, event.repository, event.tag or "-", event.digest or "-")

        def settle(outcome: Outcome | StoreError) -> None:
            respond(unavailable(str(outcome)) if isinstance(outcome, StoreError) else _recorded(outcome, ignored))

        if not entries:
            settle(Outcome(0, 0))
            return
        try:
            self._recorder.enqueue(entries, settle)
        except StoreError as error:
            settle(error)


def _recorded(outcome: Outcome, ignored: int) -> Answer:
    more = f', "ignored": {ignored}' if ignored else ""
    return Answer(200, f'{{"recorded": {outcome.recorded}, "set_aside": {outcome.set_aside}{more}}}'.encode())


def unavailable(sentence: str) -> Answer:
    """The answer to what cannot be kept now and is to be sent again."""
    return problem(503, sentence, (("Retry-After", str(RETRY_AFTER_SECONDS)),))


def problem(status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer that says in a sentence why a request was not accepted."""
    return Answer(status, json.dumps({"error": sentence}).encode(), headers)
