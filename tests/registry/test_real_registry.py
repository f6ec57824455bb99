"""The client against docker-registry itself: open, behind a password, behind tokens, with and without TLS."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_servers import (
    OCI_INDEX,
    SIGNED_SCHEMA_1,
    Authority,
    DockerRegistry,
    Scripted,
    TokenIssuer,
    digest_of,
    index_manifest,
    signed_schema_1,
)

from regstat_lib.registry import FetchedManifest, FetchError, Keychain, ManifestSource, RegistryClient, Trouble

BODY = index_manifest()
Start = Callable[..., DockerRegistry]
Serve = Callable[..., Scripted]
# bcrypt of the passwords "first-password" and "second-password"
FIRST = "reader:$2y$05$abcdefghijklmnopqrstuuM3sQey8DZviRRkMjmk7wGr.7zlb4loC\n"
SECOND = "reader:$2y$05$abcdefghijklmnopqrstuuQQ3svipWaDLu5Kgwa3hvLrUP0FshBnK\n"


def source(registry: DockerRegistry, digest: str, repository: str = "team/app") -> ManifestSource:
    url = f"{registry.url}/v2/{repository}/manifests/{digest}"
    return ManifestSource(registry.host, repository, digest, url, registry.host)


def htpasswd(tmp_path: Path, line: str) -> dict[str, object]:
    file = tmp_path / "htpasswd"
    file.write_text(line)
    return {"htpasswd": {"realm": "regstat tests", "path": str(file)}}


def token_auth(tokens: Scripted, issuer: TokenIssuer) -> dict[str, object]:
    return {
        "token": {
            "realm": f"{tokens.url}/token",
            "service": issuer.service,
            "issuer": issuer.issuer,
            "rootcertbundle": str(issuer.bundle),
        }
    }


def write_config(file: Path, host: str, password: str) -> Path:
    file.write_text(json.dumps({"auths": {host: {"username": "reader", "password": password}}}))
    return file


def trouble(client: RegistryClient, asked: ManifestSource) -> Trouble:
    with pytest.raises(FetchError) as error:
        client.fetch_manifest(asked)
    assert asked.registry in str(error.value)
    return error.value.trouble


def test_an_open_registry_is_read(docker_registry: Start) -> None:
    registry = docker_registry()
    digest = registry.push_manifest("team/app", BODY)
    client = RegistryClient(insecure=())
    assert client.fetch_manifest(source(registry, digest)) == FetchedManifest(OCI_INDEX, BODY)
    assert trouble(client, source(registry, digest_of(b"never pushed"))) is Trouble.GONE
    assert trouble(client, source(registry, digest, "never/pushed")) is Trouble.GONE


def test_a_signed_schema_1_manifest_is_read_as_its_payload(docker_registry: Start) -> None:
    registry = docker_registry()
    layer = registry.push_blob("team/old", b"a layer")
    history = {"v1Compatibility": json.dumps({"id": "0" * 64})}
    document = {
        "schemaVersion": 1,
        "name": "team/old",
        "tag": "latest",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": layer}],
        "history": [history],
    }
    payload = json.dumps(document, indent=3).encode()
    digest = registry.push_manifest("team/old", signed_schema_1(payload), SIGNED_SCHEMA_1, tag="latest")
    assert digest == digest_of(payload)
    manifest = RegistryClient(insecure=()).fetch_manifest(source(registry, digest, "team/old"))
    assert manifest == FetchedManifest(SIGNED_SCHEMA_1, payload)


def test_a_registry_behind_a_password_is_read_and_a_new_password_needs_no_restart(
    docker_registry: Start, tmp_path: Path
) -> None:
    digest = docker_registry().push_manifest("team/app", BODY)
    registry = docker_registry(htpasswd(tmp_path, FIRST))
    asked = source(registry, digest)
    assert trouble(RegistryClient(insecure=()), asked) is Trouble.REFUSED
    config = write_config(tmp_path / "config.json", registry.host, "first-password")
    client = RegistryClient(Keychain.from_file(config, {}), insecure=())
    assert client.fetch_manifest(asked).body == BODY
    (tmp_path / "htpasswd").write_text(SECOND)
    # docker-registry notices a new file by its time of modification, in whole seconds on some file systems.
    deadline = time.monotonic() + 10
    while registry.status("/v2/", "Basic cmVhZGVyOmZpcnN0LXBhc3N3b3Jk") == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert trouble(client, asked) is Trouble.REFUSED
    write_config(config, registry.host, "second-password")
    assert client.fetch_manifest(asked).body == BODY


def test_a_registry_behind_tokens_is_read_with_one_token_a_repository(
    docker_registry: Start, serve: Serve, token_issuer: TokenIssuer, tmp_path: Path
) -> None:
    plain = docker_registry()
    repositories = ("team/app", "team/other")
    bodies = [index_manifest(number) for number in range(50)]
    wanted = [(repository, body) for repository in repositories for body in bodies]
    for repository, body in wanted:
        plain.push_manifest(repository, body)
    tokens = serve(token_issuer)
    registry = docker_registry(token_auth(tokens, token_issuer))
    config = write_config(tmp_path / "config.json", registry.host, "first-password")
    client = RegistryClient(Keychain.from_file(config, {}), insecure=())
    with ThreadPoolExecutor(4) as pool:
        fetched = pool.map(lambda one: client.fetch_manifest(source(registry, digest_of(one[1]), one[0])).body, wanted)
        assert list(fetched) == [body for _, body in wanted]
    assert token_issuer.issued == 2
    token_issuer.users["reader"] = "second-password"
    write_config(config, registry.host, "wrong")
    assert trouble(client, source(registry, digest_of(bodies[0]))) is Trouble.REFUSED
    write_config(config, registry.host, "second-password")
    assert client.fetch_manifest(source(registry, digest_of(bodies[0]))).body == bodies[0]


def test_a_registry_behind_tokens_is_read_anonymously_and_with_an_identity_token(
    docker_registry: Start, serve: Serve, token_issuer: TokenIssuer, tmp_path: Path
) -> None:
    digest = docker_registry().push_manifest("team/app", BODY)
    tokens = serve(token_issuer)
    registry = docker_registry(token_auth(tokens, token_issuer))
    asked = source(registry, digest)
    assert trouble(RegistryClient(insecure=()), asked) is Trouble.REFUSED
    token_issuer.anonymous_reads = True
    assert RegistryClient(insecure=()).fetch_manifest(asked).body == BODY
    token_issuer.anonymous_reads = False
    token_issuer.refresh_tokens.add("refresh-me")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {registry.url: {"identitytoken": "refresh-me"}}}))
    assert RegistryClient(Keychain.from_file(config, {}), insecure=()).fetch_manifest(asked).body == BODY
    assert tokens.asked[-1].method == "POST"


def test_a_token_that_the_registry_takes_no_more_is_renewed_once(
    docker_registry: Start, serve: Serve, token_issuer: TokenIssuer
) -> None:
    digest = docker_registry().push_manifest("team/app", BODY)
    tokens = serve(token_issuer)
    registry = docker_registry(token_auth(tokens, token_issuer))
    token_issuer.anonymous_reads = True
    token_issuer.life = -58  # docker-registry allows clocks to differ by a minute, so two seconds are left
    asked = source(registry, digest)
    client = RegistryClient(insecure=())
    assert client.fetch_manifest(asked).body == BODY
    bearer = f"Bearer {token_issuer.sign('', [])}"
    assert registry.status("/v2/", bearer) == 200
    deadline = time.monotonic() + 10
    while registry.status("/v2/", bearer) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    token_issuer.life = 300
    for _ in range(3):
        assert client.fetch_manifest(asked).body == BODY
    assert token_issuer.issued == 2


def test_a_registry_with_a_private_authority_is_read_over_https(
    docker_registry: Start, authority: Authority, tmp_path: Path
) -> None:
    digest = docker_registry().push_manifest("team/app", BODY)
    pair = authority.issue(tmp_path / "keys", "registry", ("localhost", "127.0.0.1"))
    registry = docker_registry(htpasswd(tmp_path, FIRST), tls=pair)
    config = write_config(tmp_path / "config.json", f"https://{registry.host}/v1/", "first-password")
    certs_dir = tmp_path / "certs.d"
    client = RegistryClient(Keychain.from_file(config, {}), insecure=(), certs_dir=certs_dir)
    asked = source(registry, digest)
    assert trouble(client, asked) is Trouble.UNREACHABLE
    (certs_dir / registry.host).mkdir(parents=True)
    (certs_dir / registry.host / "ca.crt").write_bytes(authority.pem())
    assert client.fetch_manifest(asked).body == BODY
    assert client.fetch_manifest(asked._replace(url=asked.url.replace("https:", "http:"))).body == BODY


def test_tokens_over_https_with_a_private_authority(
    docker_registry: Start, serve: Serve, authority: Authority, token_issuer: TokenIssuer, tmp_path: Path
) -> None:
    digest = docker_registry().push_manifest("team/app", BODY)
    tokens = serve(token_issuer, authority.server_context(tmp_path / "keys"))
    pair = authority.issue(tmp_path / "keys", "registry", ("localhost", "127.0.0.1"))
    registry = docker_registry(token_auth(tokens, token_issuer), tls=pair)
    certs_dir = tmp_path / "certs.d"
    (certs_dir / registry.host).mkdir(parents=True)
    (certs_dir / registry.host / "ca.crt").write_bytes(authority.pem())
    config = write_config(tmp_path / "config.json", registry.host, "first-password")
    client = RegistryClient(Keychain.from_file(config, {}), insecure=(), certs_dir=certs_dir)
    assert client.fetch_manifest(source(registry, digest)).body == BODY
