"""``Retry-After`` in both its forms, and in none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regstat_lib.registry.retry_after import LONGEST, seconds_until_retry

NOW = 784111717.0  # Sun, 06 Nov 1994 08:48:37 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("99999", LONGEST),
        ("9" * 5000, LONGEST),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 60),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0),
        ("Sun, 06 Nov 2094 08:00:00 GMT", LONGEST),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("\N{SUPERSCRIPT TWO}", None),
    ],
)
def test_it_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert seconds_until_retry(value, NOW) == seconds


@given(st.text())
def test_no_value_makes_it_fail_or_leave_its_bounds(value: str) -> None:
    seconds = seconds_until_retry(value, NOW)
    assert seconds is None or 0 <= seconds <= LONGEST
