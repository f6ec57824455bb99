"""Authorizations are kept as long as they are good, for whom they are good, and obtained once for all who wait."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from regstat_lib.registry.auth_flow import Token
from regstat_lib.registry.credentials import UserPassword
from regstat_lib.registry.grants import GrantKey, Grants
from regstat_lib.registry.single_flight import SingleFlight
from regstat_lib.registry.trouble import FetchError, Trouble

KEY = GrantKey("https://hub", "team/app", None)


def test_an_authorization_is_held_until_its_life_is_over_counted_from_when_it_was_asked_for() -> None:
    now = [100.0]
    grants = Grants(lambda: now[0])

    def slow_answer() -> Token:
        now[0] += 20
        return Token("Bearer a", 50)

    grants.obtain(KEY, None, slow_answer)
    now[0] = 149.9
    assert grants.held(KEY) == "Bearer a"
    now[0] = 150
    assert grants.held(KEY) is None


def test_registry_repository_and_credentials_do_not_share() -> None:
    grants = Grants()
    grants.obtain(KEY, None, lambda: Token("Bearer a", 50))
    for other in (
        KEY._replace(address="https://other"),
        KEY._replace(repository="other"),
        KEY._replace(credentials=UserPassword("a", "b")),
    ):
        assert grants.held(other) is None


def test_what_was_rejected_is_not_given_again_and_what_another_thread_got_is() -> None:
    grants = Grants()
    grants.obtain(KEY, None, lambda: Token("Bearer a", 50))
    assert grants.obtain(KEY, "Bearer a", lambda: Token("Bearer b", 50)) == "Bearer b"
    assert grants.obtain(KEY, "Bearer a", lambda: pytest.fail("asked again")) == "Bearer b"


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    grants = Grants(capacity=10)
    for number in range(100):
        grants.obtain(KEY._replace(repository=str(number)), None, lambda: Token("Bearer a", 50))
        assert grants.held(KEY._replace(repository="0"))
    assert len(grants) == 10


def test_threads_that_want_the_same_token_cost_one() -> None:
    grants = Grants()
    asked = []
    together = threading.Barrier(8)

    def ask() -> Token:
        asked.append(1)
        together.wait(10)  # all have come before there is an answer
        return Token("Bearer a", 50)

    def want(first: bool) -> str:
        if not first:
            together.wait(10)
        return grants.obtain(KEY, None, ask)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(want, [True, *[False] * 7]))
    assert results == ["Bearer a"] * 8
    assert len(asked) == 1


def test_threads_that_wait_share_a_failure_and_later_ones_try_anew() -> None:
    flight: SingleFlight[str, str] = SingleFlight()
    runs = []
    arrived = threading.Semaphore(0)
    leave = threading.Event()

    def nothing_held() -> None:
        # Called while the flight's lock is held, so whoever arrived joins before the flight can end.
        arrived.release()

    def fail() -> str:
        runs.append(1)
        assert leave.wait(10)
        raise FetchError(Trouble.UNREACHABLE, "hub", "dead")

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(flight.run, "key", nothing_held, fail) for _ in range(4)]
        for _ in waiting:
            assert arrived.acquire(timeout=10)
        leave.set()
        for future in waiting:
            with pytest.raises(FetchError, match="dead"):
                future.result(10)
    assert len(runs) == 1
    with pytest.raises(FetchError):
        flight.run("key", nothing_held, fail)
    assert len(runs) == 2
