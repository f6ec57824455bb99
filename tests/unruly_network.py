"""A TCP proxy before a server that does to connections what networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

TO_SERVER, TO_CLIENT = "to the server", "to the client"
_CHUNK = 65536


class Cut(NamedTuple):
    """Where to break a connection: after so many bytes in this direction, and whether with a reset."""

    direction: str
    after: int
    reset: bool


class UnrulyNetwork:
    """Passes bytes on to a port of this machine, as it is told to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.piece = _CHUNK  # how many bytes it passes on at a time
        self.pause = 0.0  # seconds after each
        self.held = 0  # how often something had to wait for `resume`
        self.cuts = 0  # done so far
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}  # bytes
        self._cut: Cut | None = None
        self._victim: object = None
        self._passes = threading.Event()
        self._passes.set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self, direction: str, after: int, reset: bool = False) -> None:
        """Breaks the connection that next says something to the server, `after` more bytes in that direction."""
        with self._lock:
            self._cut, self._victim = Cut(direction, after, reset), None

    def stall(self) -> None:
        """Passes nothing on, until `resume`."""
        self._passes.clear()

    def resume(self) -> None:
        self._passes.set()

    def narrow(self) -> None:
        """Has little room for what is on its way, in connections that are made from now on."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)

    def close(self) -> None:
        self.resume()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                pair = (client, server)
                with self._lock:
                    self._open.update(pair)
                for end in pair:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, direction in ((client, server, TO_SERVER), (server, client, TO_CLIENT)):
                    thread = threading.Thread(target=self._pass_on, args=(pair, source, sink, direction))
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, pair: tuple[socket.socket, ...], source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(_CHUNK)
                if not self._passes.is_set():
                    self.held += 1
                    self._passes.wait()
                if not data:
                    break
                data, cut = self._until_cut(pair, data, way)
                with self._lock:
                    self.passed[way] += len(data)
                for start in range(0, len(data), self.piece):
                    sink.sendall(data[start : start + self.piece])
                    if self.pause:
                        time.sleep(self.pause)
                if cut is not None:
                    if cut.reset:
                        for end in pair:
                            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.difference_update(pair)

    def _until_cut(self, pair: object, data: bytes, way: str) -> tuple[bytes, Cut | None]:
        with self._lock:
            cut = self._cut
            if cut is None or (self._victim is None and way != TO_SERVER):
                return data, None
            if self._victim is None:
                self._victim = pair
            if self._victim is not pair or cut.direction != way:
                return data, None
            if len(data) < cut.after:
                self._cut = cut._replace(after=cut.after - len(data))
                return data, None
            self._cut = None
            self.cuts += 1
            return data[: cut.after], cut


@contextlib.contextmanager
def unruly_network(port: int) -> Iterator[UnrulyNetwork]:
    """A network before that port, until the end of the block."""
    network = UnrulyNetwork(port)
    try:
        yield network
    finally:
        network.close()
