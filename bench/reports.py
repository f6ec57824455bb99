#!/usr/bin/env python3
"""How long each report takes on a large database, and how much memory.

    bench/reports.py fill -pg-conn-str "host=... dbname=bench" [--scale 0.01]
    bench/reports.py time -pg-conn-str "host=... dbname=bench" [--runs 3]

`fill` writes into an empty Postgres database what a daemon would have left there: at scale 1 a million tags, 400,000
manifests, 3,000,000 links, 1,200,000 blobs in 2,000 repositories and 5,000,000 logged events. `time` runs every report
as a process of its own, its output read and thrown away, and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from regstat_lib.store.connection_string import parse_connection_string  # noqa: E402
from regstat_lib.store.postgres import _NAMES, PostgresDatabase  # noqa: E402
from regstat_lib.store.sql_text import fill as fill_names  # noqa: E402
from regstat_lib.store.sql_text import read, statements  # noqa: E402

# Image number i is number i / R of repository i % R. Every seventh image of a repository is an index of the two
# before it; the others have a config, two layers of their own and five or six that the repository's images share, of
# which every second one is in the next repository too. Numbers become digests by hashing, so that they come in
# no order. Of the names in brackets, {R} is the number of repositories, {M} of manifests, {T} of tags, {E} of events.
_FILL = """
create function pg_temp.digest(kind text, number bigint) returns text language sql immutable as
$$ select 'sha256:' || md5(kind || number) || md5(number || kind) $$;

create function pg_temp.at(number bigint, of bigint) returns timestamp language sql stable as
$$ select cast(date_trunc('second', now() at time zone 'utc') as timestamp) - interval '400 days'
    + interval '400 days' * (number::float8 / of) $$;

truncate regstat.watching;

insert into regstat.watching select pg_temp.at(0, {M});

insert into regstat.repository_names (registry, repository)
select 'registry-' || n * 3 / {R} || '.example:5000', 'team' || n / 20 || '/app' || n
from generate_series(0, {R} - 1) n;

create temp table images as
select i, i % {R} + 1 as repository_id, i / {R} % 7 = 6 as is_index, pg_temp.digest('m', i) as digest,
    pg_temp.at(i, {M}) as pushed,
    case when i % 3 > 0 then pg_temp.at(i + ({M} - i) * (i % 10) / 10, {M}) end as pulled
from generate_series(0, {M} - 1) i;

create temp table refs as
select digest as manifest_digest, i, repository_id, pushed, pulled, pg_temp.digest('c', i) as blob_digest,
    'config' as kind, 'application/vnd.oci.image.config.v1+json' as media_type, 1500 + i % 1000 as size
from images where not is_index
union all
select digest, i, repository_id, pushed, pulled, pg_temp.digest('o', i * 2 + n), 'layer',
    'application/vnd.oci.image.layer.v1.tar+gzip', 1000000 + i % 7919 * 1000
from images, generate_series(0, 1) n where not is_index
union all
select digest, i, repository_id, pushed, pulled,
    pg_temp.digest('s', (repository_id - n % 2) * 90 + (i / {R} + n * 13) % 90), 'layer',
    'application/vnd.oci.image.layer.v1.tar+gzip', 30000000 + (i / {R} + n * 13) % 90 * 1000
from images, generate_series(1, 6) n where not is_index and (n < 6 or i % 2 = 0)
union all
select digest, i, repository_id, pushed, pulled, pg_temp.digest('m', i - n * {R}), 'manifest',
    'application/vnd.oci.image.manifest.v1+json', 1400
from images, generate_series(1, 2) n where is_index;

insert into regstat.manifests (digest, pushed, pulled, size, media_type, first_seen, last_push)
select digest, pushed, pulled, case when is_index then 900 else 1400 end,
    'application/vnd.oci.image.' || case when is_index then 'index' else 'manifest' end || '.v1+json', pushed, pushed
from images;

insert into regstat.contents (manifest_digest, complete) select digest, 1 from images where i % 20000 <> 7;

insert into regstat.pending_manifests (digest, repository_id, url, host, attempts, next_attempt, last_error, given_up)
select digest, repository_id, '', '', 9, pushed, 'the registry answered 404', pushed from images where i % 20000 = 7;

insert into regstat.holdings (digest, repository_id, pushed, pulled, first_seen, as_manifest, size, media_type)
select digest, repository_id, pushed, pulled, pushed, pushed, case when is_index then 900 else 1400 end,
    'application/vnd.oci.image.' || case when is_index then 'index' else 'manifest' end || '.v1+json'
from images;

insert into regstat.holdings (digest, repository_id, pushed, pulled, first_seen, as_blob, size, media_type)
select blob_digest, repository_id, min(pushed), max(pulled), min(pushed), max(pushed), max(size), max(media_type)
from refs where kind <> 'manifest'
group by blob_digest, repository_id
order by min(i);

