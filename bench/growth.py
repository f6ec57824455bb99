"""What an event costs as the database grows: filled directly with more and more known blobs, then measured.

Prints a table of microseconds an event, with the ratio to the smallest size, and draws it (SVG).
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from databases import ENGINES, BenchDatabase, MakeDatabase, cpu_seconds, engine, machine
from ingest import accepted, check_recorded, numbers, some_of, table_head
from load import ENVELOPE_SIZE, Plan, load
from notifications import HOST, KNOWN_REPOSITORIES, known_digest
from running_daemon import run_daemon

_SIZES = (10**4, 10**5, 10**6, 10**7)
_WARM_UP_SECONDS = 0.5
_MOST_EVENTS = 100_000


class Case(NamedTuple):
    """What is sent, how."""

    name: str
    mix: str
    style: str
    connections: int


# Pulls come first: pushes make the small databases larger.
CASES = (
    Case("pulls of known blobs, 8 connections", "pulls of known", "kept", 8),
    Case("pushes, one connection", "pushes", "kept", 1),
    Case("pushes, 8 connections", "pushes", "kept", 8),
    Case(f"pushes, 4 connections, envelopes of {ENVELOPE_SIZE}", "pushes", "envelopes", 4),
)


class Cost(NamedTuple):
    """Microseconds an event: from the first byte to the last acknowledgement, and of CPU."""

    engine: str
    case: str
    size: int
    wall: float
    daemon_cpu: float
    database_cpu: float | None
    events: int


def fill(database: BenchDatabase, size: int) -> None:
    """Makes the schema, and in it `size` blobs that were pushed a second after one another, each to one repository."""
    database.database.connect().close()
    if database.flags[0] == "-sqlite":
        _fill_sqlite(database.flags[1], size)
    else:
        _fill_postgres(database, size)


def _fill_sqlite(path: str, size: int) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_function("known_digest", 1, known_digest, deterministic=True)
        for pragma in ("journal_mode = off", "synchronous = off", "cache_size = -500000", "locking_mode = exclusive"):
            connection.execute(f"pragma {pragma}")
        connection.executemany(
            "insert into repository_names (registry, repository) values (?, ?)",
            [(HOST, f"known/app{number}") for number in range(KNOWN_REPOSITORIES)],
        )
        # In the order of the key: rows that go to random places of a large file would take hours.
        for into, repository in (
            ("holdings (digest, pushed, first_seen, as_blob, size, repository_id)", ", r.id"),
            ("blobs (digest, pushed, first_seen, last_push, size)", ""),
        ):
            connection.execute(
                f"""
                with recursive numbers (i) as (select 0 union all select i + 1 from numbers where i < {size - 1})
                insert into {into}
                select digest, at, at, at, 1000 + i{repository}
                from (
                    select i, known_digest(i) as digest,
                        strftime('%Y-%m-%d %H:%M:%S.000000', '2025-01-01', '+' || i || ' seconds') as at
                    from numbers
                ) known
                cross join repository_names r on r.registry = '{HOST}'
                    and r.repository = 'known/app' || (i % {KNOWN_REPOSITORIES})
                order by digest
                """
            )


def _fill_postgres(database: BenchDatabase, size: int) -> None:
    known = f"""
        select 'sha256:' || encode(sha256(convert_to(cast(i as text), 'UTF8')), 'hex') as digest,
            timestamp '2025-01-01' + i * interval '1 second' as at, 1000 + i as size, r.id
        from generate_series(0, {size - 1}) i
        join {{s}}repository_names r
            on r.registry = '{HOST}' and r.repository = 'known/app' || (i % {KNOWN_REPOSITORIES})
    """
    database.run(
        "set synchronous_commit = off",
        "set maintenance_work_mem = '512MB'",
        "set work_mem = '64MB'",
        f"insert into {{s}}repository_names (registry, repository)"
        f" select '{HOST}', 'known/app' || i from generate_series(0, {KNOWN_REPOSITORIES - 1}) i",
        "alter table {s}holdings drop constraint holdings_pkey",
        "alter table {s}blobs drop constraint blobs_pkey",
        "insert into {s}holdings (digest, repository_id, pushed, first_seen, as_blob, size)"
        f" select digest, id, at, at, at, size from ({known}) known",
        "insert into {s}blobs (digest, pushed, first_seen, last_push, size)"
        f" select digest, at, at, at, size from ({known}) known",
        "alter table {s}holdings add constraint holdings_pkey primary key (digest, repository_id)",
        "alter table {s}blobs add constraint blobs_pkey primary key (digest)",
        "vacuum (freeze, analyze) {s}holdings",
        "vacuum (freeze, analyze) {s}blobs",
        "vacuum (freeze, analyze) {s}repository_names",
    )
    # What filling left to be written must not be paid for by the first events; not every user may ask for it.
    with contextlib.suppress(Exception):
        database.run("checkpoint")


def measure(name: str, make: MakeDatabase, size: int, seconds: float) -> list[Cost]:
    """The cost of each case with so many known blobs."""
    costs = []
    with make() as database:
        began = time.monotonic()
        fill(database, size)
        print(f"{name}: {size:,} known blobs were there after {time.monotonic() - began:.0f} s", file=sys.stderr)
        recorded: list[str] = []
        with run_daemon(*database.flags) as daemon:
            for number, case in enumerate(CASES):
                with load(1, case.connections, case.style) as generator:
                    envelope_size = ENVELOPE_SIZE if case.style == "envelopes" else 1
                    plan = Plan(case.mix, 3000 * envelope_size, envelope_size, seed=2 * number, known=size)
                    generator.build(plan._replace(events=min(plan.events, 20_000)))
                    warm = accepted(generator.send(daemon.port, min(seconds, _WARM_UP_SECONDS)))
                    wanted = int(warm.acknowledged / warm.seconds * seconds * 1.3) + case.connections
                    generator.build(plan._replace(events=min(wanted, _MOST_EVENTS), seed=plan.seed + 1))
                    daemon_cpu, database_cpu = cpu_seconds(daemon.process.pid), database.server_cpu()
                    sent = accepted(generator.send(daemon.port, seconds))
                    daemon_cpu = cpu_seconds(daemon.process.pid) - daemon_cpu
                    after = database.server_cpu()
                    recorded += generator.ids
                each = 1e6 / sent.acknowledged
                costs.append(
                    Cost(
                        name,
                        case.name,
                        size,
                        sent.seconds * each,
                        daemon_cpu * each,
                        None if database_cpu is None or after is None else (after - database_cpu) * each,
                        sent.acknowledged,
                    )
                )
        check_recorded(recorded, database)
    return costs


def table(costs: Sequence[Cost]) -> str:
    """A row for each engine and case, a column for each size."""
    sizes = sorted({cost.size for cost in costs})
    lines = [table_head(("engine", "case", "µs an event", *(f"{size:,}" for size in sizes)))]
    for name, case in dict.fromkeys((cost.engine, cost.case) for cost in costs):
        of_size = {cost.size: cost for cost in costs if (cost.engine, cost.case) == (name, case)}
        for what, field in (
            ("until acknowledged", "wall"),
            ("CPU, daemon", "daemon_cpu"),
            ("CPU, database", "database_cpu"),
        ):
            values = [getattr(of_size[size], field) if size in of_size else None for size in sizes]
            if all(value is None for value in values):
                continue
            cells = ["-" if value is None else f"{value:,.0f}{_times(value, values[0])}" for value in values]
            lines.append(f"| {' | '.join((name, case, what, *cells))} |")
    return "\n".join(lines)


def _times(value: float, smallest: float | None) -> str:
    return f" ({value / smallest:.2f})" if smallest else ""


_COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e5ea2")
_WIDTH, _HEIGHT, _LEFT, _TOP, _LEGEND = 360, 220, 50, 30, 20


def svg(costs: Sequence[Cost]) -> str:
    """A panel for each engine: the cost of an event against the number of known blobs, as multiples of the smallest."""
    engines = list(dict.fromkeys(cost.engine for cost in costs))
    cases = list(dict.fromkeys(cost.case for cost in costs))
    sizes = sorted({cost.size for cost in costs})
    ratios = {}
    for name in engines:
        for case in cases:
            mine = sorted((cost.size, cost.wall) for cost in costs if (cost.engine, cost.case) == (name, case))
            ratios[name, case] = [(size, wall / mine[0][1]) for size, wall in mine]
    top = max(2.0, *(ratio for points in ratios.values() for _, ratio in points)) * 1.05
    width = len(engines) * (_WIDTH + _LEFT) + 20
    height = _TOP + _HEIGHT + 40 + _LEGEND * len(cases)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
        ' font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for panel, name in enumerate(engines):
        left = _LEFT + panel * (_WIDTH + _LEFT)

        def x(size: int, left: int = left) -> float:
            return left + _WIDTH * (sizes.index(size) + 0.5) / len(sizes)

        def y(ratio: float) -> float:
            return _TOP + _HEIGHT * (1 - ratio / top)

        parts.append(
            f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{name}: time of an event, relative, by known blobs'
            "</text>"
        )
        for tick in (step * 0.5 for step in range(int(top * 2) + 1)):
            parts.append(
                f'<line x1="{left}" x2="{left + _WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
                f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
        for size in sizes:
            parts.append(f'<text x="{x(size):.1f}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{size:,}</text>')
        for case, colour in zip(cases, _COLOURS):
            points = " ".join(f"{x(size):.1f},{y(ratio):.1f}" for size, ratio in ratios[name, case])
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [
                f'<circle cx="{x(size):.1f}" cy="{y(ratio):.1f}" r="3" fill="{colour}"/>'
                for size, ratio in ratios[name, case]
            ]
    for number, (case, colour) in enumerate(zip(cases, _COLOURS)):
        row = _TOP + _HEIGHT + 40 + number * _LEGEND
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + 20}" y1="{row}" y2="{row}" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{_LEFT + 28}" y="{row + 4}">{html.escape(case)}</text>'
        )
    return "\n".join((*parts, "</svg>", ""))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures each size of each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=some_of(ENGINES), default=ENGINES, help="default: sqlite,postgres")
    parser.add_argument("--sizes", type=numbers, default=_SIZES, help="default: 10000,100000,1000000,10000000")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each case sends (default 4)")
    parser.add_argument(
        "--pg-conn-str", metavar="STRING", help="an empty Postgres database (default: the embedded wheel's server)"
    )
    parser.add_argument(
        "--directory", type=Path, help="where databases are made, which takes some 8 GB (default: temporary files')"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--svg", type=Path, metavar="FILE", default=Path("growth.svg"), help="default: growth.svg")
    given = parser.parse_args(arguments)
    if given.directory is not None:
        tempfile.tempdir = str(given.directory.absolute())
    about = machine(Path(tempfile.gettempdir()))
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    costs: list[Cost] = []
    for name in given.engine:
        with engine(name, given.pg_conn_str) as make:
            for size in sorted(given.sizes):
                costs += measure(name, make, size, given.seconds)
    print(f"\n{table(costs)}")
    given.svg.write_text(svg(costs), encoding="utf-8")
    if given.json:
        rows = [cost._asdict() for cost in costs]
        given.json.write_text(json.dumps({"machine": about, "seconds": given.seconds, "costs": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
