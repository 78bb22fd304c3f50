"""An optimized network as a module: parameters that change, shapes, threads, copies, hooks, refusals, what stays."""

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
from groupwise import GroupwiseError
from groupwise.rewrite import choose, engines, region
from kernels import needs_kernels
from optimized import Excite, Refusing, Residual, check, layers, settle


def source(batch=2):
    return torch.randn(batch, 8, 10, 10)


def network():
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return settle(nn.Sequential(block, Residual(nn.Conv2d(8, 8, 1)), Excite(8, nn.Hardsigmoid())))


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
    assert fast.plan.engines == {first: 4} or engines.onednn_problem()
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
    wrong = engines.Engine("wrong", lambda work: None, lambda *_: torch.zeros_like)
    monkeypatch.setattr(choose, "CONVOLUTION", (wrong, *engines.CONVOLUTION))
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
    assert choose._fastest(seconds) == fastest


def test_nothing_is_measured_where_runs_must_repeat(monkeypatch):
    monkeypatch.setattr(choose, "_time", lambda *_: pytest.fail("measured"))
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


# What stays as it is


def test_children_of_a_model_that_export_refuses_are_optimized():
    model = settle(Refusing(network(), nn.Conv2d(8, 8, 1), nn.ReLU()))
    fast = check(model, source())
    assert "depends on" in fast.plan.left[0].reason or "torch.export refuses it" in fast.plan.left[0].reason
    assert ("convolution", ("batch norm", "relu")) in layers(fast)
    assert fast.plan.steps[1].name.startswith("blocks.0.0")
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
    assert set(fast.plan.to_dict()) == {"title", "steps", "left", "input_shapes", "threads", "seconds"}