update regstat.holdings h set pulled_in_index = r.pulled
from refs r
where r.kind = 'manifest' and r.pulled is not null and h.digest = r.blob_digest and h.repository_id = r.repository_id;

insert into regstat.blobs (digest, pushed, pulled, size, media_type, first_seen, last_push)
select digest, max(pushed), max(pulled), max(size), max(media_type), min(first_seen), max(pushed)
from regstat.holdings where as_blob is not null
group by digest;

-- Every hundredth layer of an image is linked no more: an orphan.
insert into regstat.manifest_blob (manifest_digest, blob_digest, kind, media_type, size)
select distinct on (i, blob_digest) manifest_digest, blob_digest, kind, media_type, size
from refs
where not (i % 100 = 0 and blob_digest = pg_temp.digest('o', i * 2)) and i % 20000 <> 7
order by i, blob_digest;

-- Every fivehundredth image lost a layer that no other image has.
update regstat.holdings h set deleted = h.as_blob + interval '1 day'
from (select pg_temp.digest('o', i * 2 + 1) as digest from images where i % 500 = 1 and not is_index) d
where h.digest = d.digest;

insert into regstat.deleted_blobs (digest, pushed, pulled, deleted, size, media_type)
select digest, pushed, pulled, deleted, size, media_type from regstat.holdings where deleted is not null;

delete from regstat.blobs where digest in (select digest from regstat.deleted_blobs);

insert into regstat.deleted_manifest_blob (manifest_digest, blob_digest, deleted, kind, media_type, size)
select l.manifest_digest, l.blob_digest, d.deleted, l.kind, l.media_type, l.size
from regstat.manifest_blob l join regstat.deleted_blobs d on d.digest = l.blob_digest;

delete from regstat.manifest_blob where blob_digest in (select digest from regstat.deleted_blobs);

-- What was deleted whole, a tenth as much as there is.
insert into regstat.holdings (digest, repository_id, pushed, pulled, first_seen, as_manifest, deleted, size, media_type)
select pg_temp.digest('gone', i), repository_id, pushed, pulled, pushed, pushed, pushed + interval '9 days', 1400,
    'application/vnd.oci.image.manifest.v1+json'
from images where i % 10 = 0;

insert into regstat.deleted_manifests (digest, pushed, pulled, deleted, size, media_type)
select pg_temp.digest('gone', i), pushed, pulled, pushed + interval '9 days', 1400,
    'application/vnd.oci.image.manifest.v1+json'
from images where i % 10 = 0;

insert into regstat.deleted_tags (name, registry, repository, tag, manifest_digest, pushed, pulled, deleted)
select r.registry || '/' || r.repository || ':old' || i, r.registry, r.repository, 'old' || i,
    pg_temp.digest('gone', i), pushed, pulled, pushed + interval '9 days'
from images join regstat.repository_names r on r.id = repository_id where i % 10 = 0;

-- One image in six has no tag, those in an index among them.
create temp table tagged as
select repository_id, 'v' || n || '.' || i / {R} as tag, digest, pushed, pulled
from images, generate_series(1, {tags_each}) n
where i % 6 > 0;

insert into regstat.sightings (repository_id, tag, sighted, manifest_digest, pushed, pulled, first_seen)
select repository_id, tag, greatest(pushed, pulled), digest, pushed, pulled, pushed from tagged;

insert into regstat.tags (name, registry, repository, tag, manifest_digest, pushed, pulled)
select r.registry || '/' || r.repository || ':' || tag, r.registry, r.repository, tag, digest, pushed, pulled
from tagged join regstat.repository_names r on r.id = repository_id;

insert into regstat.events (timestamp, id, action, registry, repository, digest, tag, media_type, size, method, actor,
    address, user_agent, source, received)
select pg_temp.at(n, {E}), md5('event' || n),
    case when n % 10 < 2 then 'push' when n % 1000 = 999 then 'delete' else 'pull' end,
    r.registry, r.repository, m.digest, case when n % 10 in (1, 5) then 'v1.' || m.i / {R} end,
    case when n % 1000 = 999 then null when n % 10 in (0, 6, 7) then 'application/octet-stream'
        else 'application/vnd.oci.image.manifest.v1+json' end,
    1400, case when n % 10 = 8 then 'HEAD' when n % 10 < 2 then 'PUT' else 'GET' end, 'robot' || n % 53,
    '10.0.' || n % 7 || '.' || n % 251 || ':40000',
    case n % 3 when 0 then 'containerd/1.' || n % 9 else 'docker/2' || n % 5 end, 'registry:5000', pg_temp.at(n, {E})
