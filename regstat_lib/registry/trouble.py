"""Why a manifest could not be fetched, and whether trying again helps."""

from __future__ import annotations

from enum import Enum


class Trouble(Enum):
    """What a failure says about trying again."""

    GONE = "gone"
    """The registry answered that it has no such manifest (404, 410): settled, no retry."""
    REFUSED = "refused"
    """Credentials are missing or were refused (401, 403): the operator must act, so try again slowly."""
    BUSY = "busy"
    """The registry asked to be left alone for a while (429, 503), see ``FetchError.retry_after``."""
    UNREACHABLE = "unreachable"
    """Time-outs, resets, names that do not resolve, TLS failures, other 5xx: try again with growing delays."""
    UNUSABLE = "unusable"
    """An answer that cannot be used (wrong digest, too large, a redirect or realm that must not be followed)."""


class FetchError(Exception):
    """A manifest was not fetched. ``str()`` is one line for the operator and never holds a secret."""

    def __init__(self, trouble: Trouble, registry: str, message: str, retry_after: float | None = None) -> None:
        """``registry`` is the name the tables use; ``retry_after`` is in seconds, when the registry said so."""
        # Names come from events, which anybody may have written: no line of the log may be forged with them.
        super().__init__("".join(character if character.isprintable() else "?" for character in message))
        self.trouble = trouble
        self.registry = registry
        self.retry_after = retry_after
