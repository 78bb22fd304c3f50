from __future__ import annotations

import contextlib
import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from groupwise import ConvSpec, GroupwiseError, cost, count
from groupwise.counting import run


class Everything(nn.Module):
    """Convolutions that module hooks miss: functional, a subclass, a computed weight, groups = batch."""

    class Own(nn.Conv2d):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.own = self.Own(8, 8, 3, groups=4, bias=False)
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        x = self.own(self.first(x))
        x = F.conv2d(x, self.weight * 2, groups=8)
        x = F.conv2d(x, self.weight * 3, groups=8)
        per_sample = torch.ones(x.shape[0] * 4, 8, 1, 1, dtype=x.dtype) * x.mean()
        mixed = F.conv2d(x.reshape(1, -1, *x.shape[2:]), per_sample, groups=x.shape[0])
        x = x + mixed.reshape(x.shape[0], 4, *x.shape[2:]).repeat(1, 2, 1, 1)
        return {"out": self.dropout(self.norm(self.up(x)))}


# name, weight shape, groups, forward MACs for a (2, 3, 16, 16) input, by hand
EXPECTED = [
    ("first", (8, 3, 3, 3), 1, 2 * 256 * 8 * 27),
    ("own", (8, 2, 3, 3), 4, 2 * 14 * 14 * 8 * 18),
    ("conv2d", (8, 1, 3, 3), 8, 2 * 144 * 8 * 9),
    ("conv2d_2", (8, 1, 3, 3), 8, 2 * 100 * 8 * 9),
    ("conv2d_3", (8, 8, 1, 1), 2, 2 * 100 * 4 * 8),
    ("up", (8, 1, 2, 2), 4, 2 * 100 * 8 * 4),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("how", [count, lambda m, x, backward: run(m, (x,), {}, backward).calls], ids=["fake", "real"])
def test_every_convolution_is_seen(how, backward):
    calls = how(Everything(), torch.randn(2, 3, 16, 16), backward=backward)
    assert [(c.name, c.spec.weight_shape, c.spec.groups, c.cost.macs.forward) for c in calls] == EXPECTED
    gradients = ["grad_input", "grad_weight"] if backward else []
    assert [c.passes for c in calls[1:]] == [["forward", *gradients]] * 5
    # Nothing asks for the gradient of the image.
    assert calls[0].passes == ["forward", *gradients[1:]]


def test_on_meta_nothing_is_computed():
    with torch.device("meta"):
        model = Everything()
        calls = count(model, torch.empty(2, 3, 16, 16))
    assert [c.cost.macs.forward for c in calls] == [row[3] for row in EXPECTED]


@pytest.mark.parametrize("how", [count, lambda m, x, backward: run(m, (x,), {}, backward).calls], ids=["fake", "real"])
def test_the_model_stays_as_it_was(how):
    model = Everything().train()
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    how(model, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), backward=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.first.weight.grad, torch.ones_like(model.first.weight))
    assert model.own.weight.grad is None
    assert not model._forward_hooks
    assert not model.first._forward_pre_hooks


def test_a_shared_layer_counts_twice_and_its_weight_once():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    calls = count(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 4, 5, 5))
    assert [call.name for call in calls] == ["0", "0"]
    assert [call.parameter for call in calls] == ["0.weight", "0.weight"]


def test_weights_made_on_the_fly_are_not_taken_for_one():
    def model(x):
        for _ in range(4):
            x = F.conv2d(x, torch.rand(4, 1, 1, 1), groups=4)
        return x

    for calls in (count(model, torch.zeros(1, 4, 5, 5)), run(model, (torch.zeros(1, 4, 5, 5),), {}, False).calls):
        assert [call.parameter for call in calls] == [None] * 4


def test_a_lone_layer_and_a_function():
    assert [c.name for c in count(nn.Conv1d(4, 4, 3, groups=2), torch.zeros(1, 4, 9))] == ["conv1d"]
    assert [c.name for c in count(lambda x: F.conv3d(x, x[:, :1]), torch.zeros(2, 1, 3, 3, 3))] == ["conv3d"]


