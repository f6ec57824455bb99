"""Fixtures of the registry client's tests."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_servers import DOCKER_REGISTRY, Answer, Asked, Authority, DockerRegistry, Raw, Scripted, TokenIssuer


@pytest.fixture
def closed() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(closed: contextlib.ExitStack) -> Callable[..., Scripted]:
    """Start an HTTP server whose answers a function decides."""

    def start(answer: Callable[[Asked], Answer], context: ssl.SSLContext | None = None) -> Scripted:
        return closed.enter_context(contextlib.closing(Scripted(answer, context)))

    return start


@pytest.fixture
def serve_raw(closed: contextlib.ExitStack) -> Callable[..., Raw]:
    """Start a server that gives each connection, after its request's head was read, to a function."""

    def start(talk: Callable[[socket.socket, threading.Event], None], context: ssl.SSLContext | None = None) -> Raw:
        def after_head(connection: socket.socket, closing: threading.Event) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            talk(connection, closing)

        return closed.enter_context(contextlib.closing(Raw(after_head, context)))

    return start


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def token_issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path)


@pytest.fixture
def docker_registry(closed: contextlib.ExitStack, tmp_path: Path) -> Callable[..., DockerRegistry]:
    """Start docker-registry; all that one test starts share their storage, so an open one can fill a guarded one."""
    if DOCKER_REGISTRY is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry (Debian package)")
    started = 0

    def start(auth: object = None, tls: tuple[Path, Path] | None = None) -> DockerRegistry:
        nonlocal started
        started += 1
        registry = DockerRegistry(tmp_path / f"registry-{started}", tmp_path / "storage", auth, tls)
        return closed.enter_context(contextlib.closing(registry))

    return start


@pytest.fixture
def names_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that end in .test are this machine: hosts that are not loopback as far as their names tell."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".test") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests must not decide where requests go."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
