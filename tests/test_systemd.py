"""What systemd is told and what it gives: readiness, the watchdog, the port; how tight its sandbox is."""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clients import Clients
from envelopes import digest_of, envelope, event, rows
from running_daemon import ROOT, RunningDaemon, await_condition, run_daemon

from regstat_lib import systemd
from regstat_lib.recorder import Recorder
from regstat_lib.server import WebhookServer
from regstat_lib.webhook import Webhook

DEPLOY = ROOT / "deploy"
PROGRAM = [sys.executable, str(ROOT / "regstat.py")]

# What systemd does between fork and exec: the socket is descriptor 3, and the environment says so to this process.
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="regstat.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.link.bind(address.replace("@", "\0", 1))
        self.told: list[str] = []

    def close(self) -> None:
        self.link.close()

    def await_told(self, what: str, seconds: float = 15.0) -> None:
        deadline = time.monotonic() + seconds
        while what not in self.told:
            left = deadline - time.monotonic()
            assert left > 0, f"waited in vain for {what}: {self.told}"
            self.listen(left)

    def listen(self, seconds: float) -> None:
        """Takes the next message, if one comes."""
        self.link.settimeout(seconds)
        with contextlib.suppress(socket.timeout):
            self.told += self.link.recv(4096).decode().split("\n")

    def told_within(self, seconds: float) -> list[str]:
        self.told = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.listen(max(0.001, deadline - time.monotonic()))
        return self.told


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[Manager, str]]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    # Not tmp_path: the path of a Unix socket is short.
    with tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/notify" if request.param == "path" else f"@regstat-test-{os.getpid()}"
        with closing(Manager(address)) as manager:
            yield manager, address


def test_the_manager_is_told_when_it_listens_and_when_it_stops(manager: tuple[Manager, str], sqlite_path: Path) -> None:
    told, address = manager
    program = ["env", f"NOTIFY_SOCKET={address}", *PROGRAM]
    with run_daemon("-sqlite", str(sqlite_path), program=program) as daemon:
        told.await_told("READY=1")
        assert daemon.post(envelope(event(digest=digest_of("a"))))[0] == 200
        assert "STOPPING=1" not in told.told
        assert daemon.stop() == 0
        told.await_told("STOPPING=1")


def test_the_watchdog_is_fed_until_the_writer_is_stuck_and_when_it_moves_again(tmp_path: Path) -> None:
    path = tmp_path / "regstat.db"
    with tempfile.TemporaryDirectory() as directory, closing(Manager(f"{directory}/notify")) as told:
        program = ["env", f"NOTIFY_SOCKET={directory}/notify", "WATCHDOG_USEC=1000000", *PROGRAM]
        with run_daemon("-sqlite", str(path), program=program) as daemon:
            told.await_told("READY=1")
            idle = told.told_within(1.2)
            assert "WATCHDOG=1" in idle, "it has nothing to do, and is well"
            with closing(sqlite3.connect(str(path), isolation_level=None)) as other:
                other.execute("begin immediate")
                poster = threading.Thread(target=daemon.post, args=(envelope(event(digest=digest_of("a"))),))
                poster.start()
                told.told_within(1.0)
                assert "WATCHDOG=1" not in told.told_within(1.5), "its writer waits for a lock all the time"
                other.execute("rollback")
            poster.join()
            told.told = []
            told.await_told("WATCHDOG=1")


def test_without_a_manager_nothing_is_told_and_nothing_fails() -> None:
    systemd.notify("READY=1", {})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": "/nowhere/at/all"})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": "vsock:2:1234"})


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 120.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_watchdog_is_fed_when_it_is_for_this_process(environment: dict[str, str], seconds: float | None) -> None:
    assert systemd.watchdog_seconds(environment, process=7) == seconds


def passed(kind: int = socket.SOCK_STREAM, listening: bool = True) -> socket.socket:
    candidate = socket.socket(socket.AF_INET, kind)
    candidate.bind(("127.0.0.1", 0))
    if listening:
        candidate.listen()
    return candidate


def test_a_socket_for_this_process_is_taken_once_and_no_child_inherits_it() -> None:
    with passed() as given:
        environment = {"LISTEN_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDNAMES": "regstat.socket", "HOME": "/"}
        os.set_inheritable(given.fileno(), True)
        listener = systemd.passed_listener(environment, process=7, first=given.fileno())
        assert listener is not None
        assert listener.getsockname() == given.getsockname()
        assert not listener.get_inheritable()
        assert environment == {"HOME": "/"}
        assert systemd.passed_listener(environment, process=7) is None
        listener.detach()


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "8"}, {"LISTEN_FDS": "0", "LISTEN_PID": "7"}, {"LISTEN_FDS": "1"}],
)
def test_a_socket_for_another_process_is_left_alone(environment: dict[str, str]) -> None:
    assert systemd.passed_listener(environment, process=7) is None


@pytest.mark.parametrize(("kind", "listening"), [(socket.SOCK_DGRAM, False), (socket.SOCK_STREAM, False)])
def test_a_socket_that_does_not_listen_is_refused_with_a_sentence(kind: int, listening: bool) -> None:
    first = passed(kind, listening).detach()
    with pytest.raises(ValueError, match="no listening TCP socket: use ListenStream"):
        systemd.passed_listener({"LISTEN_FDS": "1", "LISTEN_PID": "7"}, process=7, first=first)


