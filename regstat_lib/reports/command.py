"""`regstat.py report`: options -> a question -> rows on the standard output."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timezone
from typing import Any, Callable, NoReturn, TextIO

from regstat_lib.reports.history import BadImage, History, Image, events_query, parse_image, standing_query
from regstat_lib.reports.moments import NotAMoment, moment
from regstat_lib.reports.output import FORMATS, shown_time, vertical, writer
from regstat_lib.reports.questions import HISTORY, REPORTS, SUMMARY, Note, Query, Question, Report, query
from regstat_lib.store import Database, Reading, StoreError

OPTION, UNREADABLE = 2, 3
# What is open to be read: -sqlite and -pg-conn-str as given -> the database; a ValueError says what is wrong.
OpenDatabase = Callable[["str | None", "str | None"], Database]


def listing() -> str:
    """The reports and what they answer."""
    width = max(map(len, REPORTS))
    return "".join(f"  {name:<{width}}  {report.answers}\n" for name, report in REPORTS.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(OPTION, f"regstat: {message[:1].upper()}{message[1:]}. See regstat.py report -h.\n")


def parser() -> argparse.ArgumentParser:
    """The options of `report`; one dash does as well as two."""
    options = _Parser(
        prog="regstat.py report",
        usage="regstat.py report NAME [IMAGE] [options] [-sqlite FILE | -pg-conn-str STRING]",
        description="Answers a question from the database, which it only reads.",
        epilog=f"reports:\n{listing()}\nexit status: 0 with rows or without, {OPTION} for a wrong option,"
        f" {UNREADABLE} when the database cannot be read.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("name", metavar="NAME", nargs="?", help="the report, one of those below")
    options.add_argument("image", metavar="IMAGE", nargs="?", help="for history: [registry/]repository:tag")

    def option(name: str, **details: Any) -> None:
        options.add_argument(f"--{name}", f"-{name}", **details)

    option("sqlite", metavar="FILE", help="the database, as the daemon's (or the environment's REGSTAT_SQLITE)")
    option("pg-conn-str", metavar="STRING", help="Postgres, as the daemon's (or REGSTAT_PG_CONN_STR)")
    option("registry", metavar="GLOB", help="only registries like this (* and ?)")
    option("repository", metavar="GLOB", help="only repositories like this; * matches slashes too")
    option("sort", metavar="COLUMN", help="numbers and times from the greatest, texts from A; unknown ones last")
    option("reverse", action="store_true", help="with --sort: the other way round")
    option("limit", type=_limit, metavar="N", help="only the first N rows")
    option("format", choices=FORMATS, default="table", help="table (default), json, jsonl (a row a line) or csv")
    option("by", metavar="WHAT", help="most-tagged: manifest; activity: repository, actor or agent")
    option("pushed-before", metavar="TIME", help="images: only those pushed before; 12h, 90d, 2w, 6mo, 1y or a date")
    option("unpulled-for", metavar="TIME", help="images: only those not used since")
    option("untagged", action="store_true", help="images: those without a tag")
    return options


def main(
    arguments: Sequence[str],
    open_database: OpenDatabase,
    environment: Mapping[str, str] = os.environ,
    now: datetime | None = None,
) -> int:
    """Runs `regstat.py report` with these arguments; the exit status."""
    options = parser()
    given = options.parse_args(arguments)
    try:
        question = _question(given, now or datetime.now(timezone.utc))
        image = parse_image(given.image) if question.report is HISTORY else None
        sqlite, postgres = given.sqlite, given.pg_conn_str
        if sqlite is None and postgres is None:
            sqlite = environment.get("REGSTAT_SQLITE") or None
            postgres = environment.get("REGSTAT_PG_CONN_STR") or None
        database = open_database(sqlite, postgres)
    except _NoSuchReport as error:
        options.exit(OPTION, f"regstat: {error}\n{listing()}")
    except (NotAMoment, BadImage, ValueError) as error:
        options.exit(OPTION, f"regstat: {str(error).rstrip('.')}.\n")
    out = _Output(given.format, sys.stdout, sys.stderr, environment)
    try:
        with closing(database.read()) as reading:
            if image is not None:
                _history(reading, question, image, out)
            elif question.report is SUMMARY:
                out.answer(reading, query(question, reading.matches), once=True)
            else:
                out.answer(reading, query(question, reading.matches))
        sys.stdout.flush()
    except StoreError as error:
        print(f"regstat: {error}", file=sys.stderr)
        return UNREADABLE
    except BrokenPipeError:
        # Whoever read has had enough (head). Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _NoSuchReport(ValueError):
    pass


def _question(given: argparse.Namespace, now: datetime) -> Question:
    if given.name is None:
        raise _NoSuchReport("Say which report you want:")
    if given.name not in REPORTS:
        raise _NoSuchReport(f'There is no report "{given.name}". There are:')
    report = REPORTS[given.name]
    if (given.image is not None) is not (report is HISTORY):
        raise ValueError(
            "history needs the image it is of: regstat.py report history team/app:v1"
            if report is HISTORY
            else f"{report.name} takes no {given.image!r}; only history has an image"
        )
    if report.name != "images":
        for name in ("pushed_before", "unpulled_for", "untagged"):
            if getattr(given, name):
                raise ValueError(f"--{name.replace('_', '-')} is an option of images, not of {report.name}")
    report = _by(report, given.by)
    columns = [column.name for column in report.columns]
    if given.unpulled_for is not None:
        columns.append("use")
    if given.untagged:
        columns.append("doubt")
    if given.sort is not None and given.sort not in columns:
        raise ValueError(f'{report.name} has no column "{given.sort}" to sort by; it has {", ".join(columns)}')
    if given.reverse and given.sort is None:
        raise ValueError("--reverse needs --sort")
    return Question(
        report,
        given.registry,
        given.repository,
        given.sort,
        given.reverse,
        given.limit,
        None if given.pushed_before is None else moment(given.pushed_before, now),
        None if given.unpulled_for is None else moment(given.unpulled_for, now),
        given.untagged,
    )


def _by(report: Report, by: str | None) -> Report:
    if by is None:
        return report
    if not report.by:
        raise ValueError(f"{report.name} has no --by; most-tagged and activity have")
    if by not in report.by:
        raise ValueError(f'{report.name} has no --by "{by}"; it has {", ".join(report.by)}')
    return report.by[by]


def _limit(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f'"{text}" is no number of rows; it must be 1 or more')
    return int(text)


class _Output:
    """Where the answer goes: rows to the standard output, notes above a table and beside the other formats."""

    def __init__(self, form: str, out: TextIO, aside: TextIO, environment: Mapping[str, str]) -> None:
        if hasattr(out, "reconfigure"):
            out.reconfigure(encoding="utf-8", errors="replace")
        self.form = form
        self._out = out
        self._aside = aside
        terminal = out.isatty()
        self._bold = terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        self._width: int | None = None
        if environment.get("COLUMNS", "").isdigit() and int(environment["COLUMNS"]) > 0:
            self._width = int(environment["COLUMNS"])
        elif terminal:
            self._width = shutil.get_terminal_size().columns

    def note(self, sentence: str) -> None:
        print(sentence, file=self._out if self.form == "table" else self._aside)

    def notes(self, reading: Reading, notes: Sequence[Note]) -> None:
        for note in notes:
            reading.stream(note.sql, note.parameters, lambda rows, note=note: self._say(note, *rows))  # type: ignore[misc]

    def _say(self, note: Note, row: Sequence[Any]) -> None:
        if str(row[0]) not in ("0", "None"):
            values = [shown_time(value) + " UTC" if " " in str(value) else value for value in row]
            self.note(note.sentence.format(*values))

    def answer(self, reading: Reading, asked: Query, *, once: bool = False) -> None:
        self.notes(reading, asked.notes)
        if once and self.form == "table":
            reading.stream(asked.sql, asked.parameters, lambda rows: self._out.write(vertical(asked.columns, *rows)))
            return
        out = writer(self.form, asked.columns, self._out.write, self._width, bold=self._bold)
        reading.stream(asked.sql, asked.parameters, out.rows)
        out.end()

    def rows(self, report: Report, rows: Sequence[Sequence[Any]]) -> None:
        out = writer(self.form, report.columns, self._out.write, self._width, bold=self._bold)
        out.rows(rows)
        out.end()


def _history(reading: Reading, question: Question, image: Image, out: _Output) -> None:
    history = History(image.tag)
    reading.stream(*events_query(image, question, reading.matches), history.add)
    standing: list[Sequence[Any]] = []
    reading.stream(*standing_query(image, question, reading.matches), standing.extend)
    out.notes(
        reading,
        (Note("select min(timestamp) from {s}events", (), "The event log begins at {}; it knows nothing of before."),),
    )
    rows = history.rows(standing)
    if question.sort is not None:
        position = [column.name for column in HISTORY.columns].index(question.sort)
        known = [row for row in rows if row[position] is not None]
        descending = (HISTORY.columns[position].kind not in ("text", "digest")) is not question.reverse
        known.sort(key=lambda row: row[position], reverse=descending)
        rows = known + [row for row in rows if row[position] is None]
    out.rows(HISTORY, rows[: question.limit])
