"""The client against servers that do what a test wants, good and bad."""

from __future__ import annotations

import gzip
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_servers import (
    OCI_INDEX,
    Answer,
    Asked,
    Authority,
    Raw,
    Scripted,
    TokenIssuer,
    digest_of,
    error_answer,
    index_manifest,
    manifest_answer,
)

from regstat_lib import __version__
from regstat_lib.registry import (
    ANONYMOUS,
    FetchedManifest,
    FetchError,
    Keychain,
    ManifestSource,
    RegistryClient,
    Trouble,
)
from regstat_lib.registry.client import MANIFEST_LIMIT, MANIFEST_MEDIA_TYPES
from regstat_lib.registry.transport import _Socket

BODY = index_manifest()
PASSWORD = "s3cr3t-Pass"
Serve = Callable[..., Scripted]
ServeRaw = Callable[..., Raw]


@pytest.fixture
def certs_dir(tmp_path: Path) -> Path:
    return tmp_path / "certs.d"


@pytest.fixture
def client_for(certs_dir: Path) -> Callable[..., RegistryClient]:
    def make(keychain: Keychain = ANONYMOUS, **options: Any) -> RegistryClient:
        return RegistryClient(keychain, **{"insecure": (), "certs_dir": certs_dir, "timeout": 5.0, **options})

    return make


@pytest.fixture
def keychain_for(tmp_path: Path) -> Callable[..., Keychain]:
    def make(*hosts: str, **entry: str) -> Keychain:
        file = tmp_path / "config.json"
        entry = entry or {"username": "reader", "password": PASSWORD}
        file.write_text(json.dumps({"auths": dict.fromkeys(hosts, entry)}))
        return Keychain.from_file(file, {})

    return make


ClientFor = Callable[..., RegistryClient]
KeychainFor = Callable[..., Keychain]


def source(host: str, body: bytes = BODY, scheme: str = "http", repository: str = "team/app") -> ManifestSource:
    digest = digest_of(body)
    url = f"{scheme}://{host}/v2/{repository}/manifests/{digest}" if scheme else ""
    return ManifestSource(host, repository, digest, url, host)


def failure(client: RegistryClient, asked: ManifestSource) -> FetchError:
    with pytest.raises(FetchError) as error:
        client.fetch_manifest(asked)
    assert error.value.registry == asked.registry
    assert PASSWORD not in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    return error.value


def bearer(realm: str, **more: str) -> Answer:
    parameters = {"realm": realm, "service": "registry.tests", **more}
    text = ",".join(f'{name}="{value}"' for name, value in parameters.items())
    return error_answer(401, "UNAUTHORIZED", {"WWW-Authenticate": f"Bearer {text}"})


BASIC = error_answer(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})


def guarded(realm: Callable[[], str], accepted: Callable[[str], bool] = lambda _: True) -> Callable[[Asked], Answer]:
    """A registry that wants a bearer token."""

    def answer(asked: Asked) -> Answer:
        if asked.authorization and asked.authorization.startswith("Bearer ") and accepted(asked.authorization[7:]):
            return manifest_answer(BODY)
        return bearer(realm())

    return answer


# What is asked


def test_a_manifest_is_fetched_with_its_media_type(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: manifest_answer(BODY, OCI_INDEX.upper() + "; charset=utf-8"))
    assert client_for().fetch_manifest(source(hub.host)) == FetchedManifest(OCI_INDEX, BODY)


def test_a_request_says_who_asks_and_takes_every_kind_of_manifest(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: manifest_answer(BODY))
    client_for().fetch_manifest(source(hub.host))
    (asked,) = hub.asked
    assert asked.method == "GET"
    assert asked.path == f"/v2/team/app/manifests/{digest_of(BODY)}"
    assert asked.headers["user-agent"] == f"regstat/{__version__}"
    assert asked.headers["accept"].split(", ") == list(MANIFEST_MEDIA_TYPES)
    assert "authorization" not in asked.headers


def test_the_address_the_operator_gave_is_asked_and_no_other(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: manifest_answer(BODY))
    trap = serve(lambda _: manifest_answer(BODY))
    client = client_for(addresses={"hub.test": f"{hub.url}/prefix/"})
    client.fetch_manifest(source(trap.host)._replace(registry="hub.test"))
    assert [asked.path for asked in hub.asked] == [f"/prefix/v2/team/app/manifests/{digest_of(BODY)}"]
    assert not trap.asked


