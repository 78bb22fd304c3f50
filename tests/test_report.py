from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError, report
from groupwise.cli.targets import load_model
from groupwise.draw.base.folding import fold
from groupwise.draw.text import report as report_text
from groupwise.profile import record as recording
from groupwise.profile import report as reporting
from groupwise.profile import timing
from groupwise.profile.verify import Agreement, Checked
from kernels import without_kernels
from reports import HERE, canned, small_model

GOLDEN = pathlib.Path(__file__).parent / "golden"


def by_hooks(model, source):
    """An independent count of models whose convolutions are all layers: hooks and the textbook formula."""
    rows = []

    def hook(layer, inputs, output):
        positions = (inputs[0] if layer.transposed else output)[0, 0].numel()
        macs = inputs[0].shape[0] * positions * layer.weight.numel() // layer.weight.shape[0]
        macs *= layer.in_channels if layer.transposed else layer.out_channels
        rows.append((tuple(layer.weight.shape), layer.groups, macs))

    handles = [m.register_forward_hook(hook) for m in model.modules() if hasattr(m, "in_channels")]
    with torch.no_grad():
        model(source)
    for handle in handles:
        handle.remove()
    return rows


MODELS = [
    ("alexnet", 224, 3),
    ("resnext50_32x4d", 64, 16),
    ("torchvision:resnext50_32x4d", 64, 16),
    ("torchvision:regnet_x_400mf", 64, 22),
    ("torchvision:mobilenet_v2", 64, 17),
    ("torchvision:convnext_tiny", 64, 18),
    ("timm:resnet18", 64, 0),
]


@pytest.mark.parametrize(("target", "size", "grouped"), MODELS)
def test_models_against_an_independent_count(target, size, grouped):
    package = target.rpartition(":")[0]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model = load_model(target).eval()
    source = torch.randn(1, 3, size, size)
    made = report(model, source, repeats=1).to_dict()
    counted = by_hooks(model, source)
    assert [(tuple(r["weight_shape"]), r["groups"], r["macs"]["forward"]) for r in made["layers"]] == counted
    assert made["total"]["grouped"]["convolutions"] == grouped == sum(groups > 1 for _, groups, _ in counted)
    assert made["total"]["macs"]["forward"] == sum(macs for _, _, macs in counted)
    layers = dict(model.named_modules())
    assert all(isinstance(layers[row["name"]], nn.Conv2d) for row in made["layers"])
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert made["total"]["parameters"] == sum(p.numel() for m in convolutions for p in m.parameters())
    assert made["total"]["model_parameters"] == sum(p.numel() for p in model.parameters())
    assert made["not_measured"] or made["outputs"]["within_rounding"]


@pytest.fixture(scope="module")
def small():
    return small_model()


def test_rows_total_and_shares(small):
    made = report(small, torch.randn(2, 3, 8, 8), repeats=3)
    facts = made.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert [(row["name"], row["op"], row["groups"], row["kind"]) for row in facts["layers"]] == [
        ("0.0", "conv2d", 1, "dense"),
        ("1.0", "conv2d", 4, "grouped"),
        ("2.0", "conv2d", 4, "grouped"),
        ("3", "conv_transpose2d", 16, "depthwise"),
    ]
    first = facts["layers"][0]
    assert first["macs"] == dict.fromkeys(("forward", "grad_input", "grad_weight"), 2 * 64 * 16 * 27)
    assert first["bytes"] == 4 * (2 * 3 * 64 + 16 * 27 + 2 * 16 * 64)
    assert first["passes"] == ["forward"]
    assert all(row["pytorch_ms"] > 0 for row in facts["layers"])
    total, grouped = facts["total"], facts["total"]["grouped"]
    assert total["pytorch_ms"] == pytest.approx(sum(row["pytorch_ms"] for row in facts["layers"]))
    assert total["macs_run"] == {"forward": total["macs"]["forward"], "grad_input": 0, "grad_weight": 0}
    assert grouped["share"]["macs"] == pytest.approx(1 - first["macs"]["forward"] / total["macs"]["forward"])
    assert grouped["share"]["convolutions"] == 0.75
    assert 0 < grouped["share"]["time"] < 1
    assert grouped["parameters"] == total["parameters"] - 16 * 27 - 16


