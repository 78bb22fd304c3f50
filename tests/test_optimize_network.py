"""An optimized network as a module: parameters that change, shapes, threads, copies, hooks, engines."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import groupwise
from groupwise.rewrite import choose, engines, low_engines, region
from groupwise.rewrite.recipe import Operation, Recipe
from kernels import needs_kernels
from optimized import Refusing, check, network, settle, source

CHANGES = {
    "in place": lambda model: model[0][0].weight.mul_(2),
    "data": lambda model: setattr(model[0][0].weight, "data", torch.randn(8, 2, 3, 3)),
    "replaced": lambda model: setattr(model[0][0], "weight", nn.Parameter(torch.randn(8, 2, 3, 3))),
    "turned": lambda model: setattr(model[0][0], "weight", turned(model[0][0].weight)),
    "statistics": lambda model: model[0][1].running_mean.add_(1),
    "loaded": lambda model: model.load_state_dict(network().state_dict()),
    "assigned": lambda model: model.load_state_dict(network().state_dict(), assign=True),
    "dtype": lambda model: model.double(),
}


def turned(weight):
    """Another parameter in the same memory, of the same age."""
    made = nn.Parameter(weight.data.transpose(2, 3))
    while made._version < weight._version:
        made.mul_(1)
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_is_packed_again(change):
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        before = fast(x)
        CHANGES[change](model)
        if change == "dtype":
            x = x.double()
        torch.testing.assert_close(fast(x), model(x))
        assert not torch.equal(fast(x).float(), before) or change == "dtype"


def test_a_model_that_became_another_dtype_refuses_the_inputs_it_had():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    model.double()
    for either in (model, fast):
        with torch.no_grad(), pytest.raises(RuntimeError, match="should be the same"):
            either(x)


def test_a_change_that_nobody_counts_needs_repack():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        model[0][0].weight.data.mul_(2)
        fast.repack()
        torch.testing.assert_close(fast(x), model(x))


def test_names_and_values_are_the_models():
    model = network()
    fast = groupwise.optimize(model, source())
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))
    assert [n for n, _ in fast.named_buffers()] == [n for n, _ in model.named_buffers()]
    other = network()
    fast.load_state_dict(other.state_dict())
    check(other, source(), fast=fast)
    assert model.training is False


def test_another_shape_is_planned_when_it_comes_and_programs_are_bounded():
    model = network()
    fast = groupwise.optimize(model, source())
    for batch in (1, *range(3, region.MOST_PROGRAMS + 4), 1):
        check(model, source(batch), fast=fast)
        assert fast.plan.input_shapes == ((batch, 8, 10, 10),)
    assert len(vars(fast)["_region"].programs()) == region.MOST_PROGRAMS
    check(model, torch.randn(0, 8, 10, 10), fast=fast)
    check(model, source()[:, :, ::2, 1:], fast=fast)


def test_the_number_of_threads_makes_a_plan_of_its_own():
    model, before = network(), torch.get_num_threads()
    fast = groupwise.optimize(model, source())
    try:
        torch.set_num_threads(1)
        check(model, source(), fast=fast)
        assert fast.plan.threads == 1
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_call_at_once():
    model = network()
    fast = groupwise.optimize(model, source())
    inputs = [source(1 + number % 3) for number in range(8)]
    with torch.no_grad():
        wanted = [model(x) for x in inputs]
    wrong: list[object] = []

    def work(x, want):
        try:
            with torch.no_grad():
                for _ in range(20):
                    torch.testing.assert_close(fast(x), want)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, wanted, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def saved(fast):
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast)), saved])
@pytest.mark.parametrize("whole", [True, False])
def test_copies_have_parameters_of_their_own(again, whole):
    model = network() if whole else settle(Refusing(network(), nn.Conv2d(8, 8, 1)))
    fast = groupwise.optimize(model, source())
    twin = again(fast)
    assert twin.plan == fast.plan
    with torch.no_grad():
        before = twin(source())
        next(iter(model.parameters())).mul_(3)
        torch.manual_seed(0)
        x = source()
        assert not torch.equal(fast(x), twin(x))
    assert before.shape == (2, 8, 10, 10)
    check(twin.model, source(), fast=twin)
    check(model, source(), fast=fast)


def test_hooks_of_the_network_run():
    fast, seen = groupwise.optimize(network(), source()), []
    fast.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        fast(source())
    assert seen == [(2, 8, 10, 10)]


@needs_kernels
@pytest.mark.parametrize("first", ["onednn", "groupwise", "pytorch"])
@pytest.mark.parametrize("enabled", [False, True])
def test_the_plan_is_what_ran(enabled, first, monkeypatch):
    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(choose, "UNMEASURED", (first, *choose.UNMEASURED))
    fast = groupwise.optimize(network(), source())
    if enabled:
        groupwise.enable(tune=False)
    try:
        with torch.inference_mode(), groupwise.record_plans() as plans, Count() as count:
            fast(source())
    finally:
        groupwise.disable()
    # Squeeze and excitation is one step, and no layer any more.
    assert fast.plan.engines == {first: 2} or engines.onednn_problem()
    ran = {
        "onednn": sum("mkldnn._convolution_pointwise" in name for name in count.names),
        "groupwise": len([plan for plan in plans if plan.kernel != "pytorch"]),
    }
    assert {name: fast.plan.engines.get(name, 0) for name in ran} == ran
    assert not any("batch_norm" in name for name in count.names)


def test_engines_are_measured_and_wrong_ones_are_not_chosen(monkeypatch):
    model = nn.Sequential(nn.Conv2d(8, 8, 1)).eval()
    fast = groupwise.optimize(model, source(), tune=True)
    (step,) = [step for step in fast.plan.steps if step.kind == "convolution"]
    assert set(step.ms) >= {"matmul", "pytorch"}
    assert step.engine in step.ms
    zeros = Recipe(1, Operation(torch.ops.aten.zeros_like.default, (engines.SOURCE,)))
    wrong = engines.Engine("wrong", lambda work: None, lambda *_: zeros)
    monkeypatch.setattr(low_engines, "CONVOLUTION", (wrong, *engines.CONVOLUTION))
    fast = groupwise.optimize(model, source(), tune=True)
    (step,) = [step for step in fast.plan.steps if step.kind == "convolution"]
    assert step.refused["wrong"] == "its values are wrong"
    check(model, source(), fast=fast)


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ({"onednn": [2.0, 2.0], "groupwise": [1.0, 1.1], "pytorch": [0.99, 1.1]}, "groupwise"),
        ({"onednn": [2.0, 2.0], "pytorch": [1.99, 1.99]}, "onednn"),
        # One short round proves little.
        ({"onednn": [2.0, 2.0, 2.1], "pytorch": [1.5, 2.6, 2.7]}, "onednn"),
        ({"onednn": [2.0], "groupwise": [1.5], "pytorch": [1.0]}, "pytorch"),
    ],
)
def test_the_fastest_engine_by_a_margin(seconds, fastest):
    assert choose.fastest(seconds) == fastest


def test_nothing_is_measured_where_runs_must_repeat(monkeypatch):
    monkeypatch.setattr(choose, "time_calls", lambda *_: pytest.fail("measured"))
    torch.use_deterministic_algorithms(True)
    try:
        check(network(), source(), tune=True)
    finally:
        torch.use_deterministic_algorithms(False)
    check(network(), source(), tune=False)


def test_without_onednn_all_else_works(monkeypatch):
    monkeypatch.setattr(engines, "onednn_problem", lambda: "there is none")
    fast = check(network(), source())
    assert "onednn" not in fast.plan.engines
    assert "not onednn: there is none" in str(fast.plan)


def test_a_probe_that_fails_is_a_reason(monkeypatch):
    monkeypatch.setattr(engines, "_make_onednn", lambda *_: lambda *tensors: torch.zeros(8, 8, 3, 3))
    assert "answer wrongly" in engines.onednn_problem.__wrapped__()
