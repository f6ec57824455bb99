"""The daemon as a process, with real databases: what it acknowledges it keeps, whatever happens to it or to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from envelopes import (
    IMAGE,
    at,
    change,
    digest_of,
    envelope,
    event,
    image,
    pg_connect,
    rows,
    tables,
)
from postgres_server import PostgresServer, running_postgres, wheel_binaries
from running_daemon import ROOT, RunningDaemon, await_condition, run_daemon

# A registry waits that long for an answer before it gives up and sends again.
REGISTRY_TIMEOUT = 1.0


class Load:
    """Clients that post as fast as they are answered: one image an event, in envelopes of one and of ten."""

    def __init__(self, port: int, name: str, clients: int = 4) -> None:
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self._port = port
        self._name = name
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _post(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        count = 0
        with contextlib.suppress(OSError, http.client.HTTPException):
            while not self._stop.is_set():
                names = []
                for _ in range(10 if number % 2 else 1):
                    count += 1
                    names.append(f"{self._name}-{number}-{count}")
                body = envelope(*(self.image(name) for name in names))
                connection.request("POST", "/", body)
                response = connection.getresponse()
                response.read()
                self.statuses.add(response.status)
                if response.status == 200:
                    self.acknowledged += names
        connection.close()

    @staticmethod
    def image(name: str) -> dict[str, Any]:
        return image(digest_of(name), digest_of(f"layer of {name}"), tag=name, identity=name)

    def await_acknowledged(self, count: int) -> None:
        await_condition(lambda: len(self.acknowledged) >= count, 30, f"{count} events are acknowledged")

    def end(self) -> None:
        """Ends the clients that have not ended with the daemon."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client was never answered"


def assert_all_there(flags: list[str], acknowledged: list[str]) -> None:
    """Every acknowledged event in the log and in all four tables."""
    assert acknowledged
    expected = set(acknowledged)
    assert expected - {row[0] for row in rows(flags, "select id from {s}events")} == set()
    found = tables(flags)
    assert expected - {row[3] for row in found["tags"]} == set()
    assert {digest_of(name) for name in expected} - {row[0] for row in found["manifests"]} == set()
    assert {digest_of(f"layer of {name}") for name in expected} - {row[0] for row in found["blobs"]} == set()
    links = {(digest_of(name), digest_of(f"layer of {name}")) for name in expected}
    assert links - found["manifest_blob"] == set()


def answers_with(daemon: RunningDaemon, status: int) -> None:
    await_condition(
        lambda: daemon.post(envelope(event("push", digest_of("ping"))))[0] == status, 20, f"it says {status}"
    )


def test_what_was_acknowledged_survives_kill_minus_nine(database_flags: list[str]) -> None:
    acknowledged: list[str] = []
    for number in range(3):
        with run_daemon(*database_flags) as daemon:
            load = Load(daemon.port, f"round{number}")
            load.await_acknowledged(150 + 100 * number)
            daemon.process.kill()
            load.end()
            acknowledged += load.acknowledged
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        assert_all_there(database_flags, acknowledged)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_it_in_order(database_flags: list[str], number: int) -> None:
    with run_daemon(*database_flags) as daemon:
        load = Load(daemon.port, "load")
        load.await_acknowledged(100)
        began = time.monotonic()
        assert daemon.stop(number) == 0
        assert time.monotonic() - began < 5
        load.end()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", daemon.port), 5)
        assert "Traceback" not in daemon.log()
    assert load.statuses <= {200, 503}
    assert_all_there(database_flags, load.acknowledged)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A Postgres that a test may stop."""
    with running_postgres(wheel_binaries()) as server:
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.start()  # its end stops it


def _answer(daemon: RunningDaemon, body: bytes) -> tuple[int, str | None, dict[str, Any]]:
    """Status, Retry-After and answer of a POST, which must come as fast as a registry wants it."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=REGISTRY_TIMEOUT)
    with closing(connection):
        connection.request("POST", "/", body)
        response = connection.getresponse()
        return response.status, response.getheader("Retry-After"), json.loads(response.read())


