"""The formats of reports, to the byte."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from regstat_lib.reports.command import _Output
from regstat_lib.reports.output import human_bytes, rfc3339, vertical, writer
from regstat_lib.reports.questions import (
    ACTIVITY,
    BROKEN_MANIFESTS,
    IMAGES,
    REPORTS,
    REPOSITORIES,
    SUMMARY,
    Column,
    Report,
)

GOLDEN = Path(__file__).parent / "data" / "reports"
DIGEST = "sha256:6dd2b4a2f3f5dbbd6a9cb50d0aef6bdf66b97fd4d3a4f7a0e0ad9a3d4c6e7f80"
OTHER = DIGEST.replace("6dd2", "a17f")
OCI, LIST = "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"
PUSHED, PULLED = "2026-11-23 16:50:40.633217", "2026-12-01 08:00:00"

ROWS: dict[str, Sequence[Sequence[Any]]] = {
    IMAGES.name: [
        ("registry.example:5000", "team/app", "v1", DIGEST, OCI, PUSHED, PULLED, 734003200, 1),
        ("registry.example:5000", "team/a-name-that-is-long", "latest", OTHER, LIST, PUSHED, None, None, 12),
        ("r\u00e9gistre", "\u6771\u4eac/\u6620\u50cf", "\x1b[31mred\x1b[0m", DIGEST, None, PUSHED, None, 900, None),
    ],
    REPOSITORIES.name: [
        ("registry.example:5000", "team/app", 1200, 48211, 190233, 5497558138880, 1073741824, 0, PUSHED, PULLED),
        (None, None, 0, 3, 0, None, None, 3, None, None),
    ],
    BROKEN_MANIFESTS.name: [
        ("registry.example:5000", "team/app", DIGEST, OTHER, "layer", 31457280, "gone", PUSHED, "latest v1 v1.2"),
        ("registry.example:5000", "team/web", OTHER, DIGEST, "manifest", None, "unknown", None, None),
    ],
    ACTIVITY.name: [("2026-12-01", 3, 1200, 40000, 0, 12, 9000), ("2026-11-30", 0, 0, 0, 1, 0, 0)],
}


def written(form: str, report: Report, width: int | None = None, bold: bool = False) -> str:
    parts: list[str] = []
    out = writer(form, report.columns, parts.append, width, bold=bold)
    for row in ROWS[report.name]:
        out.rows([row])
    out.end()
    return "".join(parts)


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("report", [REPORTS[name] for name in ROWS], ids=list(ROWS))
def test_a_table_is_as_it_was_at_this_width(report: Report, width: int) -> None:
    assert written("table", report, width) == (GOLDEN / f"{report.name}-{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("report", [REPORTS[name] for name in ROWS], ids=list(ROWS))
def test_a_table_without_a_terminal_is_not_cut(report: Report) -> None:
    text = written("table", report)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(str(cell) in text for cell in ROWS[report.name][0] if isinstance(cell, str) and ":" not in cell)


def test_no_control_character_reaches_a_terminal() -> None:
    assert "\x1b" not in written("table", IMAGES, 140)


def test_json_has_stable_keys_raw_numbers_and_times_of_rfc_3339() -> None:
    rows = json.loads(written("json", IMAGES))
    assert [json.loads(line) for line in written("jsonl", IMAGES).splitlines()] == rows
    assert rows[0] == {
        "registry": "registry.example:5000",
        "repository": "team/app",
        "tag": "v1",
        "digest": DIGEST,
        "media_type": OCI,
        "pushed": "2026-11-23T16:50:40.633217Z",
        "last_pulled": "2026-12-01T08:00:00.000000Z",
        "size": 734003200,
        "platforms": 1,
    }
    assert rows[1]["size"] is None
    assert rows[2]["tag"] == "\x1b[31mred\x1b[0m"


def test_csv_has_names_and_raw_values() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", IMAGES))))
    assert (rows[0]["size"], rows[0]["pushed"], rows[1]["size"]) == ("734003200", "2026-11-23T16:50:40.633217Z", "")
    assert rows[2]["repository"] == "\u6771\u4eac/\u6620\u50cf"


@pytest.mark.parametrize(("form", "text"), [("json", "[]\n"), ("jsonl", ""), ("table", "(none)\n")])
def test_no_rows_are_an_answer(form: str, text: str) -> None:
    parts: list[str] = []
    writer(form, IMAGES.columns, parts.append, 80).end()
    assert "".join(parts) == text


def test_a_row_alone_is_written_downwards() -> None:
    row = (1, 12, 1000000, 400000, None, 5497558138880, 0, PUSHED, PUSHED, None, 3, 0, 0)
    text = vertical(SUMMARY.columns, row)
    assert text.splitlines()[:6] == [
        "registries           1",
        "repositories        12",
        "tags           1000000",
        "manifests       400000",
        "blobs                -",
        "bytes          5.0 TiB",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1048575, "1.0 MiB"),
        (734003200, "700.0 MiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_bytes_are_readable(size: int, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize("digits", range(7))
def test_a_time_always_has_microseconds(digits: int) -> None:
    fraction = "123456"[:digits]
    text = "2026-11-23 16:50:40" + ("." + fraction if fraction else "")
    assert rfc3339(text) == f"2026-11-23T16:50:40.{fraction:0<6}Z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "environment", "bold"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_only_a_terminal_that_wants_it_gets_bold_letters(
    out: io.StringIO, environment: dict[str, str], bold: bool
) -> None:
    _Output("table", out, io.StringIO(), environment).rows(ACTIVITY, ROWS[ACTIVITY.name])
    assert ("\x1b[1m" in out.getvalue()) is bold


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv"])
def test_memory_does_not_grow_with_the_rows(form: str) -> None:
    columns = (Column("name"), Column("size", "bytes"), Column("pushed", "time"))
    out = writer(form, columns, lambda _: None, 80)
    tracemalloc.start()
    for number in range(30_000):
        out.rows([(f"image {number}", number, PUSHED)])
    out.end()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
