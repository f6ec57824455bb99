"""One HTTP request and its whole answer, within a time and a size. Redirects are not followed here."""

from __future__ import annotations

import errno
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
import zlib
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

from regstat_lib import __version__
from regstat_lib.registry.address import is_loopback
from regstat_lib.registry.http_message import Request, Response
from regstat_lib.registry.trouble import Trouble

USER_AGENT = f"regstat/{__version__}"
_CHUNK = 64 * 1024
_GZIP = 16 + zlib.MAX_WBITS
_DEADLINE = "it did not answer in full within the time limit"


class TransportError(Exception):
    """There is no answer that can be used. The text is a clause that holds nothing the other side sent."""

    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


def send(request: Request, context: ssl.SSLContext, deadline: float) -> Response:
    """Send a request and read its answer to the end; raises ``TransportError``.

    ``deadline`` is a time of ``time.monotonic()`` for all of it (only a name server can take longer): a server that
    sends a byte a second does not get a time-out for each. ``context`` must be one that ``prepare_context`` prepared.
    Proxies are those of the environment (``https_proxy``, ``http_proxy``, ``no_proxy``), never for this machine itself.
    """
    try:
        return _send(request, context, deadline)
    except TransportError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        # A name that urllib cannot reach is wrapped by it; the reason is what counts.
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        _fail(reason if isinstance(reason, Exception) else error)


def prepare_context(context: ssl.SSLContext) -> None:
    """Make the sockets of this context observe a deadline."""
    context.sslsocket_class = _TLSSocket


def _send(request: Request, context: ssl.SSLContext, deadline: float) -> Response:
    handlers: list[urllib.request.BaseHandler] = [_Handler(deadline), _TLSHandler(context, deadline)]
    if not is_loopback(urlsplit(request.url).netloc):
        handlers.insert(0, urllib.request.ProxyHandler())
    opener = urllib.request.OpenerDirector()
    for handler in handlers:
        opener.add_handler(handler)
    wire = urllib.request.Request(request.url, data=request.form, headers=dict(request.headers))
    wire.add_header("User-Agent", USER_AGENT)
    if request.authorization is not None:
        wire.add_unredirected_header("Authorization", request.authorization)
    response: http.client.HTTPResponse | None = opener.open(wire, timeout=_remaining(deadline))
    if response is None:
        raise TransportError(Trouble.UNREACHABLE, "the proxy that the environment names for it cannot be used")
    with response:
        body = _read(response, request.body_limit)
        headers = tuple((name.lower(), value) for name, value in response.getheaders())
        return Response(request.url, response.status, headers, body)


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    announced = response.length
    if announced is not None and announced > limit:
        raise TransportError(Trouble.UNUSABLE, f"its answer has more than {limit} bytes")
    body = bytearray()
    while len(body) <= limit:
        chunk = response.read(min(_CHUNK, limit + 1 - len(body)))
        if not chunk:
            break
        body += chunk
    if len(body) > limit:
        raise TransportError(Trouble.UNUSABLE, f"its answer has more than {limit} bytes")
    if announced is not None and len(body) < announced:
        raise TransportError(Trouble.UNREACHABLE, "the connection ended in the middle of its answer")
    return _decoded(bytes(body), response.getheader("Content-Encoding") or "identity", limit)


def _decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its content coding. None was asked for, but a proxy may compress all the same."""
    if encoding.strip().lower() == "identity" or not body:
        return body
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise TransportError(Trouble.UNUSABLE, "its answer has an encoding other than gzip, and none was asked for")
    decoder = zlib.decompressobj(_GZIP)
    try:
        decoded = decoder.decompress(body, limit + 1)
    except zlib.error:
        raise TransportError(Trouble.UNUSABLE, "its answer is said to be gzip and is not") from None
    if len(decoded) > limit:
        raise TransportError(Trouble.UNUSABLE, f"its answer has more than {limit} bytes")
    if not decoder.eof:
        raise TransportError(Trouble.UNUSABLE, "its answer is gzip that breaks off")
    return decoded


def _fail(error: Exception) -> NoReturn:
    """Say an error in words of ours: the text of many would quote what the other side sent."""
    if isinstance(error, (TimeoutError, socket.timeout)):
        reason = _DEADLINE
    elif isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate cannot be trusted ({error.verify_message}): -certs-dir can hold its authority"
    elif isinstance(error, ssl.SSLError):
        reason = f"TLS failed ({(error.reason or 'no reason given').replace('_', ' ').lower()})"
    elif isinstance(error, socket.gaierror):
        reason = "its name cannot be resolved"
    elif isinstance(error, http.client.RemoteDisconnected):
        reason = "it closed the connection without an answer"
    elif isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
    elif isinstance(error, OSError):
        status = re.match(r"Tunnel connection failed: (\d{3})", str(error))
        reason = f"the proxy refused to connect ({status.group(1)})" if status else "the connection failed"
    elif isinstance(error, http.client.IncompleteRead):
        reason = "the connection ended in the middle of its answer"
    elif isinstance(error, http.client.HTTPException):
        reason = "what it answered is not HTTP"
    else:
        raise TransportError(Trouble.UNUSABLE, "what should be sent to it is no HTTP request") from None
    raise TransportError(Trouble.UNREACHABLE, reason) from None


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        # Not TimeoutError: the sockets' files of Python 3.9 take only this one for a time-out, and look into any other
        # OSError for the number that it has to have.
        raise socket.timeout("timed out")
    return remaining


class _Socket(socket.socket):
    """Each read waits for what is left of one deadline, not anew for a whole time-out."""

    deadline = float("inf")

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(_remaining(self.deadline))
        return super().recv_into(*arguments, **options)


class _TLSSocket(ssl.SSLSocket):
    """The same with TLS."""

    deadline = float("inf")

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self.settimeout(_remaining(self.deadline))
        return super().recv_into(*arguments, **options)


def _connect(deadline: float, host: str, port: int) -> _Socket:
    """Connect to the first address of a host that answers; each gets its share of the time that is left."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError = OSError(errno.EADDRNOTAVAIL, "no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        try:
            connection = _Socket(family, kind, protocol)
        except OSError as error:
            failure = error
            continue
        try:
            connection.deadline = deadline
            connection.settimeout(_remaining(deadline) / (len(addresses) - tried))
            connection.connect(address)
            connection.settimeout(_remaining(deadline))
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


class _Connection(http.client.HTTPConnection):
    """``http.client``'s connection on a socket that observes a deadline."""

    def __init__(self, host: str, *, deadline: float, **options: Any) -> None:
        super().__init__(host, **options)
        # The attribute that http.client keeps for those who open its socket in another way.
        self._create_connection = lambda address, *_: _connect(deadline, *address)


class _TLSConnection(http.client.HTTPSConnection):
    """The same with TLS."""

    def __init__(self, host: str, *, deadline: float, **options: Any) -> None:
        super().__init__(host, **options)
        self._deadline = deadline
        self._create_connection = lambda address, *_: _connect(deadline, *address)

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, _TLSSocket)
        self.sock.deadline = self._deadline


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, deadline=self._deadline), req)


class _TLSHandler(urllib.request.HTTPSHandler):
    def __init__(self, context: ssl.SSLContext, deadline: float) -> None:
        super().__init__()
        self._tls = context
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_TLSConnection, context=self._tls, deadline=self._deadline), req)
