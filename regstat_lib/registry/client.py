"""Fetch manifests from registries."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from regstat_lib.registry.address import Address, Reach, is_repository
from regstat_lib.registry.auth_flow import (
    Obtain,
    Send,
    Token,
    TokenRequest,
    TokenServerBusy,
    Visitor,
    advice,
    converse,
    token_exchange,
)
from regstat_lib.registry.credentials import Credentials, UserPassword
from regstat_lib.registry.digest import is_verifiable, verified_content
from regstat_lib.registry.grants import GrantKey, Grants
from regstat_lib.registry.http_message import Request, Response
from regstat_lib.registry.keychain import ANONYMOUS, Keychain
from regstat_lib.registry.manifest_source import FetchedManifest, ManifestSource
from regstat_lib.registry.retry_after import seconds_until_retry
from regstat_lib.registry.transport import TransportError, prepare_context, send
from regstat_lib.registry.trouble import FetchError, Trouble
from regstat_lib.registry.trust import Trust, TrustError

CERTS_DIR = Path("/etc/docker/certs.d")
MANIFEST_LIMIT = 4 * 1024 * 1024
# All kinds, so that no registry converts one into another, which would have another digest.
MANIFEST_MEDIA_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
_HEADERS = MappingProxyType({"Accept": ", ".join(MANIFEST_MEDIA_TYPES)})
# A fetch is several requests; all of them end within so many times the time-out of one.
_FETCH_TIMEOUTS = 3
_REMEMBERED_ADDRESSES = 1024
# When no address of a registry is any good, the failure to report is that of the address that came furthest.
_MOST_TELLING = (Trouble.REFUSED, Trouble.BUSY, Trouble.UNREACHABLE, Trouble.UNUSABLE, Trouble.GONE)

Result = TypeVar("Result")


class _Elsewhere(FetchError):
    """A failure that says nothing about the manifest: perhaps this is not the registry, and another address is."""


class _Visit(NamedTuple):
    address: Address
    visitor: Visitor
    grant: GrantKey
    deadline: float


class RegistryClient:
    """Reads manifests from any registry that the keychain opens. Thread-safe; has no threads of its own.

    It keeps the tokens it was given and the address at which it found each registry, both bounded. It makes one
    attempt a call: when to try again is the caller's to decide, ``FetchError`` says whether that helps.
    """

    def __init__(
        self,
        keychain: Keychain = ANONYMOUS,
        *,
        addresses: Mapping[str, str] = MappingProxyType({}),
        insecure: Collection[str] = (),
        certs_dir: Path = CERTS_DIR,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ``ValueError`` with a sentence when an address or a host is malformed.

        ``addresses``: registry -> URL at which it is reached. ``insecure``: hosts with which plain http, and TLS
        with a certificate nobody vouches for, is good enough, secrets included. ``timeout``: seconds for one
        request with its whole answer. ``clock`` (seconds, monotonic) ages tokens, ``wall_clock`` (seconds since
        1970) reads dates in ``Retry-After``.
        """
        self._keychain = keychain
        self._reach = Reach(addresses, insecure)
        self._trust = Trust(certs_dir, prepare_context)
        self._timeout = timeout
        self._wall_clock = wall_clock
        self._grants = Grants(clock)
        self._lock = threading.Lock()
        self._found: OrderedDict[str, Address] = OrderedDict()

    def fetch_manifest(self, source: ManifestSource) -> FetchedManifest:
        """The manifest, its digest verified; otherwise ``FetchError``.

        Ends within three times the time-out, not counting name servers and credential helpers.
        """
        if not is_verifiable(source.digest):
            message = f"the digest {source.digest[:100]!r} is none that can be verified"
            raise FetchError(Trouble.UNUSABLE, source.registry, message)
        if not is_repository(source.repository):
            message = f"{source.repository[:100]!r} cannot be the name of a repository"
            raise FetchError(Trouble.UNUSABLE, source.registry, message)
        deadline = time.monotonic() + _FETCH_TIMEOUTS * self._timeout
        failures: list[FetchError] = []
        refused: set[Credentials] = set()
        for address in self._addresses(source):
            visitor = self._visitor(address, source)
            try:
                manifest = self._fetch_from(address, source, visitor, deadline)
            except FetchError as failure:
                if failure.trouble is Trouble.REFUSED:
                    refused |= {visitor.credentials} if visitor.credentials else set()
                elif not isinstance(failure, _Elsewhere):
                    self._remember(source.registry, address)
                    raise
                # After a refusal too: plain http, which is shown no credentials, may refuse what https allows.
                failures.append(failure)
                continue
            self._remember(source.registry, address)
            return manifest
        self._remember(source.registry, None)
        for credentials in refused:
            self._keychain.doubt(credentials)
        raise _most_telling(source, failures)

    def _addresses(self, source: ManifestSource) -> tuple[Address, ...]:
        """Where the registry was found before, otherwise wherever it may be."""
        possible = self._reach.addresses(source)
        with self._lock:
            found = self._found.get(source.registry)
        return (found,) if found in possible else possible

    def _remember(self, registry: str, address: Address | None) -> None:
        with self._lock:
            self._found.pop(registry, None)
            if address is not None:
                self._found[registry] = address
            while len(self._found) > _REMEMBERED_ADDRESSES:
                self._found.popitem(last=False)

    def _fetch_from(
        self, address: Address, source: ManifestSource, visitor: Visitor, deadline: float
    ) -> FetchedManifest:
        visit = _Visit(address, visitor, GrantKey(address.base, source.repository, visitor.credentials), deadline)
        request = Request(f"{address.base}/v2/{source.repository}/manifests/{source.digest}", MANIFEST_LIMIT, _HEADERS)
        response = self._drive(converse(request, visitor, self._grants.held(visit.grant)), visit)
        return self._manifest(response, source, visit)

    def _visitor(self, address: Address, source: ManifestSource) -> Visitor:
        entries = [self._keychain.find(name) for name in address.names]
        entry = next((entry for entry in entries if entry.credentials is not None), entries[0])
        visitor = Visitor(
            source.registry, source.repository, entry.credentials, entry.origin, self._reach.may_see_credentials
        )
        if entry.credentials is None or self._reach.may_see_credentials(address.base):
            return visitor
        withheld = f"because {address.base} is plain http: -insecure-registry {address.host} would allow it"
        return replace(visitor, credentials=None, explanation=withheld)

    def _drive(self, flow: Generator[Any, Any, Result], visit: _Visit) -> Result:
        """Give a flow what it asks for until it has its result."""
        try:
            wanted = next(flow)
            while True:
                wanted = flow.send(self._supply(wanted, visit))
        except StopIteration as end:
            result: Result = end.value
            return result

    def _supply(self, wanted: Send | Obtain, visit: _Visit) -> Response | str:
        if isinstance(wanted, Send):
            return self._send(wanted.request, visit)
        want = wanted.want
        return self._grants.obtain(visit.grant, wanted.rejected, lambda: self._token(want, visit))

    def _token(self, want: TokenRequest | UserPassword, visit: _Visit) -> Token:
        if isinstance(want, UserPassword):
            return Token(want.basic(), float("inf"))
        try:
            return self._drive(token_exchange(want, visit.visitor), visit)
        except TokenServerBusy as busy:
            retry_after = self._retry_after(busy.response)
            raise FetchError(Trouble.BUSY, busy.registry, str(busy), retry_after) from None

    def _send(self, request: Request, visit: _Visit) -> Response:
        host = urlsplit(request.url).netloc.lower()
        shown_to = visit.address.names if host == visit.address.host.lower() else ()
        try:
            context = self._context(request.url, (host, *shown_to), visit.address.names)
            return send(request, context, min(visit.deadline, time.monotonic() + self._timeout))
        except TransportError as error:
            # A token server or a store that fails is no sign that the registry itself is elsewhere.
            failure = _Elsewhere if host == visit.address.host.lower() else FetchError
            place = f"{urlsplit(request.url).scheme}://{host}"
            raise failure(error.trouble, visit.visitor.registry, f"{place}: {error}") from None
        except TrustError as error:
            raise _Elsewhere(Trouble.UNREACHABLE, visit.visitor.registry, str(error)) from None

    def _context(self, url: str, shown_to: tuple[str, ...], trusted_by: tuple[str, ...]) -> ssl.SSLContext:
        verify = not self._reach.is_declared_insecure(urlsplit(url).netloc)
        return self._trust.context(shown_to, trusted_by, verify)

    def _manifest(self, response: Response, source: ManifestSource, visit: _Visit) -> FetchedManifest:
        """The verdict on a response."""
        failure = FetchError if _is_registry(response) else _Elsewhere
        registry, name = source.registry, f"{source.repository}@{source.digest}"
        status = response.status
        if status == 200:
            body = verified_content(response.body, source.digest)
            if body is not None:
                media_type = response.header("content-type").partition(";")[0].strip().lower()
                return FetchedManifest(media_type, body)
            raise failure(Trouble.UNUSABLE, registry, f"{registry} answered with something else than {name}")
        if status in (404, 410):
            raise failure(Trouble.GONE, registry, f"{registry} has no {name} ({status})")
        if status in (401, 403):
            message = f"{registry} does not let regstat read {source.repository} ({status}): {advice(visit.visitor)}"
            raise failure(Trouble.REFUSED, registry, message)
        if status in (429, 503):
            message = f"{registry} asks to be left alone ({status})"
            raise failure(Trouble.BUSY, registry, message, self._retry_after(response))
        trouble = Trouble.UNREACHABLE if status >= 500 else Trouble.UNUSABLE
        raise failure(trouble, registry, f"{registry} answered with status {status} when asked for {name}")

    def _retry_after(self, response: Response) -> float | None:
        return seconds_until_retry(response.header("retry-after"), self._wall_clock())


def _is_registry(response: Response) -> bool:
    """Whether a registry said this, and not a web server that has its name or stands before it.

    Registries name themselves in a header (distribution, "API Version Check") or answer with the specification's
    JSON of errors (OCI distribution specification, "Error Codes").
    """
    if response.header("docker-distribution-api-version"):
        return True
    try:
        return isinstance(json.loads(response.body).get("errors"), list)
    except (ValueError, AttributeError, RecursionError):
        return False


def _most_telling(source: ManifestSource, failures: list[FetchError]) -> FetchError:
    registry = source.registry
    if not failures:
        message = f"{registry[:100]!r} cannot be the name of a registry, and the event names no other host"
        return FetchError(Trouble.UNUSABLE, registry, message)
    first = min(failures, key=lambda failure: _MOST_TELLING.index(failure.trouble))
    if first.trouble is Trouble.UNREACHABLE:
        reasons = "; ".join(dict.fromkeys(str(failure) for failure in failures))
        return FetchError(Trouble.UNREACHABLE, registry, f"{registry} cannot be reached: {reasons}")
    return FetchError(first.trouble, registry, str(first), first.retry_after)
