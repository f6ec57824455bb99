"""A thousand manifests of four registries, one of which is dead: what it takes, and that the dead one delays nobody."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from envelopes import envelope, event, rows
from registry_servers import Answer, Asked, Scripted, digest_of, manifest_answer
from running_daemon import RunningDaemon, await_condition, run_daemon

IMAGE = "application/vnd.oci.image.manifest.v1+json"
MANIFESTS = 250
REPOSITORIES = ("team/app", "team/web")
# What the workers of one registry have under way at once: so many may meet the challenge before there is a token.
WORKERS = 4


class TokenRegistry(NamedTuple):
    """A registry with bearer tokens, its token server under the same address."""

    server: Scripted
    host: str
    contents: dict[str, bytes]

    def requests(self, part: str) -> int:
        return sum(part in asked.path for asked in self.server.asked)


def token_for(scope: str) -> str:
    return digest_of(scope.encode()).partition(":")[2]


def make_registry(serve: Callable[..., Scripted], name: str) -> TokenRegistry:
    bodies = [
        json.dumps({"schemaVersion": 2, "config": {"digest": digest_of(f"{name} {n}".encode()), "size": 1}}).encode()
        for n in range(MANIFESTS)
    ]
    contents = {digest_of(body): body for body in bodies}

    def answer(asked: Asked) -> Answer:
        if asked.path.startswith("/token"):
            return Answer(
                200, {}, json.dumps({"token": token_for(asked.query["scope"][0]), "expires_in": 300}).encode()
            )
        repository, _, digest = asked.path[len("/v2/") :].partition("/manifests/")
        scope = f"repository:{repository}:pull"
        if asked.authorization != f"Bearer {token_for(scope)}":
            challenge = f'Bearer realm="http://{host}/token",service="registry",scope="{scope}"'
            return Answer(401, {"WWW-Authenticate": challenge, "Docker-Distribution-Api-Version": "registry/2.0"})
        return manifest_answer(contents[digest], IMAGE)

    server = serve(answer)
    host = server.host
    return TokenRegistry(server, host, contents)


@pytest.fixture
def dead_registry() -> Iterator[str]:
    """The address of a registry that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def pushes(host: str, digests: list[str]) -> list[dict[str, Any]]:
    return [
        event("push", digest, media_type=IMAGE, host=host, repository=REPOSITORIES[n % 2])
        for n, digest in enumerate(digests)
    ]


def seconds_until_known(daemon: RunningDaemon, flags: list[str], manifests: int, events: list[dict[str, Any]]) -> float:
    began = time.monotonic()
    status, answer = daemon.post(envelope(*events))
    assert (status, answer) == (200, {"recorded": len(events), "set_aside": 0}), daemon.log()
    await_condition(
        lambda: rows(flags, "select count(*) from {s}contents where complete = 1") == [(manifests,)],
        60,
        "all manifests of the living registries are known",
    )
    return time.monotonic() - began


def test_one_dead_registry_does_not_starve_three_others_and_a_repository_costs_one_token(
    tmp_path: Path, serve: Callable[..., Scripted], dead_registry: str
) -> None:
    living = [make_registry(serve, f"first {n}") for n in range(3)]
    flags = ["-sqlite", str(tmp_path / "alone.db")]
    with run_daemon(*flags) as daemon:
        events = [pushed for registry in living for pushed in pushes(registry.host, list(registry.contents))]
        alone = seconds_until_known(daemon, flags, 3 * MANIFESTS, events)

    living = [make_registry(serve, f"second {n}") for n in range(3)]
    flags = ["-sqlite", str(tmp_path / "beside.db")]
    with run_daemon(*flags) as daemon:
        # The dead one's come first, so whoever works in order works on them.
        events = pushes(dead_registry, [digest_of(f"dead {n}".encode()) for n in range(MANIFESTS)])
        events += [pushed for registry in living for pushed in pushes(registry.host, list(registry.contents))]
        beside = seconds_until_known(daemon, flags, 3 * MANIFESTS, events)
        waiting = rows(flags, "select count(*) from {s}pending_manifests where given_up is null")

    assert waiting == [(MANIFESTS,)], "the dead registry's stay pending"
    # A dead registry costs a time-out of 10 s for each turn that it gets; the rest is for the machine's moods.
    assert beside < 2 * alone + 4, f"{beside:.1f} s beside a dead registry, {alone:.1f} s without"
    for registry in living:
        assert registry.requests("/token") == len(REPOSITORIES)
        assert MANIFESTS <= registry.requests("/manifests/") <= MANIFESTS + WORKERS * len(REPOSITORIES)
