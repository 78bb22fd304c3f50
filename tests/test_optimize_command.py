"""`groupwise optimize` and `groupwise report --optimize`."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys

import pytest
import torch
from PIL import Image

import warm
from commands import run
from groupwise import rewrite
from groupwise.cli import main
from groupwise.profile import faster

CODE = """
import torch

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())

class Unnamed(Net):
    def __init__(self):
        super().__init__()
        self.hidden = lambda: None

class Buggy(Net):
    def forward(self, x):
        return super().forward(x)
"""


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return f"{path}:Net"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The same code as a module that other processes can import."""
    (tmp_path / "net_to_save.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "net_to_save"
    sys.modules.pop("net_to_save", None)


SMALL = ["--input-shape", "1,3,16,16", "--repeats", "2", "--threads", "1"]


def test_the_command_prints_the_plan_and_the_times(target, capsys):
    assert main(["optimize", target, *SMALL]) == 0
    text = capsys.readouterr().out
    assert "Net on 1×3×16×16 float32, 1 thread" in text
    assert "batch norm + relu" in text
    assert "of the largest output; the outputs agree." in text
    assert "median of 2 runs in turn, 1 thread, float32" in text


def test_the_command_writes_json(target, tmp_path):
    path = tmp_path / "plan.json"
    assert main(["optimize", target, "--input-shape", "1,3,16,16", "--repeats", "1", "-o", str(path)]) == 0
    facts = json.loads(path.read_text())
    assert [step["kind"] for step in facts["plan"]["steps"]] == ["convolution"]
    assert facts["comparison"]["agrees"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-shape", "1,4,16,16"], "failed on one input of shape (1, 4, 16, 16): "),
        (["--repeats", "0"], "repeats=0 is too small"),
        (["-o", "plan.svg"], "name a file that ends in one of .txt, .json"),
        (["--save", "no/where.pt"], "--save no/where.pt: there is no folder no; make it first"),
        (["--save", "."], "--save . is no regular file; name a file"),
        (["--save", "f.pt"], "put the file where Python finds it, and give net:Net"),
        (["--image", "none.jpg"], "none.jpg does not exist; give the path of a photograph"),
    ],
)
def test_refusals(target, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["optimize", target, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.strip().split("\n")[-1].startswith("groupwise optimize: ")
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


def test_an_error_of_groupwise_keeps_its_traceback(target, monkeypatch):
    """The model by itself takes the input, so the input is not to blame."""

    def wrong(*arguments, **options):
        raise RuntimeError("a size that is wrong")

    monkeypatch.setattr(rewrite, "optimize", wrong)
    with pytest.raises(RuntimeError, match="a size that is wrong"):
        main(["optimize", target, *SMALL])


def test_no_tune_times_no_engine(target, capsys):
    assert main(["optimize", target, *SMALL, "--no-tune", "-f", "json"]) == 0
    steps = json.loads(capsys.readouterr().out)["plan"]["steps"]
    assert [step["ms"] for step in steps] == [{}]


def test_a_photograph_is_the_input(target, capsys, tmp_path, monkeypatch):
    seen = []
    real = rewrite.optimize
    monkeypatch.setattr(rewrite, "optimize", lambda model, x, **wishes: seen.append(x) or real(model, x, **wishes))
    photo = tmp_path / "a.png"
    Image.new("RGB", (40, 30), "green").save(photo)
    assert main(["optimize", target, "--image", str(photo), "--repeats", "1"]) == 0
    assert seen[0].shape == (1, 3, 224, 224)
    assert seen[0].std(dim=(2, 3)).max() < 1e-3, "a photograph of one colour"


def test_a_saved_network_runs_in_another_process(module, capsys, tmp_path):
    path = tmp_path / "fast.pt"
    status, _, err = run(capsys, "optimize", f"{module}:Net", *SMALL, "--save", str(path))
    assert status == 0
    assert f"wrote {path}; read it with torch.load('{path}', weights_only=False)" in err
    code = (
        "import sys, torch\nfast = torch.load(sys.argv[1], weights_only=False)\nx = torch.randn(1, 3, 16, 16)\n"
        "with torch.inference_mode():\n    torch.testing.assert_close(fast(x), fast.model(x), rtol=1e-4, atol=1e-4)\n"
        "print(type(fast).__name__, len(fast.plan.steps))"
    )
    assert warm.run("-c", code, path) == "Optimized 1\n"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("train", [False, True])
def test_a_saved_network_of_torchvision_is_read_where_torchvision_fails_to_import(capsys, tmp_path, train):
    path = tmp_path / "fast.pt"
    words = ["--input-shape", "2,3,64,64", "--no-tune", "--repeats", "1", *["--train"] * train]
    status, _, err = run(capsys, "optimize", "torchvision:squeezenet1_1", *words, "--save", str(path))
    assert status == 0, err
    code = "import sys, torch\nprint(type(torch.load(sys.argv[1], weights_only=False).model).__name__)"
    assert warm.run("-c", code, path) == "SqueezeNet\n"
    code = f"import sys\nsys.modules['torchvision'] = None\n{code}"
    _, _, err = warm.Process("-c", code, path).finish()
    assert "GroupwiseError: the network has modules of torchvision, which is not installed" in err


def test_a_network_that_cannot_be_pickled(module, capsys, tmp_path):
    path = tmp_path / "fast.pt"
    path.write_text("kept")
    status, _, err = run(capsys, "optimize", f"{module}:Unnamed", *SMALL, "--save", str(path))
    assert status == 2
    assert "--save: the network cannot be pickled: " in err
    assert path.read_text() == "kept"
    assert not list(tmp_path.glob("*.partial"))


class Stepping(torch.nn.Module):
    """Stands in for a network that trains: the model itself, with the plan of another."""

    def __init__(self, model, plan):
        super().__init__()
        self.model, self.plan = model, plan

    def forward(self, x):
        return self.model(x)


def test_training(target, capsys, monkeypatch):
    """Until `optimize` takes `train`, with a stand-in for it."""
    asked, real = [], rewrite.optimize

    def stand_in(model, x, **wishes):
        asked.append((model.training, wishes))
        return Stepping(model, real(copy.deepcopy(model).eval(), x).plan)

    monkeypatch.setattr(rewrite, "optimize", stand_in)
    assert main(["optimize", target, *SMALL, "--train", "--no-tune"]) == 0
    text = capsys.readouterr().out
    assert asked == [(True, {"tune": False, "train": True})]
    assert "A training step of the optimized network takes" in text
    assert "the outputs agree" in text


@pytest.fixture
def report(target, capsys):
    def ask(*words):
        return run(capsys, "report", target, "--optimize", "--input-shape", "1,3,16,16", "--repeats", "2", *words)

    return ask


def test_a_report_before_and_after(report, tmp_path):
    status, text, _ = report("-o", str(tmp_path / "r.html"))
    assert status == 0
    title, first, *_ = text.split("\n\n")
    gain = " ".join(first.split())
    assert title.endswith("net.py:Net")
    assert gain.startswith("The optimized network takes ")
    assert " Outputs: largest difference " in gain
    assert max(map(len, first.split("\n"))) <= 80
    assert "batch norm + relu" in text
    assert text.index("batch norm + relu") < text.index("Each convolution as the model runs it")
    page = (tmp_path / "r.html").read_text("utf-8")
    for shown in ("Before and after: the model and its optimized network", "batch norm + relu", gain.split(":")[0]):
        assert shown in page


def test_a_report_before_and_after_as_json(report):
    facts = json.loads(report("--json")[1])["optimized"]
    assert [(layer["name"], layer["kind"]) for layer in facts["layers"]] == [("", ""), ("0", "convolution")]
    assert facts["layers"][1]["fused"] == ["batch norm", "relu"]
    assert facts["agrees"]


def test_check_is_of_the_optimized_network_too(report, monkeypatch):
    real = faster._error
    monkeypatch.setattr(faster, "_error", lambda made, exact, together: real(made, exact, together) + 1)
    assert report("--check")[0] == 0, "all are equally wrong"
    errors = iter([0.0, 0.0, 1.0, 1.0])
    monkeypatch.setattr(faster, "_error", lambda *_: next(errors))
    status, text, err = report("--check")
    assert status == 1
    assert "THE OUTPUTS DIFFER by more than rounding" in " ".join(text.split())
    assert "the optimized network changes the model's outputs" in err


def test_a_report_of_gradients_is_not_of_the_optimized_network(report):
    status, _, err = report("--backward")
    assert status == 2
    assert "--optimize compares inference; leave out --backward, or run optimize --train" in err