def test_an_outage_of_postgres_is_answered_503_at_once_and_ends_by_itself(own_postgres: PostgresServer) -> None:
    plain = own_postgres.new_database()
    flags = ["-pg-conn-str", plain]
    with run_daemon("-pg-conn-str", f"{plain} password=sesame-open") as daemon:
        answers_with(daemon, 200)
        load = Load(daemon.port, "before")
        load.await_acknowledged(50)
        own_postgres.stop("immediate")
        for _ in range(20):
            status, retry_after, answer = _answer(daemon, envelope(event("push", digest_of("refused"))))
            assert status == 503
            assert retry_after is not None
            assert int(retry_after) > 0
            assert "127.0.0.1" in answer["error"]
        load.end()
        assert load.statuses <= {200, 503}
        lines = [line for line in daemon.log().splitlines() if "503" in line]
        assert len(lines) == 1, lines
        assert f"127.0.0.1:{own_postgres.port}" in lines[0]
        assert "database test1" in lines[0]
        assert "-sqlite" not in lines[0], "it was reached before, so nobody needs another database"

        own_postgres.start()
        answers_with(daemon, 200)
        after = Load(daemon.port, "after")
        after.await_acknowledged(20)
        after.end()
        assert_all_there(flags, load.acknowledged + after.acknowledged)
        assert "sesame-open" not in daemon.log()
        assert "Traceback" not in daemon.log()
        assert daemon.stop() == 0


def test_it_starts_while_postgres_is_down_and_records_when_it_is_up(own_postgres: PostgresServer) -> None:
    flags = ["-pg-conn-str", own_postgres.new_database()]
    own_postgres.stop()
    with run_daemon(*flags) as daemon:
        await_condition(lambda: "-sqlite" in daemon.log(), 5, "the log mentions -sqlite")
        assert _answer(daemon, envelope(event("push", digest_of("early"))))[0] == 503
        own_postgres.start()
        answers_with(daemon, 200)
        assert rows(flags, "select digest from {s}blobs") == [(digest_of("ping"),)]


def test_a_file_that_cannot_be_written_is_503_and_no_advice_to_use_a_file(tmp_path: Path) -> None:
    path = tmp_path / "regstat.db"
    path.write_bytes(b"this is no database" * 100)
    with run_daemon("-sqlite", str(path)) as daemon:
        await_condition(lambda: "503" in daemon.log(), 5, "the log has the reason")
        assert _answer(daemon, envelope(event("push", digest_of("early"))))[0] == 503
        assert str(path) in daemon.log()
        assert "start with -sqlite" not in daemon.log()


