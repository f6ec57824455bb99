"""What the registry client is asked for, and what it gives back."""

from __future__ import annotations

from typing import NamedTuple


class ManifestSource(NamedTuple):
    """A manifest that an event named, and everything the event said about where it is.

    Nothing here is trusted: whoever can post a notification can write it.
    """

    registry: str
    """The name the tables use, equivalence applied: host or host:port."""
    repository: str
    digest: str
    url: str
    """``target.url`` as the event had it, "" when there was none. Often wrong: an alias, a wrong scheme, relative."""
    host: str
    """``request.host`` as the event had it, before equivalence was applied; may be ""."""


class FetchedManifest(NamedTuple):
    """A manifest as the registry has it; hashing ``body`` gives the digest that was asked for."""

    media_type: str
    """Content-Type without parameters, lower-case; "" when the registry sent none."""
    body: bytes
    """The bytes the digest is computed over: of a signed schema 1 manifest, the payload without its signatures."""
