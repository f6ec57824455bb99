"""The command line."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from regstat_lib import __version__, daemon, systemd
from regstat_lib.equivalence import BadEquivalents, read_equivalents
from regstat_lib.registry import ANONYMOUS, CERTS_DIR, Keychain, KeychainError, RegistryClient
from regstat_lib.store import Database
from regstat_lib.store.connection_string import DEFAULT, BadConnectionString, parse_connection_string, tls_contexts

_EXAMPLES = """\
examples:
  regstat.py -sqlite regstat.db
      everything in one file, nothing to install
  regstat.py -pg-conn-str "host=db user=regstat password=... dbname=regstat sslmode=verify-full"
      in Postgres (needs the Python package pg8000)
  regstat.py -port 4444 -docker-config ~/.docker/config.json -equiv-registries equiv-registries.json
      another port, credentials for the registries, and registries with several names

exit status: 0 after SIGTERM or SIGINT, 1 when the port cannot be had, 2 for a wrong flag or file.
"""


class _Version(argparse.Action):
    """Says what runs: versions are what a report of trouble needs first."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            driver = f"pg8000 {version('pg8000')}"
        except PackageNotFoundError:
            driver = "no pg8000"
        print(f"regstat {__version__}, Python {platform.python_version()}, {driver}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"regstat: {message}. See regstat.py -h.\n")


def parser() -> argparse.ArgumentParser:
    """The flags: of the original's form, with one dash (two work as well)."""
    flags = _Parser(
        prog="regstat.py",
        description="Receives the notifications of container registries and keeps what they say in a database.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def flag(name: str, **details: object) -> None:
        flags.add_argument(f"-{name}", f"--{name}", **details)  # type: ignore[arg-type]

    flag("port", type=_port, default=3333, metavar="PORT", help="port to listen on, on all interfaces (default 3333)")
    flag("pg-conn-str", metavar="STRING", help=f'Postgres: libpq keywords or a postgres:// URL (default "{DEFAULT}")')
    flag("sqlite", type=Path, metavar="FILE", help="keep everything in this file instead of Postgres")
    flag("docker-config", metavar="FILE", help="Docker config.json with the registries' credentials (default none)")
    flag(
        "equiv-registries",
        metavar="FILE",
        help='JSON like {"registry": ["alias1", "alias2"]}: an alias is recorded under the registry\'s name',
    )
    flag(
        "registry-url",
        action="append",
        default=[],
        metavar="HOST=URL",
        help="how to reach a registry that calls itself HOST (repeatable)",
    )
    flag(
        "insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="a registry that may be asked over plain http, or whose certificate cannot be verified (repeatable)",
    )
    flag(
        "certs-dir",
        type=Path,
        default=CERTS_DIR,
        metavar="DIR",
        help=f"CAs and client certificates (default {CERTS_DIR})",
    )
    flag("max-body", type=_size, default=16 * 2**20, metavar="BYTES", help="largest request taken (default 16 MiB)")
    flag(
        "log-retention",
        type=_days,
        default=365.0,
        metavar="DAYS",
        help="how long events stay in the event log; 0 keeps them for ever (default 365)",
    )
    flag(
        "log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much to log (default info)",
    )
    flags.add_argument(
        "-version", "--version", action=_Version, nargs=0, help="say the versions of regstat, Python and pg8000"
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs regstat; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:
        # Here and below: what is not used is not imported, because imports are most of the time that a start takes.
        from regstat_lib.reports.command import main as report

        return report(arguments[1:], database_to_read)
    flags = parser()
    given = flags.parse_args(arguments)
    logging.basicConfig(
        level=given.log_level.upper(), format="%(asctime)s %(message)s", datefmt="%Y/%m/%d %H:%M:%S", stream=sys.stderr
    )
    try:
        settings = _settings(given)
    except (BadEquivalents, BadConnectionString, KeychainError, ValueError) as error:
        flags.exit(2, f"regstat: {error}\n")
    try:
        return daemon.run(settings)
    except OSError as error:
        print(f"regstat: Port {given.port} cannot be listened on: {error.strerror or error}.", file=sys.stderr)
        return 1


def _settings(given: argparse.Namespace) -> daemon.Settings:
    equivalents = read_equivalents(Path(given.equiv_registries)) if given.equiv_registries else {}
    keychain = Keychain.from_file(Path(given.docker_config), equivalents) if given.docker_config else ANONYMOUS
    addresses = {}
    for pair in given.registry_url:
        host, separator, url = pair.partition("=")
        if not separator or not host or not url.startswith(("http://", "https://")):
            raise ValueError(f"-registry-url needs HOST=URL with an http:// or https:// URL, not {host!r}.")
        addresses[host] = url
    client = RegistryClient(
        keychain, addresses=addresses, insecure=frozenset(given.insecure_registry), certs_dir=given.certs_dir
    )
    return daemon.Settings(
        port=given.port,
        database=_named_database(given.sqlite, given.pg_conn_str),
        client=client,
        equivalents=equivalents,
        max_body=given.max_body,
        retention_days=given.log_retention or None,
        listener=systemd.passed_listener(),
    )


def _named_database(sqlite: str | Path | None, pg_conn_str: str | None) -> Database:
    if sqlite is not None:
        if pg_conn_str is not None:
            raise ValueError("-sqlite and -pg-conn-str name two databases; give one of them.")
        path = Path(sqlite)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(
                f"The file of -sqlite, {path}, cannot be made: its directory must exist, and it be a file."
            )
        return _sqlite(path)
    target = parse_connection_string(DEFAULT if pg_conn_str is None else pg_conn_str)
    tls_contexts(target)
    from regstat_lib.store.postgres import PostgresDatabase

    return PostgresDatabase(target)


def _sqlite(path: Path) -> Database:
    from regstat_lib.store.sqlite import SqliteDatabase

    return SqliteDatabase(path)


def database_to_read(sqlite: str | None, pg_conn_str: str | None) -> Database:
    if sqlite is not None and pg_conn_str is None:
        return _sqlite(Path(sqlite))  # reading it says whether it is there
    return _named_database(sqlite, pg_conn_str)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'"{text}" is no port; it must be a number from 0 to 65535')
    return int(text)


def _size(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'"{text}" is no size; it must be a number of bytes')
    return int(text)


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 1e6:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of days')
    return days
