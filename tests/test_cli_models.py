"""The commands that take a model: `report`, and `explain` with a layer."""

from __future__ import annotations

import csv
import json
import pathlib
import shutil
import subprocess
import traceback

import numpy as np
import pytest
import torch
from PIL import Image

from commands import run, write_net
from groupwise import GroupwiseError
from groupwise.cli import photo, targets
from groupwise.profile import report as reporting
from groupwise.profile.verify import Agreement
from kernels import needs_kernels, stand_in, without_kernels

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def net(tmp_path):
    return write_net(tmp_path, "nn.Conv2d(3, 8, 3), nn.Dropout(), nn.Conv2d(8, 8, 3, groups=4)")


def test_a_layer_of_a_model(capsys):
    status, out, _ = run(capsys, *"explain alexnet --layer conv2 -f json".split())
    assert status == 0
    facts = json.loads(out)
    assert (facts["groups"], facts["weight_shape"], facts["input_size"]) == (2, [256, 48, 5, 5], [27, 27])


def test_a_layer_keeps_its_batch_and_name(capsys, net):
    arguments = ["explain", f"{net}:Net", "--layer", "2", "--input-shape", "5,3,9,8", "-f", "json"]
    facts = json.loads(run(capsys, *arguments)[1])
    assert (facts["name"], facts["batch"], facts["dtype"], facts["input_size"]) == ("2", 5, "float32", [7, 6])
    assert run(capsys, "explain", f"{net}:Net", "--layer", "2")[1].startswith("2: conv2d 8 → 8")


@needs_kernels
def test_a_layer_has_its_plans(capsys, net):
    assert "\nPlan     kernel and tile" in run(capsys, "explain", f"{net}:Net", "--layer", "2")[1]


def test_report_table_and_page(capsys, tmp_path, net):
    photo = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "green").save(photo)
    page = tmp_path / "r.html"
    arguments = ["report", f"{net}:Net", "--image", str(photo), "--repeats", "1", "-o", str(page)]
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert "▌  2" in out
    assert f"running the code in {net}" in err
    assert f"wrote {page}" in err
    assert "data:image/jpeg;base64," in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("backward", [False, True])
def test_report_runs_the_photograph_in_the_right_mode(capsys, tmp_path, monkeypatch, net, backward):
    seen = {}

    def spy(model, batch, **options):
        seen.update(model=model, batch=batch, **options)
        raise GroupwiseError("seen enough")

    monkeypatch.setattr(reporting, "report", spy)
    monkeypatch.setattr(targets, "input_shape", lambda model: (1, 3, 32, 64))
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)).save(picture)
    arguments = ["report", f"{net}:Net", "--image", str(picture), "--repeats", "7", *["--backward"] * backward]
    assert run(capsys, *arguments)[0] == 2
    assert torch.equal(seen["batch"], photo.as_input(photo.read_photo(picture), (32, 64)))
    assert seen["model"].training == seen["backward"] == backward
    assert (seen["repeats"], seen["title"]) == (7, f"{net}:Net")


@pytest.mark.parametrize("right", [True, False])
def test_report_checks_the_outputs(capsys, monkeypatch, net, right):
    stand_in(monkeypatch)
    real = reporting.check
    monkeypatch.setattr(reporting, "check", lambda *of: (real(*of)[0], Agreement(0.0 if right else 0.1, 1.0, right)))
    arguments = ["report", f"{net}:Net", "--input-shape", "1,3,9,9", "--repeats", "1"]
    status, out, err = run(capsys, *arguments, "--check")
    assert status == (0 if right else 1)
    assert ("within rounding." if right else "MORE THAN ROUNDING.") in out
    assert ("groupwise's kernels change the model's outputs" in err) != right
    assert run(capsys, *arguments)[0] == 0


def test_report_without_kernels_has_nothing_to_check(capsys, monkeypatch, net):
    without_kernels(monkeypatch)
    arguments = ["report", f"{net}:Net", "--input-shape", "1,3,9,9", "--repeats", "1"]
    status, out, err = run(capsys, *arguments, "--check")
    assert status == 1
    assert "groupwise's kernels were not measured: there is none" in " ".join(out.split())
    why = "there is none; `groupwise doctor` says how to have them"
    assert f"nothing was checked, because groupwise's kernels did not run: {why}\n" in err
    status, _, err = run(capsys, *arguments)
    assert (status, "checked" in err) == (0, False)


def test_report_files_of_every_kind(capsys, tmp_path, net):
    pages = {"html": "<!doctype html>", "svg": "<svg", "txt": f"{net}:Net"}
    begins = {**pages, "csv": "name,", "md": "| name |", "json": "{"}
    for suffix, begin in begins.items():
        path = tmp_path / f"r.{suffix}"
        arguments = ["report", f"{net}:Net", "--input-shape", "1,3,9,9", "--repeats", "1", "-o", str(path)]
        assert run(capsys, *arguments)[0] == 0
        assert path.read_text(encoding="utf-8").startswith(begin)


def test_a_report_as_a_table_has_a_row_for_each_convolution(capsys, tmp_path, net):
    path = tmp_path / "r.csv"
    arguments = ["report", f"{net}:Net", "--input-shape", "1,3,9,9", "--repeats", "1", "--json", "-o", str(path)]
    layers = json.loads(run(capsys, *arguments)[1])["layers"]
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["name"], row["groups"], float(row["pytorch_ms"])) for row in rows] == [
        (layer["name"], str(layer["groups"]), layer["pytorch_ms"]) for layer in layers
    ]


