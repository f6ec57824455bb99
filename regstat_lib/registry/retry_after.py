"""Read ``Retry-After``, RFC 9110 section 10.2.3. Pure."""

from __future__ import annotations

import email.utils

LONGEST = 3600.0


def seconds_until_retry(value: str, now: float) -> float | None:
    """How many seconds to wait, from 0 to ``LONGEST``; None when the value is neither seconds nor a date.

    ``now`` is in seconds since 1970.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return LONGEST if len(value) > 9 else min(float(value), LONGEST)
    try:
        wait = email.utils.parsedate_to_datetime(value).timestamp() - now
    except (TypeError, ValueError, OverflowError, LookupError):
        return None
    return min(max(wait, 0.0), LONGEST)
