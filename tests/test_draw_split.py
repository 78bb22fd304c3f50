"""The pictures of what each rank holds of a network, and the tables: legible, and the same facts as the plan."""

from __future__ import annotations

import itertools
import re
import time
import xml.etree.ElementTree as ET
from functools import cache

import pytest
import torch
from torch import nn

from groupwise import models
from groupwise.draw.base import numbers, svg
from groupwise.draw.base.png import png_bytes
from groupwise.draw.text.split import split_text
from groupwise.draw.views.split import split_svg
from groupwise.parallel import plan_split
from legible import NS, check_legible, shapes, texts, words
from test_draw_look import contrast, mixed, themes

BOX = re.compile(r'<rect [^>]*(?:fill-opacity="0.16"|class="gw-void")[^>]*/>\n')
START = svg.MARGIN
IMAGE = (1, 3, 224, 224)


def check_boxed(picture: str) -> ET.Element:
    """The rules of `check_legible` for a picture of any height, in which text may stand wholly within a box."""
    root = ET.fromstring(picture)
    assert all(root.find(f"{NS}{tag}").text for tag in ("title", "desc"))
    width, height = float(root.get("width")), float(root.get("height"))
    assert width < 1800
    placed = texts(root)
    wires = [extent_of(path.get("d")) for path in root.iter(f"{NS}path") if path.get("class") == "gw-wire"]
    for left, top, right, bottom in (*(box for _, box in placed), *shapes(root), *wires):
        assert min(left, top) >= 8
        assert right <= width - 8
        assert bottom <= height - 8
    for (text, one), (other, two) in itertools.combinations(placed, 2):
        assert apart(one, two, 2), f"{text!r} and {other!r} overlap"
    for text, box in placed:
        assert all(apart(box, shape, 2) or inside(box, shape) for shape in shapes(root)), f"{text!r} leaves a box"
        assert all(apart(box, wire) for wire in wires), f"{text!r} lies on a line"
    for one, other in itertools.combinations(shapes(root), 2):
        assert apart(one, other)
    body = picture[picture.index("</style>") :]
    assert set(re.findall(r"#\w{6}", body)) <= set(svg.COLOURS)
    assert set(re.findall(r'fill-opacity="([^"]*)"', body)) <= {"0.16"}
    return root


def apart(one, other, room=0.0):
    beside = one[2] + room <= other[0] or other[2] + room <= one[0]
    return beside or one[3] <= other[1] or other[3] <= one[1]


def inside(box, shape):
    return shape[0] < box[0] and shape[1] < box[1] and box[2] < shape[2] and box[3] < shape[3]


def points(data):
    """Where curves start and end: (x, y, x, y) each."""
    found = []
    for curve in re.findall(r"M[^M]*", data):
        values = [float(value) for value in re.findall(r"-?[\d.]+", curve)]
        x, y = values[:2]
        found.append((x, y, *values[-2:]) if "C" in curve else (x, y, x, y + values[2]))
    return found


def extent_of(data):
    ends = [end for x, y, *end in points(data) for end in ((x, y), end)]
    return *map(min, zip(*ends, strict=True)), *map(max, zip(*ends, strict=True))


def rows(root):
    """What is read from the top down: layers and folds by name, `=` for lines that cross, `|` for lines that do not."""
    (group,) = (element for element in root.findall(f"{NS}g") if element.get("font-size"))
    found = {}
    for element in group:
        if element.tag == f"{NS}text" and float(element.get("x")) == START and not element.get("font-size"):
            found[float(element.get("y"))] = element.text
        elif element.get("class") == "gw-wire":
            sign = "=" if "C" in element.get("d") else "|"
            assert found.setdefault(points(element.get("d"))[0][1], sign) == sign
    return [found[y] for y in sorted(found)]


def boxes(root):
    """The texts beside each row's name, from left to right, without the notes beyond the last column."""
    placed = [(float(e.get("y")), float(e.get("x")), e) for e in root.iter(f"{NS}text") if not e.get("font-size")]
    found = {}
    for y, x, name in placed:
        if x == START and not name.text.startswith("the same"):
            line = [(at, e.text) for height, at, e in placed if abs(height - y) < 1 and e.get("text-anchor")]
            found[name.text] = [text for _, text in sorted(line)]
    return found


@cache
def plan(name, ranks, sized=True):
    with torch.device("meta"):
        model = {"alexnet": models.alexnet, "resnext": models.resnext50_32x4d, "uneven": uneven, "whole": whole}[name]()
    shape = {"uneven": (2, 3, 9, 9), "whole": (2, 3, 9, 9)}.get(name, IMAGE)
    return plan_split(model, ranks, input_shape=shape if sized else None).to_dict()


def uneven():
    return nn.Sequential(nn.Conv2d(3, 30, 1), nn.ReLU(), nn.Conv2d(30, 30, 3, groups=10), nn.Conv2d(30, 5, 1))