@pytest.mark.parametrize("ending", ["xml", "png", "yaml"])
def test_a_bad_ending_of_a_report_is_refused_before_any_work(capsys, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(targets, "load_model", lambda *_: pytest.fail("it built the model"))
    status, out, err = run(capsys, "report", "alexnet", "-o", str(tmp_path / f"r.{ending}"))
    assert (status, out) == (2, "")
    assert err.endswith("name a file that ends in one of .txt, .json, .csv, .md, .html, .svg\n")


def test_report_json(capsys, net):
    arguments = ["report", f"{net}:Net", "--input-shape", "2,3,9,9", "--backward", "--repeats", "1", "--json"]
    status, out, _ = run(capsys, *arguments)
    facts = json.loads(out)
    assert status == 0
    assert [row["batch"] for row in facts["layers"]] == [2, 2]
    assert facts["layers"][1]["passes"] == ["forward", "grad_input", "grad_weight"]


# What is wrong, and what is told of it in one line, or the error whose traceback Python shows.
FAILURES = {
    "x.view(1, 7)": "shape '[1, 7]' is invalid for input of size 243",
    "torch.nn.functional.conv2d(x, torch.ones(1, 5, 3, 3))": "to have 5 channels, but got 3 channels instead",
    "torch.empty(2**60)": "allocate memory",
    "self.missing": AttributeError,
    "torch._check_value(False, lambda: 'the input is not what I want')": "the input is not what I want",
    "1 / 0": ZeroDivisionError,
    # An OSError as it is would be taken for the command line's own, such as a file that cannot be written.
    "open('none')": RuntimeError,
    "x.add(1, 2, 3)": TypeError,
}


@pytest.fixture
def broken(tmp_path):
    """A file with a model whose forward runs an expression."""

    def write(expression):
        path = tmp_path / "broken.py"
        path.write_text(
            f"import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return {expression}\n"
        )
        return f"{path}:Net"

    return write


@pytest.mark.parametrize(
    ("command", "expression"),
    [
        *(("report", one) for one in FAILURES),
        # Both run the model on fake tensors, which take no memory.
        *((name, one) for name in ("explain", "optimize") for one in FAILURES if "empty" not in one),
        *(("tune", one) for one in FAILURES),
    ],
)
def test_what_a_model_raises(capsys, broken, command, expression):
    target, told = broken(expression), FAILURES[expression]
    arguments = [command, target, "--input-shape", "1,3,9,9", *(["--layer", "0"] if command == "explain" else [])]
    if isinstance(told, str):
        status, out, err = run(capsys, *arguments)
        running, line = err.splitlines()
        assert (status, out, running) == (2, "", f"groupwise: running the code in {target.removesuffix(':Net')}")
        assert line.startswith(f"groupwise {command}: {target} failed on one input of shape (1, 3, 9, 9): ")
        assert told in line
    else:
        # What leaves `main` is shown by the interpreter, with the model's own line.
        with pytest.raises(told) as caught:
            run(capsys, *arguments)
        assert told is not RuntimeError or isinstance(caught.value.__cause__, FileNotFoundError)
        assert f"    return {expression}\n" in "".join(traceback.format_exception(caught.value))


def test_a_model_of_several_inputs(capsys, tmp_path):
    path = tmp_path / "two.py"
    path.write_text("import torch\nclass Net(torch.nn.Module):\n    def forward(self, x, y):\n        return x\n")
    status, _, err = run(capsys, "report", f"{path}:Net")
    assert status == 2
    assert (
        "missing 1 required positional argument: 'y'; give its shape with --input-shape, or call groupwise.report"
        in err
    )


def test_the_fix_is_of_the_option_that_was_used(capsys, tmp_path, broken):
    picture = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(picture)
    target = broken("x.view(1, 7)")
    for options, fix in (
        (["--input-shape", "1,3,9,9"], "; give another shape with --input-shape, or call groupwise.report in Python"),
        ([], "; give its shape with --input-shape, or call groupwise.report in Python"),
        (["--image", str(picture)], "; give --input-shape in place of --image, or call groupwise.report"),
    ):
        assert fix in run(capsys, "report", target, *options)[2]
    err = run(capsys, "explain", target, "--layer", "0")[2]
    assert "; give its shape with --input-shape, or call groupwise.count in Python" in err


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("kernels", [True, False])
def test_the_demo_checks_where_there_are_kernels(tmp_path, kernels):
    """With a command that only says what it was asked, in an environment that counts as made."""
    (tmp_path / "bin").mkdir()
    for name, code in {
        "groupwise": f'if [ "$1" = doctor ]; then echo DIAGNOSIS; exit {int(not kernels)}; fi; echo "ran $@"',
        "python": "echo SKLEARN",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name in ("venv", "base", "demo"):
        (tmp_path / f"{name}.stamp").touch()
    command = ["make", "--silent", "-C", ROOT, "demo", f"VENV={tmp_path}", "REPORT=page.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    check = " --check" * kernels
    image = "SKLEARN/datasets/images/china.jpg"
    assert f"ran report resnext50_32x4d --optimize{check} -o page.html --image {image}\n" in done.stdout
    assert ("DIAGNOSIS" in done.stdout) != kernels
    assert ("groupwise's kernels are not timed" in done.stdout) != kernels
