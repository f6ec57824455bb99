"""Replies: sent once and in order, by whoever comes first, to whom they belong, and nobody is held up by a client."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Callable

import pytest
from envelopes import digest_of, envelope, event
from running_daemon import await_condition, run_daemon

from regstat_lib.server import WebhookServer
from regstat_lib.webhook import Answer, Respond

# Long enough for a slow machine, short enough to wait for.
REPLY_SECONDS = 0.5


class Held:
    """A server whose answers are given by the test: `come` has each request's path, and how to answer it."""

    def __init__(self, reply_seconds: float = REPLY_SECONDS) -> None:
        self.come: queue.SimpleQueue[tuple[str, Respond]] = queue.SimpleQueue()
        self.server = WebhookServer(0, self._answer, 2**20, reply_seconds=reply_seconds)
        self.server.serve()

    def _answer(self, _method: str, path: str, _body: bytes, respond: Respond) -> None:
        self.come.put((path, respond))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), 10)

    def next(self) -> tuple[str, Respond]:
        return self.come.get(timeout=10)


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.server.stop(2 * REPLY_SECONDS)


def request(path: str, *headers: str, method: str = "POST", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: regstat", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Answers:
    """What comes over a connection, one answer after the other."""

    def __init__(self, link: socket.socket) -> None:
        self._received = b""
        self._link = link

    def next(self) -> tuple[int, str, bytes]:
        """Status, headers, body."""
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        headers = head.decode()
        length = int(headers.split("Content-Length: ")[1].split("\r\n")[0])
        while len(self._received) < length:
            self._more()
        body, self._received = self._received[:length], self._received[length:]
        return int(headers[9:12]), headers, body

    def ended(self) -> bool:
        """Whether nothing more comes; waits for it."""
        return not self._received and self._link.recv(1) == b""

    def _more(self) -> None:
        data = self._link.recv(65536)
        assert data, "the connection was closed instead of an answer"
        self._received += data


def reset(link: socket.socket) -> None:
    """Ends a connection as a client does that crashes."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def test_only_the_first_answer_is_sent(held: Held) -> None:
    with closing(held.connect()) as link:
        answers = Answers(link)
        link.sendall(request("/one"))
        _, respond = held.next()
        for number in range(3):
            respond(Answer(200, b"%d" % number))
        assert answers.next()[::2] == (200, b"0")
        link.sendall(request("/two"))
        held.next()[1](Answer(200, b"two"))
        respond(Answer(200, b"late"))
        assert answers.next()[::2] == (200, b"two")


def test_a_request_without_an_answer_in_time_is_503_and_the_connection_goes_on(held: Held) -> None:
    with closing(held.connect()) as link:
        answers = Answers(link)
        for _ in range(2):
            began = time.monotonic()
            link.sendall(request("/slow"))
            _, late = held.next()
            status, headers, body = answers.next()
            assert REPLY_SECONDS * 0.9 < time.monotonic() - began < REPLY_SECONDS + 5
            assert status == 503
            assert "Retry-After: " in headers
            assert "Connection: close" not in headers
            assert "no commit" in json.loads(body)["error"]
            late(Answer(200, b"late"))
        link.sendall(request("/prompt"))
        held.next()[1](Answer(200, b"prompt"))
        assert answers.next()[::2] == (200, b"prompt")


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
def test_a_client_that_sends_no_more_gets_its_503_too_and_then_the_end(held: Held, headers: tuple[str, ...]) -> None:
    with closing(held.connect()) as link:
        link.sendall(request("/slow", *headers))
        link.shutdown(socket.SHUT_WR)
        held.next()
        answers = Answers(link)
        assert answers.next()[0] == 503
        assert answers.ended()


def test_the_next_request_waits_for_the_answer_before_it(held: Held) -> None:
    with closing(held.connect()) as link:
        link.sendall(request("/one"))
        path, respond = held.next()
        assert path == "/one"
        link.sendall(request("/two") + request("/three", method="HEAD"))
        with pytest.raises(queue.Empty):
            held.come.get(timeout=REPLY_SECONDS / 5)
        respond(Answer(200, b"one"))
        held.next()[1](Answer(200, b"two"))
        held.next()[1](Answer(200, b"three"))
        link.shutdown(socket.SHUT_WR)
        received = b""
        while data := link.recv(65536):
            received += data
        _, one, two, three = received.split(b"HTTP/1.1 200 OK\r\n")
        assert one.endswith(b"\r\n\r\none")
        assert two.endswith(b"\r\n\r\ntwo")
        assert three.endswith(b"Content-Length: 5\r\n\r\n"), "an answer to HEAD has no body"


def test_many_requests_in_one_piece_are_answered_in_order_whoever_answers(held: Held) -> None:
    def answer(seed: int) -> None:
        chance = random.Random(seed)
        while True:
            path, respond = held.come.get()
            if not path:
                return
            time.sleep(chance.choice((0, 0, 0.001)))
            respond(Answer(200, path.encode()))

    threads = [threading.Thread(target=answer, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    with closing(held.connect()) as link:
        paths = [f"/{number}" for number in range(500)]
        link.sendall(b"".join(map(request, paths)))
        answers = Answers(link)
        assert [answers.next()[2].decode() for _ in paths] == paths
    for _ in threads:
        held.come.put(("", lambda _: None))
    for thread in threads:
        thread.join()


def test_an_answer_never_waits_for_a_client_that_does_not_read(held: Held) -> None:
    with closing(socket.socket()) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", held.server.port))
        ended = False
        longest = 0.0
        for _ in range(1000):
            try:
                link.sendall(request("/"))
                _, respond = held.come.get(timeout=1.0)
            except (OSError, queue.Empty):
                ended = True
                break
            began = time.monotonic()
            respond(Answer(200, b"x" * 100_000))
            longest = max(longest, time.monotonic() - began)
        assert ended, "who does not read loses its connection"
        assert longest < 0.5
    with closing(held.connect()) as link:
        link.sendall(request("/"))
        held.next()[1](Answer(200, b"here"))
        assert Answers(link).next()[2] == b"here"


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_an_answer_to_who_has_gone_reaches_nobody_else(held: Held, end: Callable[[socket.socket], None]) -> None:
    gone = held.connect()
    gone.sendall(request("/gone"))
    _, respond = held.next()
    end(gone)
    time.sleep(0.05)  # the server sees that it went, and would take its descriptor for another
    links = [held.connect() for _ in range(20)]
    for number, link in enumerate(links):
        link.sendall(request(f"/{number}"))
    come = [held.next() for _ in links]
    respond(Answer(200, b"whose is it?"))
    for path, theirs in come:
        theirs(Answer(200, path.encode()))
    for number, link in enumerate(links):
        assert Answers(link).next()[::2] == (200, f"/{number}".encode())
        link.close()


def test_stopping_waits_for_the_replies_under_way_and_takes_nothing_more_from_their_connections() -> None:
    held = Held(reply_seconds=60.0)
    with closing(held.connect()) as link:
        link.sendall(request("/"))
        _, respond = held.next()
        stopped: list[bool] = []
        stopping = threading.Thread(target=lambda: stopped.append(held.server.stop(10.0)))
        stopping.start()
        await_condition(lambda: held.server.stopping, 10, "it stops")
        time.sleep(REPLY_SECONDS / 5)
        assert not stopped
        link.sendall(request("/one/too/many"))
        time.sleep(REPLY_SECONDS / 5)
        respond(Answer(200, b"the last"))
        stopping.join(10)
        assert stopped == [True]
        answers = Answers(link)
        _, headers, body = answers.next()
        assert body == b"the last"
        assert "Connection: close" in headers
        assert answers.ended()
    assert held.come.empty()


def test_a_connection_ends_with_the_answer_that_says_so() -> None:
    held = Held(reply_seconds=60.0)
    with closing(held.connect()) as link:
        link.sendall(request("/"))
        _, respond = held.next()
        held.server.stop(0.0)
        respond(Answer(200, b"the last"))
        answers = Answers(link)
        assert answers.next()[2] == b"the last"
        assert answers.ended(), "at once, not when the client has been silent for long"


# With the whole daemon


def test_a_client_that_never_reads_holds_up_nobody(database_flags: list[str]) -> None:
    def send_on(link: socket.socket) -> None:
        body = envelope(event("push", digest_of("unread"), identity="unread"))
        with contextlib.suppress(OSError):
            while True:
                link.sendall(request("/", body=body))

    with run_daemon(*database_flags) as daemon:
        await_condition(lambda: daemon.post(envelope())[0] == 200, 20, "it answers")
        deaf = []
        for _ in range(3):
            link = socket.socket()
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            link.connect(("127.0.0.1", daemon.port))
            link.settimeout(20)
            deaf.append((link, threading.Thread(target=send_on, args=(link,))))
        for _, thread in deaf:
            thread.start()
        for number in range(30):
            assert daemon.post(envelope(event("push", digest_of(f"heard {number}"))), timeout=1.0)[0] == 200
        for link, thread in deaf:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            link.close()
        assert "Traceback" not in daemon.log()


def test_under_load_with_resets_everybody_gets_the_answer_to_what_it_sent(database_flags: list[str]) -> None:
    wrong: list[str] = []

    def post(number: int) -> None:
        chance = random.Random(number)
        link: socket.socket | None = None
        answers: Answers
        for turn in range(100):
            counts = [chance.randrange(1, 9) for _ in range(chance.choice((1, 1, 3)))]
            sent = b"".join(
                request("/", body=envelope(*(event("push", digest_of(f"{turn} {i}")) for i in range(count))))
                for count in counts
            )
            if link is None:
                link = socket.create_connection(("127.0.0.1", daemon.port), 20)
                answers = Answers(link)
            link.sendall(sent)
            fate = chance.random()
            if fate < 0.3:
                (reset if fate < 0.2 else socket.socket.close)(link)
                link = None
                continue
            for count in counts:
                status, headers, body = answers.next()
                if (status, body) != (200, b'{"recorded": %d, "set_aside": 0}' % count):
                    wrong.append(f"{count}: {status} {body!r}")
                if "Connection: close" in headers:
                    wrong.append(headers)
            if fate > 0.9:
                link.close()
                link = None
        if link is not None:
            link.close()

    def try_to_post(number: int) -> None:
        try:
            post(number)
        except Exception as error:
            wrong.append(repr(error))

    with run_daemon(*database_flags) as daemon:
        await_condition(lambda: daemon.post(envelope())[0] == 200, 20, "it answers")
        threads = [threading.Thread(target=try_to_post, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert "Traceback" not in daemon.log()
        assert wrong == []
