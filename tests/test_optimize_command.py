"""`groupwise optimize` and the comparison that it prints."""

from __future__ import annotations

import json

import pytest
import torch

import groupwise
from groupwise.cli import main
from groupwise.profile.faster import Comparison, compare
from optimized import check, settle

CODE = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return f"{path}:Net"


def test_the_command_prints_the_plan_and_the_times(target, capsys):
    assert main(["optimize", target, "--input-shape", "1,3,16,16", "--repeats", "2", "--threads", "1"]) == 0
    text = capsys.readouterr().out
    assert "Net on 1×3×16×16 float32, 1 thread" in text
    assert "batch norm + relu" in text
    assert "median of 2 runs in turn, 1 thread; the outputs agree" in text


def test_the_command_writes_json(target, tmp_path):
    path = tmp_path / "plan.json"
    assert main(["optimize", target, "--input-shape", "1,3,16,16", "--repeats", "1", "-o", str(path)]) == 0
    facts = json.loads(path.read_text())
    assert [step["kind"] for step in facts["plan"]["steps"]] == ["to_channels_last", "convolution"]
    assert facts["comparison"]["agrees"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-shape", "1,4,16,16"], "model(float32 tensor of 1×4×16×16) fails with RuntimeError"),
        (["--repeats", "0"], "repeats=0 is too small"),
        (["-o", "plan.svg"], "name a file that ends in one of .txt, .json"),
    ],
)
def test_refusals(target, words, message, capsys):
    assert main(["optimize", target, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_network_does_not_agree():
    model = settle(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
    x = torch.randn(1, 3, 9, 9)
    fast = check(model, x)
    assert compare(model, fast, (x,), repeats=1).agrees
    other = groupwise.optimize(settle(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))), x)
    assert "THE OUTPUTS DIFFER" in str(compare(model, other, (x,), repeats=1))


def test_the_speedup_is_over_the_better_memory_format():
    made = Comparison(4.0, 3.0, 1.5, 1e-7, 1e-7, 2, 5)
    assert made.speedup == 2
    assert [line.split()[-1] for line in str(made).splitlines()[2:3]] == ["1.00"]
