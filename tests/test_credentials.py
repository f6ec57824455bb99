"""The daemon and a real registry that asks for a password, from the push to the links."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from envelopes import digest_of, rows
from real_registry import RealRegistry, needs_registry, run_registry
from running_daemon import RunningDaemon, await_condition, run_daemon

IMAGE = "application/vnd.oci.image.manifest.v1+json"
# bcrypt, as `htpasswd -B` writes it, of "first-password" and "second-password".
FIRST = "reader:$2y$05$abcdefghijklmnopqrstuuM3sQey8DZviRRkMjmk7wGr.7zlb4loC\n"
SECOND = "reader:$2y$05$abcdefghijklmnopqrstuuQQ3svipWaDLu5Kgwa3hvLrUP0FshBnK\n"

pytestmark = needs_registry


def basic(password: str) -> str:
    return base64.b64encode(f"reader:{password}".encode()).decode()


def push(registry: RealRegistry, password: str, tag: str) -> str:
    """Pushes an image of one config with the password; its manifest's digest."""
    authorization = {"Authorization": f"Basic {basic(password)}"}
    config = json.dumps({"architecture": "amd64", "tag": tag}).encode()
    begun = registry.request("POST", "/v2/team/app/blobs/uploads/", b"", authorization)
    location = begun.headers["Location"].partition(registry.host)[2] or begun.headers["Location"]
    put = registry.request("PUT", f"{location}&digest={digest_of(config)}", config, authorization)
    assert put.status == 201, put.body
    reference = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": 38}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": IMAGE, "config": reference, "layers": []}).encode()
    put = registry.request("PUT", f"/v2/team/app/manifests/{tag}", manifest, {**authorization, "Content-Type": IMAGE})
    assert put.status == 201, put.body
    return digest_of(manifest)


def await_link(flags: list[str], digest: str, daemon: RunningDaemon) -> None:
    await_condition(
        lambda: rows(flags, f"select 1 from {{s}}manifest_blob where manifest_digest = '{digest}'"),
        30,
        f"the manifest's links are known; the daemon's log:\n{daemon.log()}",
    )


def test_a_registry_with_passwords_is_read_with_the_docker_config_that_is_followed_as_it_changes(
    tmp_path: Path, database_flags: list[str]
) -> None:
    config, passwords = tmp_path / "config.json", tmp_path / "htpasswd"
    passwords.write_text(FIRST)
    config.write_text("{}")
    with run_daemon(*database_flags, "-docker-config", str(config)) as daemon:
        with run_registry(tmp_path / "registry", f"http://127.0.0.1:{daemon.port}", htpasswd=passwords) as registry:
            config.write_text(json.dumps({"auths": {registry.host: {"auth": basic("first-password")}}}))
            await_link(database_flags, push(registry, "first-password", "1.0"), daemon)

            passwords.write_text(SECOND)
            config.write_text(json.dumps({"auths": {registry.host: {"auth": basic("second-password")}}}))
            await_link(database_flags, push(registry, "second-password", "2.0"), daemon)
        log = daemon.log()
    for secret in ("first-password", "second-password", basic("first-password"), basic("second-password")):
        assert secret not in log


def test_without_credentials_manifests_stay_pending_and_one_line_names_the_flag(
    tmp_path: Path, sqlite_path: Path
) -> None:
    passwords = tmp_path / "htpasswd"
    passwords.write_text(FIRST)
    flags = ["-sqlite", str(sqlite_path)]
    with run_daemon(*flags) as daemon:
        with run_registry(tmp_path / "registry", f"http://127.0.0.1:{daemon.port}", htpasswd=passwords) as registry:
            for tag in ("1.0", "2.0", "3.0"):
                push(registry, "first-password", tag)
            query = "select last_error from {s}pending_manifests where attempts > 0 and given_up is null"
            await_condition(lambda: len(rows(flags, query)) == 3, 30, "all three were asked for")
        complaints = [line for line in daemon.log().splitlines() if "-docker-config" in line]
        assert len(complaints) == 1, daemon.log()
        assert registry.host in complaints[0]
        assert all("-docker-config" in error for (error,) in rows(flags, query))
