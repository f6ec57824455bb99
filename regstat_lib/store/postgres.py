"""Postgres: what a batch, a queue and a report are there. pg8000 is imported only when Postgres is used."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from regstat_lib.batch import Batch
from regstat_lib.changes import Repository
from regstat_lib.store import PendingManifest, SchemaTooNew, Sink, Unavailable
from regstat_lib.store.connection_string import ConnectionString
from regstat_lib.store.one_message import OneMessage
from regstat_lib.store.postgres_connection import log_in, require_driver, translated
from regstat_lib.store.schema import SCHEMA_VERSION, check_readable, upgrade_files
from regstat_lib.store.sql_text import Relation, fill, fill_sources, read, record_script, statements
from regstat_lib.store.staged import Row, staged_rows

if TYPE_CHECKING:
    import pg8000.native

# Any number will do, as long as every regstat takes the same: it makes writers of one database take turns, so that
# no two can deadlock and none decides on what another has not committed yet.
_WRITER_LOCK = 7353_1001
# Since this version of the schema a batch writes the log before its turn. A regstat of an older one writes it in its
# turn, and would wait for whoever has the log and waits for a turn.
_LOG_BEFORE_ITS_TURN = 4
# A database that is silent for so long counts as gone; a regstat that went silent in a transaction loses its turn.
_SILENCE_SECONDS = 30
_NAMES = {
    "s": "regstat.",
    "c": 'collate "C"',
    "now": "cast(batch->>'now' as timestamp)",
    "add_column": "add column if not exists",
    "serial": "serial primary key",
    "without_rowid": "",
    "index_schema": "",
    "on_schema": "regstat.",
    "greatest": "greatest",
    "or_replace": "or replace ",
    "string_agg": "string_agg",
    # An array is known before the rest runs, so that an index can take it; a subquery would be joined in the end.
    "among_few": "= any (array",
    "few_end": ")",
    "utc_now": "cast(now() at time zone 'utc' as timestamp)",
}
_CACHED_REPOSITORIES = 100_000
# Batches are small against the tables, and plans are kept: one made while a table was small must not read all of it
# when it has grown. Costs mean nothing then, so they must not start the compiler either.
_PLANNER = (
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "plan_cache_mode = force_generic_plan",
    "jit = off",
)


class PostgresDatabase:
    """A Postgres database that a connection string names."""

    def __init__(self, target: ConnectionString) -> None:
        self.target = target

    @property
    def description(self) -> str:
        return self.target.description

    @property
    def alternative(self) -> str:
        return "To keep the data in a file instead of Postgres, start with -sqlite FILE."

    @property
    def writers(self) -> int:
        return 2

    def connect(self) -> PostgresSession:
        require_driver()
        with translated(self.description):
            connection = self._open()
        try:
            session = PostgresSession(connection, self.description)
            session.upgrade()
        except BaseException:
            with contextlib.suppress(Exception):
                connection.close()
            raise
        return session

    def read(self) -> PostgresReading:
        require_driver()
        with translated(self.description):
            connection = self._open()
        try:
            session = PostgresReading(connection, self.description)
            check_readable(session.version(), self.description)
        except BaseException:
            with contextlib.suppress(Exception):
                connection.close()
            raise
        return session

    def _open(self) -> pg8000.native.Connection:
        import pg8000.native

        connection = log_in(self.target)
        link = connection._usock
        link.settimeout(_SILENCE_SECONDS)
        if link.family != getattr(socket, "AF_UNIX", None):
            # Without it each large batch waits for a delayed acknowledgement of TCP, 40 ms.
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.run(
            "set search_path = pg_catalog; set default_transaction_isolation = 'read committed';"
            " set timezone = 'UTC'; set datestyle = 'ISO'; set client_min_messages = warning;"
            f" set idle_in_transaction_session_timeout = '{_SILENCE_SECONDS}s'"
        )
        for setting in _PLANNER:
            # Older servers have not got all of them, and need none of those.
            with contextlib.suppress(pg8000.native.DatabaseError):
                connection.run(f"set {setting}")
        return connection


class PostgresSession:
    """A connection, for one thread at a time."""

    def __init__(self, connection: pg8000.native.Connection, description: str) -> None:
        self._connection = connection
        self._description = description
        self._repository_ids: dict[Repository, int] = {}
        self._record: OneMessage | None = None

    def upgrade(self) -> None:
        """Makes the schema, or brings it to this version, in one transaction."""
        with translated(self._description):
            version = self._version()
        if version < SCHEMA_VERSION:
            with self._transaction():
                if version >= _LOG_BEFORE_ITS_TURN:
                    # In the order in which a batch takes them: the log, its turn.
                    self._run("lock table regstat.events in share row exclusive mode")
                # Two that start at one moment: the second finds the work done.
                self._run("select pg_advisory_xact_lock(:lock)", lock=_WRITER_LOCK)
                self._connection._usock.settimeout(None)  # a large database takes its time
                version = self._version()
                self._run("create schema if not exists regstat")
                for name in upgrade_files(version, "postgres"):
                    for statement in statements(fill(read(name), _NAMES)):
                        self._run(statement)
                self._run("create table if not exists regstat.schema_version (version integer not null)")
                self._run("delete from regstat.schema_version")
                self._run("insert into regstat.schema_version values (:version)", version=SCHEMA_VERSION)
            self._connection._usock.settimeout(_SILENCE_SECONDS)
        elif version > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"The {self._description} has schema version {version}, this regstat knows {SCHEMA_VERSION}:"
                " use the newer regstat that upgraded it."
            )

    def _version(self) -> int:
        # Not to_regclass: after waiting for another's upgrade it may answer from a cache that has not heard of it.
        if not self._run("select 1 from pg_tables where schemaname = 'regstat' and tablename = 'schema_version'"):
            return 0
        rows = self._run("select version from regstat.schema_version")
        return int(rows[0][0]) if rows else 0

    def record(self, batch: Batch, now: str) -> None:
        with translated(self._description):
            rows = staged_rows(batch, self._ids(batch.repositories()))
            if self._record is None:
                self._connection.run(_record_function())
                self._record = OneMessage(
                    self._connection, f"select pg_temp.regstat_record(cast(:batch as jsonb), {SCHEMA_VERSION})"
                )
            # One statement outside of a transaction block: its answer comes when the commit is done.
            self._record.run(_as_json(rows, now))

    def known_untimed(self, ids: Collection[str]) -> set[str]:
        with translated(self._description):
            rows = self._run(
                "select e.id from regstat.events e where e.untimed is not null"
                " and e.id in (select jsonb_array_elements_text(cast(:ids as jsonb)))",
                ids=json.dumps(sorted(ids)),
            )
        return {row[0] for row in rows}

    def claim_pending(self, now: str, until: str, limit: int, busy: Collection[str]) -> list[PendingManifest]:
        select = _numbered(
            fill(
                statements(read("claim_pending.sql"))[0],
                {
                    **_NAMES,
                    "busy": "select jsonb_array_elements_text(cast(? as jsonb))",
                    "lock": " for update of p skip locked",
                },
            )
        )
        with self._transaction():
            rows = self._run(
                select.replace("<= :p1", "<= cast(:p1 as timestamp)").replace(
                    "limit :p3", "limit cast(:p3 as integer)"
                ),
                p1=now,
                p2=json.dumps(sorted(busy)),
                p3=limit,
            )
            found = [PendingManifest(*row) for row in rows]
            self._claim_until(found, until)
        return found

    def extend_claims(self, claimed: Collection[PendingManifest], until: str) -> None:
        with self._transaction():
            self._claim_until(sorted(claimed), until)

    def _claim_until(self, claimed: Collection[PendingManifest], until: str) -> None:
        self._run(
            "update regstat.pending_manifests p set next_attempt = cast(:until as timestamp)"
            " from jsonb_to_recordset(cast(:claimed as jsonb)) as c(digest text, repository_id integer)"
            " where p.digest = c.digest and p.repository_id = c.repository_id",
            until=until,
            claimed=json.dumps([{"digest": p.digest, "repository_id": p.repository_id} for p in claimed]),
        )

    def postpone(self, pending: PendingManifest, next_attempt: str, error: str) -> None:
        with translated(self._description):
            self._run(
                "update regstat.pending_manifests set attempts = attempts + 1,"
                " next_attempt = cast(:next_attempt as timestamp), last_error = :error"
                " where digest = :digest and repository_id = :repository_id",
                next_attempt=next_attempt,
                error=error,
                digest=pending.digest,
                repository_id=pending.repository_id,
            )

    def give_up(self, pending: PendingManifest, now: str, error: str) -> None:
        with translated(self._description):
            self._run(
                "update regstat.pending_manifests set attempts = attempts + 1,"
                " given_up = cast(:now as timestamp), last_error = :error"
                " where digest = :digest and repository_id = :repository_id",
                now=now,
                error=error,
                digest=pending.digest,
                repository_id=pending.repository_id,
            )

    def purge(self, events_before: str, set_aside_kept: int, limit: int) -> int:
        with translated(self._description):
            self._run(
                "delete from regstat.events where (timestamp, id) in (select timestamp, id from regstat.events"
                " where timestamp < cast(:before as timestamp) order by timestamp limit cast(:limit as integer))",
                before=events_before,
                limit=limit,
            )
            gone = int(self._connection.row_count)
            self._run(
                "delete from regstat.set_aside"
                " where id <= (select max(id) from regstat.set_aside) - cast(:kept as integer)",
                kept=set_aside_kept,
            )
        return gone

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()

    def _run(self, sql: str, **parameters: Any) -> list[Any]:
        return list(self._connection.run(sql, **parameters) or ())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with translated(self._description):
            self._run("begin")
            try:
                yield
                self._run("commit")
            except BaseException:
                with contextlib.suppress(Exception):
                    self._run("rollback")
                raise

    def _ids(self, repositories: Collection[Repository]) -> dict[Repository, int]:
        """The ids of these repositories; new ones are written first, in a transaction of their own."""
        if len(self._repository_ids) > _CACHED_REPOSITORIES:
            self._repository_ids.clear()
        unknown = sorted(repository for repository in repositories if repository not in self._repository_ids)
        if unknown:
            parameters = {"names": json.dumps([{"registry": r.registry, "repository": r.name} for r in unknown])}
            source = "jsonb_to_recordset(cast(:names as jsonb)) as x(registry text, repository text)"
            self._run(
                "insert into regstat.repository_names (registry, repository)"
                f" select x.registry, x.repository from {source} on conflict (registry, repository) do nothing",
                **parameters,
            )
            for registry, name, number in self._run(
                "select r.registry, r.repository, r.id from regstat.repository_names r"
                f" join {source} on r.registry = x.registry and r.repository = x.repository",
                **parameters,
            ):
                self._repository_ids[Repository(registry, name)] = number
        return {repository: self._repository_ids[repository] for repository in repositories}


# For whole tables: what reports sort and hash stays in memory up to this, and no plan waits for a compiler. The
# leader of a parallel plan has the others' rows to put together and to send; it does not search beside them.
_READING = (
    "reset all; set search_path = pg_catalog; set timezone = 'UTC'; set datestyle = 'ISO';"
    " set client_min_messages = warning; set standard_conforming_strings = on;"
    " set work_mem = '192MB'; set jit = off; set parallel_leader_participation = off;"
    " begin isolation level repeatable read read only"
)


class PostgresReading:
    """A connection that only reads."""

    def __init__(self, connection: pg8000.native.Connection, description: str) -> None:
        self._connection = connection
        self._description = description
        with translated(description):
            connection._usock.settimeout(None)  # a large database takes its time
            connection.run(_READING)

    def version(self) -> int:
        """The schema's, 0 when there is none."""
        with translated(self._description):
            if self._connection.run("select to_regclass('regstat.schema_version')")[0][0] is None:
                return 0
            rows = self._connection.run("select version from regstat.schema_version")
            return int(rows[0][0]) if rows else 0

    def stream(self, sql: str, parameters: Sequence[str | int], sink: Sink) -> None:
        # COPY rather than a cursor: it streams as well, takes plans with several workers, which a cursor does not,
        # and its lines cost Python a fraction of pg8000's rows. It has no parameters, so they are literals.
        parts = fill(sql, _NAMES).split("?")
        literals = [*(_literal(parameter) for parameter in parameters), ""]
        query = "".join(part + literal for part, literal in zip(parts, literals))
        lines = _CopyLines(sink, self._connection._sock)
        try:
            with translated(self._description):
                self._connection.run(f"copy ({query}) to stdout", stream=lines)
        except Unavailable:
            if lines.failure is None:
                raise
        if lines.failure is not None:
            raise lines.failure

    def matches(self, column: str, glob: str) -> tuple[str, str]:
        escaped = re.sub(r"([\\%_])", r"\\\1", glob)
        return f"{column} like ?", escaped.replace("*", "%").replace("?", "_")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