@pytest.fixture
def mute_server() -> Iterator[int]:
    """The port of something that accepts connections and never says a word."""
    with ExitStack() as connections, socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.enter_context(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_postgres_that_never_answers_holds_up_neither_a_registry_nor_the_end(mute_server: int) -> None:
    with run_daemon("-pg-conn-str", f"host=127.0.0.1 port={mute_server} user=postgres sslmode=disable") as daemon:
        for _ in range(3):
            assert _answer(daemon, envelope(event("push", digest_of("unheard"))))[0] == 503
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5


def test_a_postgres_that_falls_silent_in_a_transaction_does_not_hold_up_the_end(pg_conn_str: str) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    with run_daemon(*flags) as daemon, closing(pg_connect(pg_conn_str)) as somebody:
        answers_with(daemon, 200)
        somebody.run("begin")
        somebody.run("lock table regstat.blobs")
        stuck = threading.Thread(target=_post_and_forget, args=(daemon, envelope(event("push", digest_of("stuck")))))
        stuck.start()
        await_condition(lambda: _waiting(pg_conn_str), 10, "the daemon waits for the table")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 6
        somebody.run("rollback")
        stuck.join(10)
        assert not stuck.is_alive()


def _post_and_forget(daemon: RunningDaemon, body: bytes) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        daemon.post(body)


def _waiting(connection_string: str) -> bool:
    query = "select count(*) from pg_locks where not granted"
    return bool(rows(["-pg-conn-str", connection_string], query)[0][0])


@pytest.mark.parametrize("daemons", [2, 10])
def test_daemons_that_start_at_one_moment_on_an_empty_database_all_record(pg_conn_str: str, daemons: int) -> None:
    _start_together(["-pg-conn-str", pg_conn_str], daemons)


def test_two_daemons_that_start_at_one_moment_on_an_empty_file_both_record(sqlite_path: Path) -> None:
    _start_together(["-sqlite", str(sqlite_path)], 2)


def _start_together(flags: list[str], count: int) -> None:
    with ExitStack() as stack:
        daemons: list[RunningDaemon] = []
        threads = [
            threading.Thread(target=lambda: daemons.append(stack.enter_context(run_daemon(*flags))))
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(daemons) == count
        for number, daemon in enumerate(daemons):
            answers_with(daemon, 200)
            assert daemon.post(envelope(event("push", digest_of(f"by {number}"))))[0] == 200
            assert "Traceback" not in daemon.log()
            if flags[0] == "-pg-conn-str":
                assert "answered 503" not in daemon.log(), "the second must find the work done, not fail at it"
        recorded = {row[0] for row in rows(flags, "select digest from {s}blobs")}
        assert recorded >= {digest_of(f"by {number}") for number in range(count)}


def _colliding(seed: int, count: int) -> list[dict[str, Any]]:
    """Events about a few digests and tags in two repositories, at few times."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        digest = digest_of(f"collides {chance.randrange(6)}")
        repository = f"team/app{chance.randrange(2)}"
        details: dict[str, Any] = {
            "repository": repository,
            "timestamp": at(chance.randrange(100000)),
            "identity": f"{seed}-{number}",
        }
        tag = f"tag{chance.randrange(3)}"
        kind = chance.randrange(6)
        if kind == 0:
            made.append(event("delete", digest, **details))
        elif kind == 1:
            made.append(event("delete", tag=tag, **details))
        elif kind == 2:
            made.append(event("push", digest_of(f"layer {chance.randrange(4)}"), **details))
        else:
            # What a manifest is made of depends on nothing but its digest.
            layers = [digest_of(f"layer {int(digest[-1], 16) % 4}"), digest_of(f"layer {int(digest[-2], 16) % 4}")]
            made.append(image(digest, *dict.fromkeys(layers), tag=tag, **details))
    return made


def test_two_daemons_under_load_refuse_nothing_and_equal_one(pg_conn_str: str, sqlite_path: Path) -> None:
    envelopes = [envelope(*_colliding(seed, 20)) for seed in range(60)]
    shared, alone = ["-pg-conn-str", pg_conn_str], ["-sqlite", str(sqlite_path)]
    statuses: list[int] = []
    with run_daemon(*shared) as one, run_daemon(*shared) as other:
        answers_with(one, 200)
        answers_with(other, 200)

        def post(daemon: RunningDaemon, bodies: list[bytes]) -> None:
            statuses.extend(daemon.post(body)[0] for body in bodies)

        threads = [
            threading.Thread(target=post, args=(daemon, envelopes[start::3]))
            for daemon in (one, other)
            for start in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "Traceback" not in one.log() + other.log()
    assert statuses == [200] * 120
    with run_daemon(*alone) as daemon:
        answers_with(daemon, 200)
        for body in envelopes:
            assert daemon.post(body)[0] == 200
    for flags in (shared, alone):
        change(flags, f"delete from {{s}}blobs where digest = '{digest_of('ping')}'")
    together = tables(shared)
    as_text = {name: {tuple(_text(value) for value in row) for row in found} for name, found in together.items()}
    assert as_text == tables(alone)
    assert together["tags"]


def _text(value: Any) -> Any:
    return value.isoformat(" ", "microseconds") if hasattr(value, "isoformat") else value


# HTTP


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon for tests that only look at what it answers; its limit of a body is 100,000 bytes."""
    path = tmp_path_factory.mktemp("answers") / "regstat.db"
    with run_daemon("-sqlite", str(path), "-max-body", "100000") as running:
        answers_with(running, 200)
        yield running
        assert "Traceback" not in running.log()


def exchange(daemon: RunningDaemon, *parts: bytes, seconds: float = 10.0) -> bytes:
    """All that is answered to these bytes until the daemon closes, or has said no more for as long as allowed."""
    with socket.create_connection(("127.0.0.1", daemon.port), seconds) as connection:
        received = b""
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                received += data
        return received


def request(body: bytes, *headers: str, method: str = "POST", version: str = "1.1", length: bool = True) -> bytes:
    lines = [f"{method} /any/path?x=1 HTTP/{version}", "Host: regstat", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 50) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: 1\r\n\r\n"


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


PUSH = envelope(event("push", digest_of("answered")))


def test_the_answer_counts_what_was_recorded_and_what_was_set_aside(daemon: RunningDaemon) -> None:
    strange = [event("explode", digest_of("strange")), event("push"), "no event"]
    body = envelope(event("push", digest_of("one")), *strange, event("push", digest_of("two")))  # type: ignore[arg-type]
    assert daemon.post(body) == (200, {"recorded": 2, "set_aside": 3})
    assert daemon.post(envelope()) == (200, {"recorded": 0, "set_aside": 0})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 50000, "not JSON"),
        (b"[]", "no envelope"),
        (b'{"event": []}', "no envelope"),
        (b'{"events": {}}', "no envelope"),
    ],
)
def test_what_is_no_envelope_is_400_with_a_sentence(daemon: RunningDaemon, body: bytes, expected: str) -> None:
    status, answer = daemon.post(body)
    assert status == 400
    assert expected in answer["error"]
    assert '{"events": [...]}' in answer["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_another_method_is_405_and_says_which_is_allowed(daemon: RunningDaemon, method: str) -> None:
    answer = exchange(daemon, request(b"", method=method))
    assert statuses(answer) == [405]
    assert b"Allow: POST\r\n" in answer
    assert (b"POST them" in answer) == (method != "HEAD")


@pytest.mark.parametrize(
    "sent",
    [
        request(b"x" * 100001),
        request(b"short", "Content-Length: 100001", length=False),
        request(b"", "Content-Length: 99999999999999", "Expect: 100-continue", length=False),
        request(chunked(b"x" * 100001, 1000), "Transfer-Encoding: chunked", length=False),
        request(b"fffffffff\r\nx", "Transfer-Encoding: chunked", length=False),
    ],
    ids=["declared", "a lie", "before it is sent", "in chunks", "a chunk's lie"],
)
def test_a_body_over_the_limit_is_413(daemon: RunningDaemon, sent: bytes) -> None:
    answer = exchange(daemon, sent)
    assert statuses(answer) == [413]
    assert b"-max-body" in answer


def test_a_body_that_ends_before_its_length_is_not_taken(daemon: RunningDaemon) -> None:
    assert statuses(exchange(daemon, request(PUSH, f"Content-Length: {len(PUSH) + 10}", length=False))) == []
    answers_with(daemon, 200)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /\r\n\r\n",
        b"POST / HTTP/2.0\r\n\r\n",
        b"POST / a b HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nName : value\r\n\r\n",
        b"POST / HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n",
        request(PUSH, "Content-Length: -1", length=False),
        request(PUSH, "Content-Length: +5", length=False),
        request(PUSH, "Content-Length: 5, 6", length=False),
        request(PUSH, "Content-Length: 1"),
        request(PUSH, "Transfer-Encoding: chunked"),
        request(b"zz\r\n", "Transfer-Encoding: chunked", length=False),
        request(b"-5\r\n", "Transfer-Encoding: chunked", length=False),
        request(b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
        request(b"3\r\nabcde\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=False),
        bytes(range(256)) + b"\r\n\r\n",
    ],
    # The bodies have ids that are random: every process that runs the tests must call them the same.
    ids=range(17),
)
def test_a_malformed_request_is_400(daemon: RunningDaemon, sent: bytes) -> None:
    assert statuses(exchange(daemon, sent)) == [400]


def test_endless_headers_are_431_and_unknown_encodings_501(daemon: RunningDaemon) -> None:
    assert statuses(exchange(daemon, b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 20000)) == [431]
    assert statuses(exchange(daemon, request(PUSH, "Transfer-Encoding: gzip", length=False))) == [501]


def test_every_way_of_sending_a_body_is_understood(daemon: RunningDaemon) -> None:
    recorded = b'{"recorded": 1, "set_aside": 0}'
    assert exchange(daemon, request(PUSH)).endswith(recorded)
    assert exchange(daemon, request(chunked(PUSH), "Transfer-Encoding: chunked", length=False)).endswith(recorded)
    assert exchange(daemon, *(bytes([byte]) for byte in request(PUSH))).endswith(recorded)
    answers = exchange(daemon, request(PUSH), request(chunked(PUSH), "Transfer-Encoding: CHUNKED", length=False))
    assert answers.count(recorded) == 2


def test_requests_in_one_piece_are_answered_in_their_order(daemon: RunningDaemon) -> None:
    sent = request(PUSH) + request(b"{}") + request(b"", method="GET") + request(PUSH)
    assert statuses(exchange(daemon, sent)) == [200, 400, 405, 200]


def test_a_connection_is_kept_as_its_version_says(daemon: RunningDaemon) -> None:
    twice = [
        (request(PUSH), 2),
        (request(PUSH, "Connection: close"), 1),
        (request(PUSH, version="1.0"), 1),
        (request(PUSH, "Connection: keep-alive", version="1.0"), 2),
    ]
    for sent, answered in twice:
        assert statuses(exchange(daemon, sent + sent)) == [200] * answered


def test_who_waits_for_100_continue_gets_it(daemon: RunningDaemon) -> None:
    head, _, body = request(PUSH, "Expect: 100-continue").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", daemon.port), 5) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("first", [b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"])
