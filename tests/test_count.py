from __future__ import annotations

import html

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from groupwise import ConvSpec, GroupwiseError, count
from groupwise.profile.record import run
from groupwise.profile.workload import Workload


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
@pytest.mark.parametrize(
    "how", [count, lambda m, x, backward: run(Workload(m, (x,), {}, backward)).calls], ids=["fake", "real"]
)
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


@pytest.mark.parametrize(
    "how", [count, lambda m, x, backward: run(Workload(m, (x,), {}, backward)).calls], ids=["fake", "real"]
)
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

    for calls in (
        count(model, torch.zeros(1, 4, 5, 5)),
        run(Workload(model, (torch.zeros(1, 4, 5, 5),), {}, False)).calls,
    ):
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
    run(Workload(nn.Sequential(nn.Hardtanh(0, 0.5, inplace=True), nn.Conv2d(4, 4, 1)), (source,), {}, False))
    assert torch.equal(source, torch.ones(1, 4, 5, 5))


def test_nothing_to_differentiate():
    model = nn.Conv2d(3, 4, 3).requires_grad_(False)
    with pytest.raises(GroupwiseError, match="no output of the model depends on a parameter or input"):
        count(model, torch.zeros(1, 3, 9, 9), backward=True)


def test_the_models_own_error_comes_through():
    with pytest.raises(RuntimeError, match="expected input"):
        count(nn.Conv2d(3, 4, 3), torch.zeros(1, 4, 9, 9))


def test_a_call_is_one_line():
    model = nn.Sequential()
    model.add_module("a\nb", nn.Conv2d(4, 8, 3, groups=2))
    (call,) = count(model, torch.zeros(2, 4, 9, 8))
    line = str(call)
    assert repr(call) == line
    assert len(line.splitlines()) == 1
    assert ": conv2d 4 → 8, kernel 3×3, groups=2; 9×8 → 7×6, batch 2, float32; 12.1 k MACs; " in line
    assert line.endswith("; aten::convolution: forward")
    assert call._repr_html_() == f"<pre>{html.escape(line)}</pre>"
