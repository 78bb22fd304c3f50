"""The explorer's page: its arithmetic is held to groupwise's own, in a JavaScript engine; and its Python face."""

from __future__ import annotations

import html
import json
import pathlib
import random
import re
from importlib import resources

import pytest
import torch

import groupwise
from groupwise import ConvSpec, GroupwiseError, Wiring, cost, explore, valid_groups
from groupwise.cli import main
from groupwise.draw.base import numbers
from groupwise.errors import MAX_CHANNELS
from groupwise.spec.partition import Partition
from groupwise.web.explorer import SCENES, page
from scripts import load

ROOT = pathlib.Path(__file__).parents[1]

quickjs = pytest.importorskip("quickjs")

# Numbers of JavaScript are exact up to here.
EXACT = 2**53


@pytest.fixture(scope="module")
def engine():
    """Returns call(name, *arguments), which runs a function of the page's arithmetic and returns its result."""
    context = quickjs.Context()
    parts = resources.files("groupwise.web").joinpath("page")
    for part in ("spec", "fold", "state", "code"):
        context.eval(parts.joinpath(f"{part}.js").read_text(encoding="utf-8"))
    context.eval(
        """
        globalThis.run = (name, given) => {
          try {
            return JSON.stringify({value: eval(name)(...JSON.parse(given))});
          } catch (error) {
            if (!(error instanceof BadSpec)) throw error;
            return JSON.stringify({error: error.message});
          }
        };
        """
    )
    run = context.get("run")
    return lambda name, *given: json.loads(run(name, json.dumps(given)))


def draw(rng: random.Random, sound: bool) -> tuple[dict[str, object], list[int]]:
    """Draws arguments of a convolution and a size; those of a `sound` one are mostly right."""
    dims = rng.choice((1, 2, 2, 3))
    groups = rng.choice((1, 1, 2, 3, 4, 8, 32, 100))
    n = [groups * rng.randint(1, 40) if sound or rng.random() < 0.5 else rng.randint(-1, 300) for _ in range(2)]

    def each(low: int, high: int) -> list[int]:
        return [rng.randint(low, high) for _ in range(dims)]

    transposed = rng.random() < 0.4
    stride, dilation = each(1, 4), each(1, 3)
    extra = [rng.randint(0, max(s, d) - 1) if transposed else 0 for s, d in zip(stride, dilation, strict=True)]
    if not sound and rng.random() < 0.2:
        extra[0] += rng.randint(0, 4)
    spec = {
        "in_channels": n[0],
        "out_channels": n[1],
        "kernel_size": each(1 if sound else 0, 9),
        "stride": stride,
        "padding": each(0, 4),
        "dilation": dilation,
        "groups": groups,
        "bias": rng.random() < 0.5,
        "transposed": transposed,
        "output_padding": extra,
        "dims": dims,
    }
    return spec, each(1, 40)


def test_specs_costs_and_wiring_are_those_of_python(engine):
    rng = random.Random(0)
    agreed = 0
    for _ in range(3000):
        given, size = draw(rng, sound=True)
        spec = ConvSpec(**given)
        theirs = engine("makeSpec", given)["value"]
        for name in ("in_channels", "groups", "op", "kind", "parameters", "weights", "inputs_per_filter"):
            assert theirs[name] == getattr(spec, name), (given, name)
        assert tuple(theirs["weight_shape"]) == spec.weight_shape
        assert tuple(theirs["valid_groups"]) == spec.valid_groups
        assert engine("(given) => specText(makeSpec(given))", given)["value"] == str(spec)
        wires = Wiring(spec)
        group = rng.randrange(spec.groups)
        assert engine("(given, group) => pathOf(makeSpec(given), group)", given, group)["value"] == (
            wires.path(group).to_dict()
        )
        assert (theirs["connected_pairs"], theirs["all_pairs"]) == (wires.connected_pairs, wires.all_pairs)
        found = engine("(given, size) => costOf(makeSpec(given), size, 3)", given, size)
        try:
            ours = cost(spec, size, batch=3)
        except GroupwiseError:
            assert "gives no output" in found["error"]
            continue
        assert ours.macs.forward < EXACT
        value = found["value"]
        assert tuple(value["output_size"]) == ours.output_size
        assert (value["macs"], value["macs_on_padding"]) == (ours.macs.forward, ours.macs_on_padding), (given, size)
        assert (value["bytes"], value["traffic"]) == (ours.bytes, ours.traffic.to_dict())
        assert value["intensity"] == pytest.approx(ours.intensity, rel=1e-12)
        agreed += 1
    assert agreed > 1500


def test_what_is_refused_is_refused_alike(engine):
    rng = random.Random(1)
    refused = 0
    for _ in range(1000):
        given, size = draw(rng, sound=False)
        found = engine("(given, size) => sizesOf(makeSpec(given), size)", given, size)
        problem = refusal(given, size)
        assert ("error" in found) == (problem is not None), given
        refused += problem is not None
        if problem and problem.startswith("groups="):
            assert found["error"] == problem
    assert refused > 200