def test_silent_and_slow_clients_do_not_keep_a_registry_waiting(daemon: RunningDaemon, first: bytes) -> None:
    with ExitStack() as connections:
        slow = []
        for _ in range(300):
            slow.append(connections.enter_context(socket.create_connection(("127.0.0.1", daemon.port), 5)))
            slow[-1].sendall(first)
        for _ in range(30):
            with contextlib.suppress(OSError):
                for connection in slow:
                    connection.sendall(b"x" if first else b"")
            assert _answer(daemon, PUSH)[0] == 200


def test_a_client_that_vanishes_leaves_no_traceback(daemon: RunningDaemon) -> None:
    for sent in (b"", b"POST", request(PUSH)[:-1], request(PUSH)):
        connection = socket.create_connection(("127.0.0.1", daemon.port), 5)
        # A reset, not an orderly end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(sent)
        connection.close()
    answers_with(daemon, 200)
    assert "Traceback" not in daemon.log()


# What the database does to single events


REFUSED = digest_of("refused by the database")


def refuse(flags: list[str]) -> None:
    """Makes the database refuse one digest."""
    if flags[0] == "-sqlite":
        change(
            flags,
            f"create trigger refuse before insert on events when new.digest = '{REFUSED}'"
            " begin select raise(abort, 'not this one'); end",
        )
    else:
        change(flags, f"alter table {{s}}events add constraint not_this_one check (digest <> '{REFUSED}')")


