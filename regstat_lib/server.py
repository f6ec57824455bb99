"""Sockets: HTTP/1.1 for the webhook, with bounded threads, sizes and times.

It is a `ThreadingHTTPServer` whose threads are kept for the next connection, since a registry opens a new one for
every event, and whose handler reads the few headers that matter itself (RFC 9112). The thread of a connection reads
its requests; who has the answer sends it, which is mostly the thread that has just committed. To wake the one that
read the request, only to send, would cost more than the sending.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
from functools import lru_cache
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socketserver import StreamRequestHandler
from typing import Any, Callable, NamedTuple

from regstat_lib import __version__
from regstat_lib.webhook import Answer, Respond, problem, unavailable

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
_IDLE_THREADS = 16
_BACKLOG = 1024
# A registry waits a second for an answer; who is silent for longer in the middle of a request is gone.
_REQUEST_SECONDS = 30.0
# Who waits longer for a commit is told to come again.
_REPLY_SECONDS = 10.0
_KEPT_SECONDS = 120.0
# How often a thread that waits for a connection looks whether it is to stop.
_ACCEPT_SECONDS = 1.0
# When it stops: for the request of who has just connected.
_FIRST_REQUEST_SECONDS = 1.0
_MAX_HEAD = 64 * 1024
# A sender's heads differ in the length of the body at most: so many are parsed once, if they are no longer than usual.
_KNOWN_HEADS, _SHORT_HEAD = 256, 1024

AnswerRequest = Callable[[str, str, bytes, Respond], None]


_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: regstat/{__version__}\r\n"
    "Content-Type: application/json\r\n"
    for status in HTTPStatus
}


class _BadRequest(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class _Head(NamedTuple):
    method: str
    path: str
    length: int
    chunked: bool
    keep_alive: bool
    expects_continue: bool


class WebhookServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve` answers until `stop`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG
    allow_reuse_address = True

    def __init__(
        self,
        port: int,
        answer: AnswerRequest,
        max_body: int,
        *,
        host: str | None = None,
        listener: socket.socket | None = None,
        reply_seconds: float = _REPLY_SECONDS,
    ) -> None:
        """`answer` may give its answer later, from any thread; after `reply_seconds` without one it is 503.

        `listener` is a socket that listens already and stays another's too; the port is then its own.
        """
        # An IPv6 socket that takes IPv4 as well is "all interfaces"; without IPv6 in the kernel, IPv4 is all.
        if host is None:
            host, self.address_family = ("::", socket.AF_INET6) if _has_dual_stack() else ("", socket.AF_INET)
        self.answer_request = answer
        self.max_body = max_body
        self.reply_seconds = reply_seconds
        self.stopping = False
        self._threads_lock = threading.Lock()
        self._thread_count = 0
        self._accepting = 0
        self._serving = 0
        # Connections that were accepted and have asked for nothing yet.
        self._fresh: set[socket.socket] = set()
        # Connections from which a request, or the rest of one, is awaited; the longest awaited first.
        self._awaited: dict[socket.socket, None] = {}
        self._all_idle = threading.Condition(self._threads_lock)
        self._shares_listener = listener is not None
        if listener is None:
            super().__init__((host, port), _Handler)
        else:
            super().__init__((host, port), _Handler, bind_and_activate=False)
            self.socket.close()
            self.socket = listener
            self.server_address = listener.getsockname()

    def server_bind(self) -> None:
        if self.address_family == getattr(socket, "AF_INET6", None):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def serve(self) -> None:
        """Begins to answer, in threads of its own; returns at once."""
        # Threads block in accept itself: the kernel wakes one of them for a connection, and no other. Python's own
        # timeouts would cost two system calls more for each call, so the kernel keeps them: this one, and those of
        # the connections.
        self.socket.setblocking(True)
        _set_timeout(self.socket, socket.SO_RCVTIMEO, _ACCEPT_SECONDS)
        self._start_thread()

    def stop(self, seconds: float) -> bool:
        """Accepts no more and waits for the requests under way; whether they were done within `seconds`.

        Who connected before gets an answer, if the request comes soon: where the port is systemd's, its clients do
        not notice a restart.
        """
        self.stopping = True
        if not self._shares_listener:
            # Wakes the threads that wait there; it would stop whoever else listens on the same socket as well.
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        began = time.monotonic()
        with self._all_idle:
            while True:
                passed = time.monotonic() - began
                fresh = self._fresh and passed < _FIRST_REQUEST_SECONDS
                if not (self._accepting or self._serving or fresh):
                    self.socket.close()
                    return True
                if passed >= seconds:
                    return False
                self._all_idle.wait(min(seconds - passed, 0.1 if fresh else seconds))

    def began(self, connection: socket.socket) -> None:
        """A request is under way."""
        with self._threads_lock:
            self._serving += 1
            self._fresh.discard(connection)

    def ended(self, connection: socket.socket, kept: bool) -> None:
        """It was answered; of a connection that is kept another one is awaited: it may have to make room for others."""
        with self._all_idle:
            self._serving -= 1
            if kept:
                self._awaited[connection] = None
            if self.stopping:
                self._all_idle.notify_all()

    def awaits_no_more(self, connection: socket.socket) -> bool:
        """All of a request came; False when the connection had to make room meanwhile."""
        with self._threads_lock:
            if connection not in self._awaited:
                return False
            del self._awaited[connection]
            return True

    def closes(self, connection: socket.socket) -> None:
        """Nothing more is awaited from this connection, nor answered."""
        with self._threads_lock:
            self._awaited.pop(connection, None)
            self._fresh.discard(connection)

    def has_room(self) -> bool:
        """Whether a thread can be spared for a connection that may stay idle."""
        with self._threads_lock:
            return self._accepting > 0 or self._thread_count < MAX_CONNECTIONS

    def _make_room(self) -> None:
        """Ends the connection that keeps its thread waiting longest, idle or slow. To be called with the lock."""
        connection = next(iter(self._awaited), None)
        if connection is not None:
            del self._awaited[connection]
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _start_thread(self) -> None:
        with self._threads_lock:
            self._thread_count += 1
            self._accepting += 1
        threading.Thread(target=self._accept_and_serve, name="webhook", daemon=True).start()

    def _accept_and_serve(self) -> None:
        while not self.stopping:
            connection = self._accept()
            if connection is None:
                break
            with self._threads_lock:
                self._accepting -= 1
                # Somebody must be there for the next one, as long as there is room.
                more = self._accepting == 0 and self._thread_count < MAX_CONNECTIONS
                if self._accepting == 0 and not more:
                    self._make_room()
                self._fresh.add(connection)
                self._awaited[connection] = None
            if more:
                self._start_thread()
            try:
                self.finish_request(connection, None)
            except OSError:
                pass  # the client went away
            except Exception:
                _log.exception("Answering a request failed in a way that regstat does not know")
            finally:
                self.closes(connection)
                connection.close()
            with self._threads_lock:
                if self._accepting >= _IDLE_THREADS:
                    self._thread_count -= 1
                    return
                self._accepting += 1
        with self._all_idle:
            self._thread_count -= 1
            self._accepting -= 1
            self._all_idle.notify_all()

    def _accept(self) -> socket.socket | None:
        while not self.stopping:
            try:
                connection, _ = self.socket.accept()
            except (BlockingIOError, InterruptedError):
                continue  # nobody came for a while
            except OSError as error:
                if self.stopping:
                    return None
                # Out of file descriptors, most likely: a pause lets some go.
                _log.error("A connection could not be accepted: %s", error)
                time.sleep(0.2)
                continue
            return connection
        return None


def _set_timeout(connection: socket.socket, direction: int, seconds: float) -> None:
    """Lets the kernel end a call on the socket after so long, with BlockingIOError (socket(7), SO_RCVTIMEO)."""
    whole = int(seconds)
    timeval = struct.pack("@ll", whole, max(1, int((seconds - whole) * 1e6)))
    connection.setsockopt(socket.SOL_SOCKET, direction, timeval)


def _send_at_once(connection: socket.socket, data: bytes) -> None:
    """Sends all of it without waiting for the client; raises OSError when it does not fit into the socket's buffer."""
    if connection.send(data, socket.MSG_DONTWAIT) < len(data):
        raise BlockingIOError("The client does not read what it is sent.")


