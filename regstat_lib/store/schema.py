"""The versions of the schema and the files that lead from each to the next."""

from __future__ import annotations

SCHEMA_VERSION = 1

# Version 0 is the original's, or none at all. Each entry brings the schema from the version before it to its own.
_UPGRADES = (("0_original.sql", "1_facts.{engine}.sql", "1_facts.sql"),)


def upgrade_files(version: int, engine: str) -> list[str]:
    """The `.sql` files that bring a database of this version to `SCHEMA_VERSION`, in their order."""
    return [
        name.format(engine=engine)
        for upgrade in _UPGRADES[version:]
        for name in upgrade
        if "{engine}" not in name or engine == "postgres"
    ]
