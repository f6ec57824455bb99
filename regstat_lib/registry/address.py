"""Where to ask for a manifest, and which addresses may be shown a secret. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from regstat_lib.registry.docker_config import DOCKER_HUB
from regstat_lib.registry.manifest_source import ManifestSource

# host or host:port; an IPv6 address is in brackets. What does not look so is not put into a URL or a file name.
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# Wider than the distribution specification's <name>, which some registries do not hold to, but nothing that could
# leave /v2/<name>/: no empty segment, none of dots alone, no character with a meaning in a URL.
_REPOSITORY = re.compile(r"(?:(?!\.+(?:/|$))[A-Za-z0-9._-]+/)*(?!\.+$)[A-Za-z0-9._-]+")
_DOCKER_HUB_API = "registry-1.docker.io"


class Address(NamedTuple):
    """One way to reach a registry."""

    base: str
    """What comes before ``/v2/``: scheme, host and perhaps a path, without a slash at the end."""
    names: tuple[str, ...]
    """Whose credentials and certificates are meant for it, best first."""

    @property
    def host(self) -> str:
        """Host or host:port."""
        return urlsplit(self.base).netloc


def is_host(text: str) -> bool:
    """Whether the text is a host or host:port."""
    return _HOST.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether the text can be a repository's name in a URL."""
    return len(text) <= 1024 and _REPOSITORY.fullmatch(text) is not None


def split_http_url(url: str) -> SplitResult | None:
    """The parts of an absolute http or https URL without user name and password; None for anything else."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and is_host(parts.netloc) and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    return parts if usable and url.isascii() and url.isprintable() and " " not in url else None


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what must be the same for credentials to follow. ``url`` as ``split_http_url`` takes."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether host or host:port is this machine, as far as its text alone tells."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class Reach:
    """Where registries are: what the operator said about it, applied to what events say."""

    def __init__(self, addresses: Mapping[str, str], insecure: Collection[str]) -> None:
        """``addresses`` maps a registry to its URL, ``insecure`` names hosts that may be talked to without TLS.

        Raises ``ValueError`` with a sentence when a URL or a host is malformed.
        """
        for host in (*addresses, *insecure):
            if not is_host(host):
                raise ValueError(f"{host!r} is not a registry: expected HOST or HOST:PORT")
        for host, url in addresses.items():
            parts = split_http_url(url)
            if parts is None or parts.query or parts.fragment:
                raise ValueError(f"the URL for {host} is not usable: expected http(s)://HOST[:PORT][/PATH]")
        self._bases = {host.lower(): url.rstrip("/") for host, url in addresses.items()}
        self._insecure = {host.lower() for host in insecure}
        # Who allows it for a registry allows it for the address that he gave this registry.
        declared = [base for host, base in self._bases.items() if host in self._insecure]
        self._insecure |= {urlsplit(base).netloc.lower() for base in declared}

    def allows_insecure(self, host: str) -> bool:
        """Whether host or host:port may be talked to without TLS, secrets included: this machine, or as declared."""
        return is_loopback(host) or self.is_declared_insecure(host)

    def is_declared_insecure(self, host: str) -> bool:
        """Whether the operator declared host or host:port to be insecure; without a port he means every port."""
        return host.lower() in self._insecure or urlsplit(f"//{host.lower()}").hostname in self._insecure

    def may_see_credentials(self, url: str) -> bool:
        """Whether a secret may be sent to this URL: https, or where the operator allows plain http."""
        parts = urlsplit(url)
        return parts.scheme == "https" or self.allows_insecure(parts.netloc)

    def addresses(self, source: ManifestSource) -> tuple[Address, ...]:
        """Where to ask for this manifest, best first; empty when nothing the event said can be a host.

        An address that the operator gave is the only one. Otherwise, for the registry's name and then for the host
        as the event had it: the scheme of the event, https, and http where that is allowed.
        """
        for name in (source.registry, source.host):
            base = self._bases.get(name.lower())
            if base is not None:
                return (Address(base, _distinct((name, urlsplit(base).netloc))),)
        event = split_http_url(source.url)
        hosts = _distinct((source.registry, source.host, event.netloc if event else ""))
        return tuple(
            Address(f"{scheme}://{_api_host(host)}", (host,)) for host in hosts for scheme in self._schemes(host, event)
        )

    def _schemes(self, host: str, event: SplitResult | None) -> Iterator[str]:
        said = event.scheme if event else "https"
        yield said
        if said != "https":
            yield "https"
        elif self.allows_insecure(host):
            yield "http"


def _api_host(host: str) -> str:
    return _DOCKER_HUB_API if host == DOCKER_HUB else host


def _distinct(hosts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(host.lower() for host in hosts if is_host(host)))
