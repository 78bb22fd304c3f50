"""Layers that code reads: other groups are refused where they would change what the code computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.convert.readers import Readers, readers


class Reads(nn.Module):
    """Three layers, of which code reads the second: `read(b, x)` goes between them."""

    def __init__(self, read, groups=4) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=groups), nn.Conv2d(12, 3, 1)
        self.read = read

    def forward(self, x):
        return self.c(self.read(self.b, self.a(x)))


NUMBERS = {
    "mean": lambda b, x: b(x) + b.weight.mean(),
    "shape": lambda b, x: b(x) * b.weight.shape[1],
    "argument": lambda b, x: b(x) + nn.functional.conv2d(x, b.weight, groups=4),
}
COMMON = {
    "dtype": lambda b, x: b(x.to(b.weight.dtype)),
    "device": lambda b, x: b(x.to(b.weight.device)),
    "like": lambda b, x: b(x.type_as(b.weight)),
    "bias": lambda b, x: b(x) + b.bias.mean(),
}
GROUPS = {
    "shuffle": lambda b, x: nn.functional.channel_shuffle(b(x), b.groups),
    "norm": lambda b, x: nn.functional.group_norm(b(x), b.groups),
    "scale": lambda b, x: b(x) / b.groups,
    "by name": lambda b, x, name="groups": b(x) * getattr(b, name),
    "by hand": lambda b, x: nn.functional.conv2d(x, b.weight, b.bias, groups=b.groups),
}
UNUSED = {"none": lambda b, x: b(x) if b.bias is not None and b.weight is not None else x}
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def refused(net, groups, **options):
    before = copy.deepcopy(net)
    with pytest.raises(GroupwiseError) as error:
        groupwise.regroup(net, groups, data=X, **options)
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), before.parameters(), strict=True))
    assert net.b.groups == before.b.groups
    return str(error.value)


@pytest.mark.parametrize("read", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("groups", [2, 1])
def test_an_exact_conversion_that_would_change_what_code_reads_is_refused(read, groups):
    said = refused(Reads(read), {"b": groups})
    assert said == "b: code reads its weight, which would have another shape; leave it out"


@pytest.mark.parametrize("read", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("options", [{}, {"gather": True}, {"form": "factored"}], ids=["fold", "gather", "factored"])
def test_a_layer_whose_groups_code_reads_keeps_them(read, options):
    for groups in (1, 2, 12):
        said = refused(Reads(read), {"b": groups}, **options)
        assert said == "b: code reads its groups, and would compute something else; leave it out"
    assert groupwise.regroup(Reads(read), {"c": 3}, gather=True).rows[0].groups == 3


@pytest.mark.parametrize("training", [False, True])
def test_what_code_reads_in_one_mode_alone_is_known_too(training):
    class Dropped(Reads):
        def forward(self, x):
            y = super().forward(x)
            return nn.functional.dropout(y) + self.b.weight.mean() * self.b.groups if self.training is training else y

    net = Dropped(lambda b, x: b(x))
    assert readers(net) == Readers(frozenset({"b"}), frozenset({"b"}), frozenset({"b"}))
    assert readers(Reads(lambda b, x: b(x))) == Readers()


def test_finer_groups_are_refused_too_and_all_is_told_at_once():
    net = Reads(NUMBERS["mean"], groups=6)
    net.b = groupwise.regroup(nn.Sequential(nn.Conv2d(12, 12, 1, groups=12)), {"0": 6}).model[0]
    said = refused(net, {"b": 4, "c": 5, "none": 1})
    assert said.startswith("b: code reads its weight")
    assert "c: groups=5 must divide" in said
    assert "none: the model has no such layer" in said


@pytest.mark.parametrize("read", [*COMMON.values(), *UNUSED.values()], ids=[*COMMON, *UNUSED])
def test_what_groups_do_not_change_may_be_read(read):
    net = Reads(read).double().eval()
    made = groupwise.regroup(net, {"b": 2})
    assert made.rows[0].how == "exact"
    torch.testing.assert_close(made.model(X.double()), net(X.double()), rtol=1e-12, atol=1e-12)
    # A layer that keeps its groups stays as it is, whatever code reads.
    assert groupwise.regroup(Reads(NUMBERS["mean"]), {"b": 4}).rows[0].how == "exact"


@pytest.mark.parametrize("options", [{"gather": True}, {"form": "factored"}, {}], ids=["gather", "factored", "fold"])
@pytest.mark.parametrize("read", [*NUMBERS.values(), *COMMON.values(), *UNUSED.values()])
def test_a_layer_that_code_reads_is_neither_folded_nor_replaced(read, options):
    said = refused(Reads(read, groups=1), {"b": 4}, **options)
    assert said == "b: code reads a tensor of it, which the layer loses or has in another order; leave it out"
    # The layers around it are free to change.
    assert groupwise.regroup(Reads(read, groups=1), {"c": 3}, gather=True).rows[0].groups == 3


def test_a_sweep_tries_no_groups_that_cannot_be():
    for gather in (False, True):
        made = groupwise.sweep(
            Reads(NUMBERS["mean"]).eval(), X, groups=[1, 2, 12], layers=["b"], repeats=1, gather=gather
        )
        assert {row.layer: row.groups for row in made.rows} == {"b": None}
        assert "code reads" in made.rows[0].refused
        made = groupwise.sweep(Reads(COMMON["dtype"]).eval(), X, groups=[2, 12], layers=["b"], repeats=1, gather=gather)
        assert [row.groups for row in made.rows] == [2, 4]
        groupwise.regroup(Reads(COMMON["dtype"]), {row.layer: row.groups for row in made.rows})
        made = groupwise.sweep(Reads(GROUPS["shuffle"]).eval(), X, layers=["b"], repeats=1, gather=gather)
        assert made.rows[0].refused.startswith("code reads its groups")


def test_where_torch_fx_cannot_follow_nothing_is_known():
    assert readers(Reads(lambda b, x: b(x) if x.sum() > 0 else x)).tensors == frozenset()
