"""The record of errors: what a row says of a kernel, and that the page on kernels quotes the record."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest
import torch

from kernels import needs_kernels
from scripts import load

errors, measuring, peak = map(load, ("errors", "measuring", "peak"))
ROOT = pathlib.Path(__file__).parent.parent
SMALL = (peak.Kind("groups of 4, 3x3", 16, 4, 9, 3), peak.Kind("depthwise 3x3", 16, 16, 9, 3))


@needs_kernels
def test_the_record_of_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(errors, "KINDS", SMALL)
    monkeypatch.setattr(sys, "argv", ["errors.py", "--seeds", "2", "--output", str(tmp_path / "errors.jsonl")])
    before = torch.get_num_threads()
    try:
        errors.main()
    finally:
        torch.set_num_threads(before)
    rows = measuring.read_record(tmp_path / "errors.jsonl")
    assert {(row["direction"], row["kernel"], row["values"]) for row in rows} == {
        (direction, kernel, values)
        for direction in ("forward", "grad_input", "grad_weight")
        for kernel in ("planar", "narrow", *(["pixels"] if direction == "grad_weight" else []))
        for values in errors.VALUES
    }
    # 2 layers, 2 memory formats and 2 seeds. narrow takes no groups of 4 in contiguous tensors, and pixels none at all.
    cases = {(row["direction"], row["kernel"]): row["cases"] for row in rows}
    assert cases["forward", "planar"] == cases["grad_weight", "planar"] == 8
    assert (cases["forward", "narrow"], cases["grad_weight", "narrow"], cases["grad_weight", "pixels"]) == (6, 4, 4)
    for row in rows:
        assert 0 < row["most_roundings"] < 10
        assert 0 < row["of_pytorch"] <= row["of_pytorch_most"]
        assert {"isa", "commit", "processor", "torch"} <= set(row)
        assert row["threads"] == 1
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@needs_kernels
def test_an_error_is_that_of_the_kernel(monkeypatch):
    """A kernel whose weight gradients are off by 100 roundings shows as such, and in no other row."""
    clean = errors.errors_of(SMALL[1], "one sign", "contiguous", 0)
    plain, calls = errors.results, []

    def results(tensors, spec):
        # float64, its sizes and PyTorch come before the kernels.
        calls.append(None)
        found = dict(plain(tensors, spec))
        if len(calls) > 3:
            found["grad_weight"] *= 1 + 100 * errors.ROUNDING
        return found

    monkeypatch.setattr(errors, "results", results)
    off = errors.errors_of(SMALL[1], "one sign", "contiguous", 0)
    assert off["forward", "planar"] == clean["forward", "planar"]
    assert off["grad_weight", "planar"][0] == pytest.approx(100, abs=10)
    assert off["grad_weight", "planar"][1] > 10 * clean["grad_weight", "planar"][1]


def test_the_page_on_kernels_quotes_the_record():
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    numerics = " ".join(page.partition("## Numerics")[2].partition("\n## ")[0].split())
    rows = [json.loads(line) for line in (ROOT / "benchmarks/records/errors.jsonl").read_text("utf-8").splitlines()]
    assert {(row["processor"], row["isa"], row["torch"]) for row in rows} == {("AMD EPYC", "avx2", "2.13.0+cpu")}
    assert "AMD EPYC with AVX-512, PyTorch 2.13, AVX2 kernels" in numerics
    sums = [row for row in rows if row["direction"] != "grad_weight"]
    weights = [row for row in rows if row["direction"] == "grad_weight"]
    medians = [row["of_pytorch"] for row in weights]
    (most, weight_most, low, high, worst), *_ = re.findall(
        r"at most ([\d.]+) times PyTorch's for outputs and input gradients, and at most ([\d.]+) times for weight "
        r"gradients \(medians ([\d.]+) to ([\d.]+)\)\. The largest error of any value was ([\d.]+) `u S`",
        numerics,
    )
    assert most == f"{max(row['of_pytorch_most'] for row in sums):.2f}"
    assert weight_most == f"{max(row['of_pytorch_most'] for row in weights):.2f}"
    assert (low, high) == (f"{min(medians):.2f}", f"{max(medians):.2f}")
    assert worst == f"{max(row['most_roundings'] for row in rows):.1f}"