def test_what_the_database_refuses_is_set_aside_alone(database_flags: list[str]) -> None:
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        refuse(database_flags)
        good = [event("push", digest_of(f"good {number}")) for number in range(9)]
        body = envelope(*good[:4], event("push", REFUSED), *good[4:])
        load = Load(daemon.port, "beside")
        load.await_acknowledged(10)
        assert daemon.post(body) == (200, {"recorded": 9, "set_aside": 1})
        load.end()
        assert load.statuses == {200}
        blobs = {row[0] for row in rows(database_flags, "select digest from {s}blobs")}
        assert blobs >= {digest_of(f"good {number}") for number in range(9)}
        assert REFUSED not in blobs
        ((reason, kept),) = rows(database_flags, "select reason, event from {s}set_aside")
        assert "not_this_one" in reason.replace(" ", "_")
        assert json.loads(kept)["digest"] == REFUSED
        assert_all_there(database_flags, load.acknowledged)


def test_a_new_repository_in_a_batch_that_is_refused_is_known_by_its_own_number_afterwards(
    database_flags: list[str],
) -> None:
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        refuse(database_flags)
        first = event("push", digest_of("first"), repository="new/first")
        second = event("push", digest_of("second"), repository="new/second")
        refused = event("push", REFUSED, repository="new/first")
        assert daemon.post(envelope(first, refused)) == (200, {"recorded": 1, "set_aside": 1})
        assert daemon.post(envelope(second)) == (200, {"recorded": 1, "set_aside": 0})
        assert daemon.post(envelope({**refused, "id": "again"}))[0] == 200
        held = rows(
            database_flags,
            "select r.repository, h.digest from {s}holdings h"
            " left join {s}repository_names r on r.id = h.repository_id order by 1",
        )
        assert [row for row in held if row[0] != "team/app"] == [
            ("new/first", digest_of("first")),
            ("new/second", digest_of("second")),
        ]
        blobs = {row[0] for row in rows(database_flags, "select digest from {s}blobs")}
        assert blobs >= {digest_of("first"), digest_of("second")}