def test_backward(small):
    facts = report(small.train(), torch.randn(2, 3, 8, 8), backward=True, repeats=2).to_dict()
    assert facts["layers"][0]["passes"] == ["forward", "grad_weight"]
    assert facts["layers"][1]["passes"] == ["forward", "grad_input", "grad_weight"]
    macs = [row["macs"]["forward"] for row in facts["layers"]]
    assert facts["total"]["macs_run"] == {"forward": sum(macs), "grad_input": sum(macs[1:]), "grad_weight": sum(macs)}
    for row in facts["layers"]:
        assert row["backward_ms"] > 0
        assert row["pytorch_ms"] == pytest.approx(row["forward_ms"] + row["backward_ms"])
    assert all(parameter.grad is None for parameter in small.parameters())


def test_meta_counts_without_times():
    with torch.device("meta"):
        made = report(groupwise.models.resnext101_64x4d(), torch.empty(1, 3, 224, 224))
    assert made.to_dict()["layers"][0]["pytorch_ms"] is None
    assert made.to_dict()["total"]["pytorch_ms"] is None
    assert "ms" in str(made)
    assert "<table" in made.to_html()


def test_a_shared_weight_is_counted_once():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    total = report(nn.Sequential(layer, layer), torch.randn(1, 4, 5, 5), repeats=1).to_dict()["total"]
    assert (total["convolutions"], total["parameters"]) == (2, 4 * 2 * 9 + 4)


def test_folding_joins_names_and_sums():
    row = {
        "operator": "aten::convolution",
        "op": "conv2d", "in_channels": 4, "weight_shape": [4, 2, 3, 3], "bias_shape": None, "stride": [1, 1],
        "padding": [0, 0], "dilation": [1, 1], "output_padding": [0, 0], "groups": 2, "input_size": [5, 5], "batch": 1,
        "dtype": "float32", "passes": ["forward"], "parameters": 72, "bytes": 10, "pytorch_ms": 0.5,
        "macs": {"forward": 7, "grad_input": 7, "grad_weight": 7}, "groupwise_ms": None, "speedup": None,
        "kernel": None, "kernels": {}, "max_error": None, "roofline": None, "hazard": "",
    }  # fmt: skip
    names = ["layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2", "layer1.5.conv2", "layer1.0.conv3"]
    folded = fold([row | {"name": name} for name in names[:4]] + [row | {"name": "layer1.6.conv2", "groups": 1}])
    assert [(f["name"], f["count"]) for f in folded] == [("layer1.0-2,5.conv2", 4), ("layer1.6.conv2", 1)]
    repeated = fold([row | {"name": "shared.3"}] * 2)[0]
    assert (repeated["name"], repeated["count"], repeated["parameters"]) == ("shared.3", 2, 72)
    assert fold([row | {"name": name} for name in names])[0]["name"] == "layer1.0.conv2 … layer1.0.conv3"
    assert (folded[0]["parameters"], folded[0]["macs"]["forward"], folded[0]["pytorch_ms"]) == (288, 28, 2.0)
    assert (folded[0]["groupwise_ms"], folded[0]["speedup"], folded[0]["roofline"]) == (None, None, None)
    speeds = [(0.25, 0.4, 1e-7), (0.5, 0.1, 3e-7)]
    faster = [
        row | {"name": f"a.{n}", "groupwise_ms": ms, "roofline": share, "max_error": error, "kernel": "planar"}
        for n, (ms, share, error) in enumerate(speeds)
    ]
    both = fold(faster)[0]
    assert (both["groupwise_ms"], both["speedup"], both["max_error"]) == (0.75, pytest.approx(1 / 0.75), 3e-7)
    assert both["roofline"] == pytest.approx((0.25 * 0.4 + 0.5 * 0.1) / 0.75)
    assert len(fold([faster[0] | {"kernels": {"forward": "planar"}}, faster[1]])) == 2


def test_times_are_medians_without_the_warm_up(small, monkeypatch):
    canned(monkeypatch, [9, 9, 0.001, 0.007, 0.002])
    made = report(small, torch.randn(1, 3, 8, 8), repeats=3)
    facts = made.to_dict()
    assert [row["pytorch_ms"] for row in facts["layers"]] == pytest.approx([2, 4, 6, 8])
    total, share = facts["total"], facts["total"]["grouped"]["share"]
    assert (total["pytorch_ms"], total["recorded_ms"], total["model_ms"]) == pytest.approx((20, 200, 500))
    assert (share["time"], share["time_of_model"]) == pytest.approx((0.9, 0.09))


