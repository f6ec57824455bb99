"""What a manifest holds is asked for behind the registry's back: after the answer, once, and until it is known."""

from __future__ import annotations

import http.server
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from envelopes import CONFIG, IMAGE, INDEX, LAYER, change, digest_of, envelope, event, image, rows
from running_daemon import RunningDaemon, await_condition, run_daemon

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


class Registry(http.server.ThreadingHTTPServer):
    """Serves manifests by digest, and notes who asked for what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.contents: dict[str, tuple[str, bytes]] = {}
        self.asked: list[str] = []
        self.user_agents: set[str] = set()
        self.methods: set[str] = set()
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def put(self, media_type: str, document: dict[str, Any]) -> str:
        """Keeps a manifest; its digest."""
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode()
        digest = digest_of(body)
        self.contents[digest] = media_type, body
        return digest

    def put_image(self, *layers: str, **more: Any) -> str:
        descriptors = [{"mediaType": LAYER, "digest": digest_of(layer), "size": 7} for layer in layers]
        config = {"mediaType": CONFIG, "digest": digest_of("config"), "size": 3}
        return self.put(IMAGE, {"config": config, "layers": descriptors, **more})


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.methods.add(self.command)
        self.server.user_agents.add(self.headers["User-Agent"])
        path = re.match(r"/v2/(.+)/manifests/(.+)", self.path)
        digest = path.group(2) if path else ""
        self.server.asked.append(digest)
        self.server.answering.wait(60)
        if self.server.status != 200:
            self._answer(self.server.status, "application/json", b'{"errors": []}')
        elif digest not in self.server.contents:
            self._answer(404, "application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        else:
            self._answer(200, *self.server.contents[digest])

    do_HEAD = do_GET

    def _answer(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def make_registry() -> Iterator[Any]:
    """Makes registries that end with the test."""
    with ExitStack() as stack:

        def make() -> Registry:
            registry = stack.enter_context(Registry())
            thread = threading.Thread(target=registry.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(registry.shutdown)
            stack.callback(registry.answering.set)
            return registry

        yield make


@pytest.fixture
def registry(make_registry: Any) -> Registry:
    made: Registry = make_registry()
    return made


def pushed(registry: Registry, digest: str, media_type: str = IMAGE, **details: Any) -> dict[str, Any]:
    url = f"http://{registry.host}/v2/team/app/manifests/{digest}"
    return event("push", digest, media_type=media_type, host=registry.host, url=url, **details)


def post(daemon: RunningDaemon, *events: dict[str, Any]) -> None:
    await_condition(lambda: daemon.post(envelope())[0] == 200, 20, "the daemon answers")
    body = envelope(*events)
    await_condition(lambda: daemon.post(body, timeout=1.0)[0] == 200, 20, "the daemon records within a second")


def links(flags: list[str], digest: str) -> set[tuple[str, str]]:
    """What a manifest links, live or not, and as what."""
    query = " union all ".join(
        f"select blob_digest, kind from {{s}}{table} where manifest_digest = '{digest}'"
        for table in ("manifest_blob", "deleted_manifest_blob")
    )
    return {(row[0], row[1]) for row in rows(flags, query)}


def await_links(flags: list[str], digest: str, seconds: float = 15) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = await_condition(lambda: links(flags, digest), seconds, "the contents are known")
    return found


def pending(flags: list[str], columns: str = "digest") -> list[tuple[Any, ...]]:
    return rows(flags, f"select {columns} from {{s}}pending_manifests order by digest")


def test_contents_are_asked_for_by_digest_as_regstat(database_flags: list[str], registry: Registry) -> None:
    digest = registry.put_image("a", "b")
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, digest, tag="latest"))
        expected = {(digest_of("config"), "config"), (digest_of("a"), "layer"), (digest_of("b"), "layer")}
        assert await_links(database_flags, digest) == expected
        assert {row[0] for row in rows(database_flags, "select digest from {s}blobs")} == {
            digest_of(name) for name in ("config", "a", "b")
        }
        await_condition(lambda: pending(database_flags) == [], 10, "nothing is pending")
    assert registry.asked == [digest]
    assert registry.methods == {"GET"}
    assert all(agent.startswith("regstat/") for agent in registry.user_agents)


def test_a_registry_that_hangs_delays_no_answer_and_no_end(database_flags: list[str], registry: Registry) -> None:
    registry.answering.clear()
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, registry.put_image("a")))
        await_condition(lambda: registry.asked, 10, "the registry is asked")
        for number in range(20):
            post(daemon, pushed(registry, registry.put_image(f"other {number}")))
        began = time.monotonic()
        assert daemon.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("database_flags", ["sqlite", "postgres"], indirect=True)
def test_what_is_pending_survives_kill_minus_nine(database_flags: list[str], registry: Registry) -> None:
    digest = registry.put_image("a")
    registry.answering.clear()
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, digest))
        await_condition(lambda: registry.asked, 10, "the registry is asked")
        daemon.process.kill()
        daemon.process.wait()
    registry.answering.set()
    assert pending(database_flags) == [(digest,)]
    with run_daemon(*database_flags):
        assert len(await_links(database_flags, digest, 30)) == 2


def test_what_is_under_way_at_the_end_is_asked_for_at_once_by_the_next(
    database_flags: list[str], registry: Registry
) -> None:
    digest = registry.put_image("a")
    registry.answering.clear()
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, digest))
        await_condition(lambda: registry.asked, 10, "the registry is asked")
        assert daemon.stop() == 0
    registry.answering.set()
    with run_daemon(*database_flags):
        await_links(database_flags, digest, 5)


def test_a_slow_fetch_is_not_begun_twice(pg_conn_str: str, registry: Registry) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    digest = registry.put_image("a")
    registry.answering.clear()
    with run_daemon(*flags) as daemon, run_daemon(*flags):
        post(daemon, pushed(registry, digest))
        await_condition(lambda: registry.asked, 10, "the registry is asked")
        claimed_until = rows(flags, "select next_attempt from {s}pending_manifests")
        await_condition(
            lambda: rows(flags, "select next_attempt from {s}pending_manifests") > claimed_until,
            10,
            "the claim is extended",
        )
        assert registry.asked == [digest]
        registry.answering.set()
        await_links(flags, digest)


def test_two_daemons_share_the_work_and_ask_once_for_each(pg_conn_str: str, registry: Registry) -> None:
    flags = ["-pg-conn-str", pg_conn_str]
    digests = [registry.put_image(f"layer {number}") for number in range(60)]
    with run_daemon(*flags) as one, run_daemon(*flags) as other:
        for start in range(0, 60, 20):
            for daemon in (one, other):
                post(daemon, *(pushed(registry, digest) for digest in digests[start : start + 20]))
        await_condition(lambda: pending(flags) == [], 20, "nothing is pending")
    assert sorted(registry.asked) == sorted(digests)


def test_a_manifest_that_is_gone_is_settled_until_it_is_pushed_again(
    database_flags: list[str], registry: Registry
) -> None:
    digest = registry.put_image("a")
    content = registry.contents.pop(digest)
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, digest))
        await_condition(
            lambda: pending(database_flags, "given_up") not in ([], [(None,)]), 10, "the manifest is given up"
        )
        ((reason, attempts),) = pending(database_flags, "last_error, attempts")
        assert digest in reason
        assert "404" in reason
        assert attempts == 1
        registry.contents[digest] = content
        post(daemon, pushed(registry, digest))
        await_links(database_flags, digest)
        await_condition(lambda: pending(database_flags) == [], 10, "nothing is pending")
    assert registry.asked == [digest, digest]


@pytest.mark.parametrize("status", [500, 429])
def test_a_registry_in_trouble_is_asked_again(sqlite_path: Any, registry: Registry, status: int) -> None:
    flags = ["-sqlite", str(sqlite_path)]
    registry.status = status
    digest = registry.put_image("a")
    with run_daemon(*flags) as daemon:
        post(daemon, pushed(registry, digest))
        await_condition(lambda: pending(flags, "attempts") == [(1,)], 10, "an attempt has failed")
        ((reason, given_up),) = pending(flags, "last_error, given_up")
        assert str(status) in reason
        assert given_up is None
        registry.status = 200
        await_links(flags, digest)


def test_contents_in_the_event_need_no_request(database_flags: list[str], registry: Registry) -> None:
    digest = registry.put_image("a")
    with run_daemon(*database_flags) as daemon:
        post(daemon, image(digest, digest_of("config"), digest_of("a"), tag="latest", host=registry.host))
        assert links(database_flags, digest) == {(digest_of("config"), "config"), (digest_of("a"), "layer")}
        # What is asked for later is asked for after it.
        other = registry.put_image("b")
        post(daemon, pushed(registry, other))
        await_links(database_flags, other)
    assert registry.asked == [other]


def test_children_of_an_index_that_were_never_seen_are_asked_for_too(
    database_flags: list[str], registry: Registry
) -> None:
    children = [registry.put_image("amd64"), registry.put_image("arm64")]
    index = registry.put(
        INDEX, {"manifests": [{"mediaType": IMAGE, "digest": child, "size": 400} for child in children]}
    )
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, index, INDEX, tag="multi"))
        for child, layer in zip(children, ("amd64", "arm64")):
            assert (digest_of(layer), "layer") in await_links(database_flags, child)
        assert await_links(database_flags, index) == {(child, "manifest") for child in children}
        live = {row[0] for row in rows(database_flags, "select digest from {s}manifests")}
        assert live == {index, *children}
        await_condition(lambda: pending(database_flags) == [], 10, "nothing is pending")
    assert sorted(registry.asked) == sorted([index, *children])


def test_a_subject_becomes_a_link(database_flags: list[str], registry: Registry) -> None:
    subject = registry.put_image("a")
    descriptor = {"mediaType": IMAGE, "digest": subject, "size": 400}
    signature = registry.put_image("signature", subject=descriptor, artifactType="application/vnd.example.signature")
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, subject), pushed(registry, signature))
        assert (subject, "subject") in await_links(database_flags, signature)
        query = f"select manifest_digest from {{s}}manifest_blob where blob_digest = '{subject}'"
        await_condition(lambda: rows(database_flags, query) == [(signature,)], 10, "the link is live")


def test_foreign_layers_need_not_be_there(database_flags: list[str], registry: Registry) -> None:
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": digest_of("windows"),
        "size": 9,
        "urls": ["https://elsewhere.example/windows"],
    }
    own = {"mediaType": LAYER, "digest": digest_of("own"), "size": 7}
    config = {"mediaType": CONFIG, "digest": digest_of("config"), "size": 3}
    digest = registry.put(
        "application/vnd.docker.distribution.manifest.v2+json", {"config": config, "layers": [foreign, own]}
    )
    with run_daemon(*database_flags) as daemon:
        post(daemon, pushed(registry, digest, "application/vnd.docker.distribution.manifest.v2+json"))
        assert await_links(database_flags, digest) == {(digest_of("config"), "config"), (digest_of("own"), "layer")}
        blobs = "select digest from {s}blobs"
        assert (digest_of("windows"),) not in rows(database_flags, blobs)
        post(daemon, event("push", digest_of("windows"), host=registry.host))
        assert (digest_of("windows"), "foreign") in links(database_flags, digest)


def test_schema_1_is_understood(sqlite_path: Any, registry: Registry) -> None:
    flags = ["-sqlite", str(sqlite_path)]
    layers = [{"blobSum": digest_of(name)} for name in ("top", "empty", "empty", "base")]
    body = json.dumps({"schemaVersion": 1, "name": "team/app", "tag": "old", "fsLayers": layers, "history": []})
    digest = digest_of(body)
    registry.contents[digest] = SCHEMA_1, body.encode()
    with run_daemon(*flags) as daemon:
        post(daemon, pushed(registry, digest, SCHEMA_1, tag="old"))
        assert await_links(flags, digest) == {(digest_of(name), "layer") for name in ("top", "empty", "base")}


def test_an_answer_that_is_no_manifest_is_kept_as_a_reason(sqlite_path: Any, registry: Registry) -> None:
    flags = ["-sqlite", str(sqlite_path)]
    registry.contents[digest_of("<html>")] = "text/html", b"<html>"
    wrong = digest_of("something else")
    registry.contents[wrong] = IMAGE, b'{"layers": []}'
    with run_daemon(*flags) as daemon:
        post(daemon, pushed(registry, digest_of("<html>")), pushed(registry, wrong))
        await_condition(lambda: [row[0] for row in pending(flags, "attempts")] == [1, 1], 10, "both have failed")
        reasons = dict(pending(flags, "digest, last_error"))
        assert "JSON" in reasons[digest_of("<html>")]
        assert "something else than" in reasons[wrong]
        assert "Traceback" not in daemon.log()


def test_a_dead_registry_does_not_delay_another(sqlite_path: Any, make_registry: Any) -> None:
    flags = ["-sqlite", str(sqlite_path)]
    dead, alive = make_registry(), make_registry()
    dead.answering.clear()
    with run_daemon(*flags) as daemon:
        post(daemon, *(pushed(dead, dead.put_image(f"dead {number}")) for number in range(200)))
        await_condition(lambda: dead.asked, 10, "the dead one is asked")
        digests = [alive.put_image(f"alive {number}") for number in range(20)]
        post(daemon, *(pushed(alive, digest) for digest in digests))
        for digest in digests:
            await_links(flags, digest, 5)
        assert len(dead.asked) <= 8


def test_pulls_of_an_unknown_manifest_ask_for_it_as_well(sqlite_path: Any, registry: Registry) -> None:
    flags = ["-sqlite", str(sqlite_path)]
    digest = registry.put_image("a")
    with run_daemon(*flags) as daemon:
        pull = pushed(registry, digest)
        pull["action"], pull["request"]["method"] = "pull", "HEAD"
        post(daemon, pull)
        await_links(flags, digest)
        # A pull of a manifest is a pull of its blobs, also when its contents are learned later.
        change(flags, "delete from {s}events")
        post(daemon, pushed(registry, digest))
        assert rows(flags, "select count(*) from {s}blobs where pulled is not null") == [(2,)]
