"""Debian's docker-registry (distribution 2.8) on a free loopback port; its notifications go where a test says."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

MISSING = [command for command in ("docker-registry", "skopeo") if shutil.which(command) is None]

needs_registry = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {' and no '.join(MISSING)} on this machine: "
    f"install the Debian packages that have them (apt-get install {' '.join(MISSING)})",
)


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class RealRegistry:
    """A registry that runs. host is the name in image references: address and port."""

    host: str
    debug_address: str
    directory: Path

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        return _request(self.host, method, path, body, headers or {})

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def await_delivered(self, seconds: float = 30.0) -> int:
        """Returns how many notifications were sent and accepted, once none waits to be.

        Two looks in a row have to agree, because the registry notifies of a download after it has answered it.
        """
        deadline = time.monotonic() + seconds
        seen = -1
        while time.monotonic() < deadline:
            body = _request(self.debug_address, "GET", "/debug/vars", None, {}).body
            endpoints = json.loads(body)["registry"]["notifications"]["endpoints"]
            events = sum(int(endpoint["Metrics"]["Events"]) for endpoint in endpoints)
            if events == seen and all(endpoint["Metrics"]["Pending"] == 0 for endpoint in endpoints):
                return events
            seen = events
            time.sleep(0.05)
        raise AssertionError(f"the registry still has notifications to send after {seconds} s:\n{self.log()[-3000:]}")


@contextlib.contextmanager
def run_registry(
    directory: Path,
    notify: str | None = None,
    *,
    include_references: bool = False,
    port: int | None = None,
    htpasswd: Path | None = None,
) -> Iterator[RealRegistry]:
    """Runs a registry with its data in directory, and stops it.

    notify is the URL that notifications go to, include_references adds the contents of manifests to them;
    htpasswd is a file of users with bcrypt hashes, and without it everybody may do everything, delete included.
    """
    directory.mkdir(parents=True, exist_ok=True)
    host, debug_address = f"127.0.0.1:{port or free_port()}", f"127.0.0.1:{free_port()}"
    configuration = _configuration(directory, host, debug_address, notify, include_references)
    if htpasswd is not None:
        configuration["auth"] = {"htpasswd": {"realm": "registry", "path": str(htpasswd)}}
    file = directory / "config.yml"
    file.write_text(json.dumps(configuration))  # JSON is YAML
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(file)], stdout=log, stderr=log)
    registry = RealRegistry(host, debug_address, directory)
    try:
        _await_answer(registry, process)
        yield registry
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _configuration(
    directory: Path, host: str, debug_address: str, notify: str | None, include_references: bool
) -> dict[str, object]:
    endpoint = {"name": "regstat", "url": notify, "timeout": "1s", "threshold": 5, "backoff": "1s"}
    return {
        "version": "0.1",
        "log": {"level": "info"},
        # The cache is in Debian's configuration too, and so part of what a registry is.
        "storage": {
            "cache": {"blobdescriptor": "inmemory"},
            "filesystem": {"rootdirectory": str(directory / "data")},
            "delete": {"enabled": True},
        },
        "http": {"addr": host, "debug": {"addr": debug_address}},
        "compatibility": {"schema1": {"enabled": True}},
        "validation": {"manifests": {"urls": {"allow": ["^https?://"]}}},
        "notifications": {
            "events": {"includereferences": include_references},
            "endpoints": [endpoint] if notify else [],
        },
    }


def _await_answer(registry: RealRegistry, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            # 401 is an answer too: a registry with passwords runs.
            if registry.request("GET", "/v2/").status in (200, 401):
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"docker-registry does not answer on {registry.host}:\n{registry.log()[-3000:]}")


def _request(host: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
    """Returns when the registry has closed the connection: it may notify of a download after it has answered it, but
    never after that, so an event has a time between the call and the return."""
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request(method, path, body, {**headers, "Connection": "close"})
        with connection.sock.dup() as same_socket:
            answer = connection.getresponse()
            response = Response(answer.status, dict(answer.getheaders()), answer.read())
            same_socket.settimeout(20)
            assert same_socket.recv(1) == b"", (method, path)
            return response
    finally:
        connection.close()