def test_connections_that_the_database_ends_under_load_refuse_and_lose_nothing(pg_conn_str: str) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    with run_daemon(*flags) as daemon, closing(pg_connect(pg_conn_str)) as operator:
        answers_with(daemon, 200)
        load = Load(daemon.port, "load")
        for count in range(100, 600, 100):
            load.await_acknowledged(count)
            # Now one of its connections, now all of them.
            operator.run(
                "select pg_terminate_backend(pid) from (select pid from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid() order by random() limit :some) ended",
                some=1 if count % 200 else 10,
            )
        load.await_acknowledged(len(load.acknowledged) + 100)
        load.end()
        assert "Traceback" not in daemon.log()
    assert load.statuses == {200}
    assert_all_there(flags, load.acknowledged)


def test_a_database_that_grants_few_connections_is_written_to_all_the_same(pg_conn_str: str) -> None:
    with closing(pg_connect(pg_conn_str)) as operator:
        name = f"modest_{uuid.uuid4().hex}"
        operator.run(f"create role {name} login connection limit 2")
        operator.run(f"grant create on database {pg_conn_str.split('dbname=')[1].split()[0]} to {name}")
        with run_daemon("-pg-conn-str", pg_conn_str.replace("user=postgres", f"user={name}")) as daemon:
            answers_with(daemon, 200)
            load = Load(daemon.port, "load")
            load.await_acknowledged(200)
            load.end()
            assert load.statuses == {200}
            assert "answered 503" not in daemon.log()
    assert_all_there(["-pg-conn-str", pg_conn_str], load.acknowledged)


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_a_transaction_that_loses_is_tried_again(pg_conn_str: str, state: str) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    with run_daemon(*flags) as daemon:
        answers_with(daemon, 200)
        change(
            flags,
            "create sequence {s}losses",
            "create function {s}lose() returns trigger language plpgsql as $$ begin"
            f" if nextval('regstat.losses') <= 3 then raise exception 'lost' using errcode = '{state}'; end if;"
            " return new; end $$",
            "create trigger lose before insert on {s}events for each row execute function {s}lose()",
        )
        assert daemon.post(envelope(event("push", digest_of("patient")))) == (200, {"recorded": 1, "set_aside": 0})
        assert rows(flags, "select last_value from {s}losses") == [(4,)]
        assert (digest_of("patient"),) in rows(flags, "select digest from {s}blobs")