def _has_dual_stack() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


class _Reply:
    """The reply to a request, which is under way from its first bytes on: sent once, by whoever comes first.

    That is who has the answer, in any thread, or the thread of the connection when there was none in time. Sending
    never waits for the client: who does not read its answers loses its connection.
    """

    def __init__(self, server: WebhookServer, connection: socket.socket) -> None:
        self._server = server
        self._connection = connection
        self._first = threading.Lock()  # for ever held by who came first
        self._settled = threading.Lock()  # let go of when nothing more is sent
        self._settled.acquire()
        self._head_only = False
        self._may_keep = False
        self._kept = False
        self._due = 0.0
        server.began(connection)

    def expect(self, head: _Head) -> None:
        """The request was read, and its answer will come."""
        self._head_only = head.method == "HEAD"
        self._may_keep = head.keep_alive
        self._due = time.monotonic() + self._server.reply_seconds

    def send(self, answer: Answer) -> None:
        """Sends the answer, unless there was one before. Neither raises nor waits for the client."""
        if not self._first.acquire(blocking=False):
            return
        keep = self._may_keep and not self._server.stopping and self._server.has_room()
        kept = False
        try:
            _send_at_once(self._connection, _message(answer, keep, self._head_only))
            kept = keep
        except OSError:
            pass  # the client went away, or does not read
        finally:
            if self._may_keep and not kept:
                # The thread of the connection waits for a next request, which is not to come.
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
            self._settle(kept)

    def revoke(self) -> None:
        """There will be no answer. When this returns, nothing is sent any more."""
        if self._first.acquire(blocking=False):
            self._settle(False)
        with self._settled:
            pass

    def conclude(self) -> bool:
        """Waits for the answer, and sends 503 when it does not come in time; whether the connection is kept.

        When this returns, nothing is sent any more: the next request may be answered, or the connection closed.
        """
        if not self._settled.acquire(timeout=max(0.0, self._due - time.monotonic())):
            self.send(unavailable(f"There was no commit within {self._server.reply_seconds:g} seconds."))
            self._settled.acquire()
        self._settled.release()
        return self._kept

    def _settle(self, kept: bool) -> None:
        self._kept = kept
        self._server.ended(self._connection, kept)
        self._settled.release()


