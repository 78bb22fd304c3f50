"""Exact conversions that the model's own code makes inexact: its outputs on the data show them; they are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.convert.data import Batch
from groupwise.choose.convert.unchanged import check_unchanged

X = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(0))


class Three(nn.Module):
    """Three layers, of which the second has four groups; `add` is what code adds to the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 1, groups=2)

    def forward(self, x):
        return self.c(F.relu(self.b(self.a(x)))) + self.add()

    def add(self):
        return 0.0


class Parameters(Three):
    def add(self):
        return torch.stack([one.detach().mean() for one in self.parameters()]).sum()


class State(Three):
    def add(self):
        # A name that is computed leaves no trace either.
        return self.state_dict()["b" + ".weight"].shape[1]


class Fails(Three):
    def add(self):
        return dict(self.named_parameters())["b.weight"].view(8, 2, 3, 3).sum()


class Borrowed(nn.Conv2d):
    """A layer that computes with the mean of another layer's weight."""

    def __init__(self, other, *args, **options) -> None:
        super().__init__(*args, **options)
        self.others = [other]

    def forward(self, x):
        return super().forward(x) + self.others[0].weight.mean()


class Subclass(Three):
    def __init__(self) -> None:
        super().__init__()
        self.c = Borrowed(self.b, 8, 8, 1, groups=2)


READS = [Parameters, State, Fails, Subclass]


def made(kind):
    torch.manual_seed(1)
    net = kind()
    with torch.no_grad():
        # Their means tell a weight from one with zeros beside it.
        for one in net.parameters():
            one.add_(0.1)
    return net


@pytest.mark.parametrize("kind", READS)
def test_what_code_takes_where_nothing_shows_it_is_refused_by_name(kind):
    net = made(kind)
    before = copy.deepcopy(net.state_dict())
    mode = [module.training for module in net.modules()]
    # Code reads b alone, and through parameters() c too. A subclass never converts itself.
    both = {"b": 2} if kind is Subclass else {"b": 2, "c": 1}
    assert groupwise.regroup(net, both).model.b.groups == 2
    with pytest.raises(GroupwiseError) as error:
        groupwise.regroup(net, both, data=X)
    named, _, said = str(error.value).partition(": ")
    assert named == ("b, c" if kind is Parameters else "b")
    assert said.startswith("the conversion is exact, and yet, on the first batch of data, ")
    assert said.endswith("parameters() or in another layer; leave it out")
    assert ("the model fails: shape" in said) is (kind is Fails)
    assert [module.training for module in net.modules()] == mode
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not net.b._forward_hooks
    if kind not in (Parameters, Subclass):
        assert groupwise.regroup(net, {"c": 1}, data=X).rows[0].how == "exact"


def test_what_is_exact_is_not_refused():
    result = groupwise.regroup(made(Three), {"b": 1, "c": 1}, data=[X, X[:1]])
    assert [row.how for row in result.rows] == ["exact", "exact"]


class Draws(Three):
    """Random numbers in evaluation, state that changes, a class, and numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        y = F.dropout(super().forward(x), training=True) * self.calls
        return {"y": y, "class": y.flatten(1).argmax(1), "log": (0 * y).log()}


def test_random_numbers_and_state_do_not_count_as_a_change():
    net = made(Draws)
    result = groupwise.regroup(net, {"b": 1}, data=X)
    # One batch that the model takes is tried on the model itself.
    assert net.calls == result.model.calls == 1
    state = torch.get_rng_state()
    check_unchanged(net, lambda twin, names: None, ["b"], Batch((X,)))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.calls == 1


@settings(deadline=None, max_examples=10)
@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.booleans(),
)
def test_rounding_is_never_a_change(seed, depth, dtype, scale, transposed):
    """A small change of a weight is seen all the same, except in bfloat16, whose roundings are larger."""
    torch.manual_seed(seed)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    parts = [(kind(16, 16, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(16), nn.SiLU()) for _ in range(depth)]
    net = nn.Sequential(*(part for some in parts for part in some)).to(dtype).eval()
    with torch.no_grad():
        net[0].weight.mul_(scale)
    x = torch.randn(2, 16, 7, 7, dtype=dtype)
    wanted = {str(3 * number): 1 for number in range(depth)}
    assert len(groupwise.regroup(net, wanted, data=x).rows) == depth
    if dtype is torch.bfloat16:
        return

    def convert(twin, names):
        for name in names:
            twin.get_submodule(name).weight.data[0] *= 1.5

    with pytest.raises(GroupwiseError, match=r"^0: the conversion is exact"):
        check_unchanged(net, convert, ["0"], Batch((x,)))


def test_layers_that_only_together_change_the_model_are_both_named():
    net = made(Three)

    def convert(twin, names):
        if len(names) == 2:
            twin.b.bias.data += 1

    with pytest.raises(GroupwiseError, match=r"^b, c: the conversion is exact"):
        check_unchanged(net, convert, ["b", "c"], Batch((X,)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: y[:, :1], r"an output has shape \(4, 1, 5, 5\) instead of \(4, 8, 5, 5\)"),
        (lambda y: (y, y), "the model returns 2 tensors instead of 1"),
        (lambda y: y * float("nan"), "off by nan"),
    ],
)
def test_outputs_of_other_forms_are_a_change(change, said):
    net = made(Three)

    def convert(twin, names):
        twin.register_forward_hook(lambda module, given, output: change(output))

    with pytest.raises(GroupwiseError, match=said):
        check_unchanged(net, convert, ["b"], Batch((X,)))
