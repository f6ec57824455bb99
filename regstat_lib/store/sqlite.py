"""SQLite, embedded: one file, nothing to install."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from regstat_lib.batch import Batch
from regstat_lib.changes import Repository
from regstat_lib.store import Conflict, PendingManifest, Rejected, SchemaTooNew, Sink, Unavailable
from regstat_lib.store.schema import SCHEMA_VERSION, check_readable, upgrade_files
from regstat_lib.store.sql_text import Statement, fill, fill_sources, read, record_script, statements
from regstat_lib.store.staged import staged_rows

# The oldest that has "on conflict do update" (https://sqlite.org/lang_upsert.html).
OLDEST = (3, 24, 0)
_BUSY_SECONDS = 10.0
_NAMES = {
    "s": "",
    "c": "collate binary",
    "now": ":now",
    "add_column": "add column",
    "serial": "integer primary key",
    "without_rowid": " without rowid",
    "index_schema": "",
    "on_schema": "",
    "greatest": "max",
    "or_replace": "",
    "string_agg": "group_concat",
    "among_few": "in ",
    "few_end": "",
    "utc_now": "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
}
_CACHED_REPOSITORIES = 100_000


class SqliteDatabase:
    """A database in a file, made when it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def description(self) -> str:
        return f"SQLite database {self.path}"

    @property
    def alternative(self) -> str:
        return ""

    @property
    def writers(self) -> int:
        return 1

    def connect(self) -> SqliteSession:
        if sqlite3.sqlite_version_info < OLDEST:
            raise Unavailable(
                f"This Python has SQLite {sqlite3.sqlite_version}; regstat needs {'.'.join(map(str, OLDEST))} or newer."
                " Use a newer Python, or Postgres with -pg-conn-str."
            )
        with _translated(self.description):
            connection = sqlite3.connect(
                str(self.path), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                session = SqliteSession(connection, self.description)
                session.upgrade()
            except BaseException:
                connection.close()
                raise
        return session

    def read(self) -> SqliteReading:
        if not self.path.is_file():
            raise Unavailable(f"There is no {self.description}: give the file that the daemon was started with.")
        with _translated(self.description):
            connection = self._open_to_read()
            try:
                connection.execute("begin")
                (version,) = connection.execute("pragma user_version").fetchone()
                check_readable(version, self.description)
            except BaseException:
                connection.close()
                raise
        return SqliteReading(connection, self.description)

    def _open_to_read(self) -> sqlite3.Connection:
        # The path as a URL, its percent signs and question marks escaped (https://sqlite.org/uri.html).
        url = self.path.absolute().as_uri()
        connection = sqlite3.connect(f"{url}?mode=ro", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.OperationalError:
            # A log of write-ahead mode needs files beside the database, which this user may not make. Where nobody
            # writes, there is none, and the file is all there is.
            connection.close()
            if self.path.with_name(self.path.name + "-wal").exists():
                raise
            connection = sqlite3.connect(f"{url}?immutable=1", uri=True, isolation_level=None)
        connection.execute("pragma temp_store = memory")
        connection.execute("pragma cache_size = -32000")
        return connection


@contextlib.contextmanager
def _translated(description: str) -> Iterator[None]:
    """Turns the driver's errors into those of the store."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise Conflict(f"The {description} is locked by another program.") from error
        if "overflow" in str(error):
            raise Rejected(f"SQLite refused a value: {error}") from error
        raise Unavailable(f"The {description} cannot be used: {error}.") from error
    except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError, UnicodeEncodeError) as error:
        raise Rejected(f"SQLite refused a value: {error}") from error
    except sqlite3.InterfaceError as error:
        raise Rejected(f"SQLite refused a value: {error}") from error
    except (sqlite3.Error, OSError) as error:
        raise Unavailable(f"The {description} cannot be used: {error}.") from error


class SqliteSession:
    """A connection to the file, for one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, description: str) -> None:
        self._connection = connection
        self._description = description
        self._repository_ids: dict[Repository, int] = {}
        # Postgres has both; theirs, like these, pass over nulls.
        connection.create_function("greatest", 2, _greatest, deterministic=True)
        connection.create_function("least", 2, _least, deterministic=True)
        connection.execute("pragma journal_mode = wal")
        # With WAL only "full" makes a commit survive a loss of power (https://sqlite.org/pragma.html#pragma_synchronous).
        connection.execute("pragma synchronous = full")
        connection.execute("pragma temp_store = memory")
        connection.execute("pragma cache_size = -32000")

    def upgrade(self) -> None:
        """Makes the schema, or brings it to this version, in one transaction."""
        with self._transaction():
            (version,) = self._connection.execute("pragma user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise SchemaTooNew(
                    f"The {self._description} has schema version {version}, this regstat knows {SCHEMA_VERSION}:"
                    " use the newer regstat that upgraded it."
                )
            for name in upgrade_files(version, "sqlite"):
                for statement in statements(fill(read(name), _NAMES)):
                    self._connection.execute(statement)
            self._connection.execute(f"pragma user_version = {SCHEMA_VERSION}")
        script = record_script()
        for relation in (*script.staged, *(statement.keeps for statement in script.statements)):
            if relation is not None:
                columns = ", ".join(name for name, _ in relation.columns)
                self._connection.execute(f"create temp table if not exists {relation.name} ({columns})")

    def record(self, batch: Batch, now: str) -> None:
        with self._transaction():
            if self._connection.execute("pragma user_version").fetchone() != (SCHEMA_VERSION,):
                # Connecting again says the rest.
                raise Unavailable(f"The {self._description} was upgraded by another regstat.")
            rows = staged_rows(batch, self._ids(batch.repositories()))
            filled = set()
            for name, staged in rows.items():
                marks = ", ".join("?" * len(staged[0]))
                self._connection.executemany(f"insert into temp.{name} values ({marks})", staged)
                filled.add(name)
            for statement, sql in _script():
                if statement.only_if and not any(self._has_rows(name, filled) for name in statement.only_if):
                    continue
                parameters = {"now": now} if ":now" in sql else {}
                changed = self._connection.execute(sql, parameters).rowcount
                if statement.keeps is not None and changed:
                    filled.add(statement.keeps.name)
            for name in filled:
                self._connection.execute(f"delete from temp.{name}")

    def _has_rows(self, condition: str, filled: Collection[str]) -> bool:
        name, _, column = condition.partition(".")
        if name not in filled or not column:
            return name in filled
        return self._connection.execute(f"select 1 from temp.{name} where {column} = 1 limit 1").fetchone() is not None

    def known_untimed(self, ids: Collection[str]) -> set[str]:
        with _translated(self._description):
            marks = ", ".join("?" * len(ids))
            return {
                name
                for (name,) in self._connection.execute(
                    f"select id from events where untimed is not null and id in ({marks})", tuple(ids)
                )
            }

    def claim_pending(self, now: str, until: str, limit: int, busy: Collection[str]) -> list[PendingManifest]:
        with self._transaction():
            marks = ", ".join("?" * len(busy))
            found = [
                PendingManifest(*row)
                for row in self._connection.execute(
                    fill(statements(read("claim_pending.sql"))[0], {**_NAMES, "busy": marks, "lock": ""}),
                    (now, *busy, limit),
                )
            ]
            self._claim_until(found, until)
        return found

    def extend_claims(self, claimed: Collection[PendingManifest], until: str) -> None:
        with self._transaction():
            self._claim_until(claimed, until)

    def _claim_until(self, claimed: Collection[PendingManifest], until: str) -> None:
        self._connection.executemany(
            "update pending_manifests set next_attempt = ? where digest = ? and repository_id = ?",
            [(until, pending.digest, pending.repository_id) for pending in claimed],
        )

    def postpone(self, pending: PendingManifest, next_attempt: str, error: str) -> None:
        with self._transaction():
            self._connection.execute(
                "update pending_manifests set attempts = attempts + 1, next_attempt = ?, last_error = ?"
                " where digest = ? and repository_id = ?",
                (next_attempt, error, pending.digest, pending.repository_id),
            )

    def give_up(self, pending: PendingManifest, now: str, error: str) -> None:
        with self._transaction():
            self._connection.execute(
                "update pending_manifests set attempts = attempts + 1, given_up = ?, last_error = ?"
                " where digest = ? and repository_id = ?",
                (now, error, pending.digest, pending.repository_id),
            )

    def purge(self, events_before: str, set_aside_kept: int, limit: int) -> int:
        with self._transaction():
            gone = self._connection.execute(
                "delete from events where (timestamp, id) in"
                " (select timestamp, id from events where timestamp < ? order by timestamp limit ?)",
                (events_before, limit),
            ).rowcount
            self._connection.execute(
                "delete from set_aside where id <= (select max(id) from set_aside) - ?", (set_aside_kept,)
            )
        return gone

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _translated(self._description):
            self._connection.execute("begin immediate")
            try:
                yield
                self._connection.execute("commit")
            except BaseException:
                # New ones among them are rolled back as well.
                self._repository_ids.clear()
                if self._connection.in_transaction:
                    self._connection.execute("rollback")
                raise

    def _ids(self, repositories: Collection[Repository]) -> dict[Repository, int]:
        """The ids of these repositories, those that are new among them written first."""
        if len(self._repository_ids) > _CACHED_REPOSITORIES:
            self._repository_ids.clear()
        found = {}
        for repository in repositories:
            number = self._repository_ids.get(repository)
            if number is None:
                self._connection.execute(
                    "insert into repository_names (registry, repository) values (?, ?)"
                    " on conflict (registry, repository) do nothing",
                    repository,
                )
                (number,) = self._connection.execute(
                    "select id from repository_names where registry = ? and repository = ?", repository
                ).fetchone()
                self._remember(repository, number)
            found[repository] = number
        return found

    def _remember(self, repository: Repository, number: int) -> None:
        self._repository_ids[repository] = number


@cache
def _script() -> tuple[tuple[Statement, str], ...]:
    def source(name: str, alias: str) -> str:
        return f"temp.{name} as {alias}"

    found = []
    for statement in record_script().statements:
        sql = fill_sources(statement.sql, _NAMES, source)
        if statement.keys is not None:
            # "returning" came with SQLite 3.35: the rows are looked up instead.
            sql, returned = sql.split("\nreturning ")
            match = " and ".join(f"holdings.{column} = keys.{column}" for column in statement.keys.columns)
            found.append((statement._replace(keeps=None), sql))
            sql = f"select {returned}\nfrom temp.{statement.keys.relation} as keys cross join holdings on {match}"
        if statement.keeps is not None:
            sql = f"insert into temp.{statement.keeps.name} {sql}"
        found.append((statement, sql))
    return tuple(found)


class SqliteReading:
    """A connection to the file that only reads."""

    def __init__(self, connection: sqlite3.Connection, description: str) -> None:
        self._connection = connection
        self._description = description

    def stream(self, sql: str, parameters: Sequence[str | int], sink: Sink) -> None:
        with _translated(self._description):
            rows = self._connection.execute(fill(sql, _NAMES), tuple(parameters))
        while True:
            with _translated(self._description):
                some = rows.fetchmany(1000)
            if not some:
                return
            sink(some)

    def matches(self, column: str, glob: str) -> tuple[str, str]:
        return f"{column} glob ?", glob.replace("[", "[[]")

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


def _greatest(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return one if one > other else other


def _least(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return one if one < other else other
