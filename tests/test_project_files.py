"""What the project says of itself to others: how to cite it, how to report a vulnerability, what an extra holds."""

from __future__ import annotations

import pathlib
import re

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
