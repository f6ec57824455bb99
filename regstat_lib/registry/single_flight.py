"""When several threads want the same thing at the same time, one gets it for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SingleFlight(Generic[Key, Value]):
    """Runs at most one call a key at a time; who asks meanwhile gets that call's result or exception.

    Nothing is kept after the call. A failure is shared too: behind a server that is dead, ten threads
    wait for one time-out and not one after the other for ten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Key, Future[Value]] = {}

    def run(self, key: Key, held: Callable[[], Value | None], work: Callable[[], Value]) -> Value:
        """``held()`` unless that is None, otherwise the result of ``work()``.

        ``held`` is asked under the same lock that decides who works, so that a thread that comes just after
        the work was done finds its result and does not begin again; ``work`` must have stored it by then.
        """
        with self._lock:
            value = held()
            if value is not None:
                return value
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                flight = self._flights[key] = Future()
        if not leads:
            return flight.result()
        try:
            result = work()
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.set_exception(error)
            raise
        with self._lock:
            del self._flights[key]
        flight.set_result(result)
        return result
