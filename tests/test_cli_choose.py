"""The commands sweep, choose and regroup, from a model to a file that another process reads."""

from __future__ import annotations

import json
import re

import pytest
import torch

from commands import run, write_net
from groupwise.choose.measure import run as measured
from groupwise.cli.output import deliver

TARGET = ["groupwise.examples.mnist:MnistNet", "--input-shape", "2,1,28,28"]
LAYER = "blocks.1.conv2"


def test_from_a_sweep_to_a_saved_model(capsys, tmp_path):
    page, choice, saved = tmp_path / "sweep.html", tmp_path / "choice.json", tmp_path / "model.pt"
    sweep = ["--groups", "1,4", "--layer", LAYER, "--repeats", "1"]
    status, _, said = run(capsys, "sweep", *TARGET, *sweep, "-o", str(page))
    assert (status, f"wrote {page}" in said) == (0, True)
    assert LAYER in page.read_text()
    status, out, _ = run(capsys, "sweep", *TARGET, *sweep, "--format", "csv")
    assert status == 0
    assert [line.split(",")[:2] for line in out.splitlines()[1:]] == [[LAYER, "1"], [LAYER, "4"]]
    status, _, said = run(capsys, "choose", *TARGET, *sweep, "--parameters", "137000", "-o", str(choice))
    assert (status, "1 layer changes: " in said) == (0, True)
    assert json.loads(choice.read_text())["layers"] == {LAYER: 4}
    for kind, said in (("csv", f"layer,groups,gather\n{LAYER},4,False\n"), ("markdown", f"| {LAYER} | 4 | False |\n")):
        status, out, _ = run(capsys, "choose", *TARGET, *sweep, "--parameters", "137000", "--format", kind)
        assert (status, out.endswith(said)) == (0, True)
    # Inputs to fit the weights to.
    torch.save([torch.rand(8, 1, 28, 28), torch.rand(8, 1, 28, 28)], tmp_path / "data.pt")
    data = ["--data", str(tmp_path / "data.pt"), "--save", str(saved)]
    status, out, said = run(capsys, "regroup", TARGET[0], str(choice), *TARGET[1:], *data)
    assert status == 0
    assert LAYER in out
    assert "wrote" in said
    assert "a list of two tensors, which are two batches of inputs; one pair is a tuple: (inputs, targets)" in said
    network = torch.load(saved, weights_only=False)
    assert network.get_submodule(LAYER).groups == 4
    assert network(torch.rand(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["choose", *TARGET], "give one budget"),
        (["choose", *TARGET, "--macs", "1", "--parameters", "1"], "give one budget"),
        (
            ["choose", *TARGET, "--macs", "1k", "--layer", LAYER],
            "1,000 MACs (1.00 k) is below the cheapest choice",
        ),
        (["choose", *TARGET, "--parameters", "1", "--layer", LAYER], "a budget of 1 parameters is below the cheapest"),
        (["choose", *TARGET, "--macs", "3x"], "--macs: '3x' is not a number above 0, such as 2500000, 3M or 2.5G"),
        (["choose", *TARGET, "--budget-ms", "3M"], "'3M' is not a time above 0 in milliseconds"),
        (["sweep", *TARGET, "--weights", "none.pt"], "--weights none.pt cannot be read: there is no such file"),
        (["sweep", *TARGET, "--layer", "blocks.9.conv2"], "no such layer; did you mean"),
        (["sweep", *TARGET, "-o", "sweep.pdf"], "name a file that ends in one of"),
        (["sweep", *TARGET, "--data", "none.pt"], "--data none.pt cannot be read"),
        (
            ["regroup", TARGET[0], "none.json"],
            "none.json cannot be read as a choice of groups: there is no such file; groupwise choose MODEL -o FILE",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, monkeypatch, words, said):
    """Before anything is timed."""
    monkeypatch.setattr(measured, "layer_times", lambda *_: pytest.fail("it measured"))
    status, _, err = run(capsys, *words)
    assert status == 2
    assert said in err
    assert "Traceback" not in err


X = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"inputs": 1}, "batch 0 of data has inputs without a tensor; give a tensor"),
        (3, "holds a int; save by torch.save: a tensor of inputs, a dict of keyword inputs, a pair"),
        ([], "holds a list; save by torch.save"),
        ((X, X, X), "holds a tuple; save by torch.save"),
        (
            {"input": X, "target": torch.zeros(4)},
            r"does not take data of shapes input: \(4, 1, 28, 28\), target: \(4,\): .*; its forward is "
            r"MnistNet\(x.*give its targets beside it, as in \({'x': inputs}, targets\)",
        ),
        ({f"layer{n}.weight": X for n in range(9)}, r"layer5.weight: \(4, 1, 28, 28\) and 3 more: "),
        ({"x": X.expand(-1, 3, -1, -1)}, r"does not take data of shapes x: \(4, 3, 28, 28\)"),
    ],
)
def test_data_that_the_model_does_not_take_is_one_sentence_with_the_fix(capsys, tmp_path, monkeypatch, data, said):
    monkeypatch.setattr(measured, "layer_times", lambda *_: pytest.fail("it measured"))
    file, choice = tmp_path / "data.pt", tmp_path / "choice.json"
    torch.save(data, file)
    choice.write_text(json.dumps({"layers": {LAYER: 4}}))
    budget = ["--parameters", "100k"]
    for words in (["sweep", *TARGET], ["choose", *TARGET, *budget], ["regroup", TARGET[0], str(choice), *TARGET[1:]]):
        status, _, err = run(capsys, *words, "--data", str(file))
        assert status == 2
        assert re.search(said, " ".join(err.split()))
        assert "Traceback" not in err


