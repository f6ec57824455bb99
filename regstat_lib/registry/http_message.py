"""Requests and responses as values, so that what is said can be decided and tested without sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Request:
    """One HTTP request. What may be secret in it is kept out of its ``repr``."""

    url: str
    body_limit: int
    """How many bytes the answer's body may have."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    authorization: str | None = field(default=None, repr=False)
    form: bytes | None = field(default=None, repr=False)
    """A body, ``application/x-www-form-urlencoded``; with it the request is a POST, without it a GET."""


@dataclass(frozen=True)
class Response:
    """One HTTP response, read to its end."""

    url: str
    """What was asked, after redirects."""
    status: int
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Names in lower case."""
    body: bytes = field(default=b"", repr=False)

    def header(self, name: str) -> str:
        """The first value of a header, given in lower case; "" when it is missing."""
        return next(iter(self.header_values(name)), "")

    def header_values(self, name: str) -> list[str]:
        """All values of a header, given in lower case."""
        return [value for key, value in self.headers if key == name]