def refusal(given: dict[str, object], size: list[int]) -> str | None:
    try:
        ConvSpec(**given).output_size(size)
    except GroupwiseError as error:
        return str(error)
    return None


@pytest.mark.parametrize("pair", [(8, 4), (1, 1), (2048, 2048), (96, 256), (7, 13), (5040, 55440), (2**24, 2**24)])
def test_valid_groups(engine, pair):
    assert tuple(engine("validGroups", *pair)["value"]) == valid_groups(*pair)
    assert engine("() => MAX_CHANNELS")["value"] == MAX_CHANNELS


@pytest.mark.parametrize(("n", "m", "groups"), [(8, 4, 3), (5040, 55440, 17), (6, 9, 0), (8, 4, 2**25)])
def test_the_message_of_wrong_groups(engine, n, m, groups):
    with pytest.raises(GroupwiseError) as caught:
        ConvSpec(n, m, 3, groups=groups)
    assert engine("checkGroups", n, m, groups)["error"] == str(caught.value)


def test_taps_are_those_that_touch_real_values(engine):
    # The oracle spreads or reads ones position by position.
    rng = random.Random(2)
    for _ in range(300):
        given, size = draw(rng, sound=True)
        spec = ConvSpec(**given)
        try:
            outputs = spec.output_size(size)
        except GroupwiseError:
            continue
        axis = rng.randrange(spec.dims)
        o = rng.randrange(outputs[axis])
        found = engine(
            "(given, axis, o, length) => tapsOf(makeSpec(given), axis, o, length)", given, axis, o, size[axis]
        )
        stride, pad, dilation = spec.stride[axis], spec.pads[axis][0], spec.dilation[axis]
        if spec.transposed:
            real = {
                (tap, i)
                for tap in range(spec.kernel_size[axis])
                for i in range(size[axis])
                if i * stride + tap * dilation - pad == o
            }
        else:
            real = {
                (tap, o * stride + tap * dilation - pad)
                for tap in range(spec.kernel_size[axis])
                if 0 <= o * stride + tap * dilation - pad < size[axis]
            }
        assert {(tap["tap"], tap["position"]) for tap in found["value"] if tap["real"]} == real


def test_a_picture_folds_all_channels_into_few_nodes(engine):
    for n, m, groups in [(1, 1, 1), (24, 24, 24), (128, 128, 32), (2048, 2048, 2048), (2048, 1024, 1), (30, 50, 10)]:
        blocks = engine("(given) => foldGroups(makeSpec(given))", draw_plain(n, m, groups))["value"]
        shown = [block for block in blocks if "group" in block]
        left_out = sum(block.get("left_out", 0) for block in blocks)
        assert len(shown) + left_out == groups
        assert sum(len(block["inputs"]) for block in shown) <= 48
        wires = Wiring(ConvSpec(n, m, 3, groups=groups))
        for block in shown:
            path = wires.path(block["group"])
            for side, span in (("inputs", path.inputs), ("outputs", path.outputs)):
                channels = [c for first, end in block[side] for c in range(first, end)]
                assert channels == list(span)


def draw_plain(n: int, m: int, groups: int) -> dict[str, object]:
    return {"in_channels": n, "out_channels": m, "groups": groups, "kernel_size": 3}


def test_groups_on_devices(engine):
    for units in range(1, 40):
        for ranks in range(1, 9):
            theirs = engine("partition", units, ranks)["value"]
            held = [Partition(units, ranks).of(rank) for rank in range(ranks)]
            assert [len(range(*span)) for span in theirs] == [len(span) for span in held]
            assert [range(*span) for span in theirs if span[1] > span[0]] == [span for span in held if len(span)]


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_a_group_reaches_through_two_layers(engine, shuffled):
    # The oracle is PyTorch: ones on one group's inputs, and what is not zero behind two layers of ones.
    for groups, each in [(1, 3), (2, 2), (3, 4), (4, 2), (6, 6)]:
        n = groups * each
        ones = torch.ones(n, each, 1, 1)
        for group in range(groups):
            x = torch.zeros(1, n, 1, 1)
            x[:, group * each : (group + 1) * each] = 1
            x = torch.conv2d(x, ones, groups=groups)
            x = torch.nn.functional.channel_shuffle(x, groups) if shuffled else x
            reached = torch.conv2d(x, ones, groups=groups).reshape(groups, each).any(1).nonzero().flatten().tolist()
            found = engine("(...given) => [...reachOfTwo(...given)].sort((a, b) => a - b)", n, groups, group, shuffled)
            assert found["value"] == reached


@pytest.mark.parametrize("value", [0, 7, 999, 1000, 14450688, 999_499, 999_500, 3_226_112, 12_345, 10**12])
def test_numbers_read_alike(engine, value):
    assert engine("countText", value)["value"] == numbers.count(value)
    assert engine("bytesText", value)["value"] == numbers.data(value)