def test_a_wrong_scheme_in_the_event_is_got_over(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, certs_dir: Path
) -> None:
    plain = serve(lambda _: manifest_answer(BODY))
    secure = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys"))
    trust(authority, certs_dir, secure.host)
    assert client_for().fetch_manifest(source(plain.host, scheme="https")).body == BODY
    assert client_for().fetch_manifest(source(secure.host, scheme="http")).body == BODY


def test_an_address_that_served_is_asked_first_from_then_on(serve: Serve, client_for: ClientFor) -> None:
    dead = socket.create_server(("127.0.0.1", 0))
    dead_host = f"127.0.0.1:{dead.getsockname()[1]}"
    dead.close()
    hub = serve(lambda _: manifest_answer(BODY))
    stranger = serve(lambda _: Answer(404, {}, b"<html>not here</html>"))
    client = client_for()
    asked = source(hub.host)._replace(registry=stranger.host)
    for _ in range(5):
        assert client.fetch_manifest(asked).body == BODY
    assert len(stranger.asked) == 1
    assert len(hub.asked) == 5
    assert client.fetch_manifest(source(hub.host)._replace(registry=dead_host)).body == BODY


@pytest.mark.usefixtures("names_resolve")
def test_plain_http_elsewhere_is_not_tried_unless_the_event_or_the_operator_says_so(
    serve: Serve, client_for: ClientFor
) -> None:
    hub = serve(lambda _: manifest_answer(BODY))
    host = f"hub.test:{hub.port}"
    assert failure(client_for(), source(host, scheme="https")).trouble is Trouble.UNREACHABLE
    assert not hub.asked
    assert client_for(insecure=[host]).fetch_manifest(source(host, scheme="https")).body == BODY
    assert client_for().fetch_manifest(source(host, scheme="http")).body == BODY


@pytest.mark.parametrize(
    "change",
    [
        {"repository": "../../secret"},
        {"repository": "a b"},
        {"repository": "a\r\nX: y"},
        {"digest": "sha256:short"},
        {"digest": "md5:" + "0" * 32},
        {"digest": "sha256:" + "0" * 64 + "/../x"},
        {"registry": "evil host", "host": "", "url": ""},
    ],
)
def test_what_an_event_may_not_say_is_not_asked(serve: Serve, client_for: ClientFor, change: dict[str, str]) -> None:
    hub = serve(lambda _: manifest_answer(BODY))
    assert failure(client_for(), source(hub.host)._replace(**change)).trouble is Trouble.UNUSABLE
    assert not hub.asked


# Verdicts


@pytest.mark.parametrize("recognised", [True, False], ids=["a registry", "a web server"])
@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (404, Trouble.GONE),
        (410, Trouble.GONE),
        (403, Trouble.REFUSED),
        (429, Trouble.BUSY),
        (503, Trouble.BUSY),
        (500, Trouble.UNREACHABLE),
        (502, Trouble.UNREACHABLE),
        (504, Trouble.UNREACHABLE),
        (400, Trouble.UNUSABLE),
        (418, Trouble.UNUSABLE),
        (204, Trouble.UNUSABLE),
    ],
)
def test_each_status_says_whether_trying_again_helps(
    serve: Serve, client_for: ClientFor, status: int, trouble: Trouble, recognised: bool
) -> None:
    hub = serve(lambda _: error_answer(status) if recognised else Answer(status))
    client = client_for(addresses={hub.host: hub.url})
    assert failure(client, source(hub.host)).trouble is trouble
    assert len(hub.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 60.0), ("x", None), ("86400", 3600.0)]
)
def test_a_busy_registry_says_for_how_long(
    serve: Serve, client_for: ClientFor, status: int, value: str, seconds: float | None
) -> None:
    hub = serve(lambda _: error_answer(status, headers={"Retry-After": value}))
    error = failure(client_for(wall_clock=lambda: 784111717.0), source(hub.host))
    assert (error.trouble, error.retry_after) == (Trouble.BUSY, seconds)


def test_a_busy_token_server_says_for_how_long(serve: Serve, client_for: ClientFor) -> None:
    tokens = serve(lambda _: Answer(429, {"Retry-After": "9"}))
    hub = serve(guarded(lambda: tokens.url))
    error = failure(client_for(), source(hub.host))
    assert (error.trouble, error.retry_after) == (Trouble.BUSY, 9.0)