class _CopyLines:
    """What pg8000 writes the lines of a COPY to: the text format (Postgres documentation, COPY).

    pg8000 reads a message for each line. Those that have come with it are taken from its buffer together, in fewer
    calls: CopyData is "d", four bytes of length and the line, in which no other byte is a line feed.
    """

    def __init__(self, sink: Sink, link: Any) -> None:
        self._sink = sink
        self._link = link
        self.failure: BaseException | None = None

    def write(self, line: bytes) -> None:
        try:
            lines = [line]
            # There always is more to come, if only that this was the last line.
            more = _COPY_DATA.match(self._link.peek())
            if more is not None:
                lines += _LINE_OF_COPY_DATA.findall(self._link.read(more.end()))
            self._sink(_rows(b"".join(lines).decode()))
        except BaseException as error:
            self.failure = error
            raise


_COPY_DATA = re.compile(rb"(?:d.{4}[^\n]*\n)+", re.DOTALL)
_LINE_OF_COPY_DATA = re.compile(rb"d.{4}([^\n]*\n)", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _rows(lines: str) -> list[tuple[Any, ...]]:
    # All fields are split at once and then dealt out, which costs half of a split for each line.
    width = lines.count("\t", 0, lines.index("\n")) + 1
    fields: list[Any] = lines[:-1].replace("\n", "\t").split("\t")
    if "\\" in lines:
        # Most of what has a backslash is null, and needs no look at its characters.
        plain = lines.count("\\") == lines.count("\\N")
        fields = [None if field == "\\N" else field if plain else _ESCAPE.sub(_unescaped, field) for field in fields]
    return list(zip(*[iter(fields)] * width))


def _unescaped(match: re.Match[str]) -> str:
    return _ESCAPED.get(match.group(1), match.group(1))


def _literal(value: str | int) -> str:
    # With standard_conforming_strings a quote is the only character that means anything in a literal.
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _as_json(rows: dict[str, list[Row]], now: str) -> str:
    # A row is an array of its values: names would be in every row, to be written here and to be looked up there.
    return json.dumps({"now": now, **rows}, separators=(",", ":"))


def _numbered(sql: str) -> str:
    """`?` marks as pg8000's named parameters p1, p2, ..."""
    parts = sql.split("?")
    return parts[0] + "".join(f":p{number}{part}" for number, part in enumerate(parts[1:], 1))


@cache
def _record_function() -> str:
    """The record script as a function of this session: a batch is then one message each way, commit included."""
    script = record_script()
    staged = {relation.name: relation for relation in script.staged}
    kept = {statement.keeps.name: statement.keeps for statement in script.statements if statement.keeps is not None}

    def source(name: str, alias: str) -> str:
        if name in staged:
            columns = ", ".join(
                f"cast(row->>{position} as {kind}) as {column}"
                for position, (column, kind) in enumerate(staged[name].columns)
            )
            # "offset" keeps it a relation: otherwise a value is taken out of the JSON again wherever it is used.
            return f"(select {columns} from jsonb_array_elements(batch->'{name}') as row offset 0) as {alias}"
        arrays = ", ".join(_variable(kept[name], column) for column, _ in kept[name].columns)
        return f"unnest({arrays}) as {alias}({', '.join(column for column, _ in kept[name].columns)})"

    def has_rows(name: str) -> str:
        name, _, column = name.partition(".")
        if column:
            return f"1 = any({_variable(kept[name], column)})"
        if name in staged:
            return f"batch ? '{name}'"
        return f"{_variable(kept[name], kept[name].columns[0][0])} is not null"

    variables = [
        f"    {_variable(relation, column)} {kind}[];"
        for relation in kept.values()
        for column, kind in relation.columns
    ]
    before: list[str] = []
    in_turn: list[str] = []
    for statement in script.statements:
        sql = fill_sources(statement.sql, _NAMES, source)
        if statement.keeps is not None:
            columns = [column for column, _ in statement.keeps.columns]
            arrays = [f"array_agg(q.{column})" for column in columns]
            variables_of_it = [_variable(statement.keeps, column) for column in columns]
            if statement.adds:
                arrays = [f"{variable} || {array}" for variable, array in zip(variables_of_it, arrays)]
            # An upsert can only be read from where it has a name.
            sql = (
                f"with q({', '.join(columns)}) as ({sql})"
                f" select {', '.join(arrays)} into {', '.join(variables_of_it)} from q"
            )
        if statement.only_if:
            sql = f"if {' or '.join(has_rows(name) for name in statement.only_if)} then {sql}; end if"
        (in_turn if statement.in_turn else before).append(sql + ";")
    return f"""
        create or replace function pg_temp.regstat_record(batch jsonb, known_version integer) returns void
        language plpgsql
        as $regstat$
        #variable_conflict use_column
        declare
{chr(10).join(variables)}
        begin
{chr(10).join(before)}
            perform pg_advisory_xact_lock({_WRITER_LOCK});
            if (select version from regstat.schema_version) <> known_version then
                raise exception 'the schema was upgraded by another regstat; restart this one with the same version';
            end if;
{chr(10).join(in_turn)}
        end
        $regstat$
    """


def _variable(relation: Relation, column: str) -> str:
    return f"v_{relation.name}_{column}"
