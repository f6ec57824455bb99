"""Rows -> text: a table, JSON, JSON lines or CSV. Pure, but for the writing.

Rows are taken as they come, some at a time, and kept no longer than their lines; only a table looks at its first rows
together, to choose its widths. What is null is `null`, an empty CSV field, and a dash in a table.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any, Callable, Protocol

from regstat_lib.reports.questions import Column

FORMATS = ("table", "json", "jsonl", "csv")
_BUFFER = 1 << 16
_NUMBERS = frozenset(("bytes", "count"))
# More rows would only be waited for: the first ones show what is usual.
_MEASURED_ROWS = 200

Write = Callable[[str], object]


class Writer(Protocol):
    """Takes rows in the order of the columns, and `end` once after the last."""

    def rows(self, rows: Sequence[Sequence[Any]]) -> None: ...

    def end(self) -> None: ...


def writer(form: str, columns: Sequence[Column], write: Write, width: int | None, *, bold: bool = False) -> Writer:
    """The writer of that format. `width` is the terminal's in columns, None when nothing need fit."""
    if form == "table":
        return _Table(columns, write, width, bold)
    if form == "csv":
        return _Csv(columns, write)
    return _Json(columns, write, lines=form == "jsonl")


def rfc3339(value: str) -> str:
    """A time of the tables as RFC 3339, in UTC with microseconds."""
    return _rfc3339s((value,), "", "")[0]


def human_bytes(size: int) -> str:
    """A size in three digits or a little more, in powers of 1024."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        amount /= 1024
        if amount < 999.95 or unit == "PiB":
            break
    return f"{amount:.1f} {unit}"


class _Lines:
    """Collects what is written, so that a million rows are not a million writes."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        if self._size > _BUFFER:
            self.flush()

    def flush(self) -> None:
        if self._parts:
            self._write("".join(self._parts))
            self._parts, self._size = [], 0


class _Json:
    def __init__(self, columns: Sequence[Column], write: Write, *, lines: bool) -> None:
        self._out = _Lines(write)
        self._encoders = tuple(_json_encoder(column.kind) for column in columns)
        names = ", ".join(f'"{column.name}": %s' for column in columns)
        self._template = "{" + names + "}"
        self._lines = lines
        self._between = "\n" if lines else ",\n"
        self._empty = True

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        # Column by column: a call for each costs less than one for each value.
        columns = [encode(column) for encode, column in zip(self._encoders, zip(*rows))]
        lines = self._between.join(map(self._template.__mod__, zip(*columns)))
        if not lines:
            return
        if not self._empty:
            self._out.add(self._between)
        elif not self._lines:
            self._out.add("[\n")
        self._empty = False
        self._out.add(lines)

    def end(self) -> None:
        if not self._lines:
            self._out.add("[]\n" if self._empty else "\n]\n")
        elif not self._empty:
            self._out.add("\n")
        self._out.flush()


def _json_encoder(kind: str) -> Callable[[Sequence[Any]], list[Any]]:
    if kind in _NUMBERS:
        return _json_numbers
    return _json_times if kind == "time" else _json_texts


def _json_numbers(column: Sequence[Any]) -> list[Any]:
    return ["null" if value is None else value for value in column]


def _json_times(column: Sequence[str | None]) -> list[str]:
    return _rfc3339s(column, "null", '"')


def _json_texts(column: Sequence[str | None]) -> list[str]:
    return ["null" if value is None else encode_basestring_ascii(value) for value in column]


# What a time of the tables lacks by its length: the fraction of a second is as long as it need be.
_REST_OF_TIME = {19: ".000000Z", **{20 + digits: "0" * (6 - digits) + "Z" for digits in range(1, 7)}}


def _rfc3339s(column: Sequence[str | None], null: str, quote: str) -> list[str]:
    # Not a call for each: there are millions.
    return [
        null if value is None else f"{quote}{value.replace(' ', 'T')}{_REST_OF_TIME[len(value)]}{quote}"
        for value in column
    ]


class _Csv:
    def __init__(self, columns: Sequence[Column], write: Write) -> None:
        self._out = _Lines(write)
        self._lines = io.StringIO()
        self._csv = csv.writer(self._lines, lineterminator="\n")
        self._times = [column.kind == "time" for column in columns]
        self._put([[column.name for column in columns]])

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        columns = [_rfc3339s(column, "", "") if time else column for time, column in zip(self._times, zip(*rows))]
        self._put(zip(*columns))

    def end(self) -> None:
        self._out.flush()

    def _put(self, rows: Iterable[Sequence[Any]]) -> None:
        self._csv.writerows(rows)
        self._out.add(self._lines.getvalue())
        self._lines.seek(0)
        self._lines.truncate()


# Control characters in a name or an agent must not reach the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_GAP = "  "
_ELLIPSIS = "…"
_SHORT_DIGEST = len("sha256:") + 12
_MINUTES, _DAY = len("2024-01-31 12:34"), len("2024-01-31")
_SHORT_TEXT, _NARROWEST_TEXT = 24, 8


