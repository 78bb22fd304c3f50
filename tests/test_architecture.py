"""The layout shows the data flow: a module imports only from those above it, and stays short."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = ROOT / "src" / "groupwise"
# Top to bottom. A room imports from those above it only, and from itself without a circle.
ROOMS = (
    "errors spec kernels draw explanation web nn models rewrite parallel profile choose examples cli __main__".split()
)
# The rooms inside a room, top to bottom too. What a room itself holds comes after them.
INNER = {
    "choose": ["exact", "assign", "convert", "measure", "tune"],
    "draw": ["base", "text", "views", "html"],
    "parallel": ["styles", "runtime", "planning", "checkpoint"],
}
FILES = sorted(SOURCE.rglob("*.py"))
# What explains numbers and finds out what the native core lacks never loads torch.
LIGHT = {"errors", "spec", "kernels", "draw", "explanation", "cli"}
HEAVY = {"torch", "numpy", "PIL", "resvg_py"}
NEED_TORCH = {"cli/photo.py", "cli/targets.py"}


def place(path: pathlib.Path) -> tuple[str, ...]:
    """(room, ..., module) of a file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def room(path: pathlib.Path) -> str:
    return (place(path) or ("",))[0]


def floor(name: tuple[str, ...]) -> int:
    """How far down a place is in its room."""
    order = INNER[name[0]]
    return order.index(name[1]) if len(name) > 1 and name[1] in order else len(order)


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def at_the_top(path: pathlib.Path) -> ast.Module:
    """The imports that run when the module is loaded."""
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return tree


def ours(tree: ast.AST) -> set[tuple[str, ...]]:
    """The places in this package that a module imports from."""
    return {tuple(name.split(".")[1:]) for name in imports(tree) if name.startswith("groupwise.")}


def test_every_module_has_its_room():
    assert {room(path) for path in FILES} - {""} == set(ROOMS)


def test_every_inner_room_has_its_place():
    folders = {(path.parent.parent.name, path.parent.name) for path in FILES if len(path.relative_to(SOURCE).parts) > 2}
    assert folders == {(outer, inner) for outer, order in INNER.items() for inner in order}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    here = place(path)
    if not here:
        return
    for name in ours(ast.parse(path.read_text())):
        if name[0] in ROOMS:
            assert ROOMS.index(name[0]) <= ROOMS.index(here[0]), f"{path.name} imports {name}, which comes after it"
        if name[0] == here[0] in INNER:
            assert floor(name) <= floor(here), f"{path.name} imports {name}, which comes after it"


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_has_no_circle(name):
    modules = {place(path): path for path in FILES if room(path) == name}
    needs = {here: {there for there in ours(at_the_top(path)) if there in modules} for here, path in modules.items()}
    # A package's face hands on what its modules hold.
    needs = {here: them - {here} for here, them in needs.items() if modules[here].name != "__init__.py"}
    while free := [here for here, them in needs.items() if not them & needs.keys()]:
        for here in free:
            del needs[here]
    assert not needs, f"these import each other: {sorted(needs)}"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) in LIGHT], ids=lambda path: str(path.relative_to(SOURCE)))
def test_numbers_are_explained_without_torch(path):
    if str(path.relative_to(SOURCE)) not in NEED_TORCH:
        assert not {name.split(".")[0] for name in imports(at_the_top(path))} & HEAVY


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "docs", "examples"])
def test_files_stay_under_400_lines(folder):
    long = {path.name: n for path in (ROOT / folder).rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
