"""The site of the docs: it builds without a warning, none of its links is dead, and it asks no other server."""

from __future__ import annotations

import html.parser
import importlib.util
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIGURATION = (ROOT / "zensical.toml").read_text("utf-8")
needs_zensical = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("zensical", "mkdocstrings"))), reason="needs the extra docs"
)


class Page(html.parser.HTMLParser):
    """Collects what a page of HTML can be linked to (`ids`), links to (`links`) and loads (`loads`)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if given.get("href"):
            (self.loads if tag == "link" else self.links).add(given["href"])
        if given.get("src"):
            self.loads.add(given["src"])


def dead(folder: pathlib.Path) -> list[str]:
    """Returns the links of a folder of HTML that lead nowhere; those of 404.html begin at the server's own root."""
    paths = [path for path in sorted(folder.rglob("*.html")) if path.name != "404.html"]
    pages = {path: Page(path.read_text("utf-8")) for path in paths}
    found = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = urllib.parse.unquote(url.fragment)
            if not target.exists() or (anchor and "=" not in anchor and anchor not in pages[target].ids):
                found.append(f"{path.name}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built from a copy of the docs."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", folder)
    (folder / "src").symlink_to(ROOT / "src")
    rendered = folder / "docs" / "rendered"
    rendered.mkdir(exist_ok=True)
    for name, page in runpy.run_path(str(DOCS / "draw.py"))["pages"]().items():
        (rendered / name).write_text(page, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@needs_zensical
def test_no_link_is_dead(site):
    assert dead(site) == []


@needs_zensical
def test_every_page_is_built(site):
    for page in DOCS.glob("*.md"):
        assert (site / f"{page.stem}.html").exists()
    assert not list(site.rglob("*.py"))


@needs_zensical
def test_every_name_of_the_api_has_a_place(site):
    for page in sorted(DOCS.glob("api*.md")):
        names = re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.M)
        assert set(names) <= Page((site / f"{page.stem}.html").read_text("utf-8")).ids


@needs_zensical
def test_the_search_finds_pages_and_names(site):
    found = json.loads((site / "search.json").read_text("utf-8"))
    places = {item["location"] for item in found["items"]}
    assert {"faq.html", "tutorial.html", "first-steps.html"} <= places
    assert "api-see.html#groupwise.explain" in places


@needs_zensical
def test_it_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loads = Page(path.read_text("utf-8")).loads
        assert not [name for name in loads if urllib.parse.urlsplit(name).netloc], path.name


@needs_zensical
def test_the_explorer_and_the_rendered_pages_are_framed(site):
    assert "explorer.html" in Page((site / "explore.html").read_text("utf-8")).loads
    assert (site / "explorer.html").read_bytes() == (DOCS / "explorer.html").read_bytes()
    assert "rendered/report-resnext50.html" in Page((site / "gallery.html").read_text("utf-8")).loads


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a id="here" href="b.html#there">b</a> <a href="#here">a</a> <img src="c.svg">')
    (tmp_path / "b.html").write_text('<a href="a.html#nowhere">a</a> <a href="https://example.org">c</a>')
    assert sorted(dead(tmp_path)) == ["a.html: b.html#there", "a.html: c.svg", "b.html: a.html#nowhere"]
