"""Postgres connection strings as libpq reads them: keywords and values, or a URL.

Source: Postgres documentation, libpq, "Connection Strings" and "Parameter Key Words".
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT = "host=localhost port=5432 user=postgres sslmode=disable"

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# What libpq takes from the environment when the string does not say it.
_ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "application_name": "PGAPPNAME",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
}
_KNOWN = (*_ENVIRONMENT, "hostaddr")
# Understood by libpq and by no consequence here.
_IGNORED = frozenset(
    ("client_encoding", "fallback_application_name", "keepalives", "keepalives_idle", "keepalives_interval",
     "keepalives_count", "tcp_user_timeout", "gssencmode", "krbsrvname", "target_session_attrs", "sslcompression",
     "sslsni", "channel_binding", "binary_parameters")
)  # fmt: skip


class BadConnectionString(ValueError):
    """The connection string cannot be used; the text says why, without the password."""


class ConnectionString(NamedTuple):
    """Where a Postgres is and who asks. `repr` shows no password."""

    host: str
    address: str | None  # of the host, when it is not to be looked up
    port: int
    unix_socket: str | None
    user: str
    password: str | None
    database: str
    sslmode: str
    sslrootcert: str | None
    sslcert: str | None
    sslkey: str | None
    connect_timeout: float
    application_name: str
    startup: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"ConnectionString({self.description})"

    @property
    def description(self) -> str:
        """For a log line: host, port, database and user."""
        where = self.unix_socket or f"{self.host}:{self.port}"
        return f"Postgres at {where} (database {self.database}, user {self.user})"


def parse_connection_string(text: str, environment: Mapping[str, str] = os.environ) -> ConnectionString:
    """The target that `text` names, with libpq's defaults and environment variables.

    Raises BadConnectionString for what libpq would refuse, and for several hosts, which regstat does not try.
    """
    given = _from_url(text) if re.match(r"postgres(ql)?://", text) else _from_keywords(text)
    for key in given:
        if key not in _KNOWN and key not in _IGNORED:
            raise BadConnectionString(
                f'The Postgres connection string has an unknown keyword "{key}"; known are {", ".join(sorted(_KNOWN))}.'
            )
    values = {key: environment[name] for key, name in _ENVIRONMENT.items() if environment.get(name)}
    values.update((key, value) for key, value in given.items() if value != "")
    address = values.get("hostaddr")
    host = values.get("host") or address or "localhost"
    if any("," in where for where in (host, address or "", values.get("port", ""))):
        raise BadConnectionString(
            "The Postgres connection string names several hosts; regstat uses one: name the primary, or a proxy."
        )
    port = _number(values, "port", "5432")
    if not 0 < port < 65536:
        raise BadConnectionString(f"The Postgres connection string's port is {port}; it must be from 1 to 65535.")
    sslmode = values.get("sslmode", "prefer")
    if sslmode not in _SSL_MODES:
        raise BadConnectionString(
            f'The Postgres connection string\'s sslmode is "{sslmode}"; it must be one of {", ".join(_SSL_MODES)}.'
        )
    user = values.get("user") or environment.get("USER") or environment.get("LOGNAME") or "postgres"
    database = values.get("dbname") or user
    unix_socket = f"{host}/.s.PGSQL.{port}" if host.startswith("/") and address is None else None
    password = values.get("password") or _from_passfile(values, environment, host, port, database, user)
    return ConnectionString(
        host=host,
        address=address,
        port=port,
        unix_socket=unix_socket,
        user=user,
        password=password,
        database=database,
        sslmode="disable" if unix_socket else sslmode,
        sslrootcert=values.get("sslrootcert"),
        sslcert=values.get("sslcert"),
        sslkey=values.get("sslkey"),
        connect_timeout=float(_number(values, "connect_timeout", "0") or 10),
        application_name=values.get("application_name", "regstat"),
        startup=(("options", values["options"]),) if values.get("options") else (),
    )


def tls_contexts(target: ConnectionString) -> tuple[ssl.SSLContext | bool, ...]:
    """What to try in turn: a TLS context, or False for plain text (libpq documentation, "SSL Mode Descriptions")."""
    if target.sslmode == "disable":
        return (False,)
    verified = target.sslmode in ("verify-ca", "verify-full") or (
        # libpq: with a root certificate, "require" verifies as "verify-ca" does.
        target.sslmode == "require" and target.sslrootcert is not None
    )
    try:
        context = ssl.create_default_context(cafile=target.sslrootcert) if verified else ssl.create_default_context()
        context.check_hostname = target.sslmode == "verify-full"
        context.verify_mode = ssl.CERT_REQUIRED if verified else ssl.CERT_NONE
        if target.sslcert is not None:
            context.load_cert_chain(target.sslcert, target.sslkey)
    except (OSError, ssl.SSLError) as error:
        raise BadConnectionString(
            f"A certificate or key of the Postgres connection string cannot be read: {error}."
        ) from error
    if target.sslmode == "allow":
        return False, context
    return (context, False) if target.sslmode == "prefer" else (context,)


def _number(values: Mapping[str, str], key: str, default: str) -> int:
    text = values.get(key, default)
    try:
        return int(text)
    except ValueError:
        raise BadConnectionString(f'The Postgres connection string\'s {key} is "{text}", which is no number.') from None


_PAIR = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.DOTALL)


def _from_keywords(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    position = 0
    while text[position:].strip():
        match = _PAIR.match(text, position)
        if match is None:
            # What stands there may be a part of the password, so it is not shown.
            raise BadConnectionString(
                f"The Postgres connection string cannot be understood from character {position + 1} on: expected"
                " keyword=value, with values that have spaces in single quotes, or a postgres:// URL."
            )
        value = match.group(2) if match.group(2) is not None else match.group(3)
        found[match.group(1)] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
        position = match.end()
    return found


def _from_url(text: str) -> dict[str, str]:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise BadConnectionString(
            "The Postgres connection URL cannot be understood: expected postgres://user:password@host:port/database."
        ) from None
    found = dict(parse_qsl(url.query, keep_blank_values=True))
    if host:
        found["host"] = unquote(host)
    if port:
        found["port"] = str(port)
    if url.username:
        found["user"] = unquote(url.username)
    if url.password:
        found["password"] = unquote(url.password)
    if url.path.lstrip("/"):
        found["dbname"] = unquote(url.path[1:])
    return found


def _from_passfile(
    values: Mapping[str, str], environment: Mapping[str, str], host: str, port: int, database: str, user: str
) -> str | None:
    """The password that libpq's password file has for this target (documentation: "The Password File")."""
    home = environment.get("HOME")
    path = values.get("passfile") or (str(Path(home) / ".pgpass") if home else None)
    if path is None:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    wanted = (host, str(port), database, user)
    for line in lines:
        fields = [re.sub(r"\\(.)", r"\1", field) for field in re.split(r"(?<!\\):", line)]
        if len(fields) == 5 and all(field in ("*", want) for field, want in zip(fields, wanted)):
            return fields[4]
    return None
