"""`tune` and `groupwise tune`: a model's convolutions are measured before the model is used."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest
import torch

import groupwise
from commands import run as command_line
from commands import write_net
from groupwise import GroupwiseError, record_plans
from groupwise.cli.parser import parser
from groupwise.kernels import tuning
from groupwise.profile import progress
from groupwise.profile.measuring import Interference
from kernels import OURS, needs_kernels
from tuned import lines

pytestmark = [needs_kernels, pytest.mark.usefixtures("own_cache")]
SHAPE = (2, 16, 12, 12)


def layer(**options):
    return torch.nn.Conv2d(16, 16, 3, padding=1, groups=4, **options)


def dispatched():
    with torch.no_grad(), record_plans() as plans:
        layer()(torch.ones(SHAPE))
    return bool(plans)


def test_a_model_is_tuned_before_it_is_used():
    model = torch.nn.Sequential(layer(), torch.nn.BatchNorm2d(16), layer(), torch.nn.Conv2d(16, 8, 1))
    statistics = model[1].running_mean.clone()
    shown = []
    made = groupwise.tune(model, torch.ones(SHAPE), train=True, progress=lambda *counts: shown.append(counts))
    assert [(one.direction, count) for one, count in zip(made.plans, made.runs, strict=True)][:2] == [
        ("forward", 2),
        ("forward", 1),
    ]
    assert {one.source for one in made.plans} == {"measured"}
    assert made.measured == len(lines()) == len(made.plans)
    assert shown[-1] == (made.measured, made.measured)
    assert torch.equal(model[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in model.parameters())
    again = groupwise.tune(model, torch.ones(SHAPE), train=True)
    assert (again.measured, again.plans, again.path) == (0, made.plans, str(tuning.cache_path()))
    assert not dispatched(), "the block that measured has ended"
    assert str(made.path) in str(made)
    facts = made.to_dict()
    assert {row["kernel"] for row in facts["plans"]} <= {"pytorch", *OURS}
    with pytest.raises(GroupwiseError, match="cannot be measured: they compute on the CPU"):
        groupwise.tune(layer(device="meta"), torch.ones(SHAPE, device="meta"))


def test_the_command(capsys, tmp_path):
    net = write_net(tmp_path, "nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4)")
    command = ["tune", f"{net}:Net", "--input-shape", "2,3,9,9", "--train", "--threads", "1"]
    before = torch.get_num_threads()
    status, out, err = command_line(capsys, *command, "-f", "json")
    facts = json.loads(out)
    assert (status, facts["measured"], facts["threads"], facts["path"]) == (0, 5, 1, str(tuning.cache_path()))
    assert [row["direction"] for row in facts["plans"]] == [
        "forward",
        "forward",
        "grad_input",
        "grad_weight",
        "grad_weight",
    ]
    assert torch.get_num_threads() == before
    status, out, err = command_line(capsys, *command)
    assert (status, err) == (0, f"groupwise: running the code in {net}\n")
    _, *rows, summary, where = out.splitlines()
    assert (len(rows), where) == (5, f"The measurements are in {tuning.cache_path()}.")
    assert summary.startswith("5 convolutions, 0 measured now in 0.0 s with 1 thread; groupwise's kernels run ")
    for line, kept in zip(rows, facts["plans"], strict=True):
        assert line.split()[0] == kept["direction"]
        assert kept["kernel"] in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--calls 0", "calls=0 is too small"),
        ("--threads 0", "threads=0 is too small"),
        ("--input-shape 1,4,9,9", "give another shape with --input-shape, or call groupwise.tune in Python"),
    ],
)
def test_the_command_refuses(capsys, tmp_path, words, message):
    net = write_net(tmp_path, "nn.Conv2d(3, 8, 3)")
    status, _, err = command_line(capsys, "tune", f"{net}:Net", *words.split())
    assert status == 2
    assert message in err


def test_a_busy_machine_is_told_first():
    made = groupwise.tune(layer(), torch.ones(SHAPE))
    assert "1 convolution, 1 measured now" in str(made)
    busy = replace(made, interference=Interference(0.4, True))
    assert str(busy).startswith("The machine was busy: other processes took 40 % of the processors' time")
    assert "groupwise.forget() clears the measurements" in " ".join(str(busy).split())
    assert re.search(r"\d\.\d\dx", str(made))
    assert not re.search(r"\d\.\d\dx", str(busy)), "no speedup is claimed"
    known = replace(busy, measured=0)
    assert "The machine was busy" not in str(known)


def test_a_model_without_convolutions_is_one_sentence():
    made = groupwise.tune(torch.nn.Linear(2, 2), torch.ones(1, 2))
    assert str(made) == "The model runs no convolution, so there is nothing to measure."


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    times = iter([0.0, 1.0, 6.0, 6.0, 7.0, 12.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.told("measuring", "convolution") as tell:
        for done in (1, 2, 3, 4):
            tell(done, 4)
    assert capsys.readouterr().err.splitlines() == [
        f"groupwise: measuring: {done} of 4 convolutions" for done in (2, 4)
    ]


def test_the_command_s_default_is_that_of_enable():
    assert parser().parse_args(["tune", "alexnet"]).calls == tuning.CALLS


def test_progress_in_a_terminal_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    with progress.told("measuring", "convolution") as tell:
        for done in range(5):
            tell(done, 4)
            time.sleep(0.11)  # tqdm draws ten times a second
    shown = capsys.readouterr().err
    assert "measuring:  50%" in shown
    assert " 2/4 " in shown
    assert "\n" not in shown
