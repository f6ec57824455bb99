"""The load: processes of their own that post bodies which were made before the clock starts, over raw sockets."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import select
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from notifications import HOST, Registry, envelopes

STYLES = ("kept", "new", "envelopes")
ENVELOPE_SIZE = 100
# What one generator may use of its core before it is suspected to be what limits the rate.
BUSY = 0.8
_SILENCE_SECONDS = 30.0
# One pair of addresses has some 28,000 ports, each taken for a minute after its use; all of 127/8 is here.
_ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 101))


class Plan(NamedTuple):
    """What to send: how many events of which mix (or "known images", or "pulls of known"), and in which bodies."""

    mix: str
    events: int
    envelope_size: int = 1
    seed: int = 0
    known: int = 0


class Sent(NamedTuple):
    """What became of it."""

    acknowledged: int  # events
    seconds: float  # from the first byte to the last acknowledgement
    latencies: Sequence[float]  # of each request, in seconds, sorted
    busiest: float  # the share of a core that the busiest generator used
    refused: int
    first_refusal: str


class Load:
    """Generators that build and send on command; `ids` are those of every event that was acknowledged to them."""

    def __init__(self, generators: int, connections: int, style: str) -> None:
        self.ids: list[str] = []
        self._style = style
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        generators = min(generators, connections)
        for number in range(generators):
            ours, theirs = context.Pipe()
            share = connections // generators + (number < connections % generators)
            process = context.Process(target=_generate, args=(theirs, number, share, style == "new"), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def build(self, plan: Plan) -> None:
        """Makes the bodies."""
        share = -(-plan.events // len(self._pipes))
        for pipe in self._pipes:
            pipe.send(("build", plan._replace(events=share)))
        for pipe in self._pipes:
            self._answer(pipe)

    def send(self, port: int, seconds: float, *, keep_ids: bool = True) -> Sent:
        """Sends them once to this port of the loopback, until all are sent or the time is over; waits for answers."""
        for pipe in self._pipes:
            pipe.send(("connect", port))
        for pipe in self._pipes:
            self._answer(pipe)
        for pipe in self._pipes:
            pipe.send(("send", seconds))
        answers = [self._answer(pipe) for pipe in self._pipes]
        latencies = array("d")
        acknowledged = refused = 0
        first_refusal = ""
        for ids, measured, _, _, _, turned_away, refusal in answers:
            acknowledged += len(ids)
            refused += turned_away
            first_refusal = first_refusal or refusal
            latencies.extend(measured)
            if keep_ids:
                self.ids += ids
        began = min(answer[2] for answer in answers)
        ended = max(answer[3] for answer in answers)
        busiest = max(cpu / max(end - begin, 1e-9) for _, _, begin, end, cpu, _, _ in answers)
        return Sent(acknowledged, ended - began, sorted(latencies), busiest, refused, first_refusal)

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("end", None))
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.terminate()

    def _answer(self, pipe: Connection) -> Any:
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextlib.contextmanager
def load(generators: int, connections: int, style: str) -> Iterator[Load]:
    """Generators until the end of the block."""
    running = Load(generators, connections, style)
    try:
        yield running
    finally:
        running.close()


class _Connection:
    """One connection, or one after the other, with at most one request under way."""

    __slots__ = ("began", "ids", "received", "rest", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.began = 0.0
        self.ids: list[str] = []
        self.rest = memoryview(b"")
        self.received = b""


def _generate(pipe: Connection, number: int, connections: int, new_each: bool) -> None:
    requests: list[tuple[list[str], bytes]] = []
    sender = _Sender(connections, new_each)
    while True:
        try:
            command, argument = pipe.recv()
        except EOFError:
            return
        try:
            if command == "build":
                requests = list(_requests(argument, number))
                pipe.send(len(requests))
            elif command == "connect":
                sender.connect(argument)
                pipe.send(None)
            elif command == "send":
                pipe.send(sender.send(requests, argument))
            else:
                return
        except Exception as error:
            pipe.send(RuntimeError(f"the load generator failed: {type(error).__name__}: {error}"))


def _requests(plan: Plan, number: int) -> Iterator[tuple[list[str], bytes]]:
    registry = Registry(plan.seed * 1000 + number, datetime.now(timezone.utc).replace(tzinfo=None))
    if plan.mix == "known images":
        # All of them from one generator, or the others would push them again under other ids.
        events = registry.known_images() if number == 0 else iter(())
    elif plan.mix == "pulls of known":
        events = islice(registry.pulls_of_known(plan.known), plan.events)
    else:
        events = islice(registry.notifications(plan.mix), plan.events)
    for ids, body in envelopes(events, plan.envelope_size):
        yield (
            ids,
            (
                f"POST / HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {len(body)}\r\n"
                "Content-Type: application/vnd.docker.distribution.events.v1+json\r\nAccept-Encoding: gzip\r\n\r\n"
            ).encode()
            + body,
        )


class _Sender:
    """Posts requests over a number of connections at a time, in one thread."""

    def __init__(self, connections: int, new_each: bool) -> None:
        self._connections = [_Connection() for _ in range(connections)]
        self._new_each = new_each
        self._port = 0
        self._opened = 0

    def connect(self, port: int) -> None:
        """Prepares for a server; opens the connections, if they are to be kept."""
        self._port = port
        for connection in self._connections:
            if connection.socket is not None:
                connection.socket.close()
            connection.socket = None if self._new_each else self._open()

    def send(
        self, requests: Sequence[tuple[list[str], bytes]], seconds: float
    ) -> tuple[list[str], array[float], float, float, float, int, str]:
        """Ids that were acknowledged, latencies, begin, end, CPU seconds, number of refusals, the first of them."""
        acknowledged: list[str] = []
        latencies = array("d")
        refused, first_refusal = 0, ""
        waiting = iter(requests)
        events = select.epoll()
        under_way: dict[int, _Connection] = {}
        if not self._new_each:
            for connection in self._connections:
                assert connection.socket is not None
                events.register(connection.socket, select.EPOLLIN)
        clock = time.monotonic
        gc.collect()
        gc.disable()
        cpu = time.process_time()
        began = ended = clock()
        deadline = began + seconds

        def begin(connection: _Connection) -> None:
            if clock() >= deadline:
                return
            request = next(waiting, None)
            if request is None:
                return
            connection.ids, body = request
            connection.received = b""
            connection.began = clock()
            if self._new_each:
                connection.socket = self._open()
                events.register(connection.socket, select.EPOLLIN)
            assert connection.socket is not None
            under_way[connection.socket.fileno()] = connection
            sent = connection.socket.send(body)
            if sent < len(body):
                connection.rest = memoryview(body)[sent:]
                events.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

        for connection in self._connections:
            begin(connection)
        while under_way:
            ready = events.poll(_SILENCE_SECONDS)
            if not ready:
                raise RuntimeError(f"no answer for {_SILENCE_SECONDS:g} seconds")
            for number, what in ready:
                connection = under_way[number]
                link = connection.socket
                assert link is not None
                if what & select.EPOLLOUT:
                    connection.rest = connection.rest[link.send(connection.rest) :]
                    if not connection.rest:
                        events.modify(link, select.EPOLLIN)
                if not what & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    continue
                data = link.recv(65536)
                if not data:
                    raise RuntimeError(f"the connection was closed instead of an answer {connection.received!r}")
                connection.received += data
                if not _complete(connection.received):
                    continue
                ended = clock()
                latencies.append(ended - connection.began)
                if connection.received.startswith(b"HTTP/1.1 200 "):
                    acknowledged += connection.ids
                else:
                    refused += len(connection.ids)
                    first_refusal = first_refusal or connection.received.decode(errors="replace")
                del under_way[number]
                if self._new_each:
                    link.close()
                    connection.socket = None
                begin(connection)
        cpu = time.process_time() - cpu
        gc.enable()
        events.close()
        return acknowledged, latencies, began, ended, cpu, refused, first_refusal

    def _open(self) -> socket.socket:
        self._opened += 1
        link = socket.create_connection((_ADDRESSES[self._opened % len(_ADDRESSES)], self._port), _SILENCE_SECONDS)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setblocking(False)
        return link


def _complete(received: bytes) -> bool:
    """Whether this is a whole answer: regstat's always say how long they are."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    start = received.index(b"Content-Length: ") + 16
    return len(received) >= end + 4 + int(received[start : received.index(b"\r\n", start)])
