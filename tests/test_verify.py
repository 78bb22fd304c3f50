"""A wrong kernel is found, a right one is not accused: against plain numbers, and kernels that stand in."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import nn

import groupwise
from groupwise import plan, report
from groupwise.profile import timing
from groupwise.profile import verify as checking
from groupwise.profile.verify import check, kernels_of, relative_error
from groupwise.profile.workload import Workload
from kernels import needs_kernels, stand_in


@pytest.mark.parametrize(
    ("result", "reference", "error"),
    [
        ([1.0, -3.5], [1.0, -4.0], 0.125),
        ([0.5, 2.0], [0.25, 2.0], 0.125),
        ([0.25, 0.0], [0.0, 0.0], 0.25),
        ([], [], 0.0),
        ([math.nan, 1.0], [1.0, 1.0], sys.float_info.max),
        ([math.inf, 1.0], [0.001, 0.001], sys.float_info.max),
        ([math.nan, 1.5], [math.inf, 1.0], 0.5),
        ([1 + 1j], [1 + 0j], 1.0),
        ([2], [1], 1.0),
        ([1.0, 1.0], [1.0], sys.float_info.max),
    ],
)
def test_the_error_by_hand(result, reference, error):
    assert relative_error(torch.tensor(result), torch.tensor(reference)) == error


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=8),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


SOURCE = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def off_by(share, where):
    """A kernel with one value wrong, by a share of the largest."""

    def change(name, result):
        if name == where:
            result = result.clone()
            result.flatten()[-1] += share * result.abs().max()
        return result

    return change


@pytest.mark.parametrize("where", ["forward", "x", "w"])
@pytest.mark.parametrize("share", [0.5, 1e-2])
def test_one_wrong_value_is_found(monkeypatch, where, share):
    stand_in(monkeypatch, off_by(share, where))
    checked, agreement = check(Workload(net().train(), (SOURCE,), backward=True))
    # Nothing asks for the gradient of the image, so the first convolution has none to get wrong.
    wrong = checked[1:] if where == "x" else checked
    assert [one.max_error for one in wrong] == pytest.approx([share] * len(wrong), rel=0.01)
    assert not agreement.within_rounding
    assert (agreement.max_difference > 1e-4) == (where == "forward")


def test_right_kernels_are_not_accused(monkeypatch):
    """The gradient of a bias before a batch norm is nothing but rounding."""
    asked = stand_in(monkeypatch)
    checked, agreement = check(Workload(net().train(), (SOURCE,), backward=True))
    # The model runs without and with the kernels; the references in float64 are PyTorch's.
    assert asked[:2] == [False, True]
    assert not any(asked[2:])
    assert agreement == checking.Agreement(0.0, 1.0, True)
    assert all(0 < one.max_error < 1e-5 for one in checked)
    assert all(set(one.kernels.values()) == {"pytorch"} for one in checked)


def test_the_reference_is_right_where_pytorch_is_not(monkeypatch):
    """Of one sample in channels_last, PyTorch computes the gradient of a grouped weight wrongly in float64."""

    def right(name, result):
        # That of the same sample in a contiguous batch is right.
        return made[name].to(result) if name in made else result

    layer = nn.Conv2d(8, 8, 3, padding=1, groups=4).to(memory_format=torch.channels_last)
    source = torch.randn(6, 7, 8).permute(2, 0, 1).requires_grad_()
    wide = nn.Conv2d(8, 8, 3, padding=1, groups=4).double()
    wide.load_state_dict(layer.state_dict())
    batch = source.detach().double()[None].contiguous().requires_grad_()
    wide(batch).sum().backward()
    made = {"w": wide.weight.grad}
    stand_in(monkeypatch, right)
    (checked,), _ = check(Workload(layer.train(), (source,), backward=True))
    assert checked.max_error < 1e-5


def test_the_largest_class_that_changes(monkeypatch):
    def change(name, result):
        return -result if result.shape[1] == 8 and result.shape[2] == 20 else result

    stand_in(monkeypatch, change)
    _, agreement = check(Workload(net().eval(), (SOURCE,), backward=False))
    with torch.no_grad():
        right = net().eval()(SOURCE)
    # The last batch norm has nothing to add, so its output changes sign with its input.
    assert agreement.top1 == (right.argmax(1) == right.argmin(1)).double().mean()
    assert agreement.max_difference == pytest.approx(2)
    assert not agreement.within_rounding


def test_outputs_of_another_shape_do_not_agree(monkeypatch):
    stand_in(monkeypatch, lambda name, result: result[:, :1])
    _, agreement = check(Workload(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(2)), (SOURCE,), backward=False))
    assert (agreement.max_difference, agreement.within_rounding) == (sys.float_info.max, False)
    layer, turn = nn.Conv2d(3, 8, 3), iter(range(2))
    _, agreement = check(Workload(lambda x: [layer(x)] * (next(turn) + 1), (SOURCE,), backward=False))
    assert (agreement.max_difference, agreement.within_rounding) == (sys.float_info.max, False)


def test_outputs_in_containers_and_whole_numbers(monkeypatch):
    """Only floats are compared: a label may be another where two scores are as good as equal."""
    stand_in(monkeypatch, off_by(1e-2, "forward"))
    layer = nn.Conv2d(3, 8, 3)

    def model(x):
        return {"labels": layer(x).argmax(1), "scores": [layer(x)]}

    _, agreement = check(Workload(model, (SOURCE,), backward=False))
    assert agreement.max_difference == pytest.approx(1e-2, rel=0.01)
    assert agreement.top1 is None


@pytest.mark.parametrize(("dtype", "most"), [("float64", 1e-12), ("bfloat16", 1e-2)])
def test_other_dtypes_have_their_own_rounding(monkeypatch, dtype, most):
    stand_in(monkeypatch)
    kind = getattr(torch, dtype)
    checked, agreement = check(Workload(net().eval().to(kind), (SOURCE.to(kind),), backward=False))
    assert all(one.max_error < most for one in checked)
    assert agreement.within_rounding


def test_what_has_no_float64_has_no_error(monkeypatch):
    stand_in(monkeypatch)

    def refuse(tensor):
        raise RuntimeError("no such layout")

    monkeypatch.setattr(checking, "_wide", refuse)
    checked, agreement = check(Workload(net().eval(), (SOURCE,), backward=False))
    assert [one.max_error for one in checked] == [None] * 3
    assert agreement.within_rounding


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_kernels_are_those_of_the_plans(layout):
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ConvTranspose2d(16, 16, 3, padding=1, groups=16)
    )
    x = torch.randn(1, 16, 12, 12)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    x = x.contiguous(memory_format=formats[layout]).requires_grad_()
    checked, agreement = check(Workload(model.to(memory_format=formats[layout]), (x,), backward=True))
    for one, transposed in zip(checked, (False, True), strict=True):
        at = groupwise.ConvSpec(16, 16, 3, padding=1, groups=16, transposed=transposed)
        passes = ("forward", "grad_input", "grad_weight")
        planned = {name: plan(at, x.shape, memory_format=layout, direction=name).kernel for name in passes}
        assert dict(one.kernels) == planned
        assert set(planned.values()) != {"pytorch"}
        assert 0 < one.max_error < 1e-5
    assert agreement.within_rounding


@needs_kernels
def test_what_falls_back_is_pytorchs():
    layer = nn.Conv2d(8, 8, 3, groups=8).double()
    facts = report(layer, torch.randn(1, 8, 9, 9).double(), repeats=1).to_dict()
    assert facts["layers"][0]["kernels"] == {"forward": "pytorch"}
    assert facts["layers"][0]["roofline"] is None
    assert json.loads(json.dumps(facts)) == facts
    assert kernels_of([], ("forward",), False) == {"forward": "pytorch"}


@needs_kernels
def test_an_enabled_process_still_measures_pytorchs_own():
    layer, x = nn.Conv2d(8, 8, 3, groups=8), torch.randn(1, 8, 9, 9)
    with groupwise.enabled():
        with groupwise.record_plans() as plans:
            timed = timing.measure(Workload(layer, (x,)), 1, (False,), False)
        assert plans == []
        with groupwise.record_plans() as plans:
            timing.measure(Workload(layer, (x,)), 1, (True,), False)
        ran = {one.kernel for one in plans}
        row = report(layer, x, repeats=1).to_dict()["layers"][0]
    assert list(timed) == [False]
    assert {row["kernel"]} == ran != {"pytorch"}