from generate_series(0, {E} - 1) n
join images m on m.i = cast(n as bigint) * 7919 % {M}
join regstat.repository_names r on r.id = m.repository_id;

vacuum analyze
"""

_REPORTS = (
    ("summary",),
    ("images",),
    ("images", "--unpulled-for", "6mo"),
    ("images", "--pushed-before", "390d"),
    ("images", "--untagged"),
    ("images", "--untagged", "--unpulled-for", "6mo"),
    ("repositories",),
    ("most-tagged",),
    ("most-tagged", "--by", "manifest"),
    ("orphaned-blobs",),
    ("broken-manifests",),
    ("untagged-manifests",),
    ("deletions",),
    ("activity",),
    ("activity", "--by", "repository"),
    ("activity", "--by", "actor"),
    ("activity", "--by", "agent"),
    ("history", "registry-0.example:5000/team0/app1:v1.1"),
)
_WITH_LIMIT = ("images", "orphaned-blobs", "broken-manifests", "untagged-manifests", "deletions", "repositories")


class Run(NamedTuple):
    seconds: float
    first: float
    peak_mib: float
    rows: int


def fill(conn_str: str, scale: float) -> None:
    PostgresDatabase(parse_connection_string(conn_str)).connect().close()
    connection = _connect(conn_str)
    repositories = max(20, round(2000 * scale))
    numbers = {
        "R": repositories,
        # A multiple of the repositories, so that an image's number says which it is of its repository.
        "M": round(400_000 * scale / repositories) * repositories,
        "E": round(5_000_000 * scale),
        "tags_each": 3,
    }
    began = time.monotonic()
    connection.run("set work_mem = '256MB'; set jit = off")
    *script, vacuum = _FILL.split(";\n")
    # What is kept of contents is added up as an upgrade does it.
    upgrade = statements(fill_names(read("3_answers.sql"), _NAMES))
    script += [statement for statement in upgrade if statement.startswith("insert into regstat.contents")]
    for statement in (*script, vacuum):
        for name, number in numbers.items():
            statement = statement.replace("{" + name + "}", str(number))
        before = time.monotonic()
        connection.run(statement)
        what = next(line for line in statement.strip().splitlines() if not line.startswith("--"))
        print(f"{time.monotonic() - before:6.1f} s  {what[:90]}", flush=True)
    print(f"{time.monotonic() - began:6.1f} s in all")
    for table in ("tags", "manifests", "manifest_blob", "blobs", "repositories", "holdings", "events"):
        print(f"{connection.run(f'select count(*) from regstat.{table}')[0][0]:>10}  {table}")
    connection.close()


def _connect(conn_str: str) -> Any:
    import pg8000.native

    target = parse_connection_string(conn_str)
    return pg8000.native.Connection(
        target.user, password=target.password, host=target.host, port=target.port, database=target.database,
        unix_sock=target.unix_socket, ssl_context=False,
    )  # fmt: skip


def run(arguments: tuple[str, ...], conn_str: str) -> Run:
    """One report, as JSON lines into a pipe: how long until its first row and its end, and its memory."""
    command = [
        sys.executable,
        str(ROOT / "regstat.py"),
        "report",
        *arguments,
        "--format",
        "jsonl",
        "-pg-conn-str",
        conn_str,
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout, process.stderr
    assert out is not None
    assert err is not None
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(err.read()))
    reader.start()
    first, rows = 0.0, 0
    while some := os.read(out.fileno(), 1 << 16):
        first = first or time.monotonic() - began
        rows += some.count(b"\n")
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    reader.join()
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed: {errors[0].decode()}")
    return Run(seconds, first or seconds, usage.ru_maxrss / 1024, rows)


def measure(conn_str: str, runs: int) -> None:
    print("| report | rows | first row, s | all, s | peak, MiB |")
    print("|---|---:|---:|---:|---:|")
    limited = [(*arguments, "--limit", "20") for arguments in _REPORTS if arguments[0] in _WITH_LIMIT]
    for arguments in (*_REPORTS, *limited):
        best = min((run(arguments, conn_str) for _ in range(runs)), key=lambda one: one.seconds)
        print(
            f"| `{' '.join(arguments)}` | {best.rows:,} | {best.first:.2f} | {best.seconds:.2f}"
            f" | {best.peak_mib:.0f} |",
            flush=True,
        )


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("command", choices=("fill", "time"))
    flags.add_argument("-pg-conn-str", required=True, metavar="STRING")
    flags.add_argument("--scale", type=float, default=1.0)
    flags.add_argument("--runs", type=int, default=3, help="the best of so many is shown")
    given = flags.parse_args()
    if given.command == "fill":
        fill(given.pg_conn_str, given.scale)
    else:
        measure(given.pg_conn_str, given.runs)


if __name__ == "__main__":
    main()