def test_a_deadlock_with_somebody_else_is_survived(pg_conn_str: str) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    digest = digest_of("fought over")
    with run_daemon(*flags) as daemon, closing(pg_connect(pg_conn_str)) as somebody:
        answers_with(daemon, 200)
        assert daemon.post(envelope(event("push", digest)))[0] == 200
        # The daemon, not the test, is to find out that they wait for each other.
        somebody.run("set deadlock_timeout = '60s'")
        somebody.run("begin")
        somebody.run("select 1 from regstat.blobs where digest = :digest for update", digest=digest)
        answers: list[tuple[int, dict[str, Any]]] = []
        late = event("push", digest)
        poster = threading.Thread(target=lambda: answers.append(daemon.post(envelope(late))))
        poster.start()
        await_condition(lambda: _waiting(pg_conn_str), 10, "the daemon waits for the row")
        somebody.run("update regstat.holdings set pulled = pulled where digest = :digest", digest=digest)
        somebody.run("commit")
        poster.join(20)
        assert answers == [(200, {"recorded": 1, "set_aside": 0})]
        (pushed,) = next(iter(rows(flags, f"select pushed from {{s}}blobs where digest = '{digest}'")))
        assert f"{pushed.isoformat(timespec='microseconds')}Z" == late["timestamp"]


# Events


@pytest.mark.parametrize("timestamp", ["", "0001-01-01T00:00:00Z"], ids=["absent", "Go's zero time"])
def test_an_event_without_a_time_is_recorded_once(database_flags: list[str], timestamp: str) -> None:
    untimed = image(digest_of("untimed"), digest_of("layer"), tag="untimed", timestamp=timestamp)
    if not timestamp:
        del untimed["timestamp"]
    pulled = event("pull", digest_of("untimed"), tag="untimed", media_type=IMAGE, timestamp=timestamp)
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        assert daemon.post(envelope(untimed, pulled)) == (200, {"recorded": 2, "set_aside": 0})
        before = tables(database_flags)
        assert len(before["tags"]) == 1
        for _ in range(3):
            assert daemon.post(envelope(untimed))[0] == 200
            assert daemon.post(envelope(pulled, untimed))[0] == 200
        assert tables(database_flags) == before
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        assert daemon.post(envelope(pulled))[0] == 200
        before["blobs"] = {row for row in tables(database_flags)["blobs"] if row[0] == digest_of("ping")} | {
            row for row in before["blobs"] if row[0] != digest_of("ping")
        }
        assert tables(database_flags) == before
        assert len(rows(database_flags, f"select id from {{s}}events where digest = '{digest_of('untimed')}'")) == 2


def test_its_own_requests_are_no_use(database_flags: list[str]) -> None:
    manifest = digest_of("asked for by regstat")
    with run_daemon(*database_flags) as daemon:
        answers_with(daemon, 200)
        assert daemon.post(envelope(image(manifest, digest_of("layer"), tag="latest")))[0] == 200
        own = event("pull", manifest, tag="latest", media_type=IMAGE, user_agent="regstat/1.0 (+https://regstat)")
        assert daemon.post(envelope(own))[0] == 200
        assert rows(database_flags, "select pulled from {s}manifests union all select pulled from {s}tags") == [
            (None,),
            (None,),
        ]
        assert rows(database_flags, "select id from {s}events where action = 'pull'") == []


