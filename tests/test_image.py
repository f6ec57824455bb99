"""The image of the Dockerfile, built and run, on a base made of Debian's packages that goes by the name it asks for."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import Podman, debian_tree, run, running_podman, skip_without
from envelopes import digest_of, envelope, event, image
from running_daemon import ROOT, await_condition

# One build serves all; to make a Debian takes longer than a test may.
pytestmark = [pytest.mark.xdist_group("image"), pytest.mark.timeout(900)]

DOCKERFILE = ROOT / "Dockerfile"
(BASE,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE.read_text(), re.M)
IMAGE = "localhost/regstat"

# What a client does from inside, because the container has no network but its own loopback.
_POST = """
import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(urllib.request.Request(sys.argv[1], sys.stdin.buffer.read()), timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """A podman that has the image."""
    skip_without("buildah", "podman", "runc")
    with running_podman() as podman:
        podman("import", debian_tree(), BASE)
        podman.build(IMAGE, DOCKERFILE, ROOT)
        yield podman


class Container:
    """A container of the image, which runs."""

    def __init__(self, podman: Podman, flags: list[str], arguments: list[str]) -> None:
        self.podman = podman
        # The last line, since podman may complain that nobody is there to run the health check for it.
        self.id = podman("run", "--detach", "--network", "none", *flags, IMAGE, *arguments).split()[-1]

    def log(self) -> str:
        return self.podman.log(self.id)

    def await_logged(self, what: str) -> None:
        await_condition(lambda: what in self.log(), 20, f"it says {what!r}")

    def post(self, port: int, body: bytes) -> str:
        command = ["python3", "-I", "-c", _POST, f"http://127.0.0.1:{port}/"]
        return self.podman("exec", "--interactive", self.id, *command, input=body.decode()).strip()

    def is_healthy(self) -> bool:
        """What the image's own check finds."""
        return self.podman.status("healthcheck", "run", self.id) == 0

    def stop(self) -> int:
        self.podman("stop", "--time", "15", self.id)
        return int(self.podman.inspect(self.id)["State"]["ExitCode"])


def test_the_image_says_how_it_is_run(podman: Podman) -> None:
    config = podman.inspect(IMAGE)["Config"]
    assert config["User"] == "65532:65532"
    assert config["ExposedPorts"] == {"3333/tcp": {}}
    assert config["Entrypoint"] == ["python3", "-I", "/regstat.pyz"]
    assert not config.get("Cmd"), "what is appended to the entry point is the user's alone"
    assert podman.inspect(IMAGE)["Healthcheck"]["Test"][0] == "CMD", "a shell is not needed"


def test_the_one_file_is_all_that_is_added_to_the_base(podman: Podman, tmp_path: Path) -> None:
    changed = json.loads(podman("diff", "--format", "json", IMAGE, BASE))
    assert changed == {"added": ["/data", "/regstat.pyz"]}
    run(sys.executable, ROOT / "deploy/build_pyz.py", tmp_path / "regstat.pyz")
    built = hashlib.sha256((tmp_path / "regstat.pyz").read_bytes()).hexdigest()
    asked = [
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "sh",
        IMAGE,
        "-c",
        "sha256sum /regstat.pyz; ls -A /data",
    ]
    assert podman(*asked) == f"{built}  /regstat.pyz\n"


def test_arguments_are_appended_and_a_user_without_rights_records_what_a_volume_keeps(podman: Podman) -> None:
    # The last three are what the compose file takes from it.
    hardened = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    flags = ["--volume", "events:/data", *hardened]
    container = Container(podman, flags, ["-port", "4444", "-sqlite", "/data/x.db"])
    container.await_logged("Server now listening on :4444")
    assert container.is_healthy()
    ids = podman("exec", container.id, "grep", "-E", "^([UG]id|CapEff)", "/proc/1/status").split()
    assert [int(word) for word in ids if word.isdigit()] == [65532] * 8 + [0]
    pushed = image(digest_of("image"), digest_of("config"), digest_of("layer"), tag="1.0")
    said = container.post(4444, envelope(pushed))
    assert said == '200 {"recorded": 1, "set_aside": 0}'
    assert container.stop() == 0, container.log()

    report = ["report", "images", "--format", "json", "-sqlite", "/data/x.db"]
    (kept,) = json.loads(podman("run", "--rm", "--network", "none", *flags, IMAGE, *report))
    assert (kept["repository"], kept["tag"]) == ("team/app", "1.0")


def test_without_arguments_it_waits_for_postgres_on_localhost(podman: Podman) -> None:
    container = Container(podman, [], [])
    container.await_logged("Postgres at localhost:5432")
    container.await_logged("cannot be reached")
    container.await_logged("Server now listening on :3333")
    assert container.post(3333, envelope(event(digest=digest_of("a")))).startswith("503 ")
    assert container.is_healthy(), "to start it again would not help"
    assert container.stop() == 0, container.log()


def test_the_health_check_fails_when_it_does_not_answer(podman: Podman) -> None:
    container = Container(podman, [], ["--port=3334", "-sqlite", "/data/x.db"])
    container.await_logged("Server now listening on :3334")
    assert container.is_healthy()
    podman("kill", "--signal", "STOP", container.id)
    assert not container.is_healthy()
    podman("kill", "--signal", "CONT", container.id)
    assert container.is_healthy()
    assert container.stop() == 0, container.log()


def test_a_wrong_flag_is_exit_status_2(podman: Podman, tmp_path: Path) -> None:
    assert podman.status("run", "--rm", "--network", "none", IMAGE, "-docker-config", tmp_path / "none.json") == 2
