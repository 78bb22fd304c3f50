"""What `benchmarks/steps.py` and `call_steps.py` say of a training step and a call: kinds of work, times and floors."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

import groupwise
from groupwise import ConvSpec
from groupwise.rewrite import Step
from kernels import needs_kernels
from scripts import load

steps, call_steps, floor, step_tables, measuring = map(
    load, ("steps", "call_steps", "floor", "step_tables", "measuring")
)
PEAKS = floor.Peaks(threads=1, flop=1e9, copied_bytes=1e8, flop_by="a test")


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("groupwise::gemm grad_input avx2", "convolutions and linear layers"),
        ("groupwise::pixels grad_weight avx512", "convolutions and linear layers"),
        ("aten::mkldnn_convolution", "convolutions and linear layers"),
        ("aten::convolution_backward", "convolutions and linear layers"),
        ("aten::addmm", "convolutions and linear layers"),
        ("groupwise::linear_backward", "convolutions and linear layers"),
        ("groupwise::batch_norm_act_backward", "batch normalisation"),
        ("torch::autograd::CppNode<groupwise::(anonymous namespace)::BatchNormAct>", "batch normalisation"),
        ("groupwise::squeeze_excite", "squeeze and excitation"),
        ("aten::gelu_backward", "activations"),
        ("aten::add_", steps.REST),
        ("aten::max_pool2d_with_indices", steps.REST),
    ],
)
def test_the_kind_of_an_operator(operator, kind):
    assert steps.kind_of(operator) == kind


@needs_kernels
@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_the_floor_of_a_pass(direction):
    plan = groupwise.plan(ConvSpec(8, 16, 3, padding=1, groups=4), (2, 8, 6, 5), direction=direction)
    numbers = 2 * 8 * 30 + 2 * 16 * 30 + 16 * 2 * 9
    by_bytes, by_flop = 1e3 * 4 * numbers / 1e8, 1e3 * 2 * (2 * 16 * 30 * 2 * 9) / 1e9
    assert steps.floor_ms(plan, PEAKS) == pytest.approx(max(by_bytes, by_flop))
    slow = floor.Peaks(1, 1e5, 1e8, "a test")
    assert steps.floor_ms(plan, slow) == pytest.approx(by_flop * 1e4)


@needs_kernels
@pytest.mark.usefixtures("threads")
def test_a_step_is_split_and_recorded(monkeypatch, tmp_path, capsys, own_cache):
    def build(name):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.GELU()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    monkeypatch.setattr(steps.whole_networks, "build", build)
    monkeypatch.setattr(
        steps.whole_networks, "inputs", lambda batch: (torch.randn(batch, 3, 12, 12), torch.zeros(batch, dtype=int))
    )
    monkeypatch.setattr(steps.floor, "measure", lambda threads: PEAKS)
    monkeypatch.setattr(steps.floor, "copy_rate", lambda *_: 1e8)
    output = tmp_path / "steps.jsonl"
    words = ["--networks", "resnext50", "--batch", "4", "--threads", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["steps.py", *words])
    steps.main()
    (found,) = map(json.loads, output.read_text().splitlines())
    kinds = found["kinds"]
    assert set(kinds) == {*steps.KINDS, steps.REST}
    assert kinds["batch normalisation"]["floor_ms"] == pytest.approx(1e3 * 5 * 4 * (4 * 8 * 100) / 1e8, abs=1e-4)
    for kind in ("convolutions and linear layers", "batch normalisation", "activations"):
        assert kinds[kind]["ms"] > 0, kind
    assert kinds["convolutions and linear layers"]["floor_ms"] > 0
    said = capsys.readouterr().out
    assert said.startswith("| resnext50_32x4d | ")
    assert math.isclose(found["copied_gbs"], 0.1)


class Excited(nn.Module):
    """A network with a layer of every kind of `call_steps`, and a pooling."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.point = nn.Conv2d(16, 24, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(24, 10)

    def forward(self, x):
        x = self.grouped(self.first(x).relu()).relu()
        x = x * self.excite(self.squeeze(self.pool(x)).relu()).sigmoid()
        return self.last(self.pool(self.point(x).relu()).flatten(1))


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("batch", [1, 2])
def test_a_call_is_split_and_recorded(batch, monkeypatch, tmp_path, capsys, own_cache):
    def build(name):
        torch.manual_seed(0)
        return Excited()

    monkeypatch.setattr(call_steps.whole_networks, "build", build)
    monkeypatch.setattr(
        call_steps.whole_networks, "inputs", lambda batch: (torch.randn(batch, 3, 12, 12), torch.zeros(batch))
    )
    monkeypatch.setattr(call_steps.floor, "measure", lambda threads, dtype: PEAKS)
    output = tmp_path / "call_steps.jsonl"
    words = ["--networks", "resnext50", "--batch", str(batch), "--threads", "1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["call_steps.py", *words])
    call_steps.main()
    (found,) = map(json.loads, output.read_text().splitlines())
    kinds, pixels = found["kinds"], batch * 144
    assert set(kinds) == {*call_steps.KINDS, call_steps.REST}

    def floor_of(macs, numbers):
        return 1e3 * max(2 * macs / PEAKS.flop, 4 * numbers / PEAKS.copied_bytes)

    assert kinds["grouped layers"]["floor_ms"] == pytest.approx(
        floor_of(pixels * 16 * 36, 2 * pixels * 16 + 16 * 36), abs=1e-4
    )
    assert kinds["other convolutions"]["floor_ms"] == pytest.approx(
        floor_of(pixels * 16 * 27, pixels * (3 + 16) + 16 * 27), abs=1e-4
    )
    point = floor_of(pixels * 16 * 24, pixels * (16 + 24) + 16 * 24)
    linear = floor_of(batch * 240, batch * 34 + 240)
    assert kinds["1x1 and linear layers"]["floor_ms"] == pytest.approx(point + linear, abs=2e-4)
    assert kinds["squeeze and excitation"]["floor_ms"] == pytest.approx(
        floor_of(batch * 2 * 64, 2 * pixels * 16 + 2 * 64), abs=1e-4
    )
    assert kinds["chains of layers"] == {"ms": 0.0, "floor_ms": 0.0}
    assert all(kinds[kind]["ms"] > 0 for kind in kinds if kind != "chains of layers")
    assert kinds[call_steps.REST]["floor_ms"] == 0
    assert capsys.readouterr().out.startswith("| resnext50_32x4d | ")


def test_the_floor_of_a_step_of_several_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    work = call_steps.Work(model, torch.zeros(1, 4, 10, 10), 2, PEAKS)
    shapes = {"input_shape": (1, 4, 10, 10), "output_shape": (1, 4, 8, 8)}
    step = Step("0", "chain", "groupwise", **shapes, layers=("0", "1", "2"))
    macs = 100 * 32 + 64 * 72 + 64 * 32
    moved = 2 * (400 + 256 + 32 + 72 + 32)
    assert work.kind_of(step) == "chains of layers"
    assert work.floor_ms(step) == pytest.approx(1e3 * max(2 * macs / PEAKS.flop, moved / PEAKS.copied_bytes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peaks_are_measured(dtype):
    found = floor.measure(1, dtype)
    assert found.flop > 0
    assert found.copied_bytes > 0


def record_of(threads, **facts):
    about = {"processor": "AMD EPYC", "isa": "avx2", "threads": threads, "torch": "2.13.0", "dtype": "float32"}
    kinds = {kind: {"ms": 3.0, "floor_ms": 0.0} for kind in (*steps.KINDS, steps.REST)}
    kinds["batch normalisation"] = {"ms": 50.4, "floor_ms": 20.2}
    return {"batch": 8, **about, "commit": "abc", "gflops": 200.0, "copied_gbs": 40.0, "kinds": kinds, **facts}


def test_tables_tell_each_machine_and_number_of_threads(tmp_path):
    folder = tmp_path / "amd-25-1-avx2"
    folder.mkdir()
    rows = [
        record_of(1, network="torchvision:small"),
        record_of(1, network="timm:other", gflops=207.0),
        record_of(2, network="torchvision:small"),
    ]
    (folder / "steps.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = step_tables.told(tmp_path, "steps.jsonl")
    assert said.count("### Training steps on AMD EPYC (Zen 3, avx2): float32, 8 images, ") == 2
    assert said.count("| small | 62 / 20 | 3 | 50 / 20 | 3 | 3 | 3 |") == 2
    assert "torch 2.13.0, commit abc. Peak: 200 to 207 GFLOP/s, copies at 40 GB/s." in said
    assert said.index("| other |") < said.index(", 2 threads\n")


def test_tables_tell_dtypes_and_batches_apart(tmp_path):
    folder = tmp_path / "amd-25-1-avx2"
    folder.mkdir()
    kinds = {kind: {"ms": 0.25, "floor_ms": 0.125} for kind in (*call_steps.KINDS, call_steps.REST)}
    rows = [
        record_of(1, network="torchvision:small", kinds=kinds, dtype=dtype, batch=batch)
        for dtype, batch in (("float32", 1), ("bfloat16", 1), ("bfloat16", 8))
    ]
    (folder / "call_steps.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    said = step_tables.told(tmp_path, "call_steps.jsonl")
    for what in ("float32, 1 image, 1 thread", "bfloat16, 1 image, 1 thread", "bfloat16, 8 images, 1 thread"):
        assert f"### Calls on AMD EPYC (Zen 3, avx2): {what}\n" in said
    assert said.count("| small | 1.50 / 0.75 | 0.25 / 0.12 |") == 3


@pytest.mark.parametrize("record", step_tables.OF)
def test_the_page_shows_the_record(record):
    page = step_tables.PAGE.read_text("utf-8")
    made = step_tables.told(step_tables.RECORDS, record)
    assert measuring.with_block(page, record, made) == page, "out of date; run: python benchmarks/step_tables.py"
    assert measuring.with_block(page, record, "| a \\1 |") != page
