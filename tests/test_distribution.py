"""What people install: the one file on every Python that is here, the wheel and the sdist, and what deploys them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from envelopes import digest_of, envelope, event, image, rows
from interpreters import VERSIONS, interpreters
from real_registry import free_port, needs_registry
from running_daemon import ROOT, await_condition, run_daemon

DEPLOY = ROOT / "deploy"
FOUND = interpreters()


def build_pyz(output: Path, **environment: str) -> Path:
    command = [sys.executable, str(DEPLOY / "build_pyz.py"), str(output)]
    built = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, cwd="/")
    assert built.returncode == 0, built.stderr
    return output


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built file, with nothing of the checkout beside it."""
    return build_pyz(tmp_path_factory.mktemp("dist") / "regstat.pyz")


@pytest.fixture(params=VERSIONS)
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter of each version that regstat is for."""
    if request.param not in FOUND:
        pytest.skip(f"Python {request.param} is not on this machine")
    return FOUND[request.param]


def test_two_builds_are_the_same_byte_for_byte(pyz: Path, tmp_path: Path) -> None:
    time.sleep(2 - time.time() % 2)  # a zip file counts time in pairs of seconds
    again = build_pyz(tmp_path / "again.pyz", TZ="Asia/Kathmandu", PYTHONHASHSEED="7", LC_ALL="C")
    assert again.read_bytes() == pyz.read_bytes()


def test_the_file_is_executable_and_smaller_than_a_megabyte(pyz: Path) -> None:
    assert pyz.stat().st_size < 1_000_000
    assert os.access(pyz, os.X_OK)
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_everything_that_the_lock_names_is_inside_with_its_licence_and_metadata(pyz: Path) -> None:
    names = zipfile.ZipFile(pyz).namelist()
    lock = (DEPLOY / "requirements.lock").read_text()
    locked = re.findall(r"^([\w.-]+)==([\w.]+) --hash=sha256:[0-9a-f]{64}$", lock, re.M)
    assert "pg8000" in dict(locked)
    for project, version in locked:
        metadata = f"{project.replace('-', '_')}-{version}.dist-info/"
        assert f"{metadata}METADATA" in names
        assert any(name.startswith(metadata) and "LICENSE" in name for name in names), f"{project} without its licence"
    assert "LICENSE" in names
    assert {f"regstat_lib/store/sql/{path.name}" for path in (ROOT / "regstat_lib/store/sql").iterdir()} <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".so")) or name.startswith("tests/")]


def test_the_version_says_what_runs(pyz: Path, python: str) -> None:
    said = subprocess.run([python, "-I", str(pyz), "--version"], capture_output=True, text=True, timeout=30)
    assert re.fullmatch(r"regstat \d+\.\d+\.\d+, Python 3\.\d+\.\d+, pg8000 1\.\d+\.\d+\n", said.stdout), said.stderr


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_the_file_records_and_reports(
    engine: str, pyz: Path, python: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    flags = ["-sqlite", str(tmp_path / "regstat.db")]
    if engine == "postgres":
        flags = ["-pg-conn-str", request.getfixturevalue("pg_conn_str")]
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    program = ["env", f"TMPDIR={unpacked}", f"HOME={unpacked}", python, "-I", "-W", "error", str(pyz)]
    with run_daemon(*flags, program=program) as daemon:
        pushed = image(digest_of("image"), digest_of("config"), digest_of("layer"), tag="1.0")
        assert daemon.post(envelope(pushed)) == (200, {"recorded": 1, "set_aside": 0})
        assert daemon.stop() == 0, daemon.log()
    assert rows(flags, "select name from {s}tags") == [("registry.example/team/app:1.0",)]
    report = subprocess.run([python, "-I", str(pyz), "report", "summary", *flags], capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert list(unpacked.iterdir()) == [], "something was unpacked"


def test_a_python_that_is_too_old_gets_a_sentence(pyz: Path) -> None:
    pyenv = Path.home() / ".pyenv/versions"
    old = [*pyenv.glob("2.7.*/bin/python"), *pyenv.glob("3.[678].*/bin/python")]
    if not old:
        pytest.skip("no Python older than 3.9 is on this machine")
    for path in old:
        said = subprocess.run([str(path), str(pyz), "-h"], stderr=subprocess.PIPE, text=True)
        assert said.returncode == 1
        assert said.stderr.startswith("regstat: Python 3.9 or newer is needed; this is ")


def test_the_units_command_starts_without_any_file_of_its_own(pyz: Path, tmp_path: Path) -> None:
    unit = (DEPLOY / "regstat.service").read_text()
    command = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    flags = re.findall(r'^Environment="REGSTAT_FLAGS=(.*)"$', unit, re.M)
    # What systemd makes of SetCredential when the files of LoadCredential are not there.
    for name, content in re.findall(r"^SetCredential=([\w-]+):(.*)$", unit, re.M):
        (tmp_path / name).write_text(content)
    assert len(command) == len(flags) == 1
    line = command[0].replace("$REGSTAT_FLAGS", flags[0]).replace("%d", str(tmp_path))
    line = line.replace("/var/lib/regstat", str(tmp_path)).replace("/usr/local/bin/regstat.pyz", str(pyz))
    program = ["env", f"PGPASSFILE={tmp_path}/pgpass", *line.replace("/usr/bin/python3", sys.executable).split()]
    with run_daemon(program=program) as daemon:
        assert daemon.post(envelope(event(digest=digest_of("a"))))[0] == 200
    assert (tmp_path / "regstat.db").exists()


@needs_registry
def test_a_registry_with_the_configuration_of_deploy_tells_regstat(pyz: Path, tmp_path: Path) -> None:
    flags = ["-sqlite", str(tmp_path / "regstat.db")]
    with run_daemon(*flags, program=[sys.executable, "-I", str(pyz)]) as daemon:
        text, port = (DEPLOY / "registry-config.yml").read_text(), free_port()
        for old, new in (
            ("/var/lib/registry", str(tmp_path / "data")),
            ("addr: :5000", f"addr: 127.0.0.1:{port}"),
            ("http://regstat:3333", f"http://127.0.0.1:{daemon.port}"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (tmp_path / "config.yml").write_text(text)
        with (tmp_path / "log").open("wb") as log:
            command = ["docker-registry", "serve", str(tmp_path / "config.yml")]
            registry = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}/v2/team/app/blobs"
            content = tmp_path / "blob"
            content.write_text("a layer")

            def push() -> bool:
                digest = digest_of("a layer")
                started = _request("POST", f"{address}/uploads/")
                return bool(started) and bool(_request("PUT", f"{started}&digest={digest}", content.read_bytes()))

            await_condition(push, 20, "the registry takes a blob")
            await_condition(lambda: rows(flags, "select digest from blobs"), 20, "regstat knows the blob")
            assert rows(flags, "select digest from blobs") == [(digest_of("a layer"),)]
        finally:
            registry.terminate()
            registry.wait(20)


def _request(method: str, url: str, body: bytes | None = None) -> str:
    """Where the answer to an accepted request points; empty when there was none."""
    import urllib.request

    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return str(answer.headers["Location"])
    except OSError:
        return ""


def checkout(directory: Path) -> Path:
    """The project's files, apart, so that a build leaves nothing in the tree."""
    left = shutil.ignore_patterns(".*", "__pycache__", "dist", "build", "*.egg-info", "*.db*")
    shutil.copytree(ROOT, directory, ignore=left)
    shutil.copy(ROOT / ".dockerignore", directory)
    return directory


