"""Layers named with any character: pictures stay XML, texts stay lines, and a terminal obeys none of them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import torch

import groupwise
from groupwise.cli import main, output
from groupwise.parallel import plan_split
from groupwise.spec.legible import legible

# What XML forbids, what a terminal obeys, what turns the direction of text, what no encoding takes, and markup.
NAMES = {
    "nul": "a\0b",
    "escape": "a\x1b[31mb",
    "c1": "a\x9bb",
    "newline": "a\nb",
    "tab": "a\tb",
    "return": "a\rb",
    "override": "a\u202eb",
    "line separator": "a\u2028b",
    "noncharacter": "a\uffffb",
    "surrogate": "a\ud800b",
    "markup": "a<&>\"'b",
    "long": "\x07" * 60,
    "plain": "stufe_β→🙂 1",
}
HIDDEN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028\uffff\ud800-\udfff]")


def model_of(name):
    model = torch.nn.Sequential()
    model.add_module(name, torch.nn.Conv2d(8, 8, 3, padding=1, groups=4))
    model.add_module("last", torch.nn.Conv2d(8, 8, 1))
    return model


def check_svg(svg):
    # As a file has it: what UTF-8 cannot encode is an error here.
    ElementTree.fromstring(svg.encode())
    assert not HIDDEN.search(svg)


@pytest.mark.parametrize("name", list(NAMES))
def test_every_view_of_a_layer(name):
    layer = torch.nn.Conv2d(8, 8, 3, groups=4)
    explanation = groupwise.explain(layer, size=9, name=NAMES[name], plans=False)
    for view in ("wiring", "weight", "cost"):
        check_svg(explanation.to_svg(view))
    text, page = str(explanation), explanation.to_html()
    page.encode()
    assert not HIDDEN.search(text)
    assert not HIDDEN.search(page)
    assert len(text.split("\n", maxsplit=1)[0]) <= 80


@pytest.mark.parametrize("name", list(NAMES))
def test_reports_and_splits(name):
    model = model_of(NAMES[name])
    report = groupwise.report(model, torch.randn(1, 8, 6, 6), repeats=1, title=NAMES[name], ranks=2)
    split = plan_split(model, 2, input_shape=(1, 8, 6, 6))
    page = report.to_html()
    for text in (str(report), str(split), page):
        text.encode()
        assert not HIDDEN.search(text)
    for svg in [split.to_svg(), *re.findall(r"<svg.*?</svg>", page, re.DOTALL)]:
        check_svg(svg)
    # The facts keep the name by which the model knows the layer.
    assert report.to_dict()["layers"][0]["name"] == NAMES[name]


def test_an_error_of_the_command_line(capsys):
    assert main(["explain", "no\x1b[31m.py:Net", "--layer", "x"]) == 2
    assert not HIDDEN.search(capsys.readouterr().err)


def test_what_can_be_seen_stays():
    assert legible(NAMES["plain"]) == NAMES["plain"]
    assert legible("a\x1bb\ud800\u202e") == r"a\x1bb\ud800\u202e"


def test_a_message_of_the_command_line(capsys):
    output.say("running a\x1b[31m.py")
    assert capsys.readouterr().err == "groupwise: running a\\x1b[31m.py\n"
