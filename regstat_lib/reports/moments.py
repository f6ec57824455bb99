"""What people write for a moment in the past: a duration like 90d, or a date. Pure."""

from __future__ import annotations

import calendar
import re
from datetime import datetime, timedelta, timezone

_DURATION = re.compile(r"(\d{1,6})(h|d|w|mo|y)\Z", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 168}


class NotAMoment(ValueError):
    """The text is neither a duration nor a date; the message says what would be one."""


def moment(text: str, now: datetime) -> str:
    """The moment that a duration before `now` (aware), or a date, means: UTC as the tables write it.

    Months and years are those of the calendar: a month before 31 March is the last day of February. A date is its
    first moment in UTC; a time as ISO 8601 writes it, with an offset or in UTC, will do as well.
    """
    match = _DURATION.match(text)
    try:
        if match is None:
            found = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
            if found.tzinfo is None:
                found = found.replace(tzinfo=timezone.utc)
        elif match.group(2) in _HOURS:
            found = now - timedelta(hours=int(match.group(1)) * _HOURS[match.group(2)])
        else:
            found = _months_before(now, int(match.group(1)) * (12 if match.group(2) == "y" else 1))
        found = found.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise NotAMoment(
            f'"{text}" is no time: it must be a duration (12h, 90d, 2w, 6mo or 1y) or a date (2024-01-31)'
        ) from None
    return f"{found.replace(tzinfo=None).isoformat(' ', 'microseconds'):0>26}"


def _months_before(now: datetime, months: int) -> datetime:
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    day = min(now.day, calendar.monthrange(year, month + 1)[1])
    return now.replace(year=year, month=month + 1, day=day)
