"""Calls of `optimize` and of its networks: wrong inputs, plans of each kind, copies, export, replaced submodules."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from groupwise.errors import RefusedExample
from groupwise.rewrite import region
from groupwise.rewrite.structure import Structure
from optimized import Refusing, check, network, settle, source

# Wrong inputs


def wrong(call):
    """The error of a wrong call."""
    with torch.no_grad(), pytest.raises((RuntimeError, TypeError, IndexError)) as found:
        call()
    assert found.value.__context__ is None
    return str(found.value)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("given", [torch.randn(2, 5, 10, 10), torch.randn(2, 8, 10, 10).double(), None])
def test_a_wrong_call_gives_the_models_error_and_teaches_nothing(whole, given):
    model = network() if whole else settle(Refusing(network(), nn.Conv2d(8, 8, 1)))
    fast = groupwise.optimize(model, source())
    before, made = fast.plan, [id(child) for child in vars(fast)["_region"].children]
    for _ in range(2):
        assert wrong(lambda: fast(given)) == wrong(lambda: model(given))
    assert fast.plan == before
    assert len(fast.plans) == 1
    assert [id(child) for child in vars(fast)["_region"].children] == made
    check(model, source(3), fast=fast)
    assert fast.plan.left == before.left
    check(model, source(), fast=fast)


def test_a_wrong_call_of_a_child_teaches_nothing():
    """The model itself runs, and the child in it fails on some of its inputs."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, count):
            if x.sum() > 1e30:
                return x
            return self.net(x[:, :count])

    model = Halves().eval()
    fast = groupwise.optimize(model, source(), 8)
    before = fast.plan.left
    assert wrong(lambda: fast(source(), 7)) == wrong(lambda: model(source(), 7))
    with torch.no_grad():
        fast(source(3), 8)
    assert fast.plan.left == before
    assert [left.name for left in before] == [""]


REFUSED = {
    r"model\(None\) fails with TypeError.*optimize\(model, x\)": lambda: groupwise.optimize(network(), None),
    r"model\(a tuple\) fails.*one by one.*optimize\(model, x\)": lambda: groupwise.optimize(network(), (source(),)),
    r"model\(a list\) fails.*one by one": lambda: groupwise.optimize(network(), [source()]),
    r"of that shape: x = torch.randn\(1, 3, 16, 16\); groupwise.optimize\(model, x\)$": lambda: groupwise.optimize(
        network(), (1, 3, 16, 16)
    ),
    r"float64 tensor.* the model computes float32: give x.to\(torch.float32\)$": lambda: groupwise.optimize(
        network(), source().double()
    ),
    r"float32 tensor of 2×5×10×10\) fails with RuntimeError.* with which you call the model": lambda: (
        groupwise.optimize(network(), torch.randn(2, 5, 10, 10))
    ),
    r'x is no argument.*kwargs=\{"x": x\}': lambda: groupwise.optimize(network(), x=source()),
    r"did you mean recompute\? For the model": lambda: groupwise.optimize(network(), source(), recompte=True),
    r"example, train=True\)$": lambda: groupwise.optimize(network(), train=True),
    r"0×3×8×8 is empty.* give one of the size": lambda: groupwise.optimize(network(), torch.zeros(0, 3, 8, 8)),
    "no plan for these inputs": lambda: groupwise.optimize(network(), source()).plan_of({1, 2}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(GroupwiseError, match=message):
        REFUSED[message]()


def test_one_of_several_inputs_may_be_empty():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x, cache):
            return torch.cat([cache, self.conv(x)])

    model, x, cache = Cached().eval(), torch.randn(2, 3, 5, 5), torch.empty(0, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(groupwise.optimize(model, x, cache)(x, cache), model(x, cache))


def test_the_whole_reason_is_shown():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError("a reason\n  of several lines, " + "which is long, " * 30 + "and ends.")

    with pytest.raises(RefusedExample, match=r"ValueError: a reason of several lines, .* and ends; it must") as found:
        groupwise.optimize(Fails().eval(), source())
    assert "\n" not in str(found.value)


def test_an_argument_that_cannot_be_planned_has_a_reason():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, options):
            return self.net(x) * len(options)

    model = Takes().eval()
    fast = groupwise.optimize(model, source(), {1, 2})
    assert [(left.name, left.reason) for left in fast.plan.left] == [
        ("", "its arguments are more than tensors and plain values: set")
    ]
    with torch.no_grad():
        torch.testing.assert_close(fast(source().zero_(), {1, 2}), model(source().zero_(), {1, 2}))


def test_a_branch_that_depends_on_values_prints_nothing(capfd):
    groupwise.optimize(settle(Refusing(nn.Conv2d(8, 8, 1))), source())
    assert capfd.readouterr() == ("", "")


# Plans


def test_a_plan_says_for_which_inputs_it_is():
    model = network()
    fast = groupwise.optimize(model, source())
    first = fast.plan
    assert first.inputs == ("2×8×10×10 float32",)
    assert "Sequential on 2×8×10×10 float32, " in str(first)
    second = fast.plan_of(source(3))
    assert second.input_shapes == ((3, 8, 10, 10),)
    assert fast.plan is second
    assert fast.plan_of(source()) is first
    assert fast.plans == (first, second)
    assert fast.plan is second, "nothing was planned since"
    fast.repack()
    assert fast.plans == ()


def test_plans_are_bounded_and_have_their_own_reasons():
    fast = groupwise.optimize(settle(Refusing(network())), source())
    reasons = fast.plan.left
    with torch.no_grad():
        for batch in range(1, region.MOST_PROGRAMS + 3):
            fast(source(batch))
    assert len(fast.plans) == region.MOST_PROGRAMS
    assert all(plan.left == reasons and plan.steps for plan in fast.plans)


def test_plans_with_values():
    class Takes(nn.Module):
        def forward(self, x, scale=1.0):
            return x * scale

    fast = groupwise.optimize(Takes().eval(), source(), kwargs={"scale": 2.0})
    assert fast.plan.inputs == ("2×8×10×10 float32", "2.0")
    assert fast.plan_of(source(), kwargs={"scale": 3.0}).inputs[1] == "3.0"


# Copies


@pytest.mark.parametrize("again", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_copies_that_are_made_in_inference_mode(again):
    model = network()
    fast = groupwise.optimize(model, source())
    with torch.inference_mode():
        twin = again(fast)
    check(twin.model, source(), fast=twin)
    with torch.no_grad():
        before = twin(torch.ones(2, 8, 10, 10))
        next(twin.parameters()).mul_(2)
        assert not torch.equal(twin(torch.ones(2, 8, 10, 10)), before)
    assert not any(tensor.is_inference() for tensor in (*twin.parameters(), *twin.buffers()))
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]


# What traces a network sees the model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_and_trace_see_the_model():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        for strict in (True, False):
            program = torch.export.export(fast, (x,), strict=strict)
            torch.testing.assert_close(program.module()(x), model(x))
            assert set(program.state_dict) == set(model.state_dict())
        traced = torch.jit.trace(fast, x)
        torch.testing.assert_close(traced(x), model(x))
    assert list(traced.state_dict()) == list(model.state_dict())
    file = io.BytesIO()
    torch.jit.save(traced, file)


def test_the_network_has_the_models_submodules():
    model = network()
    fast = groupwise.optimize(model, source())
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in model.named_modules()]
    assert fast.get_parameter("0.0.weight") is model[0][0].weight


