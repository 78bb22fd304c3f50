"""Names, passes, parameters and layers: what is told of each convolution that passes by."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupwise import ConvSpec, GroupwiseError, cost, count
from groupwise.profile.record import run
from groupwise.profile.workload import Workload


@pytest.mark.parametrize("how", [count, lambda m, x: run(Workload(m, (x,), {}, False)).calls], ids=["fake", "real"])
def test_hooks_of_the_users_that_raise(how):
    """Ours leaves no trace of a module that was never entered, and later names are right."""
    model = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)})

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            try:
                x = self.parts["a"](x)
            except ZeroDivisionError:
                x = x + 1
            return self.parts["b"](x)

    model["a"].register_forward_pre_hook(lambda *_: 1 / 0)
    assert [call.name for call in how(Tries(), torch.zeros(1, 4, 5, 5))] == ["parts.b"]


def test_a_layer_that_raises_and_is_caught_is_left():
    class Broken(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.broken = Broken()

        def forward(self, x):
            with contextlib.suppress(ZeroDivisionError):
                self.broken(x)
            return F.conv2d(x, x)

    assert [call.name for call in count(Tries(), torch.zeros(1, 1, 5, 5))] == ["conv2d"]


def test_saved_tensors_that_come_back_as_others():
    """As offloading does. Layers of equal shapes are then told apart by the order of the backward, last one first."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))

    class Offloads(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
                return self.model(x)

    first, second = run(Workload(Offloads(), (torch.zeros(1, 4, 5, 5),), {}, True)).calls
    assert first.passes == ["forward", "grad_weight"]
    assert second.passes == ["forward", "grad_input", "grad_weight"]


@pytest.mark.parametrize("backward", [False, True])
def test_gradients_are_recorded_only_when_asked_for(backward):
    seen = []

    def model(x):
        seen.append(torch.is_grad_enabled())
        return F.conv2d(x, x)

    with torch.set_grad_enabled(not backward):
        count(model, torch.zeros(1, 1, 5, 5, requires_grad=True), backward=backward)
    assert seen == [backward]


def test_an_error_leaves_no_hook():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(RuntimeError):
        run(Workload(model, (torch.zeros(1, 9, 9, 9),), {}, False))
    assert not model._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_a_backward_of_other_shapes_is_a_row_of_its_own():
    """vmap folds the samples into the batch of the forward and into the groups of the backward."""
    weight = torch.randn(4, 2, 3, 3)

    def per_sample(x):
        loss = lambda w, one: F.conv2d(one[None], w, groups=2).sum()  # noqa: E731
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)

    calls = count(per_sample, torch.randn(3, 4, 5, 5))
    ran = [name for call in calls for name in call.passes]
    assert ran.count("forward") == 1
    assert "grad_weight" in ran


def test_two_gradients_over_one_graph():
    layer = nn.Conv2d(4, 4, 3, groups=2)

    def twice(x):
        x = x.requires_grad_()
        with torch.enable_grad():
            out = layer(x)
            torch.autograd.grad(out.sum(), x, retain_graph=True)
            return torch.autograd.grad(out.sum(), x)[0]

    (call,) = count(twice, torch.randn(1, 4, 5, 5))
    assert call.passes == ["forward", "grad_input", "grad_input"]


def test_the_backward_goes_to_the_call_that_read_the_same_tensors():
    """Two branches of equal shapes, of which only the first asks for gradients."""
    first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3).requires_grad_(False)
    model = nn.ModuleDict({"first": first, "second": second})

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["first"](x) + self.parts["second"](x)

    for calls in (count(Both(), torch.zeros(1, 4, 5, 5), backward=True),
                  run(Workload(Both(), (torch.zeros(1, 4, 5, 5),), {}, True)).calls):  # fmt: skip
        assert {call.name: call.passes for call in calls} == {
            "parts.first": ["forward", "grad_weight"],
            "parts.second": ["forward"],
        }


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, (2, 4), padding="same", groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", groups=4),
        nn.Conv1d(4, 8, 5, padding=2, padding_mode="reflect", groups=4),
    ],
)
def test_a_layer_is_counted_as_it_states_itself(layer):
    """Padding that is copied or lopsided is done before the operator, which sees a larger input and none."""
    size = (9, 7)[: layer.weight.ndim - 2]
    (call,) = count(layer, torch.zeros(2, 4, *size))
    assert call.spec == ConvSpec.from_module(layer)
    assert call.cost == cost(call.spec, size, batch=2)


