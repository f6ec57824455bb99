#!/usr/bin/env python3
"""Builds regstat.pyz: regstat, pg8000 and what that needs in one executable file (PEP 441), the same bytes every time.

Usage: build_pyz.py OUTPUT. The packages come through pip, held to the hashes in requirements.lock; nothing is
installed. Wheels are put in as they are, licences and dist-info included: pg8000 reads its own version there.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
ROOT = DEPLOY.parent

# Runs on any Python, so that one that is too old gets a sentence and not a syntax error.
_MAIN = b"""\
import sys

if sys.version_info < (3, 9):
    sys.exit("regstat: Python 3.9 or newer is needed; this is %d.%d." % sys.version_info[:2])

from regstat_lib.cli import main

sys.exit(main())
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
# The first that a zip file can hold; any fixed time would do.
_TIME = (1980, 1, 1, 0, 0, 0)


def main(output: Path) -> None:
    """Writes the file; raises CalledProcessError when pip cannot get the packages that the lock names."""
    with tempfile.TemporaryDirectory() as directory:
        _download(Path(directory))
        contents = {"__main__.py": _MAIN, "LICENSE": (ROOT / "LICENSE").read_bytes()}
        for name, data in (*_regstat(), *_wheels(Path(directory))):
            if name in contents:
                raise ValueError(f"{name} comes from two packages")
            contents[name] = data
    output.parent.mkdir(parents=True, exist_ok=True)
    # A file beside it that takes its place: a regstat that runs from the old one keeps reading the old one.
    new = output.with_name(output.name + ".new")
    new.write_bytes(_zip(contents))
    new.chmod(0o755)
    new.replace(output)


def _download(directory: Path) -> None:
    """The wheels of the lock file; pip refuses any whose hash is another."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    chosen = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    lock = str(DEPLOY / "requirements.lock")
    subprocess.run([*pip, *chosen, "--dest", str(directory), "--requirement", lock], check=True)


def _regstat() -> Iterator[tuple[str, bytes]]:
    for path in (ROOT / "regstat_lib").rglob("*"):
        if path.is_file() and path.suffix in (".py", ".sql"):
            yield path.relative_to(ROOT).as_posix(), path.read_bytes()


def _wheels(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in directory.glob("*.whl"):
        with zipfile.ZipFile(path) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if not name.endswith("/"))


def _zip(contents: dict[str, bytes]) -> bytes:
    """A zip file that depends on nothing but its contents: sorted, one time, one mode."""
    written = io.BytesIO(_SHEBANG)
    written.seek(0, io.SEEK_END)
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, whatever builds it
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, contents[name])
    return written.getvalue()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build_pyz.py OUTPUT")
    main(Path(sys.argv[1]))
