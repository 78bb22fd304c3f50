"""What the project says of itself to others: how to cite it, how to report a vulnerability, what an extra holds."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import groupwise

ROOT = pathlib.Path(__file__).parent.parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    fields = dict(re.findall(r"^([\w-]+): (.+)$", citation, re.M))
    assert {"cff-version", "message", "title", "version", "license"} <= fields.keys()
    assert "\nauthors:\n  - name: " in citation
    assert fields["version"] == groupwise.__version__
    assert fields["license"] == re.search(r'^license = "(.+)"$', read("pyproject.toml"), re.M)[1]


def test_a_source_distribution_holds_them():
    included = re.search(r"^sdist.include = \[(.*?)\]", read("pyproject.toml"), re.M | re.S)[1]
    assert {'"/CITATION.cff"', '"/*.md"'} <= set(re.findall(r'"[^"]+"', included))
    assert "private" in read("SECURITY.md")


def test_contributors_learn_how_a_name_goes_away():
    assert "`DeprecationWarning`" in read("CONTRIBUTING.md")


def test_the_extras_in_the_docs_are_there():
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", read("pyproject.toml"), re.M | re.S)[1]
    known = set(re.findall(r"^(\w+) = \[", extras, re.M))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    for page in pages:
        for names in re.findall(r'(?:groupwise|install "\.)\[([a-z,]+)\]', page.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= known, page.name


def test_make_leaves_an_environment_alone_that_it_did_not_make(tmp_path):
    mine = tmp_path / "mine"
    (mine / "lib").mkdir(parents=True)
    made = subprocess.run(
        ["make", "--silent", f"VENV={mine}", f"{mine}/venv.stamp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert "make did not make it" in made.stderr
    assert (mine / "lib").is_dir()
    # Not in the checkout, which a guard that fails would leave empty.
    shutil.copy(ROOT / "Makefile", tmp_path)
    cleaned = subprocess.run(["make", f"VENV={mine}", "clean"], cwd=tmp_path, capture_output=True, check=False)
    assert cleaned.returncode != 0
    assert (mine / "lib").is_dir()
    # One that it began and did not end is made anew.
    (mine / "begun.stamp").touch()
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    subprocess.run(["make", "--silent", f"PYTHON={python}", f"VENV={mine}", f"{mine}/venv.stamp"], cwd=ROOT, check=True)
    assert sorted(path.name for path in mine.iterdir()) == ["begun.stamp", "venv.stamp"]
