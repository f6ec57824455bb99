"""The versions of the schema and the files that lead from each to the next."""

from __future__ import annotations

from regstat_lib.store import SchemaTooNew, SchemaTooOld
from regstat_lib.store.sql_text import exists

SCHEMA_VERSION = 5

# Version 0 is the original's, or none at all. Each entry brings the schema from the version before it to its own;
# a file of one engine need not have a counterpart of the other.
_UPGRADES = (
    ("0_original.sql", "1_facts.{engine}.sql", "1_facts.sql"),
    ("2_views.{engine}.sql", "2_views.sql"),
    ("3_answers.{engine}.sql", "3_answers.sql"),
    ("4_plans.{engine}.sql", "4_plans.sql"),
    ("5_uses.{engine}.sql", "5_uses.sql"),
)


def upgrade_files(version: int, engine: str) -> list[str]:
    """The `.sql` files that bring a database of this version to `SCHEMA_VERSION`, in their order."""
    return [
        name.format(engine=engine)
        for upgrade in _UPGRADES[version:]
        for name in upgrade
        if exists(name.format(engine=engine))
    ]


def check_readable(version: int, description: str) -> None:
    """Raises SchemaTooOld or SchemaTooNew when this regstat cannot answer from a database of that version."""
    if version < SCHEMA_VERSION:
        what = "has no tables of regstat yet" if version == 0 else f"has schema version {version}"
        raise SchemaTooOld(
            f"The {description} {what}, and reports need version {SCHEMA_VERSION}:"
            " start the daemon of this regstat on it once, which brings it there and keeps every row."
        )
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"The {description} has schema version {version}, this regstat knows {SCHEMA_VERSION}:"
            " use the newer regstat that upgraded it."
        )
