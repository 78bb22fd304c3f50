"""The recipes of CONTRIBUTING.md name files and symbols that exist."""

from __future__ import annotations

import pathlib
import re

import pytest

from test_architecture import ROOMS

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^- \*\*([^*]+)\.\*\* (.*?)(?=^- |\Z)", PAGE.partition("## Recipes")[2], re.M | re.S))
# Words in backticks that are neither a file nor a symbol: languages of code blocks.
WORDS = {"python", "pycon"}


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text)) - WORDS


def is_path(name: str) -> bool:
    return "/" in name or re.search(r"\.(py|md|txt|toml|yml|cpp|h|json)$", name) is not None or name == "benchmarks"


def files_of(name: str) -> list[pathlib.Path]:
    """The files that a path stands for; NAME is any name."""
    return [path for path in ROOT.glob(name.replace("NAME", "*")) if path.is_file() or path.is_dir()]


def stale(recipe: str) -> list[str]:
    """What a recipe names that is not there: files, and symbols that none of its files has."""
    names = quoted(recipe)
    found = {name: files_of(name) for name in names if is_path(name)}
    missing = [name for name, files in found.items() if not files]
    text = "\n".join(path.read_text("utf-8") for files in found.values() for path in files if path.is_file())
    for symbol in names - found.keys():
        if not re.search(rf"\b{re.escape(symbol).replace('NAME', '[a-z]+')}\b", text):
            missing.append(symbol)
    return sorted(missing)


def test_every_kind_of_change_has_a_recipe():
    wanted = {"A kernel", "A dtype", "An ISA", "A device", "A view", "A network", "A page"}
    assert wanted <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_what_is_there(name):
    assert not stale(RECIPES[name]), "these are not there, or not in a file that the recipe names"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_files(name):
    assert any(is_path(word) for word in quoted(RECIPES[name]))


def test_a_stale_name_is_found():
    recipe = "Add `KERNELS` and `NO_SUCH_SYMBOL` to `src/groupwise/kernels/plan.py` and `csrc/no_such_file.cpp`."
    assert stale(recipe) == ["NO_SUCH_SYMBOL", "csrc/no_such_file.cpp"]


def test_the_rooms_are_those_of_the_code():
    line = re.search(r"^errors → .*$", PAGE, re.M)
    assert line is not None
    assert line.group().split(" → ") == [name for name in ROOMS if name != "__main__"]


def test_the_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert set(re.findall(r"^make (\w+)", PAGE, re.M)) <= set(targets)


def test_it_is_one_page():
    assert len(PAGE.splitlines()) <= 90