# Replaced submodules


@pytest.mark.parametrize("place", ["model", "copy", "network"])
@pytest.mark.parametrize("deep", [True, False])
def test_a_replaced_submodule_is_noticed(place, deep):
    model = network()
    fast = groupwise.optimize(model, source())
    holder = {"model": model, "copy": fast.model, "network": fast}[place]
    if deep:
        holder.get_submodule("1").block = nn.Conv2d(8, 8, 3, padding=1)
    else:
        setattr(holder, "1", nn.Conv2d(8, 8, 3, padding=1))
    wanted = model if place == "model" else fast.model
    check(wanted, source(), fast=fast)
    assert list(fast.state_dict()) == list(wanted.state_dict())
    with torch.no_grad():
        first = fast(torch.ones(2, 8, 10, 10))
        next(wanted.get_submodule("1").parameters()).mul_(3)
        assert not torch.equal(fast(torch.ones(2, 8, 10, 10)), first)
    check(wanted, source(), fast=fast)


def test_submodules_that_are_added_or_removed_are_noticed():
    model = network()
    fast = groupwise.optimize(model, source())
    model.append(nn.ReLU())
    check(model, source(), fast=fast)
    del model[1]
    check(model, source(), fast=fast)


def test_a_submodule_of_one_that_had_none_is_noticed():
    model = network()
    structure = Structure(model)
    assert structure.holds()
    model[0][0].more = nn.ReLU()
    assert not structure.holds()
    del model[0][0].more
    assert structure.holds()


def test_a_module_in_training_mode_that_replaces_another_runs_as_in_eval():
    """A network is for inference, whatever the mode of the model became."""
    model = network()
    fast = groupwise.optimize(model, source())
    model.train()
    model[0][1] = nn.BatchNorm2d(8)
    x = source()
    with torch.no_grad():
        made = fast(x)
        torch.testing.assert_close(made, model.eval()(x))


def test_networks_that_plan_at_once_in_threads():
    models = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval() for _ in range(4)]
    fast = [groupwise.optimize(model, torch.randn(1, 3, 8, 8), tune=False) for model in models]
    barrier, stream = threading.Barrier(4), sys.stderr
    inputs = [torch.randn(1, 3, 9 + number, 9) for number in range(4)]

    @torch.inference_mode()
    def run(number):
        barrier.wait()
        return fast[number](inputs[number])

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(run, range(4)))
    with torch.inference_mode():
        assert all(torch.allclose(a, m(x), atol=1e-5) for a, m, x in zip(made, models, inputs, strict=True))
    assert sys.stderr is stream
    assert all(not network.plan.left for network in fast)


# Parameters that come and go


class Bare(nn.Module):
    """Layers and a parameter of its own, some of them None."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(10, 10)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.register_parameter("scale", None)

    def forward(self, x):
        made = self.linear(self.norm(self.conv(x)))
        return made if self.scale is None else made * self.scale


SET = {
    "conv.bias": lambda: nn.Parameter(torch.randn(8)),
    "norm.weight": lambda: nn.Parameter(torch.randn(8)),
    "scale": lambda: nn.Parameter(torch.randn(1)),
    "linear.bias": lambda: None,
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", SET)
def test_a_parameter_that_is_set_or_removed_is_noticed(name, whole):
    model = settle(Bare() if whole else Refusing(Bare()))
    fast = groupwise.optimize(model, source())
    path, _, key = name.rpartition(".")
    owner = (model if whole else model.blocks[0]).get_submodule(path)
    before = getattr(owner, key)
    setattr(owner, key, SET[name]())
    check(model, source(), fast=fast)
    setattr(owner, key, before)
    check(model, source(), fast=fast)