def test_a_manifest_that_is_gone_is_settled_by_one_request(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: error_answer(404, "MANIFEST_UNKNOWN"))
    assert failure(client_for(), source(hub.host)).trouble is Trouble.GONE
    assert len(hub.asked) == 1


def test_a_missing_credential_names_registry_and_flag(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: BASIC)
    error = failure(client_for(), source(hub.host))
    assert error.trouble is Trouble.REFUSED
    assert hub.host in str(error)
    assert "-docker-config" in str(error)


def test_refused_credentials_are_named_by_where_they_are_from(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor
) -> None:
    hub = serve(lambda _: BASIC)
    error = failure(client_for(keychain_for(hub.host)), source(hub.host))
    assert error.trouble is Trouble.REFUSED
    assert "config.json" in str(error)
    assert [asked.authorization is None for asked in hub.asked] == [True, False]


@pytest.mark.usefixtures("names_resolve")
def test_what_cannot_be_reached_is_said_of_every_address(client_for: ClientFor) -> None:
    free = socket.create_server(("127.0.0.1", 0))
    host = f"hub.test:{free.getsockname()[1]}"
    free.close()
    error = failure(client_for(), source(host, scheme="http"))
    assert error.trouble is Trouble.UNREACHABLE
    assert f"http://{host}: connection refused; https://{host}: connection refused" in str(error)


def test_a_name_that_does_not_resolve_is_unreachable(client_for: ClientFor) -> None:
    error = failure(client_for(), source("no-such-host.invalid"))
    assert error.trouble is Trouble.UNREACHABLE
    assert "cannot be resolved" in str(error)


# Bodies


def test_a_wrong_digest_is_refused(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: manifest_answer(BODY + b" "))
    assert failure(client_for(), source(hub.host)).trouble is Trouble.UNUSABLE


def test_a_manifest_over_the_limit_is_refused_and_one_at_the_limit_is_taken(
    serve: Serve, client_for: ClientFor
) -> None:
    largest, larger = b"x" * MANIFEST_LIMIT, b"x" * (MANIFEST_LIMIT + 1)
    hub = serve(lambda asked: manifest_answer(largest if digest_of(largest) in asked.path else larger))
    assert client_for().fetch_manifest(source(hub.host, largest)).body == largest
    error = failure(client_for(addresses={hub.host: hub.url}), source(hub.host, larger))
    assert error.trouble is Trouble.UNUSABLE
    assert str(MANIFEST_LIMIT) in str(error)


def chunked_without_end(connection: socket.socket, closing: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not closing.is_set():
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def without_end(connection: socket.socket, closing: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while not closing.is_set():
        connection.sendall(b"x" * 0x10000)


@pytest.mark.parametrize("endless", [chunked_without_end, without_end])
def test_an_endless_manifest_is_cut_off(serve_raw: ServeRaw, client_for: ClientFor, endless: Any) -> None:
    hub = serve_raw(endless)
    error = failure(client_for(addresses={hub.host: f"http://{hub.host}"}, timeout=20.0), source(hub.host))
    assert error.trouble is Trouble.UNUSABLE
    assert "more than" in str(error)


@pytest.mark.parametrize("endless", [chunked_without_end, without_end])
def test_an_endless_token_answer_is_cut_off(
    serve: Serve, serve_raw: ServeRaw, client_for: ClientFor, endless: Any
) -> None:
    tokens = serve_raw(endless)
    hub = serve(guarded(lambda: f"http://{tokens.host}/token"))
    error = failure(client_for(timeout=20.0), source(hub.host))
    assert error.trouble is Trouble.UNUSABLE
    assert "more than 65536 bytes" in str(error)


def test_a_body_that_was_compressed_unasked_is_understood(serve: Serve, client_for: ClientFor) -> None:
    answer = manifest_answer(gzip.compress(BODY))
    hub = serve(lambda _: answer._replace(headers={**answer.headers, "Content-Encoding": "gzip"}))
    assert client_for().fetch_manifest(source(hub.host)).body == BODY
    assert hub.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"x" * (MANIFEST_LIMIT + 1))),
        ("gzip", gzip.compress(BODY)[:-9]),
        ("gzip", b"no gzip"),
        ("br", b"\x00"),
        ("gzip, gzip", gzip.compress(gzip.compress(BODY))),
    ],
    ids=["a bomb", "broken off", "not gzip", "another", "twice"],
)
def test_a_compressed_body_that_cannot_be_used_is_refused(
    serve: Serve, client_for: ClientFor, encoding: str, body: bytes
) -> None:
    hub = serve(lambda _: Answer(200, {"Content-Encoding": encoding}, body))
    assert failure(client_for(addresses={hub.host: hub.url}), source(hub.host)).trouble is Trouble.UNUSABLE