def _message(answer: Answer, keep_alive: bool, head_only: bool) -> bytes:
    headers = "".join([f"{name}: {value}\r\n" for name, value in answer.headers])
    close = "" if keep_alive else "Connection: close\r\n"
    head = f"{_STATUS_LINES[answer.status]}Content-Length: {len(answer.body)}\r\n{headers}{close}\r\n"
    return head.encode("latin-1", "replace") + (b"" if head_only else answer.body)


class _Handler(StreamRequestHandler):
    """One connection: its requests one after the other, until either side has enough.

    It waits for the next request while the one before is still to be answered, but does nothing with it until then:
    answers have the order of the requests.
    """

    server: WebhookServer

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Then it is time for a 503, if there is something to answer.
        _set_timeout(self.request, socket.SO_RCVTIMEO, self.server.reply_seconds)
        self._hurried = False  # whether the timeout is that of the rest of a request
        self._received = b""
        self._reply: _Reply | None = None  # to the newest request that was read

    def handle(self) -> None:
        while self._next_comes() and self._take():
            pass

    def finish(self) -> None:
        self._received = b""
        self._concluded()

    def _next_comes(self) -> bool:
        """Waits for the first bytes of a request; whether they came, and whatever came before is answered."""
        if self._hurried:
            _set_timeout(self.request, socket.SO_RCVTIMEO, self.server.reply_seconds)
            self._hurried = False
        silent = 0.0
        while not self._received and silent < _KEPT_SECONDS:
            try:
                self._received = self.request.recv(65536)
            except BlockingIOError:
                silent += self.server.reply_seconds
            else:
                break
            if not self._concluded():
                return False
        return self._concluded() and bool(self._received)

    def _concluded(self) -> bool:
        return self._reply is None or self._reply.conclude()

    def _take(self) -> bool:
        """Reads a request and hands it on; whether there may be another one."""
        self._deadline = time.monotonic() + _REQUEST_SECONDS
        reply = _Reply(self.server, self.request)
        try:
            head = self._read_head()
            body = self._read_body(head)
            if not self.server.awaits_no_more(self.request):
                raise ConnectionError("had to make room")
            reply.expect(head)
            self.server.answer_request(head.method, head.path, body, reply.send)
        except _BadRequest as error:
            reply.send(error.answer)
            self._linger()
            return False
        except BaseException:
            reply.revoke()
            raise
        self._reply = reply
        return head.keep_alive

    def _read_head(self) -> _Head:
        received = self._received
        end = received.find(b"\r\n\r\n")
        while end < 0:
            if len(received) > _MAX_HEAD:
                raise _BadRequest(problem(431, f"The headers are longer than {_MAX_HEAD} bytes."))
            received += self._more()
            end = received.find(b"\r\n\r\n")
        self._received = received[end + 4 :]
        return (_known_head if end <= _SHORT_HEAD else _parse_head)(received[:end])

    def _read_body(self, head: _Head) -> bytes:
        limit = self.server.max_body
        if head.length > limit:
            raise _BadRequest(_too_large(limit))
        if head.expects_continue and (head.length or head.chunked) and not self._received:
            _send_at_once(self.request, b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.chunked:
            return self._read_chunks(limit)
        if len(self._received) < head.length:
            parts = [self._received]
            missing = head.length - len(self._received)
            while missing > 0:
                parts.append(self._more())
                missing -= len(parts[-1])
            self._received = b"".join(parts)
        body, self._received = self._received[: head.length], self._received[head.length :]
        return body

    def _read_chunks(self, limit: int) -> bytes:
        """A body in chunks (RFC 9112, section 7.1)."""
        parts: list[bytes] = []
        total = 0
        while True:
            line = self._read_line()
            try:
                size = int(line.split(b";", 1)[0].strip() or b"-", 16)
                if size < 0:
                    raise ValueError
            except ValueError:
                raise _BadRequest(problem(400, "The body's chunks are malformed.")) from None
            total += size
            if total > limit:
                raise _BadRequest(_too_large(limit))
            if size == 0:
                while self._read_line():
                    pass  # trailers
                return b"".join(parts)
            while len(self._received) < size + 2:
                self._received += self._more()
            parts.append(self._received[:size])
            self._received = self._received[size + 2 :]

    def _read_line(self) -> bytes:
        while b"\r\n" not in self._received:
            if len(self._received) > _MAX_HEAD:
                raise _BadRequest(problem(400, "The body's chunks are malformed."))
            self._received += self._more()
        line, _, self._received = self._received.partition(b"\r\n")
        return line

    def _more(self) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ConnectionError("too slow")
        _set_timeout(self.request, socket.SO_RCVTIMEO, left)
        self._hurried = True
        data: bytes = self.request.recv(262144)
        if not data:
            raise ConnectionError("closed in the middle of a request")
        return data

    def _linger(self) -> None:
        """Reads on a little after an early answer: closing with unread bytes resets the connection and the answer."""
        self.request.shutdown(socket.SHUT_WR)
        _set_timeout(self.request, socket.SO_RCVTIMEO, 0.5)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and self.request.recv(262144):
            pass


def _too_large(limit: int) -> Answer:
    return problem(413, f"The body is larger than {limit} bytes, the limit of -max-body.")


def _parse_head(head: bytes) -> _Head:
    lines = head.decode("latin-1").split("\r\n")
    request_line = lines[0].split(" ")
    if len(request_line) != 3 or not request_line[2].startswith("HTTP/1."):
        raise _BadRequest(problem(400, "This is no HTTP/1 request."))
    method, path, version = request_line
    fields: dict[str, Any] = {}
    for line in lines[1:]:
        name, separator, value = line.partition(":")
        if not separator or name != name.strip() or not name:
            raise _BadRequest(problem(400, "A header of the request is malformed."))
        name, value = name.lower(), value.strip()
        if name == "content-length" and fields.get(name, value) != value:
            raise _BadRequest(problem(400, "The request has two lengths."))
        fields[name] = value
    chunked = "transfer-encoding" in fields
    if chunked and fields["transfer-encoding"].lower() != "chunked":
        raise _BadRequest(problem(501, "The only transfer encoding that is understood is chunked."))
    text = fields.get("content-length", "0")
    # RFC 9112, section 6.3: a request with both is an attempt at smuggling.
    if not (text.isascii() and text.isdigit() and len(text) < 20) or (chunked and "content-length" in fields):
        raise _BadRequest(problem(400, "The request's length is malformed."))
    connection = fields.get("connection", "").lower()
    keep_alive = "close" not in connection if version != "HTTP/1.0" else "keep-alive" in connection
    return _Head(method, path, int(text), chunked, keep_alive, fields.get("expect", "").lower() == "100-continue")


_known_head = lru_cache(_KNOWN_HEADS)(_parse_head)
