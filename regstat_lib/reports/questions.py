"""The reports: which view answers what, and the SQL that asks it. Pure.

What an answer means is said in the views and nowhere else; a report picks columns, filters and sorts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Union

Parameter = Union[str, int]


class Column(NamedTuple):
    """A column of a report. Kinds: text, digest, time, day, bytes (a size) and count. One that is `optional` is left
    out of a table for which the terminal is too narrow."""

    name: str
    kind: str = "text"
    optional: bool = False


class Note(NamedTuple):
    """Something to know before the rows: a query of one row, and a sentence with a `{}` for each of its columns.
    None is said when the first column is 0 or null."""

    sql: str
    parameters: tuple[Parameter, ...]
    sentence: str


class Report(NamedTuple):
    """A question with a name. `order` is SQL for rows in the order that shows the most, which an index can give.
    `places` is a view of each row's `repository_id` and what `order` takes, where the row itself costs much more."""

    name: str
    answers: str
    source: str
    columns: tuple[Column, ...]
    order: str
    by: Mapping[str, Report] = {}
    doubts: str = ""  # what it means for a row that contents are not known
    places: str = ""


class Question(NamedTuple):
    """A report with its options. Times are texts of UTC as the tables have them; globs have `*` and `?`."""

    report: Report
    registry: str | None = None
    repository: str | None = None
    sort: str | None = None
    reverse: bool = False
    limit: int | None = None
    pushed_before: str | None = None
    unpulled_since: str | None = None
    untagged: bool = False


class Query(NamedTuple):
    """What to ask the database."""

    sql: str
    parameters: tuple[Parameter, ...]
    columns: tuple[Column, ...]
    notes: tuple[Note, ...]


_REGISTRY, _REPOSITORY = Column("registry"), Column("repository")
_DIGEST, _MEDIA_TYPE = Column("digest", "digest"), Column("media_type", optional=True)
_DOUBT = Column("doubt")
_PLACE = "registry is null, registry {c}, repository {c}"

IMAGES = Report(
    "images",
    "every tagged image, or with --untagged those that have no tag: size, platforms, when pushed and last used",
    "{s}images",
    (
        _REGISTRY,
        _REPOSITORY,
        Column("tag"),
        _DIGEST,
        _MEDIA_TYPE,
        Column("pushed", "time"),
        Column("last_pulled", "time"),
        Column("size", "bytes"),
        Column("platforms", "count", optional=True),
    ),
    "name {c}",
    doubts="an image may have been used as a part of one of them",
)
_USE = Column("use")