def whole():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 2, 3))


def drawn_of(facts):
    """The layers that a picture has to show, drawn or folded."""
    layers = [row for row in facts["layers"] if row["parameters"] and row["style"] != "ChannelwiseParallel"]
    return [row for row in layers if row["style"] != "KeepWhole" or "Norm" not in row["layer"]]


CASES = [
    (name, n, sized) for name in ("alexnet", "uneven", "whole") for n in (1, 2, 3, 7, 8) for sized in (True, False)
]
CASES += [("resnext", n, sized) for n in (2, 4, 8) for sized in (True, False)]


@pytest.mark.parametrize(("name", "ranks", "sized"), CASES)
def test_legible_and_the_numbers_of_the_plan(name, ranks, sized):
    facts = plan(name, ranks, sized)
    picture = split_svg(facts)
    root = check_boxed(picture)
    if name != "resnext":
        check_legible(BOX.sub("", picture))
    shown = [*range(ranks)] if ranks <= 7 else [0, 1, 2, 3, 4, ranks - 1]
    title, *_ = words(root)
    assert title == f"{facts['model']} over {ranks} rank{'s' if ranks > 1 else ''}"
    assert [text for text in words(root) if re.fullmatch(r"rank \d+", text)] == [f"rank {rank}" for rank in shown]
    layers, found = {row["name"]: row for row in facts["layers"]}, boxes(root)
    assert found
    for layer, said in found.items():
        row = layers[layer]
        if row["style"] == "KeepWhole":
            shortcut = "shortcut: " if ".downsample." in layer else ""
            assert said == [f"{shortcut}{numbers.count(row['parameters'])} on each rank"]
        else:
            held = [numbers.count(row["held"][rank]) for rank in shown]
            assert said == (held if ranks <= 7 else [*held[:5], "…", held[5]])
    total = numbers.count(sum(row["parameters"] for row in facts["layers"]))
    least, most = numbers.count(min(facts["held"])), numbers.count(max(facts["held"]))
    held = least if least == most else f"{least} to {most}"
    assert f"{total}, of which a rank holds {held}" in words(root)


def test_numbers_that_are_shown_alike_are_said_once():
    assert "61.0 M, of which a rank holds 21.9 M" in words(ET.fromstring(split_svg(plan("alexnet", 3))))


def test_collectives_backward_are_told_once():
    model = nn.Sequential(nn.Conv1d(9, 9, 1), nn.Softmax(1), nn.Conv1d(9, 6, 1, groups=3), nn.Softmax(1))
    said = words(ET.fromstring(plan_split(model, 2, input_shape=(1, 9, 9)).to_svg()))
    assert [text for text in said if text.endswith("backward")] == [
        "all-gathers input gradients 324 B backward",
        "moves rows 88 B, 88 B backward",
    ]
    # 6 outputs of 9 values.
    assert "all-gathers outputs 216 B" in said
    # One row of 3 weights and a bias, and one channel of 9 values at each end.
    assert 4 * (3 + 1 + 9 + 9) == 88


@pytest.mark.parametrize("sized", [True, False])
def test_one_rank_has_no_collective(sized):
    assert "=" not in rows(ET.fromstring(split_svg(plan("alexnet", 1, sized))))
    assert "0 collectives in a forward" in split_text(plan("alexnet", 1, sized))


def test_a_line_that_crosses_goes_from_each_rank_to_all():
    root = ET.fromstring(split_svg(plan("uneven", 8)))
    columns = {float(e.get("x")) for e in root.iter(f"{NS}text") if re.fullmatch(r"rank \d+", e.text)}
    wires = [p for p in root.iter(f"{NS}path") if p.get("class") == "gw-wire" and "C" in p.get("d")]
    assert len(columns) == len(wires) == 6
    pairs = {(round(a, 2), round(b, 2)) for wire in wires for a, _, b, _ in points(wire.get("d"))}
    assert pairs == set(itertools.product(columns, columns))
    assert [wire.get("stroke") for wire in wires] == [svg.colour(rank) for rank in (0, 1, 2, 3, 4, 7)]


@pytest.mark.parametrize("sized", [True, False])
def test_the_towers_of_alexnet_gather_where_the_paper_says(sized):
    facts = plan("alexnet", 2, sized)
    root = ET.fromstring(split_svg(facts))
    order = "conv1 | conv2 = conv3 | conv4 | conv5 = fc6 = fc7 | fc8 ="
    assert " ".join(rows(root)) == order
    notes = [re.sub(r" [\d.]+ \w?B\b", "", text) for text in words(root) if re.match("all-|reduce-", text)]
    back = ["reduce-scatters input gradients backward"] * sized
    assert notes == ["all-gathers inputs", *back] * 3 + ["all-reduces outputs"]


