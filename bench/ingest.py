"""How fast the daemon takes notifications: acknowledged, durable, and found in the database afterwards.

Each case has a new database and a new daemon. Its row says what was measured, and beside it two floors from the same
run: the same server without a database, and the same batches sent straight to the database. README.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from databases import ENGINES, BenchDatabase, MakeDatabase, cpu_seconds, engine, machine, peak_memory_bytes
from load import BUSY, ENVELOPE_SIZE, STYLES, Load, Plan, Sent, load
from notifications import MIXES, Registry, envelopes
from running_daemon import run_daemon

from regstat_lib.batch import Batch, Entry
from regstat_lib.envelope import utc_text
from regstat_lib.recorder import Outcome, Settle
from regstat_lib.webhook import Webhook

_CONNECTIONS = {"kept": (1, 8, 64), "new": (1, 8, 64), "envelopes": (1, 4, 8, 64)}
_WARM_UP_SECONDS = 0.5
_WARM_UP_EVENTS = {"kept": 3_000, "new": 2_000, "envelopes": 20_000}
_MOST_EVENTS = 300_000
_FLOOR_SECONDS = 2.0


class Case(NamedTuple):
    """What is measured."""

    engine: str
    mix: str
    style: str
    connections: int

    @property
    def envelope_size(self) -> int:
        """Events a request."""
        return ENVELOPE_SIZE if self.style == "envelopes" else 1


class Figures(NamedTuple):
    """What was seen: rates in events a second, latencies in milliseconds, memory in MiB."""

    events: int
    rate: float
    p50: float
    p99: float
    longest: float
    daemon_cpu: float  # seconds
    database_cpu: float | None  # seconds; SQLite's are the daemon's
    peak_memory: float
    batch: float  # events a transaction
    without_database: float
    database_alone: float
    generator_busy: float  # share of a core


_COLUMNS = (
    "engine", "mix", "style", "conns", "events/s", "p50 ms", "p99 ms", "max ms", "daemon CPU s", "database CPU s",
    "peak MiB", "events a batch", "no database, events/s", "database alone, events/s", "generator",
)  # fmt: skip


class CaseFailed(Exception):
    """An event was acknowledged and is not in the database, or was not acknowledged at all."""


def measure(case: Case, make: MakeDatabase, seconds: float, generators: int) -> Figures:
    """Runs one case; raises CaseFailed when what was acknowledged and what is kept differ."""
    with make() as database, load(generators, case.connections, case.style) as generator:
        with run_daemon(*database.flags) as daemon:
            pid = daemon.process.pid
            if case.mix == "mixed":
                _send(generator, daemon.port, Plan("known images", 0, ENVELOPE_SIZE), 60.0)
            warm_up = Plan(case.mix, _WARM_UP_EVENTS[case.style], case.envelope_size, seed=1)
            warm = _send(generator, daemon.port, warm_up, min(_WARM_UP_SECONDS, seconds))
            wanted = min(_MOST_EVENTS, int(warm.acknowledged / warm.seconds * seconds * 1.3) + case.connections)
            generator.build(Plan(case.mix, wanted, case.envelope_size, seed=2))
            since = utc_text(datetime.now(timezone.utc))
            daemon_cpu, database_cpu = cpu_seconds(pid), database.server_cpu()
            sent = accepted(generator.send(daemon.port, seconds))
            daemon_cpu = cpu_seconds(pid) - daemon_cpu
            after = database.server_cpu()
            peak = peak_memory_bytes(pid)
        check_recorded(generator.ids, database)
        batch = database.average_batch(since)
        with _server_without_database() as port:
            floor = accepted(generator.send(port, min(seconds, _FLOOR_SECONDS), keep_ids=False))
    return Figures(
        events=sent.acknowledged,
        rate=sent.acknowledged / sent.seconds,
        p50=_percentile(sent.latencies, 50) * 1000,
        p99=_percentile(sent.latencies, 99) * 1000,
        longest=sent.latencies[-1] * 1000,
        daemon_cpu=daemon_cpu,
        database_cpu=None if database_cpu is None or after is None else after - database_cpu,
        peak_memory=peak / 2**20,
        batch=batch,
        without_database=floor.acknowledged / floor.seconds,
        database_alone=_rate_of_database(case.mix, make, max(1, round(batch)), min(seconds, _FLOOR_SECONDS)),
        generator_busy=sent.busiest,
    )


def _send(generator: Load, port: int, plan: Plan, seconds: float) -> Sent:
    generator.build(plan)
    return accepted(generator.send(port, seconds))


def accepted(sent: Sent) -> Sent:
    """What was sent, when all of it was acknowledged."""
    if sent.refused:
        raise CaseFailed(f"{sent.refused} events were not acknowledged; the first answer was {sent.first_refusal!r}")
    return sent


def check_recorded(acknowledged: Sequence[str], database: BenchDatabase) -> None:
    """Raises CaseFailed unless the log holds exactly the acknowledged events."""
    recorded = database.recorded()
    lost = set(acknowledged) - recorded
    if lost:
        raise CaseFailed(
            f"{len(lost)} of {len(acknowledged)} acknowledged events are not in the database: {lost.pop()}"
        )
    if len(recorded) != len(acknowledged):
        raise CaseFailed(f"{len(acknowledged)} events were acknowledged, {len(recorded)} are in the database")


@contextlib.contextmanager
def _server_without_database() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("no_database.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


class _Collector:
    """Stands where the recorder stands and keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def enqueue(self, entries: Sequence[Entry], settle: Settle) -> None:
        """Keeps the entries."""
        self.entries += entries
        settle(Outcome(len(entries), 0))