def test_a_layer_that_does_something_else_is_counted_as_it_does():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    (call,) = count(Padded(4, 4, 3), torch.zeros(1, 4, 5, 5))
    assert call.cost.input_size == (7, 7)
    assert call.cost.output_size == (5, 5)


def test_parameters_by_where_the_weight_comes_from():
    model = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(4, 4, 3, bias=False)
    )
    calls = count(model, torch.zeros(1, 4, 5, 5))
    assert [call.parameter for call in calls] == ["0.weight", "1.weight"]


def test_keywords_dataclasses_and_inference_mode():
    @dataclasses.dataclass
    class Output:
        image: torch.Tensor

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, groups=2)

        def forward(self, x, *, scale):
            return Output(self.conv(x) * scale)

    model = Model()
    with torch.inference_mode():
        (call,) = run(Workload(model, (torch.ones(1, 4, 5, 5),), {"scale": torch.ones(1)}, True)).calls
    assert call.passes == ["forward", "grad_weight"]
    assert count(Model(), torch.ones(1, 4, 5, 5), kwargs={"scale": 2}, backward=True)[0].passes == call.passes


def test_integers_scripts_and_lazy_layers():
    assert count(lambda x: F.conv2d(x, x), torch.ones(1, 1, 5, 5, dtype=torch.int64))[0].cost.dtype == "int64"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, source = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), torch.zeros(1, 4, 5, 5)
        for compiled in (torch.jit.trace(model, source), torch.jit.script(model)):
            assert [call.spec.groups for call in count(compiled, source)] == [2]
    with pytest.raises(GroupwiseError, match=r"0.weight is a lazy parameter without a shape; run the model once"):
        count(nn.Sequential(nn.LazyConv2d(4, 3)), torch.zeros(1, 4, 5, 5))


def test_a_forward_put_on_an_instance_is_run_for_real():
    """It may hold the real model, which a copy's forward would then run."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model.forward = lambda x: model[1](model[0](x))
    (call,) = count(model, torch.randn(1, 3, 9, 9), backward=True)
    assert (call.name, call.parameter, call.passes) == ("0", "0.weight", ["forward", "grad_weight"])
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("meta", [False, True])
def test_buffers_in_every_way_they_change(meta):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("replaced", torch.zeros(()))
            self.register_buffer("grown", torch.zeros(1))
            self.register_buffer("written", torch.zeros(2))
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            self.replaced = self.replaced + 1
            self.grown.resize_(3)
            self.written += 1
            return self.conv(x)

    with torch.device("meta" if meta else "cpu"):
        model, source = Counts(), torch.zeros(1, 1, 3, 3)
    kept = model.replaced
    (call,) = run(Workload(model, (source,), {}, False)).calls
    assert call.name == "conv"
    assert model.replaced is kept
    assert model.grown.shape == (1,)
    if not meta:
        assert [float(buffer.sum()) for buffer in model.buffers()] == [0, 0, 0]


def test_parameters_under_autocast():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.tied = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.tied.weight = self.first.weight
            self.own = nn.Parameter(torch.zeros(4, 4, 1, 1))

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return F.conv2d(self.tied(self.first(x)), self.own)

    calls = count(Model(), torch.zeros(1, 4, 5, 5))
    assert [call.parameter for call in calls] == ["first.weight", "first.weight", "own"]
    assert {call.cost.dtype for call in calls} == {"bfloat16"}


def test_weights_mixed_for_each_sample_are_no_parameters():
    class Mixed(nn.Conv2d):
        def forward(self, x):
            weights = (x.mean((1, 2, 3))[:, None, None, None, None] * self.weight).flatten(0, 1)
            folded = x.reshape(1, -1, *x.shape[2:])
            return F.conv2d(folded, weights, groups=x.shape[0])

    (call,) = count(nn.Sequential(Mixed(4, 4, 3)), torch.zeros(2, 4, 5, 5))
    assert (call.spec.groups, call.parameter) == (2, None)


def test_a_layer_called_by_keyword():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")

        def forward(self, x):
            return self.conv(input=x)

    (call,) = count(Model(), torch.zeros(1, 3, 5, 5))
    assert call.spec.padding_mode == "reflect"


def test_counting_inside_inference_mode():
    model, source = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 5, 5)
    with torch.inference_mode():
        assert count(model, source, backward=True)[0].passes == ["forward", "grad_weight"]


def test_one_model_in_several_threads():
    model, source = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), torch.zeros(1, 4, 9, 9)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [c.name for c in run(Workload(model, (source,), {}, False)).calls], range(12)))
    assert found == [["0", "1"]] * 12
