"""The SQL of both engines, read from the `.sql` files beside this module.

One wording serves both; what must differ is a `{name}` that each engine fills in, and the few directives that
`record.sql` describes in its head.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import NamedTuple


class Relation(NamedTuple):
    """A staged or set relation: its name and its columns with their types."""

    name: str
    columns: tuple[tuple[str, str], ...]


class Keys(NamedTuple):
    """Which rows an upsert is about: those of a relation, by columns that both have."""

    relation: str
    columns: tuple[str, ...]


class Statement(NamedTuple):
    """A statement of the record script; `keeps` names the relation that holds its result afterwards.

    `adds` is whether the relation has rows already that stay. `keys` are those of an upsert that returns something.
    `in_turn` is whether no other writer may be at it at the same time.
    """

    sql: str
    keeps: Relation | None
    only_if: tuple[str, ...]
    adds: bool = False
    keys: Keys | None = None
    in_turn: bool = True


class Script(NamedTuple):
    """The record script: what a batch is staged as, and the statements."""

    staged: tuple[Relation, ...]
    statements: tuple[Statement, ...]


_RELATION = re.compile(r"(\w+) \((.*)\)$")
_DIRECTIVE = re.compile(r"-- (staged|set|more|keys|if|each kind|before its turn)\b ?(.*)$")
_KEYS = re.compile(r"(\w+) \((.*)\)$")
_SOURCE = re.compile(r"\{(\w+)(?::(\w+))?\}")


# All of them when the program starts: its one file may be replaced by a newer one while it runs.
_TEXTS = {
    entry.name: entry.read_text(encoding="utf-8")
    for entry in (files("regstat_lib.store") / "sql").iterdir()
    if entry.name.endswith(".sql")
}


def exists(name: str) -> bool:
    """Whether this package has a `.sql` file of that name."""
    return name in _TEXTS


def read(name: str) -> str:
    """The text of a `.sql` file of this package."""
    return _TEXTS[name]


def statements(text: str) -> list[str]:
    """The statements of an SQL text, comments left out. A semicolon ends one at the end of a line."""
    without_comments = re.sub(r"^\s*--.*$", "", text, flags=re.MULTILINE)
    return [part.strip() for part in re.split(r";\s*$", without_comments, flags=re.MULTILINE) if part.strip()]


def fill(text: str, names: Mapping[str, str]) -> str:
    """`text` with every `{name}` replaced; an unknown name is an error."""
    return _SOURCE.sub(lambda match: names[match.group(1)], text)


def fill_sources(text: str, names: Mapping[str, str], source: Callable[[str, str], str]) -> str:
    """Like `fill`, but a name that `names` has not is a relation: `source(name, alias)` says how to read it."""

    def replacement(match: re.Match[str]) -> str:
        name, alias = match.group(1), match.group(2)
        if name in names:
            return names[name]
        return source(name, alias or ("staged" if name.startswith("staged_") else name))

    return _SOURCE.sub(replacement, text)


def record_script() -> Script:
    """The statements that record a batch, from `record.sql`."""
    staged: list[Relation] = []
    found: list[Statement] = []
    kept: dict[str, Relation] = {}
    for block in re.split(r";[ \t]*\n", read("record.sql")):
        directives: dict[str, str] = {}
        sql: list[str] = []
        for line in block.splitlines():
            directive = _DIRECTIVE.match(line)
            if directive is None:
                if line.strip() and not line.startswith("--"):
                    sql.append(line)
            elif directive.group(1) == "staged":
                staged.append(_relation("staged_" + directive.group(2)))
            else:
                directives[directive.group(1)] = directive.group(2)
        if not sql:
            continue
        for kind in ("blob", "manifest") if "each kind" in directives else ("",):
            named = {name: _of_kind(text, kind) for name, text in directives.items()}
            keeps = None
            if "set" in named:
                keeps = _relation(named["set"])
                kept[keeps.name] = keeps
            elif "more" in named:
                keeps = kept[named["more"]]
            found.append(
                Statement(
                    _of_kind("\n".join(sql), kind),
                    keeps,
                    tuple(name.strip() for name in named["if"].split(",")) if "if" in named else (),
                    "more" in named,
                    _keys(named["keys"]) if "keys" in named else None,
                    "before its turn" not in named,
                )
            )
    return Script(tuple(staged), tuple(found))


def _of_kind(text: str, kind: str) -> str:
    return text.replace("{kind}", kind).replace("_{kind}", "_" + kind) if kind else text


def _relation(text: str) -> Relation:
    match = _RELATION.match(text)
    if match is None:
        raise ValueError(f"record.sql declares no relation with {text!r}")
    columns = tuple(tuple(column.split()) for column in match.group(2).split(","))
    return Relation(match.group(1), tuple((name, kind) for name, kind in columns))


def _keys(text: str) -> Keys:
    match = _KEYS.match(text)
    if match is None:
        raise ValueError(f"record.sql has no keys in {text!r}")
    return Keys(match.group(1), tuple(name.strip() for name in match.group(2).split(",")))
