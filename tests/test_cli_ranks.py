"""`--ranks` of `explain` and of `report`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
import torch

from commands import run, write_net
from groupwise import explain
from groupwise.cli.targets import load_model
from groupwise.parallel import plan_split

LAYER = ["explain", "128", "128", "--groups", "32"]


@pytest.fixture
def net(tmp_path):
    path = write_net(tmp_path, "nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 5, 1)")
    return f"{path}:Net"


def test_explain(capsys, tmp_path):
    shown = explain(128, 128, groups=32, ranks=4)
    assert run(capsys, *LAYER, "--ranks", "4") == (0, f"{shown}\n", "")
    assert "rank 3  groups 24-31" in str(shown)
    assert run(capsys, *LAYER, "--ranks", "4", "--view", "ranks")[1] == shown.to_text("ranks") + "\n"
    facts = json.loads(run(capsys, *LAYER, "--ranks", "4", "-f", "json")[1])
    assert facts["ranks"] == [[0, 8], [8, 16], [16, 24], [24, 32]]
    for view, parts in (("ranks", 0), ("all", 4)):
        path = tmp_path / f"{view}.svg"
        assert run(capsys, *LAYER, "--ranks", "4", "--view", view, "-o", str(path)) == (0, "", "")
        assert path.read_text(encoding="utf-8") == shown.to_svg(view)
        assert len(ET.fromstring(shown.to_svg(view)).findall("{http://www.w3.org/2000/svg}svg")) == parts
    for suffix, begin in (("txt", b"conv2d"), ("html", b"<!doctype html>"), ("png", b"\x89PNG")):
        path = tmp_path / f"a.{suffix}"
        assert run(capsys, *LAYER, "--ranks", "4", "--view", "ranks", "-o", str(path)) == (0, "", "")
        assert path.read_bytes().startswith(begin)


def test_the_size_brings_bytes(capsys):
    out = run(capsys, *LAYER, "--ranks", "2", "--view", "ranks", "--size", "56")[1]
    assert "input's gradient is all-gathered backward (1.61 MB)" in " ".join(out.split())


def test_a_layer_of_a_model(capsys, net):
    arguments = ["explain", net, "--layer", "2", "--input-shape", "1,3,9,9", "--ranks", "2"]
    facts = json.loads(run(capsys, *arguments, "-f", "json")[1])
    assert (facts["name"], facts["ranks"]) == ("2", [[0, 2], [2, 4]])
    assert "\nRanks    GroupParallel" in run(capsys, *arguments)[1]


def test_report(capsys, tmp_path, net):
    page = tmp_path / "r.html"
    arguments = ["report", net, "--input-shape", "2,3,9,9", "--repeats", "1"]
    status, out, err = run(capsys, *arguments, "--ranks", "2", "-o", str(page))
    plan = plan_split(load_model(net), 2, input_shape=(2, 3, 9, 9))
    assert status == 0
    assert f"{plan}" in out
    assert f"wrote {page}" in err
    assert "<h2>Split over 2 ranks</h2>" in page.read_text(encoding="utf-8")
    facts = json.loads(run(capsys, *arguments, "--ranks", "2", "--json")[1])
    assert facts["split"] == plan.to_dict()
    assert "over 2 ranks" not in run(capsys, *arguments)[1]


def test_report_of_alexnet(capsys):
    status, out, _ = run(capsys, *"report alexnet --ranks 2 --repeats 1".split())
    with torch.device("meta"):
        plan = plan_split(load_model("alexnet"), 2, input_shape=(1, 3, 224, 224))
    assert status == 0
    assert str(plan) in out
    assert "4 collectives in a forward." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("explain 128 128 --groups 32 --ranks 0", "groupwise explain: ranks=0 is too small; ranks must be an integer"),
        ("explain 128 128 --groups 32 --ranks -1", "ranks=-1 is too small"),
        ("explain 128 128 --groups 32 --ranks 1.5", "argument --ranks: invalid int value: '1.5'"),
        ("explain 128 128 --groups 32 --view ranks", "view='ranks' needs the number of ranks: ranks=2, or --ranks 2"),
        ("explain 128 128 --groups 32 --view rank", "invalid choice: 'rank'"),
        ("report alexnet --ranks 0", "groupwise report: ranks=0 is too small; ranks must be an integer from 1 to"),
        ("report alexnet --ranks two", "argument --ranks: invalid int value: 'two'"),
        ("groups 8 8 --ranks 2", "groupwise groups: --ranks 2: no such option"),
    ],
)
def test_a_bad_request_ends_with_status_2_and_one_line(capsys, arguments, message):
    status, out, err = run(capsys, *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