# Servers that do not answer, or answer for ever


def drip(first: bytes, rest: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def talk(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(first)
        while not closing.wait(0.05):
            connection.sendall(rest)

    return talk


SLOW = {
    "silence": drip(b"", b""),
    "a byte of the status at a time": drip(b"HTTP/1.1 ", b"2"),
    "a byte of a header at a time": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "100 Continue for ever": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a byte of the body at a time": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "a byte of a chunk at a time": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", b"x"),
    "a byte of a chunk's length at a time": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers for ever": drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("talk", SLOW.values(), ids=SLOW)
def test_a_server_that_drips_does_not_hold_a_worker(
    serve_raw: ServeRaw,
    client_for: ClientFor,
    authority: Authority,
    tmp_path: Path,
    certs_dir: Path,
    talk: Any,
    secure: bool,
) -> None:
    hub = serve_raw(talk, authority.server_context(tmp_path / "keys") if secure else None)
    trust(authority, certs_dir, hub.host)
    client = client_for(addresses={hub.host: f"{'https' if secure else 'http'}://{hub.host}"}, timeout=0.5)
    started = time.monotonic()
    error = failure(client, source(hub.host))
    assert error.trouble is Trouble.UNREACHABLE
    assert "within the time limit" in str(error)
    assert time.monotonic() - started < 3


def test_a_deadline_that_passes_between_two_reads_is_a_time_out() -> None:
    ours, theirs = socket.socketpair()
    with theirs, _Socket(fileno=ours.detach()) as connection:
        connection.deadline = time.monotonic()
        theirs.sendall(b"too late")
        with connection.makefile("rb") as file, pytest.raises(socket.timeout):
            file.read(1)


def test_a_tls_handshake_that_does_not_come_is_not_waited_for(closed: Any, client_for: ClientFor) -> None:
    listener = closed.enter_context(socket.create_server(("127.0.0.1", 0)))
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    client = client_for(addresses={host: f"https://{host}"}, timeout=0.5)
    started = time.monotonic()
    assert failure(client, source(host)).trouble is Trouble.UNREACHABLE
    assert time.monotonic() - started < 3


def test_a_dead_registry_costs_one_time_out_a_request_and_three_a_fetch(
    serve_raw: ServeRaw, client_for: ClientFor
) -> None:
    hub = serve_raw(SLOW["silence"])
    names = source(hub.host)._replace(
        host=hub.host.replace("127.0.0.1", "localhost"), url=f"http://127.0.0.2:{hub.host[10:]}/"
    )
    started = time.monotonic()
    # Four addresses that would each take their second.
    assert failure(client_for(timeout=1.0), names).trouble is Trouble.UNREACHABLE
    assert time.monotonic() - started < 3.7


ODD = {
    "closed at once": b"",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a header of a megabyte": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "a thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
    "broken off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx",
    "broken off in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nx",
    "a chunk's length that is no number": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx",
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
def test_an_answer_that_is_broken_is_worth_another_try(serve_raw: ServeRaw, client_for: ClientFor, sent: bytes) -> None:
    hub = serve_raw(lambda connection, _: connection.sendall(sent))
    client = client_for(addresses={hub.host: f"http://{hub.host}"})
    assert failure(client, source(hub.host)).trouble is Trouble.UNREACHABLE


# Tokens


def test_a_thousand_manifests_of_one_repository_cost_one_token(
    serve: Serve, client_for: ClientFor, token_issuer: TokenIssuer
) -> None:
    token_issuer.anonymous_reads = True
    bodies = {digest_of(body): body for body in map(index_manifest, range(1000))}
    tokens = serve(token_issuer)

    def answer(asked: Asked) -> Answer:
        return manifest_answer(bodies[asked.path.rpartition("/")[2]]) if asked.authorization else bearer(tokens.url)

    hub = serve(answer)
    client = client_for()
    with ThreadPoolExecutor(8) as pool:
        fetched = list(pool.map(lambda body: client.fetch_manifest(source(hub.host, body)), bodies.values()))
    assert [manifest.body for manifest in fetched] == list(bodies.values())
    assert len(tokens.asked) == 1
    # Those that began before there was a token were challenged: at most one a thread.
    assert 1001 <= len(hub.asked) <= 1008


def test_each_repository_has_a_token_of_its_own(serve: Serve, client_for: ClientFor, token_issuer: TokenIssuer) -> None:
    token_issuer.anonymous_reads = True
    tokens = serve(token_issuer)
    hub = serve(guarded(lambda: tokens.url))
    client = client_for()
    for repository in ("a", "b", "a", "b"):
        client.fetch_manifest(source(hub.host, repository=repository))
    assert [asked.query["scope"] for asked in tokens.asked] == [["repository:a:pull"], ["repository:b:pull"]]


def test_a_token_is_used_while_it_is_fresh_and_not_after(serve: Serve, client_for: ClientFor) -> None:
    now = [0.0]
    tokens = serve(lambda _: Answer(200, {}, json.dumps({"token": f"t{now[0]}", "expires_in": 300}).encode()))
    hub = serve(guarded(lambda: tokens.url))
    client = client_for(clock=lambda: now[0])
    for now[0] in (0, 100, 289.9, 290, 400):
        client.fetch_manifest(source(hub.host))
    shown = [asked.authorization for asked in hub.asked if asked.authorization]
    assert shown == ["Bearer t0", "Bearer t0", "Bearer t0", "Bearer t290", "Bearer t290"]
    assert len(tokens.asked) == 2


def test_an_expired_token_is_renewed_once_and_no_more(serve: Serve, client_for: ClientFor) -> None:
    issued: list[str] = []
    accepted: set[str] = set()

    def issue(_: Asked) -> Answer:
        issued.append(f"t{len(issued)}")
        return Answer(200, {}, json.dumps({"token": issued[-1], "expires_in": 3600}).encode())

    tokens = serve(issue)
    hub = serve(guarded(lambda: tokens.url, lambda token: token in accepted))
    client = client_for()
    accepted.add("t0")
    client.fetch_manifest(source(hub.host))
    accepted.clear()
    accepted.add("t1")  # t0 is revoked before its time
    client.fetch_manifest(source(hub.host))
    assert issued == ["t0", "t1"]
    accepted.clear()  # and now nothing is good enough
    assert failure(client, source(hub.host)).trouble is Trouble.REFUSED
    assert issued == ["t0", "t1", "t2"]


@pytest.mark.usefixtures("names_resolve")
def test_a_realm_on_plain_http_gets_no_credentials(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor
) -> None:
    tokens = serve(lambda _: Answer(200, {}, b'{"token": "t"}'))
    hub = serve(guarded(lambda: f"http://auth.test:{tokens.port}/token"))
    error = failure(client_for(keychain_for(hub.host)), source(hub.host))
    assert error.trouble is Trouble.REFUSED
    assert f"-insecure-registry auth.test:{tokens.port}" in str(error)
    assert all(asked.authorization is None for asked in tokens.asked)
    # Where the operator allows it, it gets them; and without any there is nothing to lose.
    allowed = client_for(keychain_for(hub.host), insecure=[f"auth.test:{tokens.port}"])
    assert allowed.fetch_manifest(source(hub.host)).body == BODY
    assert tokens.asked[-1].authorization
    assert client_for().fetch_manifest(source(hub.host)).body == BODY
    assert tokens.asked[-1].authorization is None


@pytest.mark.usefixtures("names_resolve")
def test_a_registry_on_plain_http_gets_no_credentials(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor
) -> None:
    hub = serve(lambda asked: manifest_answer(BODY) if asked.authorization else BASIC)
    host = f"hub.test:{hub.port}"
    keychain = keychain_for(host)
    error = failure(client_for(keychain), source(host))
    assert error.trouble is Trouble.REFUSED
    assert f"-insecure-registry {host}" in str(error)
    given = client_for(keychain, addresses={host: f"http://{host}"})
    assert failure(given, source(host)).trouble is Trouble.REFUSED
    assert all(asked.authorization is None for asked in hub.asked)
    assert client_for(keychain, insecure=[host]).fetch_manifest(source(host)).body == BODY


@pytest.mark.usefixtures("names_resolve")
def test_credentials_that_plain_http_does_not_get_are_shown_over_https(
    serve: Serve,
    client_for: ClientFor,
    keychain_for: KeychainFor,
    authority: Authority,
    tmp_path: Path,
    certs_dir: Path,
) -> None:
    def answer(asked: Asked) -> Answer:
        return manifest_answer(BODY) if asked.authorization else BASIC

    plain, secure = serve(answer), serve(answer, authority.server_context(tmp_path / "keys", ("hub.test",)))
    host = f"hub.test:{secure.port}"
    trust(authority, certs_dir, host)
    asked = source(f"hub.test:{plain.port}")._replace(host=host)  # over http first, as the event says
    assert client_for(keychain_for(host, asked.registry)).fetch_manifest(asked).body == BODY
    assert [request.authorization for request in plain.asked] == [None]
    assert secure.asked[-1].authorization


def test_names_in_an_event_cannot_forge_a_line_of_the_log(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda _: error_answer(404))
    error = failure(client_for(), source(hub.host)._replace(registry="hub\nERROR all is lost"))
    assert error.trouble is Trouble.GONE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_do_not_follow_a_redirect_to_another_host(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor, status: int
) -> None:
    store = serve(lambda _: manifest_answer(BODY))
    hub = serve(lambda asked: Answer(status, {"Location": f"{store.url}/blob"}) if asked.authorization else BASIC)
    assert client_for(keychain_for(hub.host, store.host)).fetch_manifest(source(hub.host)).body == BODY
    (asked,) = store.asked
    assert asked.authorization is None
    assert not any(PASSWORD in value or "cookie" in name for name, value in asked.headers.items())


def test_a_password_does_not_follow_a_token_servers_redirect(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor
) -> None:
    elsewhere = serve(lambda _: Answer(200, {}, b'{"token": "t"}'))
    tokens = serve(lambda _: Answer(302, {"Location": f"{elsewhere.url}/token"}))
    hub = serve(guarded(lambda: tokens.url))
    client_for(keychain_for(hub.host)).fetch_manifest(source(hub.host))
    assert tokens.asked[0].authorization
    assert elsewhere.asked[0].authorization is None


def test_credentials_go_to_no_host_they_are_not_for(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor
) -> None:
    """Whoever can post a notification can name his own server beside a registry's name."""
    thief = serve(lambda _: BASIC)
    keychain = keychain_for("hub.invalid")
    failure(client_for(keychain), source(thief.host)._replace(registry="hub.invalid"))
    assert thief.asked
    assert all(asked.authorization is None for asked in thief.asked)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://reader:pw@127.0.0.1/", "data:,x"]
)
def test_a_redirect_to_what_is_not_http_is_refused(serve: Serve, client_for: ClientFor, location: str) -> None:
    hub = serve(lambda _: Answer(307, {"Location": location}))
    assert failure(client_for(addresses={hub.host: hub.url}), source(hub.host)).trouble is Trouble.UNUSABLE


def test_redirects_in_a_circle_end(serve: Serve, client_for: ClientFor) -> None:
    hub = serve(lambda asked: Answer(307, {"Location": asked.path}))
    assert failure(client_for(addresses={hub.host: hub.url}), source(hub.host)).trouble is Trouble.UNUSABLE
    assert len(hub.asked) < 10


@pytest.mark.parametrize(
    "realm", ["file:///etc/passwd", "http://reader:s3cr3t-Pass@127.0.0.1/", "ftp://127.0.0.1/", "token", ""]
)
def test_a_realm_that_is_no_http_url_is_refused(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor, realm: str
) -> None:
    hub = serve(guarded(lambda: realm))
    assert failure(client_for(keychain_for(hub.host)), source(hub.host)).trouble in (Trouble.UNUSABLE, Trouble.REFUSED)
    assert len(hub.asked) == 1


def test_an_identity_token_is_exchanged_by_post(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor, token_issuer: TokenIssuer
) -> None:
    token_issuer.refresh_tokens.add("refresh-me")
    tokens = serve(token_issuer)
    hub = serve(guarded(lambda: tokens.url))
    client = client_for(keychain_for(hub.host, identitytoken="refresh-me"))
    assert client.fetch_manifest(source(hub.host)).body == BODY
    (asked,) = tokens.asked
    assert asked.method == "POST"
    assert "refresh-me" not in asked.path


def test_a_password_changed_in_the_file_is_used_without_a_restart(
    serve: Serve, client_for: ClientFor, tmp_path: Path, token_issuer: TokenIssuer
) -> None:
    tokens = serve(token_issuer)
    hub = serve(guarded(lambda: tokens.url))
    file = tmp_path / "config.json"

    def write(password: str) -> None:
        file.write_text(json.dumps({"auths": {hub.host: {"username": "reader", "password": password}}}))

    write("wrong")
    client = client_for(Keychain.from_file(file, {}))
    assert failure(client, source(hub.host)).trouble is Trouble.REFUSED
    write("first-password")
    assert client.fetch_manifest(source(hub.host)).body == BODY
    token_issuer.users["reader"] = "second-password"
    write("second-password")
    assert client.fetch_manifest(source(hub.host)).body == BODY


def test_what_a_helper_gave_and_the_registry_refused_is_asked_for_again(
    serve: Serve, client_for: ClientFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        f"""#!/bin/sh\nprintf '{{"Username": "reader", "Secret": "%s"}}' "$(cat {tmp_path}/password)"\n"""
    )
    helper.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text('{"credsStore": "test"}')
    (tmp_path / "password").write_text("old")
    good = "Basic cmVhZGVyOm5ldw=="  # reader:new
    hub = serve(lambda asked: manifest_answer(BODY) if asked.authorization == good else BASIC)
    client = client_for(Keychain.from_file(tmp_path / "config.json", {}))
    assert failure(client, source(hub.host)).trouble is Trouble.REFUSED
    (tmp_path / "password").write_text("new")
    assert client.fetch_manifest(source(hub.host)).body == BODY


# TLS


def trust(authority: Authority, certs_dir: Path, host: str) -> None:
    (certs_dir / host).mkdir(parents=True, exist_ok=True)
    (certs_dir / host / "ca.crt").write_bytes(authority.pem())


def test_an_authority_in_certs_d_is_trusted_for_its_host_alone(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, certs_dir: Path
) -> None:
    hub = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys"))
    other = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys"))
    client = client_for()
    error = failure(client, source(hub.host, scheme="https"))
    assert error.trouble is Trouble.UNREACHABLE
    assert "-certs-dir" in str(error)
    trust(authority, certs_dir, hub.host)  # noticed without a new client
    assert client.fetch_manifest(source(hub.host, scheme="https")).body == BODY
    assert failure(client, source(other.host, scheme="https")).trouble is Trouble.UNREACHABLE
    assert not other.asked


def test_an_authority_of_the_old_kind_is_trusted(
    serve: Serve, client_for: ClientFor, tmp_path: Path, certs_dir: Path
) -> None:
    old = Authority(modern=False)
    hub = serve(lambda _: manifest_answer(BODY), old.server_context(tmp_path / "keys"))
    trust(old, certs_dir, hub.host)
    assert client_for().fetch_manifest(source(hub.host, scheme="https")).body == BODY


def test_a_certificate_for_another_name_is_not_trusted(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, certs_dir: Path
) -> None:
    hub = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys", ("other.example",)))
    trust(authority, certs_dir, hub.host)
    assert failure(client_for(), source(hub.host, scheme="https")).trouble is Trouble.UNREACHABLE
    assert not hub.asked


def test_an_insecure_registry_needs_no_authority(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path
) -> None:
    hub = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys"))
    assert client_for(insecure=[hub.host]).fetch_manifest(source(hub.host, scheme="https")).body == BODY


def test_ssl_cert_file_is_trusted(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = serve(lambda _: manifest_answer(BODY), authority.server_context(tmp_path / "keys"))
    (tmp_path / "bundle.pem").write_bytes(authority.pem())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    assert client_for().fetch_manifest(source(hub.host, scheme="https")).body == BODY
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    assert "missing.pem" in str(failure(client_for(), source(hub.host, scheme="https")))


def test_a_client_certificate_is_shown_to_its_host_and_not_to_where_it_redirects(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, certs_dir: Path
) -> None:
    def demanding(verify: ssl.VerifyMode) -> ssl.SSLContext:
        context = authority.server_context(tmp_path / "keys")
        context.load_verify_locations(cadata=authority.pem().decode())
        context.verify_mode = verify
        return context

    store = serve(lambda _: manifest_answer(BODY), demanding(ssl.CERT_REQUIRED))
    moved = [False]
    redirect = Answer(307, {"Location": f"{store.url}/blob"})
    hub = serve(lambda _: redirect if moved[0] else manifest_answer(BODY), demanding(ssl.CERT_REQUIRED))
    trust(authority, certs_dir, hub.host)
    client = client_for()
    assert failure(client, source(hub.host, scheme="https")).trouble is Trouble.UNREACHABLE
    authority.issue(certs_dir / hub.host, "client", ("regstat",))
    assert client.fetch_manifest(source(hub.host, scheme="https")).body == BODY
    moved[0] = True
    assert failure(client, source(hub.host, scheme="https")).trouble is Trouble.UNREACHABLE
    assert not store.asked


def test_the_authority_of_a_registry_vouches_for_its_token_server(
    serve: Serve, client_for: ClientFor, authority: Authority, tmp_path: Path, certs_dir: Path
) -> None:
    tokens = serve(lambda _: Answer(200, {}, b'{"token": "t"}'), authority.server_context(tmp_path / "keys"))
    hub = serve(guarded(lambda: tokens.url), authority.server_context(tmp_path / "keys"))
    trust(authority, certs_dir, hub.host)
    assert client_for().fetch_manifest(source(hub.host, scheme="https")).body == BODY


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("ca.crt", b"nonsense", "ca.crt cannot be used: expected certificates in PEM"),
        ("client.cert", b"nonsense", "client.key is missing beside it"),
        ("client.key", b"nonsense", "name cannot be resolved"),
    ],
)
def test_a_file_in_certs_d_that_cannot_be_used_is_named(
    client_for: ClientFor, certs_dir: Path, name: str, content: bytes, complaint: str
) -> None:
    (certs_dir / "hub.invalid").mkdir(parents=True)
    (certs_dir / "hub.invalid" / name).write_bytes(content)
    assert complaint in str(failure(client_for(), source("hub.invalid", scheme="https")))


# Proxies


def test_a_proxy_of_the_environment_is_used_and_never_for_this_machine(
    serve: Serve, client_for: ClientFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(lambda _: manifest_answer(BODY))
    hub = serve(lambda _: manifest_answer(BODY))
    monkeypatch.setenv("http_proxy", proxy.url)
    assert client_for().fetch_manifest(source("hub.invalid")).body == BODY
    assert proxy.asked[0].path.startswith("http://hub.invalid/v2/")
    assert client_for().fetch_manifest(source(hub.host)).body == BODY
    assert len(proxy.asked) == 1


def test_a_proxy_that_refuses_is_named_without_its_password_or_its_words(
    serve_raw: ServeRaw, client_for: ClientFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve_raw(lambda connection, _: connection.sendall(f"HTTP/1.1 407 {PASSWORD}\r\n\r\n".encode()))
    monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@{proxy.host}")
    error = failure(client_for(), source("hub.invalid", scheme="https"))
    assert error.trouble is Trouble.UNREACHABLE
    assert "the proxy refused to connect (407)" in str(error)


# Secrets


def test_a_server_that_repeats_what_it_was_told_gets_it_into_no_error_and_no_log(
    serve: Serve, client_for: ClientFor, keychain_for: KeychainFor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(status: int, headers: dict[str, str]) -> Callable[[Asked], Answer]:
        def answer(asked: Asked) -> Answer:
            if asked.authorization is None:
                return BASIC
            told = {name: value.format(asked.authorization) for name, value in headers.items()}
            return Answer(status, told, asked.authorization.encode())

        return answer

    texts = []
    for status in (200, 302, 307, 400, 401, 403, 404, 429, 500, 503):
        for header in ("Location", "WWW-Authenticate", "Retry-After", "Content-Encoding", "Content-Type", "Warning"):
            hub = serve(echo(status, {header: 'ftp://{0}/ Bearer realm="{0}"'}))
            texts.append(str(failure(client_for(keychain_for(hub.host)), source(hub.host))))
    encoded = "cmVhZGVyOnMzY3IzdC1QYXNz"
    assert encoded not in "".join(texts) + caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    "shape",
    [
        "HTTP/1.1 500 {0}\r\n\r\n",
        "{0}\r\n\r\n",
        "HTTP/1.1 {0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{0}\r\n",
    ],
)
def test_a_status_line_made_of_a_secret_is_not_repeated(
    serve_raw: ServeRaw, client_for: ClientFor, keychain_for: KeychainFor, shape: str
) -> None:
    first = [True]

    def talk(connection: socket.socket, _: threading.Event) -> None:
        unauthorized = b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n'
        connection.sendall(unauthorized if first[0] else shape.format(PASSWORD).encode())
        first[0] = False

    hub = serve_raw(talk)
    failure(client_for(keychain_for(hub.host), addresses={hub.host: f"http://{hub.host}"}), source(hub.host))
