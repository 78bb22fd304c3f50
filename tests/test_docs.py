"""What the docs say runs, and the pictures they show are the ones the code draws."""

from __future__ import annotations

import argparse
import doctest
import importlib.util
import os
import pathlib
import re
import shlex

import pytest
import torch

import groupwise
import warm
from groupwise.cli import main
from groupwise.cli.parser import parser
from groupwise.kernels import native

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
    ]


def skip_without_kernels(code):
    if native.status().problem and re.search(r"groupwise\.(enabled?|plan|tune)\(", code):
        pytest.skip(native.status().problem)


@pytest.mark.parametrize("code", blocks("python"))
def test_code_in_the_docs_runs(code, tmp_path, monkeypatch):
    skip_without_kernels(code)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    try:
        exec(compile(code, "docs", "exec"), {})
    finally:
        groupwise.disable()
        torch.set_num_threads(threads)


@pytest.mark.parametrize("code", blocks("pycon"))
def test_a_prompt_in_the_docs_answers_as_it_shows(code):
    """Long messages are wrapped in the page, so white space does not count."""
    skip_without_kernels(code)
    answers = doctest.DocTestParser().get_doctest(code, {}, "docs", None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    assert answers.examples
    wrong: list[str] = []
    runner.run(answers, out=wrong.append)
    assert not wrong, "".join(wrong)


# What torchrun starts is in test_split_examples.py.
SCRIPTS = [
    path
    for path in sorted((ROOT / "examples").glob("*.py"))
    if "torchrun --nproc-per-node" not in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_examples_run(script, tmp_path):
    skip_without_kernels(script.read_text(encoding="utf-8"))
    warm.run(script, folder=tmp_path)


COMMANDS = re.findall(
    r"^(?:\$ )?groupwise ((?:explain|groups|compare) [^\n]*)$",
    "\n".join(p.read_text(encoding="utf-8") for p in PAGES),
    re.M,
)


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_commands_in_the_docs_work(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.split(r"\s{2,}", line, maxsplit=1)[0], comments=True)
    if line == "explain 8 4 --groups 3":
        assert main(words) == 2
        assert capsys.readouterr().err.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
    else:
        assert main(words) == 0


def test_options_in_the_docs_have_their_full_names():
    """An abbreviation works until another option begins alike."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    (commands,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    lines = re.findall(r"^(?:\$ )?groupwise (\w+) ([^\n]*--[^\n]*)$", text, re.M)
    lines = [(name, line) for name, line in lines if name in commands.choices]
    assert len(lines) > 20
    for name, line in lines:
        known = commands.choices[name]._option_string_actions
        assert [option for option in re.findall(r"(?<!\S)--[\w-]+", line) if option not in known] == [], line


def test_the_fields_of_a_report_are_listed():
    facts = groupwise.report(torch.nn.Conv2d(4, 4, 3), torch.randn(1, 4, 9, 9), repeats=1).to_dict()
    section = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").partition("## Fields")[2]
    layers, total, beside = section.strip().split("\n\n")
    for text, fields in ((layers, facts["layers"][0]), (total, facts["total"]), (layers + total + beside, facts)):
        assert set(fields) <= set(re.findall(r"`(\w+)`", text))


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("docs_draw", ROOT / "docs" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_lead_somewhere(draw):
    made = {f"rendered/{name}" for name in draw.pages()}
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http") and target not in made:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_pages_of_the_gallery_need_nothing_else(draw):
    pages = draw.pages()
    assert len(pages) == (ROOT / "docs" / "gallery.md").read_text("utf-8").count("<iframe") > 0
    for page in pages.values():
        assert page.startswith("<!doctype html>")
        assert not re.search(r"<script src|<link rel=.stylesheet|https?://(?!www\.w3\.org)", page)


def test_pictures_are_those_the_code_draws(draw):
    for name, svg in draw.pictures().items():
        path = ROOT / "docs" / "pictures" / name
        if os.environ.get("GROUPWISE_UPDATE_GOLDEN"):
            path.write_text(svg, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == svg, f"{name} is out of date; run: make docs"
