"""The operator's credentials: a Docker configuration file that is followed while it changes, and its helpers."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from regstat_lib.registry.credential_helper import HelperError, ask_helper
from regstat_lib.registry.credentials import Credentials
from regstat_lib.registry.docker_config import ConfigError, DockerConfig, Helper, parse_docker_config, registry_host
from regstat_lib.registry.single_flight import SingleFlight

_log = logging.getLogger(__name__)

# How long an answer of a helper is used without asking again, in seconds. A failure is kept for less, so that
# a helper that hangs is not run for every manifest, and one that was repaired is soon noticed.
_HELPER_ANSWER_LIFE = 300.0
_HELPER_FAILURE_LIFE = 60.0


class KeychainError(ValueError):
    """The credentials file cannot be used. One line that says which file, where in it and what is wrong."""


class Entry(NamedTuple):
    """What the keychain has for a registry."""

    credentials: Credentials | None
    origin: str
    """Where the credentials are from, or why there are none: part of a sentence for the operator."""


class _HelperAnswer(NamedTuple):
    credentials: Credentials | None
    failure: str
    usable_until: float


class Keychain:
    """Credentials by registry. Thread-safe."""

    def __init__(
        self,
        path: Path | None = None,
        equivalents: Mapping[str, str] = MappingProxyType({}),
        *,
        helper_timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read ``path``, a Docker ``config.json``; without one everything is anonymous.

        ``equivalents`` maps each alias to the registry it stands for; they all share their credentials.
        ``helper_timeout`` is in seconds. Raises ``KeychainError`` when the file cannot be used.
        """
        self._path = path
        self._names = _names_of(equivalents)
        self._helper_timeout = helper_timeout
        self._clock = clock
        self._lock = threading.Lock()
        self._config = DockerConfig()
        self._version: object = None
        self._helper_answers: dict[Helper, _HelperAnswer] = {}
        self._helper_calls: SingleFlight[Helper, _HelperAnswer] = SingleFlight()
        if path is not None:
            self._version = _version(path)
            self._config = _read(path)

    @classmethod
    def from_file(cls, path: Path | str, equivalents: Mapping[str, str] = MappingProxyType({})) -> Keychain:
        """The keychain of a Docker ``config.json``; see the constructor."""
        return cls(Path(path), equivalents)

    def find(self, host: str) -> Entry:
        """The credentials for ``host`` (host or host:port). Follows the file; may run a helper. Never raises."""
        if self._path is None:
            return Entry(None, "there is no -docker-config")
        names = self._names.get(registry_host(host), (registry_host(host),))
        config = self._current(self._path)
        failure = ""
        helper = config.helper(names)
        if helper is not None:
            answer = self._ask(helper)
            if answer.credentials is not None:
                return Entry(answer.credentials, f"docker-credential-{helper.name}")
            failure = answer.failure
        found = config.credentials(names)
        if found is not None:
            return Entry(found[1], f'"{found[0]}" in {self._path}')
        return Entry(None, failure or f"{self._path} has none for it")

    def doubt(self, credentials: Credentials) -> None:
        """The registry refused these: ask the helper they came from again when they are wanted next."""
        with self._lock:
            self._helper_answers = {
                helper: answer for helper, answer in self._helper_answers.items() if answer.credentials != credentials
            }

    def _current(self, path: Path) -> DockerConfig:
        """The file as it is now, or as it last was when it could be read."""
        with self._lock:
            version = _version(path)
            if version != self._version:
                self._version = version
                try:
                    self._config = _read(path)
                    self._helper_answers = {}
                except KeychainError as error:
                    _log.warning("%s; the credentials read before stay in use", error)
            return self._config

    def _ask(self, helper: Helper) -> _HelperAnswer:
        def held() -> _HelperAnswer | None:
            with self._lock:
                answer = self._helper_answers.get(helper)
            return answer if answer is not None and self._clock() < answer.usable_until else None

        def ask() -> _HelperAnswer:
            try:
                credentials, failure = ask_helper(helper, self._helper_timeout), ""
            except HelperError as error:
                credentials, failure = None, str(error)
                _log.warning("no credentials for %s: %s", helper.server, failure)
            life = _HELPER_FAILURE_LIFE if failure else _HELPER_ANSWER_LIFE
            answer = _HelperAnswer(credentials, failure, self._clock() + life)
            with self._lock:
                self._helper_answers[helper] = answer
            return answer

        return self._helper_calls.run(helper, held, ask)


def _names_of(equivalents: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """All names of one registry, its own first, under each of them."""
    families: dict[str, list[str]] = {}
    for alias, registry in equivalents.items():
        family = families.setdefault(registry_host(registry), [registry_host(registry)])
        if registry_host(alias) not in family:
            family.append(registry_host(alias))
    return {name: tuple(family) for family in families.values() for name in family}


def _version(path: Path) -> object:
    """Something that differs when the file does, be it written in place or replaced."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> DockerConfig:
    try:
        return parse_docker_config(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise KeychainError(f"the Docker configuration {path} cannot be read: {reason}") from None
    except UnicodeDecodeError as error:
        raise KeychainError(f"the Docker configuration {path} is not UTF-8 at byte {error.start}") from None
    except ConfigError as error:
        raise KeychainError(f"the Docker configuration {path} cannot be used: {error}") from None


ANONYMOUS = Keychain()
"""No credentials for anybody."""
