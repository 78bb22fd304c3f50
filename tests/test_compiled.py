"""Names of layers in compiled and otherwise wrapped models are those of the model itself, wherever one appears."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from commands import run as run_command
from groupwise import GroupwiseError, count, report
from groupwise.profile.record import run
from groupwise.profile.workload import Workload, plain_name

X = torch.randn(1, 3, 12, 12)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.Sigmoid())).eval()


def compile(module):
    return torch.compile(module, backend="eager")


def nested():
    model = plain()
    model[1][0] = compile(model[1][0])
    model[1] = compile(model[1])
    return compile(model)


def in_place():
    model = plain()
    model.compile(backend="eager")
    return model


WRAPPED = {
    "whole": lambda: compile(plain()),
    "nested": nested,
    "in place": in_place,
    "checkpointed": lambda: compile(nn.Sequential(checkpoint_wrapper(plain()[0]), plain()[1])),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_count_and_run(name, warm, backward):
    model = WRAPPED[name]()
    if warm:
        model(X)
    expected = count(plain(), X, backward=backward)
    for found in (count(model, X, backward=backward), run(Workload(model, (X,), backward=backward)).calls):
        assert [(call.name, call.parameter, call.spec, call.passes) for call in found] == [
            (call.name, call.parameter, call.spec, call.passes) for call in expected
        ]
        assert [call.name for call in found] == ["0", "1.0"]


@pytest.mark.parametrize("name", WRAPPED)
def test_the_report(name):
    made = report(WRAPPED[name](), X, repeats=1)
    facts = made.to_dict()
    assert [row["name"] for row in facts["layers"]] == ["0", "1.0"]
    assert facts["title"] == "Sequential"
    for shown in (json.dumps(facts), str(made), made.to_html(), made._repr_html_(), made.to_csv(), made.to_markdown()):
        assert "_orig_mod" not in shown
        assert "_checkpoint_wrapped_module" not in shown
    told = "PyTorch runs a compiled model uncompiled while groupwise records" in " ".join(str(made).split())
    assert told is facts["compiled"] is True
    assert report(plain(), X, repeats=1).to_dict()["compiled"] is False


def test_explain_a_layer(capsys, tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "inner = torch.compile(nn.Conv2d(8, 8, 3, groups=4), backend='eager')\n"
        "Net = torch.compile(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(inner)), backend='eager')\n"
    )
    arguments = ["explain", f"{path}:Net", "--input-shape", "1,3,9,9"]
    status, out, _ = run_command(capsys, *arguments, "--layer", "1.0", "-f", "json")
    assert (status, json.loads(out)["name"], json.loads(out)["groups"]) == (0, "1.0", 4)
    status, _, err = run_command(capsys, *arguments, "--layer", "none")
    assert (status, "_orig_mod" in err) == (2, False)
    assert "its convolutions: 0, 1.0" in err


def test_a_lazy_parameter():
    with pytest.raises(GroupwiseError, match=r"^0\.weight is a lazy parameter"):
        count(compile(nn.Sequential(nn.LazyConv2d(4, 3))), X)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_orig_mod.0._orig_mod.conv", "0.conv"),
        ("_orig_mod", ""),
        ("a_orig_mod.b", "a_orig_mod.b"),
        ("layer._fsdp_wrapped_module._checkpoint_wrapped_module.conv.weight", "layer.conv.weight"),
    ],
)
def test_names(name, shown):
    assert plain_name(name) == shown
