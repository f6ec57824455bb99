"""The authorizations that registries gave, so that a thousand manifests of one repository cost one token."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from regstat_lib.registry.auth_flow import Token
from regstat_lib.registry.credentials import Credentials
from regstat_lib.registry.single_flight import SingleFlight


class GrantKey(NamedTuple):
    """What an authorization is good for. Credentials are part of it: a new password shares nothing with the old."""

    address: str
    repository: str
    credentials: Credentials | None


class _Grant(NamedTuple):
    authorization: str
    usable_until: float


class Grants:
    """A bounded cache of authorizations; of those that are not used any more the oldest goes first. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, capacity: int = 1024) -> None:
        """``clock`` gives seconds."""
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._grants: OrderedDict[GrantKey, _Grant] = OrderedDict()
        self._calls: SingleFlight[GrantKey, str] = SingleFlight()

    def held(self, key: GrantKey) -> str | None:
        """The authorization for this, when there is one that has not expired."""
        with self._lock:
            grant = self._grants.get(key)
            if grant is None:
                return None
            if self._clock() >= grant.usable_until:
                del self._grants[key]
                return None
            self._grants.move_to_end(key)
            return grant.authorization

    def obtain(self, key: GrantKey, rejected: str | None, ask: Callable[[], Token]) -> str:
        """An authorization other than ``rejected``: one that another thread got meanwhile, or that of ``ask()``."""

        def other() -> str | None:
            held = self.held(key)
            return held if held != rejected else None

        def renew() -> str:
            asked_at = self._clock()  # the answer may have been long on its way
            token = ask()
            with self._lock:
                self._grants[key] = _Grant(token.authorization, asked_at + token.life)
                self._grants.move_to_end(key)
                while len(self._grants) > self._capacity:
                    self._grants.popitem(last=False)
            return token.authorization

        return self._calls.run(key, other, renew)

    def __len__(self) -> int:
        with self._lock:
            return len(self._grants)