def test_bytes_are_told_where_the_input_is_known():
    sized, plain = (words(ET.fromstring(split_svg(plan("alexnet", 2, known)))) for known in (True, False))
    assert [text for text in sized if text.startswith("all-gathers")] == [
        f"all-gathers inputs {n} kB" for n in (173, 36.9, 16.4)
    ]
    assert "all-reduces outputs 4.00 kB" in sized
    # 256 × 13 × 13 inputs of conv3, 256 × 6 × 6 of fc6, 4096 of fc7 and 1000 outputs, of 4 bytes each.
    forward = sum(4 * n for n in (256 * 13 * 13, 256 * 36, 4096, 1000))
    assert f"in a training step {numbers.data(forward)} forward, 226 kB backward, as whole tensors" in " ".join(sized)
    assert "for an input of 1×3×224×224." in sized
    assert not re.search(r"\d [kM]?B\b|backward|input of", " ".join(plain))


@pytest.mark.parametrize("sized", [True, False])
def test_the_blocks_of_resnext_are_folded(sized):
    facts = plan("resnext", 4, sized)
    every = drawn_of(facts)
    names = [row["name"] for row in every]
    kinds = [(row["layer"], row["style"], row["parameters"], row["held"], row["forward"]) for row in every]
    at, folds = 0, []
    for text in (row for row in rows(ET.fromstring(split_svg(facts))) if row not in "=|"):
        if match := re.fullmatch(r"the same (?:again|(\d+) times more), to (\S+)", text):
            times, last = int(match[1] or 1), names.index(match[2])
            block, rest = divmod(last + 1 - at, times)
            assert rest == 0
            assert kinds[at : last + 1] == kinds[at - block : at] * times
            folds.append((times, match[2]))
            at = last + 1
        else:
            assert text == names[at]
            at += 1
    assert at == len(every)
    assert folds == [(1, "layer1.2.conv3"), (2, "layer2.3.conv3"), (4, "layer3.5.conv3"), (1, "layer4.2.conv3")]


def test_layers_that_only_look_alike_are_not_folded():
    convs = [nn.Conv1d(8, 8, 3, padding=1, groups=4) for _ in range(5)]
    same = plan_split(nn.Sequential(*convs), 2).to_dict()
    # The first one's input is whole, and the last one's output is gathered.
    assert rows(ET.fromstring(split_svg(same))) == ["0", "|", "1", "the same 2 times more, to 3", "4", "="]
    for index, row in enumerate(same["layers"]):
        row["parameters"] += index
    assert [text for text in rows(ET.fromstring(split_svg(same))) if text not in "=|"] == list("01234")


def test_a_table_is_folded_as_the_picture_where_it_is_asked_for():
    facts = plan("resnext", 4)
    whole, short = (split_text(facts | {"folded": flag}).split("\n") for flag in (False, True))
    assert split_text(facts) == "\n".join(whole)
    assert (whole[:3], whole[-3:]) == (short[:3], short[-3:])
    at, names, folds = 0, [row["name"] for row in facts["layers"]], []
    for line in short[3:-3]:
        if match := re.fullmatch(r"the same (?:again|(\d+) times more), to (\S+)", line):
            times, last = int(match[1] or 1), names.index(match[2])
            block = (last + 1 - at) // times
            assert [line.split()[1:] for line in whole[3:][at : last + 1]] == times * [
                line.split()[1:] for line in whole[3:][at - block : at]
            ]
            folds.append((times, match[2]))
            at = last + 1
        else:
            assert line == whole[3:][at]
            at += 1
    assert at == len(names)
    assert folds == [(1, "layer1.2.bn3"), (2, "layer2.3.bn3"), (4, "layer3.5.bn3"), (1, "layer4.2.bn3")]


def test_a_shortcut_is_told_from_what_runs_after_its_block():
    said = words(ET.fromstring(split_svg(plan("resnext", 4))))
    assert "as the model calls its layers; a shortcut runs beside the block above it" in said
    assert sum(text.startswith("shortcut: ") for text in said) == 4
    # A layer of that name that no block precedes is none.
    rows = [dict(row, name=row["name"].replace("layer1.0.conv", "stem.conv")) for row in plan("resnext", 4)["layers"]]
    other = words(ET.fromstring(split_svg(plan("resnext", 4) | {"layers": rows})))
    assert sum(text.startswith("shortcut: ") for text in other) == 3
    assert "order" not in words(ET.fromstring(split_svg(plan("alexnet", 2))))