def test_unbatched_autocast_and_inference_mode():
    layer = nn.Conv2d(4, 4, 3, groups=2)
    assert count(layer, torch.zeros(4, 5, 5))[0].cost.batch == 1

    def half(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    assert count(half, torch.zeros(1, 4, 5, 5))[0].cost.dtype == "bfloat16"
    assert count(torch.inference_mode()(layer.forward), torch.zeros(1, 4, 5, 5))[0].spec.groups == 2


def test_values_that_decide():
    """Fake tensors have no values; such a model is counted on a real run."""
    layer = nn.Conv2d(4, 4, 3, groups=2)
    calls = count(lambda x: layer(x) if x.sum() > 0 else x, torch.ones(1, 4, 5, 5))
    assert [call.spec for call in calls] == [ConvSpec(4, 4, 3, groups=2)]


def test_recomputed_forwards_are_convolutions_executed():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4))
    source = torch.ones(1, 4, 9, 9, requires_grad=True)
    calls = count(lambda x: checkpoint(block, x, use_reentrant=False), source, backward=True)
    # The last one is not run again: nothing that the backward needs comes after it.
    assert [call.spec.groups for call in calls] == [2, 4, 2]
    ran = [name for call in calls for name in call.passes]
    assert sorted(ran) == sorted(["forward"] * 3 + ["grad_input"] * 2)


def test_frozen_weights_have_no_gradient():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4))
    model[0].requires_grad_(False)
    assert [c.passes for c in count(model, torch.zeros(1, 3, 9, 9), backward=True)] == [
        ["forward"],
        ["forward", "grad_weight"],
    ]


class Caching(nn.Module):
    """Keeps tensors of its own between calls, as masks and moving averages are kept."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=2)
        self.mask = None
        self.history = []

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(4, 1, 1)
        self.history.append(x.mean())
        return self.conv(x) * self.mask


def test_no_fake_tensor_stays_in_the_model():
    model, source = Caching(), torch.randn(1, 4, 5, 5)
    count(model, source, backward=True)
    assert model.mask is None
    assert model.history == []
    assert type(model(source)) is torch.Tensor


def test_inputs_changed_in_place_are_copies():
    source = torch.ones(1, 4, 5, 5)
    run(nn.Sequential(nn.Hardtanh(0, 0.5, inplace=True), nn.Conv2d(4, 4, 1)), (source,), {}, False)
    assert torch.equal(source, torch.ones(1, 4, 5, 5))


@pytest.mark.parametrize("how", [count, lambda m, x: run(m, (x,), {}, False).calls], ids=["fake", "real"])
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

    first, second = run(Offloads(), (torch.zeros(1, 4, 5, 5),), {}, True).calls
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
        run(model, (torch.zeros(1, 9, 9, 9),), {}, False)
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
                  run(Both(), (torch.zeros(1, 4, 5, 5),), {}, True).calls):  # fmt: skip
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
    assert call.cost == cost(call.spec, size, 2)


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
        (call,) = run(model, (torch.ones(1, 4, 5, 5),), {"scale": torch.ones(1)}, True).calls
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


def test_one_model_in_several_threads():
    model, source = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), torch.zeros(1, 4, 9, 9)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: [c.name for c in run(model, (source,), {}, False).calls], range(12)))
    assert found == [["0", "1"]] * 12


def test_nothing_to_differentiate():
    model = nn.Conv2d(3, 4, 3).requires_grad_(False)
    with pytest.raises(GroupwiseError, match="no output of the model depends on a parameter or input"):
        count(model, torch.zeros(1, 3, 9, 9), backward=True)


def test_the_models_own_error_comes_through():
    with pytest.raises(RuntimeError, match="expected input"):
        count(nn.Conv2d(3, 4, 3), torch.zeros(1, 4, 9, 9))