REPOSITORIES = Report(
    "repositories",
    "each repository's tags, manifests and bytes, the bytes that only it holds, last push and pull",
    "{s}repositories",
    (
        _REGISTRY,
        _REPOSITORY,
        Column("tags", "count"),
        Column("manifests", "count"),
        Column("blobs", "count", optional=True),
        Column("bytes", "bytes"),
        Column("only_here", "bytes"),
        Column("unknown_sizes", "count", optional=True),
        Column("last_push", "time"),
        Column("last_pull", "time"),
    ),
    _PLACE,
    places="{s}repository_places",
)
_MOST_TAGGED_MANIFESTS = Report(
    "most-tagged",
    "manifests by number of tags",
    "{s}most_tagged_manifests",
    (_REGISTRY, _REPOSITORY, _DIGEST, Column("tags", "count"), Column("pushed", "time")),
    f"tags desc, digest, {_PLACE}",
)
MOST_TAGGED = Report(
    "most-tagged",
    "repositories by number of tags; --by manifest: manifests",
    "{s}most_tagged",
    (_REGISTRY, _REPOSITORY, Column("tags", "count"), Column("pushed", "time")),
    f"tags desc, {_PLACE}",
)
MOST_TAGGED = MOST_TAGGED._replace(by={"repository": MOST_TAGGED, "manifest": _MOST_TAGGED_MANIFESTS})
ORPHANED_BLOBS = Report(
    "orphaned-blobs",
    "blobs that no live manifest references: where, size and since when",
    "{s}orphaned_blobs",
    (_REGISTRY, _REPOSITORY, _DIGEST, Column("size", "bytes"), Column("since", "time"), _DOUBT),
    f"digest, {_PLACE}",
    doubts="a blob there may be referenced by one of them",
)
BROKEN_MANIFESTS = Report(
    "broken-manifests",
    "live manifests with a part that is gone: what is missing and which tags it breaks",
    "{s}broken_manifests",
    (
        _REGISTRY,
        _REPOSITORY,
        _DIGEST,
        Column("missing", "digest"),
        Column("kind"),
        Column("missing_size", "bytes", optional=True),
        Column("state"),
        Column("gone", "time"),
        Column("tags"),
    ),
    f"{_PLACE}, digest, missing",
    doubts="parts of those may be missing as well",
)
UNTAGGED_MANIFESTS = Report(
    "untagged-manifests",
    "manifests without a tag, in no live index and attached to nothing live",
    "{s}untagged_manifests",
    (
        _REGISTRY,
        _REPOSITORY,
        _DIGEST,
        _MEDIA_TYPE,
        Column("size", "bytes"),
        Column("pushed", "time"),
        Column("pulled", "time"),
        _DOUBT,
    ),
    f"digest, {_PLACE}",
    doubts="a manifest there may be a part of one of them",
)
DELETIONS = Report(
    "deletions",
    "the audit trail, newest first: what was deleted, by whom, and whether it is there again",
    "{s}deletions",
    (
        Column("deleted", "time"),
        Column("kind"),
        _REGISTRY,
        _REPOSITORY,
        Column("tag"),
        _DIGEST,
        Column("restored", "time"),
        Column("actor"),
        Column("address", optional=True),
        Column("agent", optional=True),
    ),
    f"deleted desc, kind {{c}}, {_PLACE}, tag is null, tag {{c}}, digest is null, digest {{c}}",
)


def _activity(*by: Column, order: Sequence[str] = ()) -> Report:
    counts = ("pushes", "pulls", "checks", "deletes", "blob_pushes", "blob_pulls")
    names = ", ".join(("day", *(column.name for column in by)))
    sums = ", ".join(f"sum({name}) as {name}" for name in counts)
    return Report(
        "activity",
        "pushes, pulls (downloads), checks (HEAD) and deletes a day; --by repository, actor or agent",
        f"(select {names}, {sums} from {{s}}counted_events{{where}} group by {names})",
        (Column("day", "day"), *by, *(Column(name, "count", name.startswith("blob_")) for name in counts)),
        ", ".join(("day desc", *order)),
    )


ACTIVITY = _activity()._replace(
    by={
        # An event always has both, and a condition less is a good part of what it takes to sort them.
        "repository": _activity(_REGISTRY, _REPOSITORY, order=("registry {c}", "repository {c}")),
        "actor": _activity(Column("actor"), order=("actor is null", "actor {c}")),
        "agent": _activity(Column("agent"), order=("agent is null", "agent {c}")),
    }
)
SUMMARY = Report(
    "summary",
    "how much there is, how many bytes, when the first and the last event came, what is pending or set aside",
    "",
    (
        Column("registries", "count"),
        Column("repositories", "count"),
        Column("tags", "count"),
        Column("manifests", "count"),
        Column("blobs", "count"),
        Column("bytes", "bytes"),
        Column("unknown_sizes", "count"),
        Column("watched_since", "time"),
        Column("first_event", "time"),
        Column("last_event", "time"),
        Column("pending", "count"),
        Column("given_up", "count"),
        Column("set_aside", "count"),
    ),
    "",
)
HISTORY = Report(
    "history",
    "IMAGE is [registry/]repository:tag: what it pointed to and when, who moved it, who pulled it last",
    "",
    (
        _REGISTRY,
        _REPOSITORY,
        Column("tag"),
        _DIGEST,
        Column("since", "time"),
        Column("until", "time"),
        Column("ended"),
        Column("actor"),
        Column("address", optional=True),
        Column("agent", optional=True),
        Column("pulls", "count"),
        Column("checks", "count"),
        Column("last_pulled", "time"),
        Column("pulled_by", optional=True),
        Column("pulled_from", optional=True),
        Column("pulled_with", optional=True),
    ),
    "",
)