def test_before_and_after(small, monkeypatch):
    """By hand: the rows' forwards take 2, 4, 6 and 8 ms by PyTorch's kernels and a quarter of that by groupwise's."""
    canned(monkeypatch, [9, 9, 0.001, 0.007, 0.002], [8, 8, 0.0005, 0.0001, 0.008])
    facts = report(small.eval(), torch.randn(1, 3, 8, 8), repeats=3).to_dict()
    rows, total = facts["layers"], facts["total"]
    assert [row["pytorch_ms"] for row in rows] == pytest.approx([2, 4, 6, 8])
    assert [row["groupwise_ms"] for row in rows] == pytest.approx([0.5, 1, 1.5, 2])
    # The kernel that stands in counts as PyTorch's own, and a difference between the same code is noise.
    assert [row["speedup"] for row in rows] == [None] * 4
    # The roofline that stands in does a FLOP and a byte a nanosecond.
    bounds = [max(2 * row["macs"]["forward"], row["bytes"]) / 1e6 for row in rows]
    assert [row["roofline"] * row["groupwise_ms"] for row in rows] == pytest.approx(bounds)
    assert (total["groupwise_ms"], total["roofline"]) == pytest.approx((5, sum(bounds) / 5))
    assert (total["model_ms"], total["groupwise_model_ms"]) == pytest.approx((500, 250))
    assert total["speedup"] is total["grouped"]["speedup"] is total["model_speedup"] is None
    assert (total["grouped"]["groupwise_ms"], total["grouped"]["roofline"]) == pytest.approx(
        (4.5, sum(bounds[1:]) / 4.5)
    )
    assert total["max_error"] == max(row["max_error"] for row in rows) < 1e-5
    assert (total["kernels"], total["grouped"]["kernels"]) == ({"pytorch": 4}, {"pytorch": 3})
    assert facts["outputs"] == {"max_difference": 0.0, "top1": None, "within_rounding": True}
    assert facts["not_measured"] is None
    assert facts["machine"]["roofline"] == {"flop_per_second": 1e9, "bytes_per_second": 1e9}


def test_without_the_kernels(small, monkeypatch):
    without_kernels(monkeypatch)
    made = report(small, torch.randn(1, 3, 8, 8), repeats=1)
    facts = made.to_dict()
    for row in (*facts["layers"], facts["total"], facts["total"]["grouped"]):
        assert row["pytorch_ms"] > 0
        assert {row[key] for key in ("groupwise_ms", "speedup", "max_error", "roofline")} == {None}
    assert {row["kernel"] for row in facts["layers"]} == {None}
    assert facts["outputs"] is facts["total"]["model_speedup"] is None
    assert facts["not_measured"] == "there is none; `groupwise doctor` says how to have them"
    for shown in (str(made), made.to_html()):
        assert shown.count("kernels were not measured: there is none; `groupwise doctor` says how") == 1
    assert made.to_html().count("<table") == 1


def test_a_model_beyond_the_cpu_is_not_measured():
    reason = "they compute on the CPU, and the model has tensors on cuda"
    assert timing.not_measured({"cuda", "cpu"}) == reason