def _rate_of_database(mix: str, make: MakeDatabase, batch_size: int, seconds: float) -> float:
    """Events a second when batches of this size, made before, are recorded one after the other; only that is timed."""
    registry = Registry(3, datetime.now(timezone.utc).replace(tzinfo=None))
    with make() as database:
        session = database.database.connect()
        with contextlib.closing(session):
            if mix == "mixed":
                for _, body in envelopes(registry.known_images(), ENVELOPE_SIZE):
                    session.record(_batch_of(body), utc_text(datetime.now(timezone.utc)))
            events = registry.notifications(mix)
            spent = 0.0
            count = 0
            # The first batches make plans and fill caches.
            skipped = 20
            deadline = time.monotonic() + 3 * seconds
            # On a slow machine making batches takes longer than recording them; one at least is counted.
            while not count or (spent < seconds and time.monotonic() < deadline):
                ((_, body),) = envelopes(islice(events, batch_size), batch_size)
                batch = _batch_of(body)
                now = utc_text(datetime.now(timezone.utc))
                began = time.perf_counter()
                session.record(batch, now)
                took = time.perf_counter() - began
                if skipped:
                    skipped -= 1
                    continue
                spent += took
                count += batch_size
    return count / spent


def _batch_of(body: bytes) -> Batch:
    collector = _Collector()
    webhook = Webhook(collector, {}, lambda: utc_text(datetime.now(timezone.utc)))
    webhook.answer("POST", "/", body, lambda _: None)
    return Batch(collector.entries)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _row(case: Case, figures: Figures) -> str:
    busy = f"{figures.generator_busy:.0%}{' (!)' if figures.generator_busy > BUSY else ''}"
    cells = (
        case.engine, case.mix, case.style, case.connections, f"{figures.rate:,.0f}", f"{figures.p50:.2f}",
        f"{figures.p99:.2f}", f"{figures.longest:.1f}", f"{figures.daemon_cpu:.2f}",
        "-" if figures.database_cpu is None else f"{figures.database_cpu:.2f}", f"{figures.peak_memory:.1f}",
        f"{figures.batch:.1f}", f"{figures.without_database:,.0f}", f"{figures.database_alone:,.0f}", busy,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def table_head(columns: Sequence[str]) -> str:
    """The first two lines of a table in Markdown."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _comparison(earlier: dict[str, Any], cases: Sequence[tuple[Case, Figures]]) -> str:
    """The figures of this run as multiples of those of an earlier one."""
    before = {
        Case(row["engine"], row["mix"], row["style"], row["connections"]): Figures(
            **{name: row[name] for name in Figures._fields}
        )
        for row in earlier["cases"]
    }
    names = ("rate", "p50", "p99", "longest", "peak_memory", "batch", "without_database", "database_alone")
    lines = [table_head((*_COLUMNS[:4], *names, "daemon CPU an event", "database CPU an event"))]
    for case, now in cases:
        then = before.get(case)
        if then is None:
            continue
        ratios = [_ratio(getattr(now, name), getattr(then, name)) for name in names]
        for spent_now, spent_then in ((now.daemon_cpu, then.daemon_cpu), (now.database_cpu, then.database_cpu)):
            if spent_now is None or spent_then is None:
                ratios.append("-")
            else:
                ratios.append(_ratio(spent_now / now.events, spent_then / then.events))
        lines.append(f"| {' | '.join(map(str, (*case, *ratios)))} |")
    return "\n".join(lines)


def _ratio(now: float, then: float) -> str:
    return f"{now / then:.2f}" if then else "-"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=some_of(ENGINES), default=ENGINES, help="default: sqlite,postgres")
    parser.add_argument("--connections", type=numbers, help="default: 1,8,64, and 4 with envelopes")
    parser.add_argument("--style", type=some_of(STYLES), default=STYLES, help="default: kept,new,envelopes")
    parser.add_argument("--mix", type=some_of(MIXES), default=MIXES, help="default: pushes,mixed")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each case sends (default 5)")
    parser.add_argument("--generators", type=int, default=1, help="processes that make the load (default 1)")
    parser.add_argument(
        "--pg-conn-str", metavar="STRING", help="an empty Postgres database (default: the embedded wheel's server)"
    )
    parser.add_argument("--directory", type=Path, help="where databases are made (default: where temporary files are)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier --json: print ratios to it")
    parser.add_argument("--quick", action="store_true", help="one short case of each engine: does the benchmark work?")
    given = parser.parse_args(arguments)
    if given.quick:
        given.connections, given.style, given.mix, given.seconds = (4,), ("kept",), ("mixed",), 0.3
    return given


def some_of(names: Sequence[str]) -> Any:
    """A flag's type: some of these names, with commas between them."""

    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        unknown = set(chosen) - set(names)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(names)}")
        return chosen

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """A flag's type: numbers from 1 on, with commas between them."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 1:
        raise argparse.ArgumentTypeError("each number must be 1 or more")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen cases; 1 when an acknowledged event was not found."""
    given = _arguments(arguments)
    earlier = json.loads(given.compare.read_text()) if given.compare else None
    if given.directory is not None:
        tempfile.tempdir = str(given.directory.absolute())
    about = machine(Path(tempfile.gettempdir()))
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"\n{table_head(_COLUMNS)}", flush=True)
    measured: list[tuple[Case, Figures]] = []
    failed = busy = False
    for name in given.engine:
        with engine(name, given.pg_conn_str) as make:
            for case in (
                Case(name, mix, style, connections)
                for mix in given.mix
                for style in given.style
                for connections in given.connections or _CONNECTIONS[style]
            ):
                try:
                    figures = measure(case, make, given.seconds, given.generators)
                except CaseFailed as error:
                    print(f"{', '.join(map(str, case))}: {error}", file=sys.stderr)
                    failed = True
                    continue
                measured.append((case, figures))
                busy = busy or figures.generator_busy > BUSY
                print(_row(case, figures), flush=True)
    if busy:
        print(
            f"\n(!) A load generator used more than {BUSY:.0%} of a core: it may be what limits the rate. With more"
            " processors than two, --generators makes more of them."
        )
    if given.json:
        rows = [{**case._asdict(), **figures._asdict()} for case, figures in measured]
        given.json.write_text(json.dumps({"machine": about, "seconds": given.seconds, "cases": rows}, indent=1) + "\n")
    if earlier is not None:
        print(f"\nThis run as multiples of {given.compare}:\n\n{_comparison(earlier, measured)}")
    if not failed:
        print(f"\nEvery acknowledged event was found in the database ({sum(f.events for _, f in measured):,} of them).")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