def test_no_parameters_vanish_without_a_word():
    facts = plan("resnext", 4)
    rest = sum(row["parameters"] for row in facts["layers"] if "Norm" in row["layer"])
    told = f"layers without parameters, and norms and slopes, which have {numbers.count(rest)}"
    assert told in words(ET.fromstring(split_svg(facts)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.conv = nn.Conv2d(4, 4, 3, groups=2)

    def forward(self, x):
        return self.conv(x) * self.scale.sum()


def test_a_model_with_parameters_of_its_own_has_a_name():
    facts = plan_split(Scaled(), 2, input_shape=(1, 4, 5, 5)).to_dict()
    assert re.search(r"^\(itself\) +Scaled +KeepWhole +3 +3$", split_text(facts), re.M)
    assert boxes(check_boxed(split_svg(facts)))["(itself)"] == ["3 on each rank"]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"<b>&amp;": nn.Conv2d(4, 4, 3, groups=2), "it's <2>": nn.Conv2d(4, 4, 3)})

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


def test_names_are_escaped():
    Odd.__name__ = "A<b>&c"
    facts = plan_split(Odd(), 2).to_dict()
    picture = split_svg(facts)
    said = words(check_boxed(picture))
    assert said[0] == "A<b>&c over 2 ranks"
    assert {"layers.<b>&amp;", "layers.it's <2>"} <= set(said)
    assert "<b>" not in picture
    assert "layers.<b>&amp;" in split_text(facts)


@pytest.mark.parametrize(("name", "ranks", "sized"), [*CASES[:10:3], ("resnext", 4, True), ("uneven", 8, False)])
def test_the_text_has_the_same_facts(name, ranks, sized):
    facts = plan(name, ranks, sized)
    title, head, _, *lines, _, last = split_text(facts).split("\n")[: -1 if sized else None]
    assert title == f"{facts['model']} over {ranks} rank{'s' if ranks > 1 else ''}"
    assert head.split() == ["layer", "style", "params", "a", "rank", "forward", *["backward"] * sized]
    assert len(lines) == len(facts["layers"])
    for line, row in zip(lines, facts["layers"], strict=True):
        cells = re.split(r"  +| (?=[A-Z][a-z])", line.strip())
        assert cells[:3] == [row["name"], row["layer"], row["style"]]
        low, high = numbers.count(min(row["held"])), numbers.count(max(row["held"]))
        counts = [numbers.count(row["parameters"]), low if low == high else f"{low} to {high}"]
        sums = [sum(one["payload"] for one in row["collectives"] if one["backward"] is back) for back in (False, True)]
        forward, backward = (numbers.data(total) if total else "" for total in sums)
        verbs = {"all_gather": "all-gathers", "all_reduce": "all-reduces", "reduce_scatter": "reduce-scatters"}
        back = [f"{verbs[one['operation']]} input gradients" for one in row["collectives"] if one["backward"]]
        told = [row["forward"], forward, *back, backward]
        assert cells[3:] == [*(counts if row["parameters"] else []), *filter(None, told)]
    found = [text for row in facts["layers"] for text in row["forward"].split(", ") if text not in ("", "moves rows")]
    assert f"; {len(found)} collective{'' if len(found) == 1 else 's'} in a forward" in last
    assert ("rows move" in last) == any("moves rows" in line for line in lines)
    if sized:
        assert split_text(facts).split("\n")[-1].startswith(f"For an input of {tuple(facts['input_shape'])} ")


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_nothing_that_can_be_split(ranks):
    facts = plan("whole", ranks)
    root = check_boxed(split_svg(facts))
    assert rows(root) == ["0", "2"]
    assert "in a training step nothing forward, nothing backward" in words(root)
    assert "layers without parameters" in words(root)
    assert split_text(facts).endswith("nothing forward and nothing backward.")
    assert "0 collectives in a forward" in split_text(facts)
    bare = plan_split(nn.ReLU(), ranks).to_dict()
    assert rows(check_boxed(split_svg(bare))) == []
    assert "0 parameters, of which a rank holds 0" in split_text(bare)


def test_a_thousand_ranks_do_not_take_forever():
    model = nn.Sequential(nn.Conv1d(3, 1000, 1), nn.Conv1d(1000, 1000, 3, groups=1000), nn.Conv1d(1000, 7, 1))
    began = time.perf_counter()
    facts = plan_split(model, 1000, input_shape=(1, 3, 9)).to_dict()
    root = check_boxed(split_svg(facts))
    assert "rank 999" in words(root)
    assert len(words(root)) < 60
    assert len(split_text(facts)) < 2000
    assert time.perf_counter() - began < 60


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_in_boxes_has_contrast(theme):
    assert contrast(theme["ink"], theme["void"]) >= 4.5
    for colour in svg.COLOURS:
        assert contrast(theme["ink"], mixed(colour, theme["bg"], 0.16)) >= 4.5
        assert contrast(colour, theme["bg"]) >= 3


def test_png():
    pytest.importorskip("resvg_py")
    assert png_bytes(split_svg(plan("uneven", 8))).startswith(b"\x89PNG")