def golden(name, shown):
    path = GOLDEN / name
    if os.environ.get("GROUPWISE_UPDATE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def test_golden_report_without_the_kernels(small, monkeypatch):
    canned(monkeypatch, [0.001] * 3)
    monkeypatch.setattr(reporting, "machine", lambda: HERE)
    made = report(small.train(), torch.randn(2, 3, 8, 8), backward=True, repeats=1, title="a small model")
    golden("report-without-kernels.txt", f"{made}\n")


def test_golden_report(small, monkeypatch):
    """The table and the page, with times that are known and a machine that is nowhere."""
    # One run more, to find the calls that the kernels and errors below belong to.
    canned(monkeypatch, [0.001] * 4, [0.0004] * 3)
    monkeypatch.setattr(reporting, "machine", lambda: HERE)
    kernels = [("pytorch",) * 2, ("planar",) * 3, ("planar",) * 3, ("channels", "channels", "pytorch")]

    def found(workload):
        calls = recording.run(workload).calls
        checked = [
            Checked(call, dict(zip(call.passes, used, strict=True)), 1e-7 * number)
            for number, (call, used) in enumerate(zip(calls, kernels, strict=True), 1)
        ]
        return checked, Agreement(2e-7, 0.5, True)

    monkeypatch.setattr(reporting, "check", found)
    made = report(small.train(), torch.randn(2, 3, 8, 8), backward=True, repeats=1, title="a small model")
    page = re.sub(r"<svg.*?</svg>", "<svg/>", made.to_html(), flags=re.S)
    # The explorer has tests of its own.
    page = re.sub(r'(<script type="application/json">).*(</script>)', r"\1\2", page[page.index("<body>") :])
    golden("report.txt", f"{made}\n")
    golden("report.html", page)


def test_the_tables_keep_to_their_width(small, monkeypatch):
    """The second one with the longest of everything: no wider than the first is with names as long."""
    canned(monkeypatch, [0.001] * 3, [0.0004] * 3)
    facts = report(small.train(), torch.randn(2, 3, 8, 8), backward=True, repeats=1).to_dict()
    kernels = dict(zip(("forward", "grad_input", "grad_weight"), ("channels", "pytorch", "channels"), strict=True))
    most = {
        "pytorch_ms": 99_999.0,
        "groupwise_ms": 99_999.0,
        "speedup": 999.0,
        "kernels": kernels,
        "max_error": 1.8e308,
    }
    for number, row in enumerate(facts["layers"]):
        row |= {**most, "name": f"{'a' * 40}.{number}", "roofline": 12.0}
    second = report_text.table(facts).split("\n\n")[2]
    assert max(map(len, second.split("\n"))) <= 122


def test_totals_of_everything_and_of_the_grouped_ones(small):
    facts = report(small, torch.randn(2, 3, 8, 8), repeats=1).to_dict()
    for key, rows in (("all", facts["layers"]), ("grouped", [r for r in facts["layers"] if r["groups"] > 1])):
        sums = facts["total"] if key == "all" else facts["total"]["grouped"]
        for field in ("macs_on_padding", "bytes", "parameters"):
            assert sums[field] == sum(row[field] for row in rows) > 0
        assert sums["convolutions"] == len(rows)
    whole = sum(p.numel() for p in small.parameters())
    assert facts["total"]["grouped"]["share"]["parameters_of_model"] == facts["total"]["grouped"]["parameters"] / whole


def test_computed_weights_are_no_parameters():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.make = nn.Linear(4, 4 * 2 * 9)
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            weights = self.make(x.mean((2, 3))).reshape(-1, 2, 3, 3)
            folded = self.conv(x).reshape(1, -1, 3, 3)
            return nn.functional.conv2d(folded, weights, groups=2 * x.shape[0])

    total = report(Hyper(), torch.randn(3, 4, 5, 5), repeats=1).to_dict()["total"]
    assert (total["convolutions"], total["parameters"]) == (2, 4 * 4 * 9 + 4)
    assert total["grouped"]["parameters"] == 0


def test_a_model_without_convolutions():
    made = report(nn.Linear(3, 3), torch.randn(1, 3), repeats=1)
    assert made.to_dict()["layers"] == []
    assert "<table" not in made.to_html()
    assert str(made).split("\n") == [
        "Linear",
        "",
        "groupwise saw no convolution run.",
        "There is nothing to report: groupwise shows convolutions, and what they take.",
    ]
    assert "nothing" in str(report(nn.Linear(3, 3, device="meta"), torch.ones(1, 3, device="meta")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: report("resnet", torch.zeros(1)), "'resnet' is not a model"),
        (lambda: report(nn.ReLU(), torch.zeros(1), repeats=0), "repeats=0 is too small"),
        (lambda: report(nn.ReLU(), torch.zeros(1), backward=True), "no output of the model depends on"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(GroupwiseError) as caught:
        call()
    assert message in str(caught.value)


def test_a_model_that_changes_its_mind():
    layers = [nn.Conv2d(4, 4, 3, padding=1, groups=g) for g in (1, 2, 4)]
    turn = iter(range(100))

    def model(x):
        return layers[next(turn) % 3](x)

    with pytest.raises(GroupwiseError, match="other convolutions from one run to the next"):
        report(model, torch.zeros(1, 4, 5, 5))