REPORTS: Mapping[str, Report] = {
    report.name: report
    for report in (
        SUMMARY,
        IMAGES,
        REPOSITORIES,
        MOST_TAGGED,
        ORPHANED_BLOBS,
        BROKEN_MANIFESTS,
        UNTAGGED_MANIFESTS,
        DELETIONS,
        ACTIVITY,
        HISTORY,
    )
}


# More rows than these are made quicker all together than one by one.
_FEW = 100

# How the engine says that a column is like a glob: column, glob -> condition, its parameter.
Matches = Callable[[str, str], tuple[str, str]]


def query(question: Question, matches: Matches) -> Query:
    """The SQL of any report but `history`, with its notes."""
    conditions, parameters = place(question, matches)
    if question.report.name == "summary":
        return _summary(conditions, parameters)
    report = question.report
    source = report.source
    columns = report.columns
    selected = {column.name: column.name for column in columns}
    values: list[Parameter] = []
    notes: list[Note] = []
    if report.name == "images":
        source = "{s}untagged_images" if question.untagged else "{s}tagged_images"
        if question.untagged:
            question = question._replace(report=report._replace(order=UNTAGGED_MANIFESTS.order))
        notes.append(_watching())
        if question.untagged:
            columns = (*columns, _DOUBT)
            selected["doubt"] = "doubt"
            notes.append(_unknown_contents(question, matches))
        if question.pushed_before is not None:
            conditions.append("pushed < {time}")
            parameters.append(question.pushed_before)
        if question.unpulled_since is not None:
            conditions.append("pushed < {time}")
            # A push is a sign of life like a pull. "is not true" because most of what was not pushed since is unused,
            # and Postgres takes other comparisons of two columns' coalescence to be true of few rows.
            conditions.append("(coalesce(last_pulled, pushed) >= {time}) is not true")
            parameters += [question.unpulled_since] * 2
            columns = (*columns, _USE)
            selected["use"] = _use_since(values, question.unpulled_since)
            notes.append(_unknown_contents(question, matches))
    if report.doubts and report.name != "images":
        notes.append(_unknown_contents(question, matches))
    if report.places:
        few = ""
        if question.repository is not None and not set("*?").intersection(question.repository):
            few = _places(report, conditions)
        elif question.sort is None and _is_few(question):
            few = f"{_places(report, conditions)} order by {report.order} limit {question.limit:d}"
        if few:
            # Of those repositories alone the rest is made.
            conditions.append(f"repository_id {{among_few}}({few}){{few_end}}")
            parameters *= 2
    where = " where " + " and ".join(conditions) if conditions else ""
    inside = "{where}" in source
    source = source.replace("{where}", where)
    sql = "select {} from {} q{}".format(
        ", ".join(f"{sql} as {name}" if sql != name else name for name, sql in selected.items()),
        source,
        "" if inside else where,
    )
    sql += " order by " + _order(question, columns)
    if question.limit is not None:
        sql += f" limit {question.limit:d}"
    return Query(_timed(sql), (*values, *parameters), columns, tuple(dict.fromkeys(notes)))


def _is_few(question: Question) -> bool:
    return question.limit is not None and question.limit <= _FEW


def _places(report: Report, conditions: Sequence[str]) -> str:
    where = " where " + " and ".join(conditions) if conditions else ""
    return f"select repository_id from {report.places}{where}"