def run(*command: Any, **details: Any) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, env=environment, **details
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory with the sdist and the wheel that was built from it, and what the build said."""
    directory = tmp_path_factory.mktemp("packages")
    venv.create(directory / "venv", with_pip=True)
    pip = (directory / "venv/bin/python", "-m", "pip", "--quiet")
    run(*pip, "install", "build", "setuptools>=77")
    source = checkout(directory / "regstat")
    said = run(directory / "venv/bin/python", "-m", "build", "--no-isolation", "--outdir", directory, source)
    return directory, said


def test_sdist_and_wheel_build_without_a_warning(packages: tuple[Path, str]) -> None:
    said = [line for line in packages[1].splitlines() if re.search("warn|deprecat", line, re.I)]
    assert said == []


def test_the_wheel_holds_the_package_and_its_sql_and_nothing_else(packages: tuple[Path, str]) -> None:
    (wheel,) = packages[0].glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    files = (ROOT / "regstat_lib").rglob("*")
    package = {path.relative_to(ROOT).as_posix() for path in files if path.suffix in (".py", ".sql")}
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_builds_tests_and_deploys(packages: tuple[Path, str]) -> None:
    (sdist,) = packages[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    top = {
        "regstat.py",
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "Makefile",
        "Dockerfile",
    }
    wanted = {
        path.relative_to(ROOT).as_posix()
        for directory in ("deploy", "regstat_lib", "tests")
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert top | wanted <= names


def test_pip_installs_a_regstat_that_records_and_reports(packages: tuple[Path, str], tmp_path: Path) -> None:
    (wheel,) = packages[0].glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    run(tmp_path / "venv/bin/python", "-m", "pip", "--quiet", "install", wheel)
    regstat = tmp_path / "venv/bin/regstat"
    assert "-pg-conn-str" in run(regstat, "-h", cwd=tmp_path)
    assert "pg8000 1." in run(regstat, "-version", cwd=tmp_path)
    flags = ["-sqlite", str(tmp_path / "regstat.db")]
    with run_daemon(*flags, program=[str(regstat)]) as daemon:
        assert daemon.post(envelope(event(digest=digest_of("a"))))[0] == 200
    assert run(regstat, "report", "summary", *flags, cwd=tmp_path)