def test_the_code_of_the_page_runs(engine):
    rng = random.Random(3)
    for _ in range(60):
        given, size = draw(rng, sound=True)
        given = {**given, "in_channels": given["groups"] * 2, "out_channels": given["groups"]}
        spec = ConvSpec(**given)
        try:
            spec.output_size(size)
        except GroupwiseError:
            continue
        state = {"size": size, "batch": 2}
        for name in ("pytorchCode", "groupwiseCode"):
            code = engine(f"(given, state) => {name}(makeSpec(given), state)", given, state)["value"]
            exec(code.replace("print(", "shown = ("), names := {})
            if "conv" in names:
                assert ConvSpec.from_module(names["conv"]) == spec
            else:
                assert names["shown"].spec == spec


def test_the_command_of_the_page_runs(engine, capsys):
    given = {**draw_plain(8, 4, 2), "kernel_size": [3, 5], "stride": [2, 1], "padding": 1, "transposed": True}
    line = engine("(given) => commandOf(makeSpec(given), {size: [9, 7]})", given)["value"]
    assert main(line.split()[1:]) == 0
    assert "conv_transpose2d 8 → 4, kernel 3×5, stride 2×1, padding 1×1, groups=2" in capsys.readouterr().out


def test_the_address_holds_the_whole_state(engine):
    rng = random.Random(4)
    for _ in range(200):
        given, size = draw(rng, sound=True)
        given["bias"] = bool(given["bias"])
        state = {**engine("parseHash", "")["value"], **given, "size": size, "scene": rng.choice(SCENES), "pin": "in3"}
        back = engine("(state) => parseHash(formatHash(state))", state)["value"]
        for name, value in state.items():
            single = value[0] if isinstance(value, list) and len(value) == 1 else value
            assert back[name] == single, name


def test_explore_opens_the_page_at_a_convolution(engine):
    layer = torch.nn.ConvTranspose2d(8, 4, (3, 5), stride=2, padding=1, groups=4, bias=False, output_padding=1)
    shown = explore(layer, size=(9, 7), scene="filter")
    state = engine("parseHash", shown.fragment)["value"]
    assert engine("(state) => specText(makeSpec(state))", state)["value"] == str(ConvSpec.from_module(layer))
    assert (state["size"], state["scene"], state["bias"]) == ([9, 7], "filter", False)
    assert json.dumps(shown.fragment) in shown.to_html()
    assert explore().fragment.startswith("#in_channels=8&out_channels=4&groups=4&")
    assert explore(ConvSpec(6, 6, 3, padding="same", dims=1)).fragment.count("padding=1") == 1


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((8, 4), {"groups": 3}, "valid groups: 1, 2, 4"),
        ((8, 4), {"scene": "all"}, "scene='all' is not known; choose one of: wires, filter"),
        ((8, 4, 5), {"size": 3}, "size=3 gives no output"),
        ((8, 4, 3), {"padding": 1, "padding_mode": "reflect"}, "padding_mode='reflect': the page draws zeros"),
        ((8, 4, 4), {"padding": "same"}, "padding='same' adds more after than before"),
        ((8, 4), {"batch": 0}, "batch=0 is too small"),
    ],
)
def test_what_explore_refuses(given, options, message):
    with pytest.raises(GroupwiseError, match=re.escape(message)):
        explore(*given, **options)


def test_the_page_is_one_small_file_that_fetches_nothing():
    document = page()
    assert len(document.encode()) < 150_000
    # The one address is a name that SVG asks for.
    assert set(re.findall(r"https?://[^\"'`\s)]*", document)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import\()", document)


def test_a_notebook_shows_the_page_in_a_frame():
    shown = explore(8, 4, 3, groups=2)
    frame = shown._repr_html_()
    assert html.unescape(re.search('srcdoc="([^"]*)"', frame).group(1)) == shown.to_html()


def test_the_page_of_the_docs_is_this_one():
    written = (ROOT / "docs/explorer.html").read_text(encoding="utf-8")
    assert written == explore().to_html(), "write it anew: groupwise explore -o docs/explorer.html"


def test_the_command(tmp_path, monkeypatch, capsys):
    target = tmp_path / "page.html"
    words = ["explore", "8", "4", "--groups", "2", "--kernel", "3", "--size", "9", "--scene", "code"]
    assert main([*words, "--output", str(target)]) == 0
    assert "groups=2&" in target.read_text(encoding="utf-8")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    assert main(words) == 0
    assert opened[0].startswith("file://")
    assert opened[0].removeprefix("file://") in capsys.readouterr().err
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or False)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no browser was found" in said
    assert f"written to {opened[1].removeprefix('file://')}" in said
    assert main(["explore", "8", "4", "--groups", "3"]) == 2
    assert "valid groups: 1, 2, 4" in capsys.readouterr().err


def test_the_measured_times_are_the_record():
    script = load("explorer_data")
    shipped = json.loads(resources.files("groupwise.web").joinpath("page/measured.json").read_text(encoding="utf-8"))
    assert shipped == script.measured(script.read_record(script.RECORD))
    assert json.dumps(shipped["rows"][0]["layer"]) in groupwise.explore().to_html()
