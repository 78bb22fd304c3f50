"""What `benchmarks/steps.py` says of a training step: kinds of work, their times and floors."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

import groupwise
from groupwise import ConvSpec
from kernels import needs_kernels
from scripts import load

steps, floor, step_tables, measuring = map(load, ("steps", "floor", "step_tables", "measuring"))
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
    said = step_tables.told(tmp_path)
    assert said.count("### Steps on AMD EPYC (Zen 3, avx2), ") == 2
    assert said.count("| small | 62 / 20 | 3 | 50 / 20 | 3 | 3 | 3 |") == 2
    assert "8 images, 1 thread, float32, torch 2.13.0, commit abc. Peak: 200 to 207 GFLOP/s, copies at 40 GB/s." in said
    assert said.index("| other |") < said.index(", 2 threads\n")


def test_the_page_shows_the_record():
    page = step_tables.PAGE.read_text("utf-8")
    made = step_tables.told(step_tables.RECORDS)
    assert measuring.with_block(page, step_tables.RECORD, made) == page, (
        "out of date; run: python benchmarks/step_tables.py"
    )
    assert measuring.with_block(page, step_tables.RECORD, "| a \\1 |") != page
