"""Databases to measure on: new for each case, and what can be asked of them and of the processes around them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from regstat_lib.store import Database  # noqa: E402
from regstat_lib.store.connection_string import parse_connection_string, tls_contexts  # noqa: E402
from regstat_lib.store.postgres import PostgresDatabase  # noqa: E402
from regstat_lib.store.sqlite import SqliteDatabase  # noqa: E402

ENGINES = ("sqlite", "postgres")

_TICKS = os.sysconf("SC_CLK_TCK")


class BenchDatabase(NamedTuple):
    """An empty database of either engine."""

    flags: tuple[str, ...]  # the daemon's
    database: Database
    run: Callable[..., list[tuple[Any, ...]]]  # statements, each committed; {s} stands before a table's name
    server_cpu: Callable[[], float | None]  # CPU seconds of the server's processes; None where it is not to be had

    def recorded(self) -> set[str]:
        """The ids of all events in the log."""
        return {row[0] for row in self.run("select id from {s}events")}

    def average_batch(self, since: str) -> float:
        """Events a transaction since that time of UTC: a batch has one time at which it was received."""
        ((events, batches),) = self.run(
            f"select count(*), count(distinct received) from {{s}}events where received >= '{since}'"
        )
        return float(events) / max(int(batches), 1)


MakeDatabase = Callable[[], "contextlib.AbstractContextManager[BenchDatabase]"]


@contextlib.contextmanager
def engine(name: str, pg_conn_str: str | None) -> Iterator[MakeDatabase]:
    """An engine of ENGINES that is ready, and gives one empty database after the other."""
    if name == "sqlite":
        yield _sqlite
    elif pg_conn_str is not None:
        yield lambda: _given_postgres(pg_conn_str)
    else:
        from postgres_server import running_postgres, wheel_binaries

        with running_postgres(wheel_binaries()) as server:
            yield lambda: _own_postgres(server.new_database())


@contextlib.contextmanager
def _sqlite() -> Iterator[BenchDatabase]:
    with tempfile.TemporaryDirectory(prefix="regstat-bench-") as directory:
        path = Path(directory) / "regstat.db"

        def run(*statements: str) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = []
            with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
                for statement in statements:
                    rows = connection.execute(statement.replace("{s}", "")).fetchall()
            return rows

        yield BenchDatabase(("-sqlite", str(path)), SqliteDatabase(path), run, lambda: None)


@contextlib.contextmanager
def _own_postgres(connection_string: str) -> Iterator[BenchDatabase]:
    database = _postgres(connection_string)
    try:
        yield database
    finally:
        # What is left to write of one case must not be paid for by the next one.
        database.run("drop schema if exists regstat cascade", "checkpoint")


@contextlib.contextmanager
def _given_postgres(connection_string: str) -> Iterator[BenchDatabase]:
    database = _postgres(connection_string)
    if database.run("select to_regnamespace('regstat')::text")[0][0] is not None:
        raise SystemExit("The database has a schema regstat, which the benchmark would drop: give an empty one.")
    try:
        yield database
    finally:
        database.run("drop schema if exists regstat cascade")


def _postgres(connection_string: str) -> BenchDatabase:
    import pg8000.native

    target = parse_connection_string(connection_string)

    def connect() -> pg8000.native.Connection:
        return pg8000.native.Connection(
            target.user,
            password=target.password,
            database=target.database,
            host=target.host,
            port=target.port,
            unix_sock=target.unix_socket,
            ssl_context=tls_contexts(target)[0],
        )

    def run(*statements: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        with contextlib.closing(connect()) as connection:
            for statement in statements:
                rows = [tuple(row) for row in connection.run(statement.replace("{s}", "regstat.")) or ()]
        return rows

    # While the backend is there: it ends with its connection.
    with contextlib.closing(connect()) as connection:
        postmaster = _parent_named(int(connection.run("select pg_backend_pid()")[0][0]), "postgres")
    return BenchDatabase(
        ("-pg-conn-str", connection_string),
        PostgresDatabase(target),
        run,
        lambda: None if postmaster is None else family_cpu_seconds(postmaster),
    )


def _parent_named(pid: int, name: str) -> int | None:
    """The parent of a process, if the process is on this machine and is what it should be."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return int(_stat(pid)[1])
    return None


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third on (proc(5)): state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process and of its children that have ended."""
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / _TICKS


def family_cpu_seconds(pid: int) -> float:
    """The CPU seconds of a process and of all its children."""
    total = cpu_seconds(pid)
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if int(_stat(path.name)[1]) == pid:
                    total += cpu_seconds(int(path.name))
    return total


def peak_memory_bytes(pid: int) -> int:
    """The most memory that a process ever had (VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status shows no peak memory")


def machine(directory: Path) -> dict[str, str]:
    """What the figures depend on, as far as it can be asked for."""
    model, memory = "", ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            memory = f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return {
        "processors": f"{len(os.sched_getaffinity(0))} x {model or os.uname().machine}",
        "memory": memory,
        "kernel": f"{os.uname().sysname} {os.uname().release}",
        "python": sys.version.split()[0],
        "sqlite": sqlite3.sqlite_version,
        "one write made durable": f"{fsync_seconds(directory) * 1000:.2f} ms",
    }


def fsync_seconds(directory: Path) -> float:
    """The median time of making 8 KiB durable in this directory: what no commit can be faster than."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(50):
            file.write(bytes(8192))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