def test_dicts_are_keyword_inputs_as_data_loaders_yield_them(capsys, tmp_path):
    file, choice = tmp_path / "data.pt", tmp_path / "choice.json"
    choice.write_text(json.dumps({"layers": {LAYER: 4}}))
    words, tables = ["regroup", TARGET[0], str(choice), *TARGET[1:], "--format", "json", "--data", str(file)], []
    labels = torch.arange(4)
    for data in (X, (X,), (X, labels), [[X, labels]], {"x": X}, ({"x": X}, labels), [{"x": X}], [({"x": X}, labels)]):
        torch.save(data, file)
        # Random weights: one seed, one model.
        torch.manual_seed(0)
        status, out, said = run(capsys, *words)
        assert (status, "a list of two" in said) == (0, False)
        tables.append(json.loads(out))
    assert all(table == tables[0] for table in tables)
    sweep = ["sweep", *TARGET, "--groups", "1,4", "--layer", LAYER, "--repeats", "1", "--format", "json"]
    status, out, _ = run(capsys, *sweep, "--data", str(file))
    assert (status, json.loads(out)["risk"]) == (0, "loss rise")


def test_weights_of_a_file(capsys, tmp_path):
    """The weight connects no two groups, so that it is converted exactly. A random one would not be."""
    net, choice, file = write_net(tmp_path, "nn.Conv2d(4, 4, 1)"), tmp_path / "choice.json", tmp_path / "weights.pt"
    choice.write_text('{"layers": {"0": 2}}')
    weight = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[..., None, None]
    torch.save({"0.weight": weight, "0.bias": torch.arange(4.0)}, file)
    words = ["regroup", f"{net}:Net", str(choice), "--input-shape", "1,4,3,3"]
    status, out, said = run(capsys, *words, "--weights", str(file))
    assert (status, "1 converted exactly" in out, "random" in said) == (0, True, False)
    assert "train it before" not in out
    status, out, _ = run(capsys, *words, "--gather")
    assert (status, "0 converted exactly" in out) == (0, True)
    assert "the network a part of its accuracy: train it before you use it" in " ".join(out.split())
    torch.save({"1.weight": weight}, file)
    status, _, said = run(capsys, *words, "--weights", str(file))
    assert (status, f"--weights {file} does not fit the model: " in said) == (2, True)
    assert "save them with: torch.save(model.state_dict(), FILE)" in said
    file.write_text("no weights")
    status, _, said = run(capsys, *words, "--weights", str(file))
    assert (status, f"--weights {file} cannot be read: " in said, len(said.splitlines())) == (2, True, 2)


def test_no_file_of_the_command_is_written_over(capsys, tmp_path):
    net, choice, file = write_net(tmp_path, "nn.Conv2d(4, 4, 1)"), tmp_path / "choice.json", tmp_path / "tensors.json"
    choice.write_text('{"layers": {"0": 2}}')
    file.write_bytes(b"of the user")
    words = ["regroup", f"{net}:Net", str(choice), "--input-shape", "1,4,3,3"]
    for option in ("weights", "data"):
        for written in ("save", "output"):
            status, _, said = run(capsys, *words, f"--{option}", str(file), f"--{written}", str(file))
            assert (status, f"--{written} and --{option} name one file, {file}" in said) == (2, True)
    status, _, said = run(capsys, *words, "--output", str(choice))
    assert (status, "--output and CHOICE name one file" in said) == (2, True)
    for name in ("sweep", "choose"):
        budget = ["--macs", "1M"] * (name == "choose")
        given = [name, f"{net}:Net", "--input-shape", "1,4,3,3", *budget, "--data", str(file), "-o", str(file)]
        assert run(capsys, *given)[0] == 2
    assert file.read_bytes() == b"of the user"
    assert json.loads(choice.read_text()) == {"layers": {"0": 2}}


def test_random_weights_are_told_of(capsys, tmp_path):
    choice = tmp_path / "choice.json"
    choice.write_text('{"layers": {"nothing": 2}}')
    status, _, said = run(capsys, "regroup", "alexnet", str(choice))
    assert status == 2
    assert "the weights of alexnet are random, so what a layer keeps or loses is not that of a trained network" in said
    assert "give --weights FILE, its state_dict" in said


def test_a_model_without_convolutions(capsys, tmp_path):
    net = write_net(tmp_path, "nn.Flatten(), nn.Linear(12, 2)")
    for command in (["sweep"], ["choose", "--macs", "1M"]):
        status, out, said = run(capsys, command[0], f"{net}:Net", "--input-shape", "1,3,2,2", *command[1:])
        assert (status, out) == (2, "")
        assert "Net runs no convolution, so it has no groups to choose" in said


@pytest.mark.parametrize("where", [(), ("facts",)])
def test_a_file_of_times_of_a_busy_machine_is_not_written_in_silence(where, capsys, tmp_path):
    class Made:
        def __init__(self, busy):
            self.facts = {"interference": {"busy": busy, "fraction": 0.65}}

        def to_dict(self):
            return dict.fromkeys(where, self.facts) or self.facts

    for busy in (True, False):
        deliver(Made(busy), "json", str(tmp_path / "made.json"))
        assert ("other processes took 65 %" in capsys.readouterr().err) == busy
