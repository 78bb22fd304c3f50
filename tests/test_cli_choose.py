"""The commands sweep, choose and regroup, from a model to a file that another process reads."""

from __future__ import annotations

import json

import pytest
import torch

from groupwise import cli

TARGET = ["groupwise.examples.mnist:MnistNet", "--input-shape", "2,1,28,28"]
LAYER = "blocks.1.conv2"


def run(capsys, *words):
    status = cli.main(list(words))
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def test_from_a_sweep_to_a_saved_model(capsys, tmp_path):
    page, choice, saved = tmp_path / "sweep.html", tmp_path / "choice.json", tmp_path / "model.pt"
    sweep = ["--groups", "1,4", "--layer", LAYER, "--repeats", "1"]
    status, _, said = run(capsys, "sweep", *TARGET, *sweep, "-o", str(page))
    assert (status, f"wrote {page}" in said) == (0, True)
    assert LAYER in page.read_text()
    status, out, _ = run(capsys, "sweep", *TARGET, *sweep, "--format", "csv")
    assert status == 0
    assert [line.split(",")[:2] for line in out.splitlines()[1:]] == [[LAYER, "1"], [LAYER, "4"]]
    assert run(capsys, "choose", *TARGET, *sweep, "--parameters", "137000", "-o", str(choice))[0] == 0
    assert json.loads(choice.read_text())["layers"] == {LAYER: 4}
    # Inputs to fit the weights to.
    torch.save([torch.rand(8, 1, 28, 28), torch.rand(8, 1, 28, 28)], tmp_path / "data.pt")
    data = ["--data", str(tmp_path / "data.pt"), "--save", str(saved)]
    status, out, said = run(capsys, "regroup", TARGET[0], str(choice), *TARGET[1:], *data)
    assert status == 0
    assert LAYER in out
    assert "wrote" in said
    network = torch.load(saved, weights_only=False)
    assert network.get_submodule(LAYER).groups == 4
    assert network(torch.rand(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["choose", *TARGET], "give one budget"),
        (["choose", *TARGET, "--macs", "1", "--parameters", "1"], "give one budget"),
        (["choose", *TARGET, "--macs", "1", "--repeats", "1", "--layer", LAYER], "below the cheapest choice"),
        (["sweep", *TARGET, "--layer", "blocks.9.conv2"], "no such layer; did you mean"),
        (["sweep", *TARGET, "-o", "sweep.pdf"], "name a file that ends in one of"),
        (["sweep", *TARGET, "--data", "none.pt"], "--data none.pt cannot be read"),
        (["regroup", TARGET[0], "none.json"], "none.json cannot be read as a choice of groups: there is no such file"),
    ],
)
def test_what_cannot_be_is_one_sentence(capsys, words, said):
    status, _, err = run(capsys, *words)
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_data_of_another_kind_is_refused(capsys, tmp_path):
    torch.save({"inputs": 1}, tmp_path / "data.pt")
    status, _, err = run(capsys, "sweep", *TARGET, "--data", str(tmp_path / "data.pt"))
    assert status == 2
    assert "holds a dict" in err
