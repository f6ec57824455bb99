"""deploy/compose.yaml brought up: regstat as built, and Debian's registry and Postgres under the names that it wants.

It has a network of its own, so that its port is free and no firewall is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import BUILD_FLAGS, Podman, debian_tree, run, running_podman, skip_without
from envelopes import digest_of
from running_daemon import ROOT, await_condition

# To make a Debian takes longer than a test may.
pytestmark = [pytest.mark.xdist_group("compose"), pytest.mark.timeout(900)]

COMPOSE = ROOT / "deploy/compose.yaml"
DEBIAN = "localhost/debian"
PASSWORD = 'it\'s a "password"'


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[Podman]:
    """A podman that has all images of the compose file but the one that is built."""
    skip_without("buildah", "podman", "runc", "netavark", "aardvark-dns", "iptables", "ip", "skopeo", "nsenter")
    (base,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    registry, postgres = re.findall(r"^    image: (\S+)$", COMPOSE.read_text(), re.M)
    (tmp_path / "registry").write_text(
        f'FROM {DEBIAN}\nENTRYPOINT ["docker-registry", "serve"]\nCMD ["/etc/docker/registry/config.yml"]\n'
    )
    (tmp_path / "postgres").write_text(
        f'FROM {DEBIAN}\nCOPY compose_postgres.sh /\nENTRYPOINT ["sh", "/compose_postgres.sh"]\n'
    )
    with running_podman() as podman:
        podman("import", debian_tree(), DEBIAN)
        podman("tag", DEBIAN, base)
        podman.build(registry, tmp_path / "registry", ROOT / "tests")
        podman.build(postgres, tmp_path / "postgres", ROOT / "tests")
        yield podman


class Composition:
    """The compose file's containers in a network of their own."""

    def __init__(self, podman: Podman) -> None:
        self._environment = {**podman.environment, "REGSTAT_DB_PASSWORD": PASSWORD}
        build = [f"--podman-build-args={flag}" for flag in BUILD_FLAGS]
        self._compose = [sys.executable, "-m", "podman_compose", *build, "--file", str(COMPOSE)]
        run(*self._compose, "build", env=self._environment)  # pip gets packages: not in that network
        command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]
        self._network = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == "up\n"

    def inside(self, *command: str) -> str:
        return run("nsenter", f"--net=/proc/{self._network.pid}/ns/net", *command, env=self._environment)

    def __call__(self, *arguments: str) -> str:
        return self.inside(*self._compose, *arguments)

    def select(self, query: str) -> list[str]:
        """The rows, as the compose file's head says how to ask for them."""
        asked = self("exec", "-T", "postgres", "psql", "-U", "regstat", "-At", "-c", query)
        return asked.splitlines()

    def close(self) -> None:
        self("down", "--volumes")
        self._network.terminate()
        self._network.wait()


@pytest.fixture
def composition(podman: Podman) -> Iterator[Composition]:
    with contextlib.closing(Composition(podman)) as composition:
        composition("up", "--detach", "--no-build")
        yield composition


def artifact(directory: Path, subject: str) -> str:
    """An artifact as skopeo copies it from a directory; its digest. No notification tells of a subject."""
    directory.mkdir()
    parts = []
    for content in (b"{}", b"a text"):
        (directory / hashlib.sha256(content).hexdigest()).write_bytes(content)
        parts.append({"digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)})
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", **parts[0]},
        "layers": [{"mediaType": "text/plain", **parts[1]}],
        "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject, "size": 1},
    }
    written = json.dumps(manifest).encode()
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    (directory / "manifest.json").write_bytes(written)
    return f"sha256:{hashlib.sha256(written).hexdigest()}"


def test_what_is_pushed_to_the_registry_is_told_fetched_and_in_postgres(
    composition: Composition, podman: Podman, tmp_path: Path
) -> None:
    subject = digest_of("a subject")
    digest = artifact(tmp_path / "artifact", subject)
    await_condition(lambda: "Recording to" in podman.log("regstat_regstat_1"), 60, "Postgres and regstat are up")
    await_condition(lambda: "listening on" in podman.log("regstat_registry_1"), 60, "the registry is up")
    flags = ["--dest-tls-verify=false", "--preserve-digests"]
    composition.inside("skopeo", "copy", *flags, f"dir:{tmp_path}/artifact", "docker://localhost:5000/team/app")

    tags = "select name, manifest_digest from regstat.tags"
    await_condition(lambda: composition.select(tags), 30, "the tag is known")
    assert composition.select(tags) == [f"localhost:5000/team/app:latest|{digest}"]
    # Only the manifest itself says that; it was asked of the registry where the compose file says it is.
    links = f"select blob_digest from regstat.deleted_manifest_blob where manifest_digest = '{digest}'"
    await_condition(lambda: composition.select(links) == [subject], 30, "the manifest is fetched")
    order = "select datcollate, pg_encoding_to_char(encoding) from pg_database where datname = current_database()"
    assert composition.select(order) == ["C|UTF8"]
    assert podman.status("healthcheck", "run", "regstat_regstat_1") == 0
