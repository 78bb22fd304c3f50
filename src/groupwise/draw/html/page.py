"""Self-contained HTML: one file with inline styles and pictures that fetches nothing, readable in light and dark."""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence

from groupwise.spec.legible import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --card: #ffffff; --page: #f6f8fa;
  --mark: #ddf4ff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --card: #0d1117;
  --page: #010409; --mark: #12304f; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", Verdana, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.soft { color: var(--soft); } .warning { border-left: 4px solid #bf8700; padding-left: .75rem; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: .75rem;
  margin: 1rem 0 1.5rem; }
.tile { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem;
  overflow-wrap: anywhere; }
.tile dt, .tile dd + dd { color: var(--soft); font-size: 13px; } .tile dd { margin: 0; }
.tile dt + dd { font-size: 1.3rem; line-height: 1.35; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { font-size: 13.5px; border-collapse: collapse; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .4rem; border: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.name, td.name { text-align: left; }
tr.grouped td { background: var(--mark); }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid; }
th button::after { content: " ↕"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
figcaption { color: var(--soft); font-size: 13px; }
figure { margin: 1rem 0; } figure svg, figure img { max-width: 100%; height: auto; }
pre { background: var(--card); border: 1px solid var(--line); padding: .75rem; overflow-x: auto; font-size: 13px; }
dialog { width: 95vw; height: 94vh; max-width: none; max-height: none; padding: 0; border: 1px solid var(--line); }
dialog form { height: 2.2rem; text-align: right; padding: .2rem; box-sizing: border-box; }
dialog iframe { width: 100%; height: calc(100% - 2.4rem); border: 0; }
details { margin: .5rem 0; } summary { cursor: pointer; }
"""

# The script sorts by the number in data-v where a cell has one, else by its text; a second click reverses the order.
_SORT = """
for (const button of document.querySelectorAll("table.sort th button")) button.onclick = () => {
  const th = button.closest("th"), body = th.closest("table").tBodies[0];
  const column = [...th.parentNode.children].indexOf(th);
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[column].dataset.v ?? row.children[column].textContent;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? String(a).localeCompare(b) : a - b;
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b))));
};
"""


def page(title: str, body: str, sortable: bool = False) -> str:
    """Returns a whole document; `body` is HTML, `title` is text."""
    script = f"<script>{_SORT}</script>" if sortable else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )


def deliver(document: str, path: str | pathlib.Path | None) -> str | pathlib.Path:
    """Returns the document, or writes it to `path` and returns that."""
    if path is None:
        return document
    target = pathlib.Path(path)
    target.write_text(document, encoding="utf-8")
    return target


def element(tag: str, text: str, css: str = "") -> str:
    """Returns `<tag class=css>text</tag>` with the text escaped."""
    attribute = f' class="{css}"' if css else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def figure(svg: str, number: int | None = None) -> str:
    """Returns an inline picture. `number` makes its ids differ from those of the same picture elsewhere on the page."""
    if number is not None:
        svg = re.sub(r"\b(gw-[0-9a-f]{8})(?=-[td]\b)", rf"\1-{number}", svg)
    return f"<figure>{svg}</figure>"


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
    """Returns cards side by side, below each other on a narrow screen: each has a label, a figure and a line below."""
    cards = [element("dt", label) + element("dd", figure) + element("dd", line) for label, figure, line in facts]
    return f'<div class="tiles">{"".join(f"""<dl class="tile">{card}</dl>""" for card in cards)}</div>'


def table(
    head: Sequence[str],
    body: Iterable[tuple[str, Sequence[tuple[str, float | None]]]],
    foot: Sequence[str] = (),
    links: Iterable[str | None] | None = None,
) -> str:
    """Returns a table that sorts. A row of `body` is (css class, cells); a cell is (text, number to sort by).

    `links` has the address to which the first cell of each row leads; None for a row without one.
    """
    lines = ['<div class="scroll"><table class="sort"><thead><tr>']
    for i, label in enumerate(head):
        css = ' class="name"' if i == 0 else ""
        lines.append(f'<th scope="col"{css}><button type="button">{escape(label)}</button></th>')
    lines.append("</tr></thead><tbody>")
    for (css, cells), link in zip(body, itertools.repeat(None) if links is None else links, strict=links is not None):
        first, *others = (_cell(i, *cell) for i, cell in enumerate(cells))
        if link is not None:
            first = first.replace(">", f'><a href="{escape(link)}">', 1).replace("</td>", "</a></td>")
        lines.append(f'<tr class="{css}">' + "".join([first, *others]) + "</tr>")
    lines.append("</tbody>")
    if foot:
        lines.append("<tfoot><tr>" + "".join(_cell(i, text, None) for i, text in enumerate(foot)) + "</tr></tfoot>")
    return "\n".join([*lines, "</table></div>"])


def _cell(index: int, text: str, value: float | None) -> str:
    css = ' class="name"' if index == 0 else ""
    number = "" if value is None else f' data-v="{value:.6g}"'
    return f"<td{css}{number}>{escape(text)}</td>"
