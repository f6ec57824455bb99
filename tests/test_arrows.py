"""The rooms of the code and the arrows between them, as the README draws them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "regstat_lib"

# What each room may import of the others, itself and standard library aside. `cli` and `daemon` wire everything.
ARROWS: dict[str, set[str]] = {
    "envelope": set(),
    "manifest": {"envelope"},
    "changes": {"envelope", "manifest"},
    "batch": {"envelope", "manifest", "changes"},
    "equivalence": set(),
    "store": {"batch", "changes"},
    "writer": {"batch", "store"},
    "recorder": {"batch", "envelope", "store", "writer"},
    "registry": {""},
    "retry": {"registry"},
    "resolver": {"batch", "changes", "manifest", "recorder", "registry", "retry", "store"},
    "webhook": {"batch", "changes", "envelope", "recorder", "store"},
    "server": {"", "webhook"},
    "reports": {"store"},
    "systemd": set(),
}
WIRING = {"cli", "daemon", ""}
PURE = {"envelope", "manifest", "changes", "batch", "retry"}
IMPURE_MODULES = {"socket", "os", "time", "random", "threading", "subprocess", "sqlite3", "urllib", "http", "logging"}


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "regstat_lib":
                found.update(f"regstat_lib.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
    return found


def _modules() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", ""), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


@pytest.mark.parametrize(
    ("room", "path"), _modules(), ids=lambda value: value if isinstance(value, str) else value.stem
)
def test_no_import_goes_back_along_an_arrow(room: str, path: Path) -> None:
    if room in WIRING:
        return
    imported = {_room(name) for name in _imports(path) if name.split(".")[0] == "regstat_lib"} - {room, ""}
    assert imported <= ARROWS[room], f"{path.name} of room {room} imports {imported - ARROWS[room]}"


def test_the_arrows_have_no_circle() -> None:
    seen: list[str] = []

    def visit(room: str, on_the_way: tuple[str, ...]) -> None:
        assert room not in on_the_way, " -> ".join((*on_the_way, room))
        if room not in seen:
            for other in ARROWS.get(room, set()) - {""}:
                visit(other, (*on_the_way, room))
            seen.append(room)

    for room in ARROWS:
        visit(room, ())


@pytest.mark.parametrize("room", sorted(PURE))
def test_rooms_in_the_middle_touch_nothing_outside(room: str) -> None:
    imported = {name.split(".")[0] for name in _imports(PACKAGE / f"{room}.py")}
    assert not imported & IMPURE_MODULES


def test_only_the_store_knows_the_drivers() -> None:
    for room, path in _modules():
        if room != "store":
            assert not {name.split(".")[0] for name in _imports(path)} & {"pg8000", "sqlite3"}, path.name


def test_the_program_runs_on_the_standard_library_and_pg8000_alone() -> None:
    import sys

    if sys.version_info < (3, 10):
        pytest.skip("this Python does not list its standard library (3.10 does)")
    for _, path in _modules():
        outside = {name.split(".")[0] for name in _imports(path)} - sys.stdlib_module_names
        assert outside <= {"regstat_lib", "pg8000"}, path.name
