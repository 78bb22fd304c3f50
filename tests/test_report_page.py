"""The report's page: its tiles, what it shows, and that it stands alone."""

from __future__ import annotations

import html
import json
import re

import pytest
import torch
from torch import nn

from groupwise import explore, report
from groupwise.draw.text.report import notes
from groupwise.profile import record as recording
from groupwise.profile import report as reporting
from groupwise.profile.verify import Agreement, Checked
from kernels import needs_kernels
from reports import HERE, canned, small_model


@pytest.fixture(scope="module")
def small():
    return small_model()


def test_page(small, tmp_path):
    layer = nn.ModuleDict({"<b>bold</b>": small})

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer["<b>bold</b>"](x)

    made = report(Named(), torch.randn(1, 3, 8, 8), repeats=1, title="small & <fast>")
    page = made.to_html(photo=b"jpeg")
    assert made.to_html(tmp_path / "r.html", photo=b"jpeg").read_text(encoding="utf-8") == page
    assert "small &amp; &lt;fast&gt;" in page
    assert "<b>" not in page
    assert "&lt;b&gt;bold" in page
    assert not re.findall(r'(?:src|href)="http|url\(http|@import', page)
    # Three views of each grouped layer that differs from the others, and the bars.
    assert page.count("<svg") == 3 * 2 + 1
    assert "data:image/jpeg;base64,anBlZw==" in page


def test_the_name_of_a_layer_leads_to_the_explorer(small):
    other = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
    made = report(nn.Sequential(small, other), torch.randn(2, 3, 8, 8), repeats=1)
    page = made.to_html()
    names = dict(re.findall(r'<td class="name"><a href="([^"]*)">(.*?)</a></td>', page))
    assert set(names.values()) == {"0.0.0", "0.1-2.0", "0.3"}, "the page does not draw padding by reflection"
    assert '<td class="name">1</td>' in page
    for row in made.rows[:-1]:
        at = row.call.cost
        address = explore(at.spec, size=at.input_size, batch=at.batch).fragment
        assert html.escape(address) in names
    kept = json.loads(re.search(r'<script type="application/json">(.*)</script>', page)[1])
    assert kept == explore().to_html().replace(f"const START = {json.dumps(explore().fragment)};", 'const START = "";')
    assert kept.count('const START = "";') == 1
    assert "<dialog" not in report(other, torch.randn(1, 16, 8, 8), repeats=1).to_html()


def tiles_of(page):
    """(label, figure, line below) of each tile."""
    return re.findall(r'<dl class="tile"><dt>(.*?)</dt><dd>(.*?)</dd><dd>(.*?)</dd></dl>', page)


def test_the_page_opens_with_four_figures(small, monkeypatch):
    canned(monkeypatch, [0.001] * 6, [0.0004] * 6)
    monkeypatch.setattr(reporting, "machine", lambda: HERE)
    monkeypatch.setattr(reporting, "check", lambda of: (checked(of), Agreement(0.25, 0.5, False)))
    page = report(small.eval(), torch.randn(2, 3, 8, 8), repeats=1).to_html()
    assert tiles_of(page) == [
        ("Whole model", "500 ms", "forward; groupwise&#x27;s kernels computed no convolution"),
        ("Grouped layers", "41.3 % · 90.0 %", "of the MACs · of the time in convolutions"),
        ("Top-1 agreement", "50.0 %", "outputs differ by 2.5e-01 of the largest output: MORE THAN ROUNDING"),
        ("Machine", "a processor", "2 threads, torch 2.0"),
    ]
    order = [
        page.index(part) for part in ("<h1>", 'class="tiles"', "<svg", "<table", "How this was measured", "Measured on")
    ]
    assert order == sorted(order)
    monkeypatch.setattr(reporting, "check", lambda of: (checked(of), Agreement(0.25, None, True)))
    page = report(small.eval(), torch.randn(2, 3, 8, 8), repeats=1).to_html()
    assert tiles_of(page)[2] == ("Largest difference", "2.5e-01", "of the largest output: within rounding")


def checked(workload):
    return [Checked(call, {"forward": "pytorch"}, None) for call in recording.record(workload).calls]


def test_the_four_figures_where_they_are_not_known(small, monkeypatch):
    canned(monkeypatch, [0.001] * 3)
    page = report(small.eval(), torch.randn(2, 3, 8, 8), repeats=1).to_html()
    assert [tile[1] for tile in tiles_of(page)][:3] == ["500 ms", "41.3 % · 90.0 %", "-"]
    monkeypatch.undo()
    with torch.device("meta"):
        page = report(nn.Conv2d(4, 4, 3, groups=2), torch.empty(1, 4, 5, 5)).to_html()
    assert tiles_of(page)[0][1:] == ("648", "MACs of the counted convolutions")
    assert tiles_of(page)[1][1:] == ("100 %", "of the MACs")
    page = report(nn.Linear(3, 3), torch.randn(1, 3), repeats=1).to_html()
    assert tiles_of(page)[1][1:] == ("-", "groupwise counted no convolution")


def test_ids_of_a_page_are_its_own():
    """The same layer at two sizes: the same wiring twice on one page."""
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    page = report(nn.Sequential(layer, nn.MaxPool2d(2), layer), torch.randn(1, 8, 8, 8), repeats=1).to_html()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) == 2 * (3 * 2 + 1)
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        named = re.search(r'aria-labelledby="(\S+) (\S+)"', svg)
        assert f'<title id="{named[1]}"' in svg
        assert f'<desc id="{named[2]}"' in svg


@needs_kernels
def test_whose_gain_it_is_and_rates_that_were_too_low():
    """Facts made up from a report's own: who computed what, and a total beyond the machine's roofline."""
    model = torch.nn.Conv2d(16, 16, 3, padding=1, groups=4)
    facts = report(model, torch.randn(1, 16, 9, 9), repeats=1).to_dict()
    facts["total"]["roofline"] = 0.5
    (row,) = facts["layers"]
    row.update(kernels={"forward": "planar"}, pytorch_ms=3.0, groupwise_ms=1.5)
    shown = " ".join(notes(facts))
    assert "The convolutions that groupwise's kernels computed take 1.50 ms instead of 3.00 ms (2.00×)." in shown
    assert "measured too low" not in shown
    row["kernels"] = {"forward": "pytorch"}
    facts["total"]["roofline"] = 2.5
    shown = " ".join(notes(facts))
    assert "groupwise's kernels computed no convolution: both sides ran PyTorch's code" in shown
    assert "A total above 100 % of the roofline means that the rates it is taken of were measured too low" in shown
