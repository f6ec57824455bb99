"""The Python interpreters on this machine that regstat is for. As a program: one line, `version path`, for each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
_PROBE = "import sys, venv, ensurepip, ssl, sqlite3; print('%d.%d' % sys.version_info[:2])"


def interpreters() -> dict[str, str]:
    """The path of one working interpreter of each of VERSIONS that is found: on the PATH, or pyenv's."""
    found: dict[str, str] = {}
    for version in VERSIONS:
        for path in _candidates(version):
            if _version(path) == version:
                found[version] = path
                break
    return found


def _candidates(version: str) -> Iterator[str]:
    if version == "{}.{}".format(*sys.version_info[:2]):
        # Not the virtual environment that this may run in: what is installed there must not help.
        yield str(Path(getattr(sys, "_base_executable", None) or sys.executable))
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield on_path
    for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True):
        yield str(path)


def _version(path: str) -> str:
    """What the interpreter says it is; empty when it does not work, as pyenv's shim of a version that is not chosen."""
    try:
        asked = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


if __name__ == "__main__":
    found = interpreters()
    for version in VERSIONS:
        if version in found:
            print(version, found[version])
        else:
            print(f"Python {version} is not on this machine.", file=sys.stderr)
