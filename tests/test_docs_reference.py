"""The reference pages list all there is: names, environment variables, pictures, pages."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re

import pytest

import groupwise
from groupwise import models, parallel
from groupwise.kernels import native
from kernels import needs_kernels

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = [
    name
    for page in sorted(DOCS.glob("api*.md"))
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M)
]


def resolve(name: str) -> object:
    """The object of a dotted name: modules first, then attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("name", API)
def test_a_documented_name_is_there(name):
    assert resolve(name).__doc__


def test_every_public_name_is_documented():
    public = {f"groupwise.{name}" for name in groupwise.__all__ if name not in ("__version__", "models", "parallel")}
    public |= {f"groupwise.parallel.{name}" for name in parallel.__all__}
    public |= {f"groupwise.models.{name}" for name in models.__all__ if name != "MODELS"}
    public |= {f"groupwise.parallel.checkpoint.{name}" for name in ("claim", "release")}
    assert not public - set(API)
    assert len(API) == len(set(API))


def variables_in_the_code() -> set[str]:
    found: set[str] = set()
    for folder in ("src", "tests", "benchmarks", "docs", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            constants = [
                node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)
            ]
            found |= {node.value for node in constants if re.fullmatch(r"GROUPWISE_[A-Z_]+", str(node.value))}
    for path in (ROOT / "csrc").rglob("*.cpp"):
        found |= set(re.findall(r'getenv\("(\w+)"\)', path.read_text("utf-8")))
    found |= set(re.findall(r"ENV\{(GROUPWISE_\w+)\}", (ROOT / "CMakeLists.txt").read_text("utf-8")))
    found |= set(re.findall(r"if\.env\.(\w+)", (ROOT / "pyproject.toml").read_text("utf-8")))
    return found


def test_every_environment_variable_is_documented():
    listed = set(re.findall(r"^\| `(GROUPWISE_\w+)`", (DOCS / "environment.md").read_text("utf-8"), re.M))
    assert listed == variables_in_the_code()


def test_every_picture_is_in_the_gallery():
    shown = re.findall(r"!\[([^\]]*)\]\(pictures/([\w-]+\.svg)\)", (DOCS / "gallery.md").read_text("utf-8"))
    assert sorted(name for _, name in shown) == sorted(path.name for path in (DOCS / "pictures").iterdir())
    assert all(words for words, _ in shown), "each picture has a text for those who cannot see it"


def test_every_page_is_in_the_navigation():
    pages = re.findall(r'= "([\w-]+\.md)" \}', (ROOT / "zensical.toml").read_text("utf-8"))
    assert sorted(pages) == sorted(path.name for path in DOCS.glob("*.md"))


@needs_kernels
def test_the_table_of_kernels_is_that_of_the_library():
    rows = [
        f"| [`{row['name']}`](kernel-{row['name']}.md) | {', '.join(row['directions'])} | {row['documentation']} |"
        for row in native.build()["kernels"]
    ]
    page = (DOCS / "kernels.md").read_text("utf-8")
    table = "| kernel | directions | vectors |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    assert table in page, f"docs/kernels.md should have this table:\n{table}"