class Activator:
    """Holds a port, as systemd does, and gives it to one daemon after another."""

    def __init__(self, flags: list[str], log_path: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self.listener.getsockname()[1])
        self._flags = flags
        self._log_path = log_path
        self.start()

    def start(self) -> None:
        descriptor = self.listener.fileno()
        command = [sys.executable, "-c", _ACTIVATE, str(descriptor), *PROGRAM, *self._flags]
        with self._log_path.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=(descriptor,))
        self.daemon = RunningDaemon(process, self._log_path)
        self.daemon.port = self.port

    def restart(self) -> None:
        assert self.daemon.stop() == 0, self.daemon.log()
        self.start()

    def close(self) -> None:
        self.daemon.stop()
        self.listener.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no file descriptors to pass")
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_restart_under_load_loses_and_refuses_nothing(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if engine == "sqlite":
        flags = ["-sqlite", str(tmp_path / "regstat.db")]
    else:
        flags = ["-pg-conn-str", request.getfixturevalue("pg_conn_str")]
    activator = Activator(flags, tmp_path / "log")
    with closing(activator):
        clients = Clients(activator.port)
        for _ in range(3):
            before = len(clients.acknowledged)
            await_condition(partial(clients.went_on, before, 50), 30, "load")
            activator.restart()
        clients.stop()
        assert clients.troubles == []
        kept = rows(flags, "select id from {s}events")
    assert sorted(name for (name,) in kept) == sorted(clients.acknowledged)


def test_who_has_just_connected_when_it_stops_is_answered(sqlite_path: Path) -> None:
    with ExitStack() as stack:
        daemon = stack.enter_context(run_daemon("-sqlite", str(sqlite_path)))
        link = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
        # Connections are accepted in their order, so this answer says that the one before it was.
        assert daemon.post(envelope(event(digest=digest_of("a"))))[0] == 200
        daemon.process.terminate()
        await_condition(lambda: "Stopping" in daemon.log(), 10, "it stops")
        time.sleep(0.3)  # a client that is no faster than that
        body = envelope(event(digest=digest_of("b")))
        link.sendall(b"POST / HTTP/1.1\r\nHost: regstat\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        link.settimeout(10)
        assert link.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert daemon.process.wait(10) == 0


class StuckSession:
    """A database that takes a batch and does not come back until it may."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def connect(self) -> StuckSession:
        return self

    description = "test's database"
    alternative = ""
    writers = 1

    def record(self, *_: Any) -> None:
        self.entered.set()
        assert self.release.wait(30)

    def purge(self, *_: Any) -> int:
        return 0

    def close(self) -> None:
        pass


def health(port: int, method: str = "GET", path: str = "/healthz") -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()


def test_health_is_503_while_the_writer_is_stuck_and_200_when_it_moves_or_is_idle() -> None:
    now = [1000.0]
    database = StuckSession()
    recorder = Recorder(
        database,  # type: ignore[arg-type]
        utc_now=lambda: "2026-01-01 00:00:00.000000",
        utc_before=lambda _: "2025-01-01 00:00:00.000000",
        clock=lambda: now[0],
    )
    webhook = Webhook(recorder, {}, lambda: "2026-01-01 00:00:00.000000", is_well=lambda: recorder.step_seconds() < 60)
    server = WebhookServer(0, webhook.answer, 2**20)
    server.serve()
    assert math.isclose(recorder.step_seconds(), 0.0)
    recorder.start()
    recorder.await_first_attempt(10)
    now[0] += 3600
    assert health(server.port) == (200, b'{"healthy": true}'), "an hour without an event is no trouble"

    daemon = RunningDaemon.__new__(RunningDaemon)
    daemon.port = server.port
    poster = threading.Thread(target=daemon.post, args=(envelope(event(digest=digest_of("a"))),))
    poster.start()
    assert database.entered.wait(10)
    now[0] += 59
    assert health(server.port)[0] == 200
    now[0] += 2
    assert health(server.port) == (503, b'{"healthy": false}')
    assert health(server.port, "HEAD") == (503, b"")
    database.release.set()
    poster.join()
    await_condition(lambda: health(server.port)[0] == 200, 10, "it is well again")
    recorder.stop(5)
    server.stop(2)


def test_only_healthz_answers_a_get_and_says_no_more_than_whether_it_is_well(sqlite_path: Path) -> None:
    with run_daemon("-sqlite", str(sqlite_path)) as daemon:
        assert health(daemon.port) == (200, b'{"healthy": true}')
        assert health(daemon.port, path="/healthz?from=probe")[0] == 200
        assert health(daemon.port, "HEAD") == (200, b"")
        assert health(daemon.port, path="/")[0] == 405
        assert health(daemon.port, "DELETE")[0] == 405


def test_a_database_out_of_reach_is_no_reason_to_end_the_daemon() -> None:
    with run_daemon("-pg-conn-str", "host=127.0.0.1 port=1 user=nobody sslmode=disable") as daemon:
        assert daemon.post(envelope(event(digest=digest_of("a"))))[0] == 503
        assert health(daemon.port)[0] == 200


needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine: install the package systemd"
)


def analyze(*arguments: str) -> str:
    found = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)
    return found.stdout + found.stderr


@needs_systemd_analyze
def test_systemd_finds_no_fault_in_the_units() -> None:
    # verify also reads the units that they name, which are the machine's own.
    said = analyze("verify", str(DEPLOY / "regstat.service"), str(DEPLOY / "regstat.socket"))
    assert [line for line in said.splitlines() if "regstat" in line] == []


@needs_systemd_analyze
def test_the_sandbox_scores_2_0_or_better() -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(DEPLOY / "regstat.service"))
    if "Overall exposure level" not in said:
        pytest.skip(f"this systemd-analyze cannot judge a file: {said[-200:]}")
    exposure = float(said.rsplit("Overall exposure level for regstat.service:", 1)[1].split()[0])
    assert exposure <= 2.0