class _Table:
    def __init__(self, columns: Sequence[Column], write: Write, width: int | None, bold: bool) -> None:
        self._columns = tuple(columns)
        self._shown = tuple(range(len(columns)))
        self._out = _Lines(write)
        self._width = width
        self._bold = bold
        self._first: list[list[str]] | None = []
        self._widths: list[int] = []
        self._left_out: list[str] = []

    def rows(self, rows: Sequence[Sequence[Any]]) -> None:
        for values in rows:
            cells = [_cell(column.kind, value) for column, value in zip(self._columns, values)]
            if self._first is None:
                self._line(cells)
                continue
            self._first.append(cells)
            if len(self._first) == _MEASURED_ROWS:
                self._begin()

    def end(self) -> None:
        if self._first is not None and not self._first:
            self._out.add("(none)\n")
        elif self._first is not None:
            self._begin()
        if self._left_out:
            self._out.add(f"(not shown for want of room: {', '.join(self._left_out)}; --format csv has all)\n")
        self._out.flush()

    def _begin(self) -> None:
        rows, self._first = self._first or [], None
        natural = [
            max(_wide(column.name), *(_wide(row[position]) for row in rows))
            for position, column in enumerate(self._columns)
        ]
        self._shown, self._widths = fit(self._columns, natural, self._width)
        self._left_out = [column.name for position, column in enumerate(self._columns) if position not in self._shown]
        header = self._text([column.name for column in self._columns])
        self._out.add((f"\x1b[1m{header}\x1b[0m" if self._bold else header) + "\n")
        for row in rows:
            self._line(row)

    def _line(self, cells: Sequence[str]) -> None:
        self._out.add(self._text(cells) + "\n")

    def _text(self, cells: Sequence[str]) -> str:
        parts = []
        for position, width in zip(self._shown, self._widths):
            kind = self._columns[position].kind
            text = _cut(cells[position], width, kind)
            padding = " " * (width - _wide(text))
            parts.append(padding + text if kind in _NUMBERS else text + padding)
        return _GAP.join(parts).rstrip()


def fit(columns: Sequence[Column], natural: Sequence[int], terminal: int | None) -> tuple[tuple[int, ...], list[int]]:
    """Which columns to show in that width, and how wide; nothing is cut while something less useful can give way.

    In turn: digests to the 12 digits that Docker shows, texts of optional columns to a little, times to minutes and
    then to days, all texts to their share, optional columns left out. What then still is too wide stays so.
    """
    shown = list(range(len(columns)))
    while True:
        widths = [natural[position] for position in shown]
        kinds = [columns[position].kind for position in shown]
        names = [len(columns[position].name) for position in shown]
        if terminal is None:
            return tuple(shown), widths
        room = terminal - len(_GAP) * (len(shown) - 1)
        optional = [position for position in shown if columns[position].optional]
        for kind, narrow in (("digest", _SHORT_DIGEST), ("text", _SHORT_TEXT), ("time", _MINUTES), ("time", _DAY)):
            if sum(widths) > room:
                widths = [
                    min(width, max(narrow, name)) if its == kind and (kind != "text" or position in optional) else width
                    for width, its, name, position in zip(widths, kinds, names, shown)
                ]
        # The widest text gives first.
        texts = [index for index, kind in enumerate(kinds) if kind == "text"]
        while sum(widths) > room:
            widest = max(texts, key=lambda index: widths[index], default=None)
            if widest is None or widths[widest] <= _NARROWEST_TEXT:
                break
            widths[widest] -= 1
        if sum(widths) <= room or not optional:
            return tuple(shown), widths
        shown.remove(optional[-1])


def vertical(columns: Sequence[Column], values: Sequence[Any]) -> str:
    """One row as lines of a name and a value."""
    width = max(len(column.name) for column in columns)
    cells = [_cell(column.kind, value) for column, value in zip(columns, values)]
    right = max(
        (len(cell) for column, cell in zip(columns, cells) if column.kind in _NUMBERS),
        default=0,
    )
    return "".join(
        f"{column.name.replace('_', ' '):<{width}}  {cell:>{right if column.kind in _NUMBERS else 0}}\n"
        for column, cell in zip(columns, cells)
    )


def shown_time(value: str) -> str:
    """A time as a table shows it, to the second."""
    return value[:19]


def _cell(kind: str, value: Any) -> str:
    if value is None:
        return "unknown" if kind == "bytes" else "-"
    if kind == "bytes":
        return human_bytes(int(value))
    if kind == "time":
        return shown_time(value)
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def _wide(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _cut(text: str, width: int, kind: str) -> str:
    if _wide(text) <= width:
        return text
    if kind == "time":
        return text[: _MINUTES if width >= _MINUTES else _DAY]
    if kind in _NUMBERS:
        return text
    if kind == "digest":
        return text[:width]
    cut = ""
    for character in text:
        if _wide(cut + character) > width - 1:
            break
        cut += character
    return cut + _ELLIPSIS
