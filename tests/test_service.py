"""The units under a real systemd: one that is process 1 of a small Debian, installed there as the README says."""

from __future__ import annotations

import http.client
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from clients import Clients
from containers import debian_tree, run, skip_without
from envelopes import digest_of, envelope, event, rows
from postgres_server import PostgresServer
from real_registry import free_port
from running_daemon import ROOT, await_condition

# One machine serves all; to make a Debian takes longer than a test may.
pytestmark = [pytest.mark.xdist_group("service"), pytest.mark.timeout(900)]

DEPLOY = ROOT / "deploy"


class Machine:
    """A Debian whose systemd runs. It has the network of the machine around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        # basic.target: no service that it was installed with takes a port.
        command = ["systemd-nspawn", "--directory", str(root), "--boot", "--register=no", "--keep-unit"]
        self._process = subprocess.Popen(
            [*command, "--console=pipe", "systemd.unit=basic.target"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        await_condition(self._is_up, 60, "systemd has booted")

    def _is_up(self) -> bool:
        assert self._process.poll() is None, f"systemd-nspawn ended: {self._process.communicate()[1]}"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return False
        self._enter = ["nsenter", "--target", children[-1], "--all"]
        asked = subprocess.run([*self._enter, "systemctl", "is-active", "basic.target"], capture_output=True)
        return asked.returncode == 0

    def __call__(self, *command: str) -> str:
        """What a command says that root runs in it."""
        return run(*self._enter, *command)

    def property(self, name: str) -> str:
        return self("systemctl", "show", "--value", f"--property={name}", "regstat.service").strip()

    def process(self) -> str:
        """What the kernel says of the daemon."""
        return self("cat", f"/proc/{self.property('MainPID')}/status")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def journal(self) -> str:
        return self("journalctl", "--no-pager", "--unit", "regstat.service")

    def close(self) -> None:
        # An orderly shutdown.
        self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with the file and the units in their places."""
    skip_without("systemd-nspawn", "nsenter")
    with tempfile.TemporaryDirectory(prefix="regstat-machine-") as directory:
        root = Path(directory) / "debian"
        root.mkdir(mode=0o755)
        run("tar", "--extract", "--directory", root, "--file", debian_tree())
        (root / "etc/machine-id").write_text("")  # it takes a new one
        run(sys.executable, DEPLOY / "build_pyz.py", root / "usr/local/bin/regstat.pyz")
        for unit in ("regstat.service", "regstat.socket"):
            run("install", "-m", "644", DEPLOY / unit, root / "etc/systemd/system")
        with closing(Machine(root)) as machine:
            # Beside what may run on the machine around it.
            socket = f"[Socket]\nListenStream=\nListenStream={machine.port}\n"
            machine.write("etc/systemd/system/regstat.socket.d/port.conf", socket)
            machine("systemctl", "daemon-reload")
            machine("systemctl", "enable", "--now", "regstat.socket", "regstat.service")
            yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the service as it is installed, and running."""
    yield machine
    for path in ("etc/default/regstat", "etc/systemd/system/regstat.service.d/test.conf"):
        (machine.root / path).unlink(missing_ok=True)
    machine("systemctl", "daemon-reload")
    machine("systemctl", "reset-failed")
    machine("systemctl", "restart", "regstat.service")


def database(machine: Machine) -> Path:
    # Where a DynamicUser's StateDirectory really is.
    return machine.root / "var/lib/private/regstat/regstat.db"


def post(machine: Machine, identity: str) -> int:
    """The status of the answer to an event; it waits for that as long as it takes."""
    with closing(http.client.HTTPConnection("127.0.0.1", machine.port, timeout=30)) as connection:
        connection.request("POST", "/", envelope(event(digest=digest_of(identity), identity=identity)))
        return connection.getresponse().status


def test_it_is_started_when_it_says_that_it_listens(service: Machine) -> None:
    assert service.property("ActiveState") == "active"
    assert service.property("StatusText") == f"Listening on port {service.port}"
    assert post(service, "first") == 200
    assert rows(["-sqlite", str(database(service))], "select id from events where id = 'first'") == [("first",)]


def test_it_runs_in_its_sandbox_as_a_user_of_its_own(service: Machine) -> None:
    status = dict(re.findall(r"^(\w+):\t(.*)$", service.process(), re.M))
    (user,) = set(status["Uid"].split())
    assert 61184 <= int(user) <= 65519, "the users that systemd makes"
    assert int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    state = database(service).parent.stat()
    assert (state.st_mode & 0o777, state.st_uid) == (0o700, int(user))


def test_a_restart_under_load_loses_and_refuses_nothing(service: Machine) -> None:
    clients = Clients(service.port)
    for _ in range(3):
        before = len(clients.acknowledged)
        await_condition(partial(clients.went_on, before, 50), 30, "load")
        service("systemctl", "restart", "regstat.service")
    clients.stop()
    assert clients.troubles == []
    kept = {identity for (identity,) in rows(["-sqlite", str(database(service))], "select id from events")}
    assert set(clients.acknowledged) <= kept


def test_who_comes_while_it_is_dead_is_answered_by_the_next(service: Machine) -> None:
    service("systemctl", "kill", "--signal", "KILL", "regstat.service")
    assert post(service, "after a crash") == 200
    assert service.property("NRestarts") == "1"


def test_a_writer_that_is_stuck_is_killed_and_started_again(service: Machine) -> None:
    service.write("etc/systemd/system/regstat.service.d/test.conf", "[Service]\nWatchdogSec=2\n")
    service("systemctl", "daemon-reload")
    service("systemctl", "restart", "regstat.service")
    assert service.property("NRestarts") == "0"
    with ExitStack() as stack:
        # What is not acknowledged when the daemon is killed is no loss: a registry sends it again.
        client = Clients(service.port, 1)
        stack.callback(client.stop)
        other = stack.enter_context(closing(sqlite3.connect(str(database(service)), isolation_level=None)))
        other.execute("begin immediate")
        await_condition(lambda: "Watchdog timeout" in service.journal(), 30, "systemd misses it")
    await_condition(lambda: service.property("NRestarts") != "0", 30, "it is started again")
    await_condition(lambda: post(service, "after the watchdog") == 200, 30, "it records again")


def test_a_wrong_flag_is_not_tried_again(service: Machine) -> None:
    service.write("etc/default/regstat", "REGSTAT_FLAGS=-no-such-flag\n")
    with pytest.raises(AssertionError):
        service("systemctl", "restart", "regstat.service")
    assert service.property("ActiveState") == "failed"
    assert (service.property("ExecMainStatus"), service.property("NRestarts")) == ("2", "0")


def test_the_secrets_of_root_reach_the_service_and_nobody_else(
    service: Machine, postgres_server: PostgresServer
) -> None:
    conn_str = postgres_server.new_database()
    name = re.findall(r"dbname=(\w+)", conn_str)[0]
    with closing(postgres_server.connect(name)) as postgres:
        postgres.run("create role regstat login password 'the-password'")
        postgres.run(f"grant create on database {name} to regstat")
        # Nobody else needs a password still.
        ((hba,),) = postgres.run("show hba_file")
        rules = "host all regstat all scram-sha-256", "host all all 127.0.0.1/32 trust"
        quoted = ", ".join(f"('{rule}')" for rule in rules)
        postgres.run(f"copy (values {quoted}) to '{hba}'")
        postgres.run("select pg_reload_conf()")
    address = f"127.0.0.1:{postgres_server.port}"
    flags = f"-pg-conn-str postgres://regstat@{address}/{name}?sslmode=disable"
    service.write("etc/default/regstat", f"REGSTAT_FLAGS={flags}\n")
    service.write("etc/regstat/pgpass", f"{address}:{name}:regstat:the-password\n", 0o600)
    service.write("etc/regstat/docker-config.json", '{"auths": {}}', 0o600)
    service("systemctl", "restart", "regstat.service")

    assert post(service, "in Postgres") == 200
    assert rows(["-pg-conn-str", conn_str], "select id from {s}events") == [("in Postgres",)]
    given = f"/proc/{service.property('MainPID')}/root/run/credentials/regstat.service"
    assert service("cat", f"{given}/docker-config") == '{"auths": {}}'
    with pytest.raises(AssertionError, match="Permission denied"):
        service("setpriv", "--reuid=nobody", "--clear-groups", "cat", "/run/credentials/regstat.service/pgpass")


def test_what_it_accepted_is_kept_when_the_machine_stops_it(service: Machine) -> None:
    assert post(service, "last") == 200
    service("systemctl", "stop", "regstat.service")
    assert service.property("Result") == "success"
    assert service.property("ExecMainStatus") == "0"
    assert "Stopped after" in service.journal()