def place(question: Question, matches: Matches) -> tuple[list[str], list[Parameter]]:
    """The conditions that the options on registry and repository make."""
    conditions, parameters = [], []
    for column, glob in (("registry", question.registry), ("repository", question.repository)):
        if glob is not None:
            condition, parameter = matches(column, glob)
            conditions.append(condition)
            parameters.append(parameter)
    return conditions, list(parameters)


def _use_since(values: list[Parameter], since: str) -> str:
    """An image is unused only if regstat saw all that happened to it since then; a pull of a manifest whose contents
    are not known may have been a use of any image beside it."""
    values += [since, since]
    return (
        "case when watched_since > {time} or (registry, repository) in"
        " (select u.registry, u.repository from {s}unknown_contents u where u.pulled >= {time})"
        " or doubt is not null then 'unknown' else 'unused' end"
    )


def _order(question: Question, columns: Sequence[Column]) -> str:
    if question.sort is None:
        return question.report.order
    kind = next(column.kind for column in columns if column.name == question.sort)
    descending = (kind not in ("text", "digest")) is not question.reverse
    direction = " desc" if descending else ""
    if question.sort == _USE.name:  # no column of the view, and never null
        return f"{question.sort}{direction}, {question.report.order}"
    bytewise = " {c}" if kind in ("text", "digest") else ""
    return f"{question.sort} is null, {question.sort}{bytewise}{direction}, {question.report.order}"


def _watching() -> Note:
    return Note("select since from {s}watching", (), "regstat has been watching since {}.")


def _unknown_contents(question: Question, matches: Matches) -> Note:
    conditions, parameters = place(question, matches)
    sql = "select count(*), count(given_up) from {s}unknown_contents where live = 1"
    return Note(
        " and ".join((sql, *conditions)),
        tuple(parameters),
        "Manifests whose contents are not known: {} ({} of them given up); "
        f"{question.report.doubts or 'the answer may lack what they reference'}.",
    )


def _summary(conditions: list[str], parameters: list[Parameter]) -> Query:
    where = " where " + " and ".join(conditions) if conditions else ""
    also = "".join(f" and {condition}" for condition in conditions)
    # A registry stores once what several of its repositories hold: of those that know its size, or else of all, the
    # first counts that holds it as a manifest, or else as a blob; regstat may have heard of them in any order.
    sql = f"""
        select p.registries, p.repositories, (select count(*) from {{s}}tags{where}) as tags,
            d.manifests, d.blobs, d.bytes, d.unknown_sizes,
            (select since from {{s}}watching) as watched_since,
            (select min(timestamp) from {{s}}events{where}) as first_event,
            (select max(timestamp) from {{s}}events{where}) as last_event,
            (select count(*) from {{s}}unknown_contents where live = 1 and given_up is null{also}) as pending,
            (select count(*) from {{s}}unknown_contents where live = 1 and given_up is not null{also}) as given_up,
            (select count(*) from {{s}}set_aside) as set_aside
        from (
            select count(distinct registry) as registries, count(*) as repositories
            from (select registry, repository_id from {{s}}held{where} group by registry, repository_id) r
        ) p
        cross join (
            select coalesce(sum(case when h.kind = 'manifest' then 1 else 0 end), 0) as manifests,
                coalesce(sum(case when h.kind = 'manifest' then 0 else 1 end), 0) as blobs,
                case when count(*) = 0 then 0 else sum(h.size) end as bytes,
                count(*) - count(h.size) as unknown_sizes
            from (select * from {{s}}held{where}) h
            where not exists (
                select 1 from (select * from {{s}}held{where}) o
                where o.digest = h.digest and o.repository_id <> h.repository_id
                    and coalesce(coalesce(o.registry, '') = coalesce(h.registry, ''), false)
                    and case
                        when (o.size is null) <> (h.size is null) then h.size is null
                        when o.kind <> h.kind then o.kind = 'manifest'
                        else o.repository_id < h.repository_id
                    end
            )
        ) d
    """
    return Query(sql, tuple(parameters * 8), SUMMARY.columns, ())


def _timed(sql: str) -> str:
    return sql.replace("{time}", "?")
