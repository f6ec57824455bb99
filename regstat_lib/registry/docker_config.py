"""Docker's ``config.json``: which credentials belong to which registry. Pure.

The keys are those that ``docker login`` writes and people copy: ``host``, ``host:port``, ``https://host/v1/``.
Docker looks for a credential helper of the registry first, then for the store of all, then in the file itself
(docker/cli, ``cli/config/configfile``); so does this.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from regstat_lib.registry.credentials import Credentials, IdentityToken, UserPassword

DOCKER_HUB = "docker.io"
# What Docker Hub is called: in image names, as the key that `docker login` writes, and as the host that has its API.
_DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
# The key that `docker login` without a registry hands to a credential helper.
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ConfigError(ValueError):
    """What is wrong with the text and where in it: a line and column, or a key. Never a value."""


class Helper(NamedTuple):
    """A program that has the credentials: ``docker-credential-NAME``."""

    name: str
    server: str
    """What to ask it for."""


@dataclass(frozen=True)
class DockerConfig:
    """The part of a Docker configuration that is about credentials."""

    auths: Mapping[str, Credentials | None] = field(default_factory=lambda: MappingProxyType({}))
    """By key as written; None where the file has the key but leaves the secret to the store."""
    cred_helpers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    creds_store: str = ""

    def helper(self, names: Iterable[str]) -> Helper | None:
        """The program to ask for a registry's credentials. ``names`` are those of one registry, best first."""
        hosts = [registry_host(name) for name in names]
        for host in hosts:
            for key, program in self.cred_helpers.items():
                if registry_host(key) == host:
                    return Helper(program, key)
        if not self.creds_store or not hosts:
            return None
        key = self._key(hosts)
        return Helper(self.creds_store, key or (_DOCKER_HUB_KEY if hosts[0] == DOCKER_HUB else hosts[0]))

    def credentials(self, names: Iterable[str]) -> tuple[str, Credentials] | None:
        """The key and the credentials that the file itself has for a registry; ``names`` as in ``helper``."""
        usable = {key: found for key, found in self.auths.items() if found is not None}
        key = DockerConfig(usable)._key([registry_host(name) for name in names])
        return (key, usable[key]) if key else None

    def _key(self, hosts: Iterable[str]) -> str:
        for host in hosts:
            if host in self.auths:
                return host
            for key in self.auths:
                if registry_host(key) == host:
                    return key
        return ""


def registry_host(key: str) -> str:
    """``host`` or ``host:port`` in lower case of a key or a registry's name; all names of Docker Hub become one."""
    host = re.sub(r"^[a-z]+://", "", key.strip().lower()).partition("/")[0]
    return DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


def parse_docker_config(text: str) -> DockerConfig:
    """Read the text of a ``config.json``; ``ConfigError`` when it is not one."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError):
        raise ConfigError("it is nested too deeply or has a number that is too long") from None
    if not isinstance(document, dict):
        raise ConfigError(f"expected an object, found {_kind(document)}")
    entries = _object(document, "auths")
    helpers = _object(document, "credHelpers")
    return DockerConfig(
        MappingProxyType({key: _credentials(f"auths[{json.dumps(key)}]", entry) for key, entry in entries.items()}),
        MappingProxyType({key: _helper(f"credHelpers[{json.dumps(key)}]", name) for key, name in helpers.items()}),
        _helper("credsStore", document["credsStore"]) if document.get("credsStore") not in (None, "") else "",
    )


def _credentials(where: str, entry: object) -> Credentials | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected an object, found {_kind(entry)}")
    text = {}
    for name in ("identitytoken", "auth", "username", "password"):
        value = "" if entry.get(name) is None else entry[name]
        if not isinstance(value, str):
            raise ConfigError(f"{where}.{name}: expected a string, found {_kind(value)}")
        text[name] = value
    if text["identitytoken"]:
        return IdentityToken(text["identitytoken"])
    if text["auth"]:
        username, password = _user_password(f"{where}.auth", text["auth"])
        return UserPassword(username, password)
    if text["username"] or text["password"]:
        return UserPassword(text["username"], text["password"])
    return None


def _user_password(where: str, encoded: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode("".join(encoded.split()), validate=True).decode()
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: expected user:password in base64") from None
    username, colon, password = decoded.partition(":")
    if not colon:
        raise ConfigError(f"{where}: expected user:password in base64, found no colon")
    return username, password.rstrip("\0")


def _helper(where: str, name: object) -> str:
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        raise ConfigError(f"{where}: expected the NAME of a program docker-credential-NAME")
    return name


def _object(document: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected an object, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
