"""What `optimize` leaves as it is, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from optimized import Refusing, check, layers, network, settle, source


def test_children_of_a_model_that_export_refuses_are_optimized():
    model = settle(Refusing(network(), nn.Conv2d(8, 8, 1), nn.ReLU()))
    fast = check(model, source())
    assert "depends on" in fast.plan.left[0].reason or "torch.export refuses it" in fast.plan.left[0].reason
    assert ("convolution", ("batch norm", "relu")) in layers(fast)
    assert fast.plan.steps[0].name.startswith("blocks.0.0")
    check(model, source(3), fast=fast)
    with torch.no_grad():
        model.blocks[0][0][0].weight.mul_(2)
    check(model, source(), fast=fast)


class Writes(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.conv, self.where = nn.Conv2d(8, 8, 1), where
        self.register_buffer("seen", torch.zeros(8, 1, 1))

    def forward(self, x):
        if self.where == "input":
            x = x.mul_(2)
        if self.where == "buffer":
            self.seen.add_(1)
        made = self.conv(x)
        if self.where == "view":
            made[:, :2].mul_(3)
        if self.where == "old":
            first = made.view(made.shape)
            made.mul_(2)
            return first + made
        return made + self.seen


@pytest.mark.parametrize("where", ["input", "buffer", "view", "old"])
def test_what_writes_by_another_name_stays(where):
    model, x = Writes(where).eval(), source()
    fast = groupwise.optimize(nn.Sequential(model, nn.Conv2d(8, 8, 1)).eval(), x.clone())
    reasons = " ".join(left.reason for left in fast.plan.left)
    assert "writes to" in reasons
    model.seen.zero_()
    twin = copy.deepcopy(fast.model)
    with torch.no_grad():
        for _ in range(2):
            ours, theirs = x.clone(), x.clone()
            torch.testing.assert_close(fast(ours), twin(theirs))
            assert torch.equal(ours, theirs)


def test_children_with_hooks_parametrizations_or_in_training_stay():
    model = settle(nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)), nn.Dropout(0.0), nn.Conv2d(8, 8, 1)))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    torch.nn.utils.parametrizations.weight_norm(model[1])
    model[3].train()
    fast = groupwise.optimize(model, source())
    reasons = {left.name: left.reason for left in fast.plan.left}
    assert reasons["0"] == "it has forward hooks"
    assert reasons["1"] == "it is parametrized"
    assert reasons["3"] == "it is in training mode"
    assert len(layers(fast)) == 2
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(fast(source()), model(source()), rtol=9, atol=9)
    assert len(seen) == 2


def test_autocast_and_functions_run_the_model_itself():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        with torch.autocast("cpu"):
            assert fast(x).dtype == model(x).dtype
        torch.testing.assert_close(torch.func.vmap(fast)(x[None])[0], model(x))


def test_an_output_is_the_callers_own():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return {"x": x + 1, "table": self.table.view(2, 2), "number": 3}

    model = Keeps().eval()
    fast = groupwise.optimize(model, source())
    with torch.no_grad():
        fast(source())["table"].zero_()
        again = fast(source())
    assert torch.equal(again["table"], torch.ones(2, 2))
    assert again["number"] == 3


def test_arguments_by_name_and_values():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x, scale=1.0, other=None):
            made = self.conv(x) * scale
            return made if other is None else made + other["y"]

    model, x, y = Takes().eval(), source(), source()
    fast = groupwise.optimize(model, x, kwargs={"scale": 2.0, "other": {"y": y}})
    with torch.no_grad():
        for scale in (2.0, 3.0):
            torch.testing.assert_close(fast(x, scale=scale, other={"y": y}), model(x, scale, {"y": y}))
        torch.testing.assert_close(fast(x), model(x))


# Refusals

REFUSED = {
    "int is not a model": lambda: groupwise.optimize(3, source()),
    "example input is missing": lambda: groupwise.optimize(network()),
    r"training mode.*model\.eval\(\)": lambda: groupwise.optimize(network().train(), source()),
    "tune=1 is not known": lambda: groupwise.optimize(network(), source(), tune=1),
    "optimized already": lambda: groupwise.optimize(groupwise.optimize(network(), source()), source()),
    r"on meta.*model\.cpu\(\)": lambda: groupwise.optimize(network().to("meta"), source()),
    "an input is on meta": lambda: groupwise.optimize(network(), source().to("meta")),
    "lazy parameter": lambda: groupwise.optimize(nn.LazyConv2d(8, 3).eval(), source()),
    "inference_mode.*make the model outside": lambda: groupwise.optimize(made_in_inference_mode(), source()),
    "has forward hooks": lambda: groupwise.optimize(hooked(), source()),
    "train the model itself: its parameters": lambda: groupwise.optimize(network(), source()).train(),
    r"float16.*change the model": lambda: groupwise.optimize(network(), source()).half(),
    r"requires a gradient.*torch\.inference_mode\(\)": lambda: groupwise.optimize(network(), source())(source()),
    "no plan yet": lambda: region_without_plan().plan,
}


def made_in_inference_mode():
    with torch.inference_mode():
        return network()


def hooked():
    model = network()
    model.register_forward_pre_hook(lambda *_: None)
    return model


def region_without_plan():
    fast = groupwise.optimize(network(), source())
    vars(fast)["_plan"] = None
    return fast


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(GroupwiseError, match=message):
        REFUSED[message]()


def test_what_changes_nothing_is_allowed():
    fast = groupwise.optimize(network(), source())
    assert fast.eval() is fast.train(False) is fast.to("cpu", torch.float32) is fast
    assert "Sequential on 2×8×10×10" in repr(fast)
    assert set(fast.plan.to_dict()) == {
        *("title", "steps", "left", "input_shapes", "threads", "seconds", "interpreted", "inputs", "widened")
    }
