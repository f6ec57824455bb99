"""Wires the rooms together, starts and stops them in order, and listens to signals."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

from regstat_lib import __version__, systemd
from regstat_lib.envelope import utc_text
from regstat_lib.recorder import Recorder
from regstat_lib.registry import RegistryClient
from regstat_lib.resolver import Resolver
from regstat_lib.server import WebhookServer
from regstat_lib.store import Database
from regstat_lib.webhook import Webhook

_log = logging.getLogger(__name__)

_SUMMARY_SECONDS = 60.0
# A signal that comes when Python is just about to wait does not end the wait; so none is longer than this.
_WAIT_SECONDS = 1.0
_FIRST_ATTEMPT_SECONDS = 2.0
# No transaction takes so long: databases that are silent for half of it count as gone.
_STUCK_SECONDS = 60.0
# New objects between two collections of garbage. A notification is some dozens of objects that live until its commit,
# in no cycles; with Python's 700, all that wait are gone through again and again.
_GARBAGE_OBJECTS = 50_000
# malloc.h, mallopt(3).
_M_ARENA_MAX = -8
# systemd and Docker kill after 90 and 10 seconds.
_FINISH_SECONDS = 4.0


class Settings(NamedTuple):
    """What a daemon is run with."""

    port: int
    database: Database
    client: RegistryClient
    equivalents: Mapping[str, str]
    max_body: int
    retention_days: float | None
    listener: socket.socket | None = None
    """A socket that listens already, in place of `port`."""


def run(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT; the exit status. Raises OSError when the port cannot be had."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, 20, 50)
    _use_one_heap()
    stop = threading.Event()
    resolver: Resolver
    recorder = Recorder(
        settings.database,
        utc_now=_utc_now,
        utc_before=lambda seconds: utc_after(-seconds),
        retention_seconds=None if settings.retention_days is None else settings.retention_days * 86400,
        on_pending=lambda: resolver.wake(),
    )
    resolver = Resolver(settings.database, settings.client, recorder, utc_after=utc_after)
    webhook = Webhook(
        recorder, settings.equivalents, _utc_now, is_well=lambda: recorder.step_seconds() < _STUCK_SECONDS
    )

    server = WebhookServer(settings.port, webhook.answer, settings.max_body, listener=settings.listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    _log.info("regstat %s, keeping notifications in the %s", __version__, settings.database.description)
    recorder.start()
    # Whoever posts as soon as it listens should find the database open; one that is not there is not waited for.
    recorder.await_first_attempt(_FIRST_ATTEMPT_SECONDS)
    resolver.start()
    server.serve()
    _log.info("Server now listening on :%d", server.port)
    systemd.notify(f"READY=1\nSTATUS=Listening on port {server.port}")
    try:
        _watch_until(stop, recorder, systemd.watchdog_seconds())
    finally:
        systemd.notify("STOPPING=1")
        _log.info("Stopping")
        began = time.monotonic()
        # Whoever is connected gets an answer, which needs the recorder; what it accepted is committed before the end.
        server.stop(_FINISH_SECONDS)
        resolver.stop(0.5)
        finished = recorder.stop(max(0.1, began + _FINISH_SECONDS - time.monotonic()))
        _log.info(
            "Stopped after %.1f s%s", time.monotonic() - began, "" if finished else ", the database not answering"
        )
    return 0


def _use_one_heap() -> None:
    """Where the C library is glibc: threads share one heap instead of keeping several, each as large as it ever was.

    Several are for threads that allocate at the same time, which the interpreter's lock does not let them.
    """
    # Not to be had everywhere (musl), nor everywhere allowed; it only saves memory.
    with contextlib.suppress(ImportError, OSError, AttributeError, MemoryError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def _watch_until(stop: threading.Event, recorder: Recorder, watchdog: float | None) -> None:
    """Says once a minute what was done, and to a watchdog of so many seconds, more often, that the writer moves."""
    next_summary = time.monotonic() + _SUMMARY_SECONDS
    while not stop.wait(min(_WAIT_SECONDS, math.inf if watchdog is None else watchdog / 4)):
        if watchdog is not None and recorder.step_seconds() < watchdog / 2:
            systemd.notify("WATCHDOG=1")
        if time.monotonic() < next_summary:
            continue
        next_summary += _SUMMARY_SECONDS
        counted = recorder.counters()
        if counted.recorded or counted.set_aside:
            _log.info(
                "In the last minute: %d recorded, %d set aside, in %d transactions",
                counted.recorded,
                counted.set_aside,
                counted.batches,
            )


def _utc_now() -> str:
    return utc_text(datetime.now(timezone.utc))


def utc_after(seconds: float) -> str:
    """The time in so many seconds from now."""
    try:
        return utc_text(datetime.now(timezone.utc) + timedelta(seconds=seconds))
    except OverflowError:
        return "1000-01-01 00:00:00.000000"