def test_an_alias_is_recorded_under_its_registry(database_flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "equiv-registries.json"
    file.write_text(json.dumps({"registry.example": ["alias.example:5000", "10.0.0.1"]}))
    with run_daemon(*database_flags, "-equiv-registries", str(file)) as daemon:
        answers_with(daemon, 200)
        manifest = digest_of("known by several names")
        for host in ("registry.example", "alias.example:5000", "10.0.0.1", "other.example"):
            assert daemon.post(envelope(image(manifest, digest_of("layer"), tag="v1", host=host)))[0] == 200
        assert sorted(rows(database_flags, "select name, registry from {s}tags")) == [
            ("other.example/team/app:v1", "other.example"),
            ("registry.example/team/app:v1", "registry.example"),
        ]
        # A deletion that comes under the alias ends what was pushed under the name.
        assert daemon.post(envelope(event("delete", tag="v1", host="10.0.0.1")))[0] == 200
        assert rows(database_flags, "select name from {s}tags") == [("other.example/team/app:v1",)]


# The command line and the log


def test_the_log_has_no_line_for_an_event_but_at_debug(tmp_path: Path) -> None:
    body = envelope(*(event("push", digest_of(f"quiet {number}")) for number in range(20)))
    lines = {}
    for level in ("info", "debug"):
        with run_daemon("-sqlite", str(tmp_path / level), "-log-level", level) as daemon:
            answers_with(daemon, 200)
            assert f"Server now listening on :{daemon.port}\n" in daemon.log()
            before = len(daemon.log().splitlines())
            assert daemon.post(body)[0] == 200
            lines[level] = len(daemon.log().splitlines()) - before
    assert lines == {"info": 0, "debug": 20}


def run_to_its_end(*flags: str) -> tuple[int, str]:
    ended = subprocess.run([sys.executable, str(ROOT / "regstat.py"), *flags], capture_output=True, timeout=20)
    assert ended.stdout == b""
    return ended.returncode, ended.stderr.decode()


@pytest.mark.parametrize("flag", ["-equiv-registries", "-docker-config"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (b'{\n  "auths": {,}}', "line 2"),
        (b"\xff\xff", "UTF-8"),
        (b'["list"]', ""),
        (b'{"auths": "text"}', "auths"),
    ],
    ids=["missing", "malformed", "not text", "not an object", "wrong shape"],
)
def test_a_file_that_cannot_be_used_is_one_line_and_status_2(
    tmp_path: Path, flag: str, content: bytes | None, expected: str
) -> None:
    file = tmp_path / "file.json"
    if content is not None:
        file.write_bytes(content)
    status, said = run_to_its_end("-sqlite", str(tmp_path / "regstat.db"), flag, str(file), "-port", "0")
    assert status == 2
    assert said.count("\n") == 1, said
    assert str(file) in said
    assert expected in said
    assert not (tmp_path / "regstat.db").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-pg-conn-str", "host=db password='sesame open"], "character 8"),
        (["-pg-conn-str", "host=db pasword=sesame"], "pasword"),
        (["-pg-conn-str", "host=db port=many"], "port"),
        (["-pg-conn-str", "postgres://u:sesame@db:many/x"], "postgres://"),
        (["-pg-conn-str", "sslmode=perhaps"], "sslmode"),
        (["-pg-conn-str", "sslmode=verify-full sslrootcert=/no/such/file"], "certificate"),
        (["-sqlite", "x.db", "-pg-conn-str", "host=db"], "one of them"),
        (["-sqlite", "/no/such/directory/x.db"], "/no/such/directory/x.db"),
        (["-registry-url", "registry.example"], "HOST=URL"),
        (["-registry-url", "registry.example=ftp://x"], "http"),
        (["-insecure-registry", "http://registry.example/"], "HOST"),
        (["-port", "http"], "http"),
        (["-port", "65536"], "65535"),
        (["-max-body", "16M"], "16M"),
        (["-log-retention", "-1"], "-1"),
        (["-log-retention", "nan"], "nan"),
        (["-what"], "-what"),
        (["extra"], "extra"),
    ],
)
def test_a_wrong_flag_is_one_line_and_status_2(flags: list[str], expected: str) -> None:
    status, said = run_to_its_end(*flags)
    assert status == 2
    assert said.count("\n") == 1, said
    assert expected in said
    assert "sesame" not in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = run_to_its_end("-sqlite", str(tmp_path / "regstat.db"), "-port", str(port))
    assert status == 1
    assert said.count("\n") == 1, said
    assert f"Port {port}" in said
    assert "in use" in said


def test_flags_are_taken_in_every_form_of_go() -> None:
    for flags in (["-sqlite", "a.db"], ["--sqlite", "b.db"], ["-sqlite=c.db"], ["--sqlite=d.db"]):
        with run_daemon(*flags) as daemon:
            answers_with(daemon, 200)
