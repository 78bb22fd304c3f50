"""The layout shows the data flow: a module imports only from those above it, and stays short."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = ROOT / "src" / "groupwise"
# Top to bottom; a folder is one step, and its own files may import each other.
ORDER = [
    "errors",
    "arguments",
    "spec",
    "wiring",
    "share",
    "costs",
    "processor",
    "native",
    "routing",
    "planning",
    "draw",
    "explanation",
    "nn",
    "models",
    "parallel",
    "examples",
    "recording",
    "counting",
    "roofline",
    "checking",
    "measuring",
    "reporting",
    "benching",
    "photo",
    "targets",
    "diagnosis",
    "web",
    "cli",
    "__main__",
]
FILES = sorted(SOURCE.rglob("*.py"))
# Nothing of these may load when numbers are explained, or when it is asked what the native core lacks.
LIGHT = [
    "errors",
    "arguments",
    "spec",
    "wiring",
    "share",
    "costs",
    "processor",
    "native",
    "routing",
    "planning",
    "draw",
]
LIGHT += ["explanation", "diagnosis", "cli"]


def step(path: pathlib.Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_module_has_its_place():
    assert {step(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    if step(path) == "__init__":
        return
    here = ORDER.index(step(path))
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "groupwise" and len(parts) > 1 and parts[1] in ORDER:
            # A layer explains itself on request: nn is below explanation, which never imports nn.
            assert ORDER.index(parts[1]) <= here, f"{path.name} imports {name}, which comes after it"


@pytest.mark.parametrize("path", [p for p in FILES if step(p) in LIGHT], ids=lambda path: str(path.relative_to(SOURCE)))
def test_numbers_are_explained_without_torch(path):
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {name for name in imports(tree) if name.split(".")[0] in ("torch", "numpy", "PIL", "resvg_py")}


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "docs", "examples"])
def test_files_stay_under_400_lines(folder):
    long = {path.name: n for path in (ROOT / folder).rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long
