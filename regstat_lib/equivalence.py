"""Registries that are known by several names (-equiv-registries)."""

from __future__ import annotations

import json
from pathlib import Path


class BadEquivalents(ValueError):
    """The file cannot be used; the text says in one line which, where and why."""


def read_equivalents(path: Path) -> dict[str, str]:
    """Alias -> registry, from a JSON file `{"registry": ["alias1", "alias2"], ...}`."""
    where = f"The file of -equiv-registries, {path},"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadEquivalents(f"{where} cannot be read: {error.strerror or error}.") from None
    except json.JSONDecodeError as error:
        raise BadEquivalents(f"{where} is not JSON: line {error.lineno} column {error.colno}: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise BadEquivalents(f"{where} is not JSON in UTF-8: {error}.") from None
    if not isinstance(document, dict):
        raise BadEquivalents(f'{where} must hold an object like {{"registry": ["alias1", "alias2"]}}.')
    found: dict[str, str] = {}
    for registry, aliases in document.items():
        if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
            raise BadEquivalents(f'{where} must have a list of names under "{registry}".')
        for alias in aliases:
            if found.setdefault(alias, registry) != registry:
                raise BadEquivalents(f'{where} has the alias "{alias}" under "{found[alias]}" and under "{registry}".')
    return found
