from __future__ import annotations

import json
import os
import pathlib
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import groupwise
from cases import SCENARIOS, layer_of, specs
from groupwise import ConvSpec, GroupwiseError, Plan, explain, plan
from groupwise.draw.text import layer as text
from groupwise.kernels import native
from kernels import needs_kernels, without_kernels

GOLDEN = pathlib.Path(__file__).parent / "golden"
# name: arguments and options of explain
TEXTS = {
    "scenario-8-4-g4": ((8, 4, 5), {"groups": 4, "size": 56}),
    "multiplier-4-8-g4-transposed": ((4, 8, (3, 5)), {"groups": 4, "transposed": True, "stride": 2, "size": (7, 9)}),
    "resnext-stage-1": ((128, 128, 3), {"groups": 32, "padding": 1, "bias": False, "size": 56}),
    "depthwise-2048": (
        (2048, 2048, 7),
        {"groups": 2048, "padding": "same", "dims": 1, "size": 49, "dtype": "bfloat16"},
    ),
    "dense-no-size": ((3, 3, 5), {}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_golden_text(name):
    arguments, options = TEXTS[name]
    shown = str(explain(*arguments, **options)) + "\n"
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("GROUPWISE_UPDATE_GOLDEN"):
        golden.write_text(shown, encoding="utf-8")
    assert shown == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(("n_in", "n_out", "kernel", "groups", "shape", "weights", "inputs"), SCENARIOS)
def test_the_json_of_the_scenarios(n_in, n_out, kernel, groups, shape, weights, inputs):
    facts = explain(n_in, n_out, kernel, groups=groups, size=56).to_dict()
    assert json.loads(json.dumps(facts)) == facts
    expected = {
        "op": "conv2d",
        "in_channels": n_in,
        "out_channels": n_out,
        "kernel_size": [kernel, kernel],
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": groups,
        "transposed": False,
        "weight_shape": list(shape),
        "bias_shape": [n_out],
        "weights": weights,
        "parameters": weights + n_out,
        "inputs_per_filter": inputs,
        "filters": n_out,
        "valid_groups": [g for g in range(1, 9) if n_in % g == 0 == n_out % g],
        "connected_pairs": n_in * n_out // groups,
        "all_pairs": n_in * n_out,
        "output_size": [52, 52],
        "bytes": 4 * (n_in * 56 * 56 + weights + n_out * 52 * 52),
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["macs"] == dict.fromkeys(("forward", "grad_input", "grad_weight"), 52 * 52 * weights)
    assert facts["dense"]["weights"] == n_in * n_out * kernel * kernel
    assert facts["dense"]["parameters"] == n_in * n_out * kernel * kernel + n_out
    assert facts["paths"] == [
        {
            "group": j,
            "inputs": [j * n_in // groups, (j + 1) * n_in // groups],
            "outputs": [j * n_out // groups, (j + 1) * n_out // groups],
        }
        for j in range(groups)
    ]


def test_the_dense_equivalent_has_every_figure_and_the_ratio():
    facts = explain(128, 64, 3, groups=32, padding=1, size=(8, 7), batch=2, dtype="float16").to_dict()
    dense = explain(128, 64, 3, groups=1, padding=1, size=(8, 7), batch=2, dtype="float16").to_dict()
    shared = ("weights", "parameters", "macs", "macs_on_padding", "bytes", "traffic", "intensity")
    assert {key: facts["dense"][key] for key in shared} == {key: dense[key] for key in shared}
    assert facts["dense"]["ratio"] == {
        "parameters": (128 * 64 * 9 + 64) / (4 * 64 * 9 + 64),
        "macs": 32,
        "bytes": dense["bytes"] / facts["bytes"],
    }
    assert explain(8, 4, 3, size=5, batch=0).cost.ratio["macs"] is None


def test_without_size_and_bias():
    facts = explain(4, 8, 3, groups=4, bias=False, transposed=True, dims=1).to_dict()
    assert (facts["op"], facts["bias_shape"], facts["weight_shape"]) == ("conv_transpose1d", None, [4, 2, 3])
    assert not {"macs", "bytes", "output_size"} & set(facts)


def test_every_door_gives_the_same():
    expected = explain(8, 4, 5, groups=4, padding=2)
    layer = torch.nn.Conv2d(8, 4, 5, groups=4, padding=2)
    assert explain(layer) == expected
    assert explain(expected.spec) == expected
    assert explain(layer.weight, groups=4, padding=2, bias=True) == expected
    assert explain((4, 2, 5, 5), groups=4, padding=2, bias=layer.bias) == expected
    assert explain(in_channels=8, out_channels=4, kernel_size=5, groups=4, padding=2) == expected
    assert explain(8, out_channels=4, kernel_size=5, groups=4, padding=2) == expected
    assert explain(8, 4, groups=4).spec.kernel_size == (3, 3)
    assert explain(np.int64(8), np.int32(4), 5, groups=torch.tensor(4), padding=2) == expected
    assert explain(layer.half(), size=9).dtype == "float16"
    assert groupwise.nn.Conv2d(8, 4, 5, groups=4, padding=2).explain() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (explain, "NoneType is not a convolution"),
        (lambda: explain(8, in_channels=8), "in_channels=8 cannot be given beside int, which says it"),
        (lambda: explain(8), "explain(8) needs out_channels too"),
        (lambda: explain("8", "4"), "'8' is not a convolution; give a ConvSpec"),
        (lambda: explain(8.0, 4, 3), "8.0 is not a convolution"),
        (lambda: explain(torch.nn.ReLU()), "ReLU is not a convolution"),
        (lambda: explain(torch.nn.Conv2d(1, 1, 1), groups=1), "groups cannot be given beside a Conv2d"),
        (lambda: explain((4, 2, 5, 5), 4), "out_channels cannot be given beside a weight"),
        (lambda: explain(8, 4, 5, groups=3), "valid groups: 1, 2, 4"),
        (
            lambda: explain(torch.nn.LazyConv2d(4, 3)),
            "LazyConv2d does not know its in_channels yet, nor the shape of its weight; run it once on an input",
        ),
        (lambda: explain(8, 4, 5, bias=torch.zeros(4)), "bias must be True or False"),
        (
            lambda: explain(8, 4, 5, group=2),
            "group is not an option here; choose from: stride, padding, dilation, groups",
        ),
        (lambda: explain((4, 2, 3, 3), dims=2), "dims is not an option here; choose from: bias, stride"),
        (lambda: explain((4, 2, 3, 3), padding="x"), "padding='x' must be 'same', 'valid'"),
        (lambda: explain(8, 4, 5, batch=-1), "batch=-1 is too small"),
        (lambda: explain(8, 4, 5, batch=1.5), "batch=1.5 is a float"),
        (lambda: explain(torch.zeros(8, 2, 3, 3), groups=3), "dim 0 of the weight; valid groups: 1, 2, 4, 8"),
        (lambda: explain(8, 4, 5, size=3), "the kernel reaches over 5 positions"),
        (lambda: explain(8, 4, 5, dtype="int4"), "dtype='int4' is not known"),
        (lambda: explain(8, 4, 5).to_text("wires"), "view='wires' is not known; choose one of: wiring, weight, cost"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(GroupwiseError) as caught:
        call()
    assert message in str(caught.value)


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(1, 60), st.sampled_from([1, 2, 10, 137, 4096, 2**19]))
def test_text_fits_80_columns(spec, size, scale):
    wide = ConvSpec(
        spec.in_channels * scale,
        spec.out_channels * scale,
        spec.kernel_size,
        spec.stride,
        spec.padding,
        spec.dilation,
        spec.groups * scale,
        transposed=spec.transposed,
        output_padding=spec.output_padding,
    )
    try:
        shown = explain(wide, size=size, batch=64)
    except GroupwiseError:
        shown = explain(wide)
    for view in ("wiring", "weight", "cost", "all"):
        lines = shown.to_text(view).split("\n")
        assert max(map(len, lines)) <= 80, max(lines, key=len)


@settings(max_examples=40, deadline=None)
@given(specs())
def test_the_grid_shows_the_weights_that_exist(spec):
    """Each row of the grid in the text against which inputs a filter's dense weight would keep."""
    if spec.groups == 1:
        return
    grid = re.findall(r"^  out +(\d+)   (.*)$", explain(spec).to_text("weight"), re.M)
    rows = [[cell != "·" for cell in cells.split()] for _, cells in grid]
    per_in, per_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    assert rows == [[i // per_in == o // per_out for i in range(spec.in_channels)] for o in range(spec.out_channels)]


def test_pictures_and_page(tmp_path):
    shown = explain(layer_of(ConvSpec(128, 128, 3, groups=32)), size=56)
    whole = ET.fromstring(shown.to_svg())
    parts = whole.findall("{http://www.w3.org/2000/svg}svg")
    assert len(parts) == 3
    # One below the other, none clipped by the outer one.
    y = 0.0
    for part in parts:
        assert float(part.attrib["y"]) == pytest.approx(y)
        y += float(part.attrib["height"])
        assert float(part.attrib["width"]) <= float(whole.attrib["width"])
    assert y == pytest.approx(float(whole.attrib["height"]), abs=0.1)
    assert shown.to_svg("wiring") != shown.to_svg("weight")
    with pytest.raises(GroupwiseError, match=r"as text and takes no path; write pathlib.Path\('a.svg'\).write_text"):
        shown.to_svg("a.svg")
    assert shown._repr_html_().count("<svg") == 4
    assert shown.to_png(tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for name, better in (("q.jpg", "q.png"), ("q", "q.png")):
        with pytest.raises(GroupwiseError, match=f"'{name}' does not end in .png; name it '{better}'"):
            shown.to_png(name)
    page = shown.to_html()
    assert shown.to_html(tmp_path / "a.html").read_text(encoding="utf-8") == page
    assert repr(shown) == str(shown)
    assert not re.findall(r'(?:src|href)="http|url\(http|@import', page)
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))


@needs_kernels
@pytest.mark.parametrize(
    ("spec", "size", "formats"),
    [
        (ConvSpec(128, 128, 3, padding=1, groups=32), (56, 48), ["contiguous", "channels_last"]),
        (ConvSpec(16, 32, 3, groups=16, transposed=True, stride=2), (7, 9), ["contiguous", "channels_last"]),
        (ConvSpec(64, 64, 5, groups=1, dims=1), (99,), ["contiguous"]),
    ],
)
def test_the_plans_are_the_planners(spec, size, formats):
    shown = explain(spec, size=size, batch=2, plans=True)
    shape = (2, spec.in_channels, *size)
    expected = {
        layout: {
            name: plan(spec, shape, memory_format=layout, direction=name)
            for name in ("forward", "grad_input", "grad_weight")
        }
        for layout in formats
    }
    assert shown.plans == expected
    facts = shown.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["plans"] == {
        layout: {name: one.to_dict() for name, one in passes.items()} for layout, passes in expected.items()
    }
    section = shown.to_text().partition("\nPlan ")[2]
    lines = iter(section.split("\n"))
    for layout, passes in expected.items():
        assert layout in next(line for line in lines if line.strip() in formats)
        for name, one in passes.items():
            assert next(lines).split(maxsplit=2) == [name, one.kernel, one.tile or "PyTorch's own"]
    for why in {why for passes in expected.values() for one in passes.values() for why in one.refused.values()}:
        assert why in " ".join(section.split())
    assert "\nPlan " in shown.to_html()
    unasked = explain(spec, size=size, batch=2)
    assert ("plans" in unasked.to_dict(), "\nPlan " in unasked.to_html()) == (False, False)
    assert unasked.plans == expected


def test_where_there_are_no_plans(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "status", lambda: asked.append(1) or native.Status())
    grouped = ConvSpec(8, 8, 3, groups=8)
    for shown in (
        explain(grouped, plans=True),
        explain(grouped, size=9, dtype="float64", plans=True),
    ):
        assert (shown.plans, "plans" in shown.to_dict(), "\nPlan " in str(shown)) == ({}, False, False)
    str(explain(grouped, size=9))
    assert asked == [], "nothing is looked for that nobody asked for"
    monkeypatch.undo()
    without_kernels(monkeypatch)
    shown = explain(grouped, size=9, plans=True)
    assert (shown.plans, "plans" in shown.to_dict(), "\nPlan " in str(shown)) == ({}, False, False)


def a_plan(kernel, tile=None, **refused):
    return Plan(kernel, "forward", "contiguous", "avx2", 2, {}, refused=refused, tile=tile)


def test_a_reason_is_said_once_with_its_places():
    some, other = a_plan("planar", "4 rows", narrow="it is wide"), a_plan("pytorch", planar="slow", narrow="slow")
    passes = {"forward": some, "grad_input": some, "grad_weight": other}
    lines = text.plans({"contiguous": passes, "channels_last": dict.fromkeys(passes, some)}).split("\n")
    assert lines == [
        "Plan     kernel and tile of each pass (avx2, 2 threads)",
        "         contiguous",
        "           forward      planar    4 rows",
        "           grad_input   planar    4 rows",
        "           grad_weight  pytorch   PyTorch's own",
        "         channels_last",
        "           forward      planar    4 rows",
        "           grad_input   planar    4 rows",
        "           grad_weight  planar    4 rows",
        "         not narrow: it is wide (contiguous forward, grad_input; channels_last)",
        "         not planar: slow (contiguous grad_weight)",
        "         not narrow: slow (contiguous grad_weight)",
    ]
    assert "(" not in text.plans({"contiguous": dict.fromkeys(passes, some)}).split("\n")[-1]


def test_a_million_groups_are_quick():
    shown = explain(2**20, 2**20, 3, groups=2**20, size=4)
    assert "1,048,570 more groups" in str(shown)
    assert len(shown.to_svg()) < 90_000


def test_the_plans_of_a_layer_are_listed_and_those_of_numbers_if_asked_for():
    layer = torch.nn.Conv2d(8, 8, 3, groups=8)
    listed = [explain(layer, size=9), explain(layer, size=9, plans=False), explain(8, 8, groups=8, size=9)]
    assert [shown.with_plans for shown in listed] == [True, False, False]
    assert explain(8, 8, groups=8, size=9, plans=True).with_plans
