"""When to ask a registry again. Pure: randomness comes in as a number from 0 to 1."""

from __future__ import annotations

from typing import NamedTuple

from regstat_lib.registry import Trouble

# Attempts after which a manifest is given up; while a whole registry is out of reach, only one manifest at a time
# uses up an attempt of its own.
_ATTEMPTS = {Trouble.GONE: 1, Trouble.UNUSABLE: 5, Trouble.REFUSED: 40, Trouble.BUSY: 40, Trouble.UNREACHABLE: 40}
_FIRST_SECONDS = {Trouble.UNUSABLE: 60.0, Trouble.REFUSED: 60.0, Trouble.BUSY: 2.0, Trouble.UNREACHABLE: 2.0}
_LONGEST_SECONDS = 6 * 3600.0
_REGISTRY_FIRST_SECONDS = 1.0
_REGISTRY_LONGEST_SECONDS = 300.0


class Retry(NamedTuple):
    """What follows from a failure: when to ask for this manifest again, and until when to spare its registry."""

    after: float | None  # seconds; None: never
    spare_registry: float  # seconds; 0: ask it for others at once


def retry_of(trouble: Trouble, attempts: int, failures: int, retry_after: float | None, chance: float) -> Retry:
    """What to do after a failure.

    `attempts` were made for this manifest before, `failures` of its registry in a row before this one, `chance` is a
    random number from 0 to 1: delays double and are spread over their upper half, so that those who failed together
    do not come back together.
    """
    after: float | None = None
    if attempts + 1 < _ATTEMPTS[trouble]:
        after = _spread(min(_FIRST_SECONDS[trouble] * 2.0 ** min(attempts, 30), _LONGEST_SECONDS), chance)
    if trouble not in (Trouble.BUSY, Trouble.UNREACHABLE):
        return Retry(after, 0.0)
    spared = _spread(min(_REGISTRY_FIRST_SECONDS * 2.0 ** min(failures, 30), _REGISTRY_LONGEST_SECONDS), chance)
    if retry_after is not None:
        spared = max(spared, min(retry_after, _LONGEST_SECONDS))
    return Retry(None if after is None else max(after, spared), spared)


def _spread(seconds: float, chance: float) -> float:
    return seconds * (0.5 + chance / 2)
