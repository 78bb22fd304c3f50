"""What runs before a commit is what `make style` runs, in the same versions and on the same files."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")


def test_the_tools_are_those_of_make_style():
    recipe = re.search(r"^style:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1]
    made = re.findall(r"/(ruff \w+|[a-z-]+)", recipe.replace("$(CORE)", ""))
    assert sorted(made) == sorted(re.findall(r"name: (.*)", HOOKS))


def test_the_versions_are_those_of_constraints():
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    used = re.findall(r'"([\w-]+)==([\w.]+)"', HOOKS)
    assert {name for name, _ in used} == {"ruff", "clang-format"}
    assert all(pinned[name] == version for name, version in used)


def test_all_of_the_core_is_formatted():
    pattern = re.search(r"files: (.*)", HOOKS)[1]
    files = [path for folder in ("csrc", "src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*")]
    core = [path.relative_to(ROOT).as_posix() for path in files if path.suffix in (".c", ".cc", ".cpp", ".h", ".hpp")]
    assert "csrc/plan/plan.cpp" in core
    assert all(re.search(pattern, path) for path in core)
