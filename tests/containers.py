"""What the tests run that is more than a process: containers, and a Debian of their own to make them from.

Everything that is made here is apart from what the machine has: images and networks of its own, no address outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

SUITE = "bookworm"
# Of one tree are made: the base of the image, the neighbours in the compose file, the machine that boots the units.
PACKAGES = ("ca-certificates", "docker-registry", "postgresql", "python3", "python3-pip", "systemd-sysv")

_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")


def skip_without(*commands: str) -> None:
    """Skips with what is missing, of these commands and of the right to use them."""
    if os.geteuid() != 0:
        pytest.skip("only root may make containers")
    # What only podman calls is beside the PATH.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/lib/podman:/usr/libexec/podman"
    missing = [command for command in ("debootstrap", *commands) if shutil.which(command, path=path) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: make programs installs them, on Debian")


def debian_tree() -> Path:
    """A tar file of a small Debian with PACKAGES, made once and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regstat-tests"
    cache.mkdir(parents=True, exist_ok=True)
    tar = cache / f"{SUITE}-{'-'.join(PACKAGES)}.tar"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not tar.exists():
            _bootstrap(tar)
    return tar


def _bootstrap(tar: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="regstat-debian-") as directory:
        # Not that directory itself, which is root's alone: everybody may enter a Debian.
        tree = f"{directory}/debian"
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, tree]
        made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if made.returncode != 0:
            pytest.skip(f"debootstrap could not get a Debian: {made.stdout[-500:]}")
        new = tar.with_suffix(".new")
        leave = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
        run("tar", "--create", "--one-file-system", *leave, "--directory", tree, "--file", new, ".")
        new.replace(tar)


def run(*command: Any, **details: Any) -> str:
    """What the command printed; fails with all that it said."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, **details
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Podman:
    """A podman whose images, containers, volumes and networks are all in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            # No engine is needed to build so, and the network is the machine's.
            "BUILDAH_ISOLATION": "chroot",
            # The other format has no health checks.
            "BUILDAH_FORMAT": "docker",
        }
        (directory / "containers.conf").write_text(_CONTAINERS.format(directory=directory))
        # The first does not work where the directory is itself in such a file system.
        for driver in ("overlay", "vfs"):
            (directory / "storage.conf").write_text(_STORAGE.format(directory=directory, driver=driver))
            with contextlib.suppress(AssertionError):
                self("info")
                break

    def __call__(self, *arguments: Any, **details: Any) -> str:
        return run("podman", *arguments, env=self.environment, **details)

    def status(self, *arguments: Any) -> int:
        """The exit status of a command that may fail."""
        command = ["podman", *(str(argument) for argument in arguments)]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=60).returncode

    def build(self, image: str, dockerfile: Path, context: Path) -> None:
        command = ["buildah", "build", "--pull-never", *BUILD_FLAGS, "--tag", image, "--file", dockerfile, context]
        run(*command, env=self.environment)

    def log(self, container: str) -> str:
        """All that it wrote, on stdout and stderr."""
        said = subprocess.run(["podman", "logs", container], env=self.environment, capture_output=True, text=True)
        return said.stdout + said.stderr

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self("inspect", name))
        return dict(found)

    def close(self) -> None:
        self("rm", "--all", "--force", "--time", "5")
        # It mounts its own directory, so that mounts in it stay private.
        for mount in (self.directory / "overlay" / "overlay", self.directory / "overlay"):
            if mount.is_mount():
                run("umount", mount)


# A machine that reaches the package index through a gateway has the gateway's certificate here.
BUILD_FLAGS: Sequence[str] = ["--volume=/etc/ssl/certs:/etc/ssl/certs:ro"] if Path("/etc/ssl/certs").exists() else []

_CONTAINERS = """\
[containers]
# Its own default is more than a root without CAP_SYS_RESOURCE may set.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
# The other runtime, crun, wants one version of cgroups alone.
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"
[network]
# It brings its own names for containers.
network_backend = "netavark"
network_config_dir = "{directory}/networks"
"""
_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{directory}/{driver}"
runroot = "{directory}/run"
"""


@contextlib.contextmanager
def running_podman() -> Iterator[Podman]:
    # Not pytest's directory: paths of Unix sockets are short, and a gigabyte is not to be kept.
    directory = Path(tempfile.mkdtemp(prefix="regstat-podman-"))
    try:
        with contextlib.closing(Podman(directory)) as podman:
            yield podman
    finally:
        shutil.rmtree(directory, ignore_errors=True)
