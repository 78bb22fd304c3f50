"""Orders of channels around grouped layers: folded at both ends or one, refused by name, or gathered and measured."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.convert.regroup import regroup
from groupwise.choose.measure.choice import Chosen, read_choice
from groupwise.models.resnext import Bottleneck


class Stream(nn.Module):
    """A residual block whose convolution reads and writes the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x):
        x = F.relu(self.one(x))
        x = x + self.two(x)
        return self.three(x).mean((2, 3))


def of_blocks(net: nn.Module, layer: str, groups: int) -> nn.Module:
    """The model whose layer is of blocks in another order of its channels."""
    places = torch.arange(8) * 3 % 8 * groups // 8
    with torch.no_grad():
        net.get_submodule(layer).weight *= (places[:, None] == places)[:, :, None, None]
    return net


def test_an_order_that_cannot_be_folded_is_refused_by_name_or_gathered():
    net = of_blocks(Stream().double(), "two", 2)
    with pytest.raises(GroupwiseError, match="two: its input and its output have channels of one order"):
        regroup(net, {"two": 2})
    made = regroup(net, {"two": 2}, gather=True)
    assert isinstance(made.model.two, GatheredConv)
    x = torch.randn(2, 8, 6, 6, dtype=torch.double)
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    # A choice that was measured with a gather says so.
    chosen = Chosen({"two": 2}, ("two",))
    assert isinstance(regroup(net, chosen).model.two, GatheredConv)


def test_a_layer_both_of_whose_ends_are_pinned_is_refused_with_both_reasons():
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
    with pytest.raises(GroupwiseError, match=r"0: .*input channels.*model's inputs.*output channels.*the output of"):
        regroup(net, {"0": 2})
    assert regroup(net, {"0": 2}, gather=True).rows[0].kept > 0


@pytest.mark.parametrize(
    ("branches", "why"),
    [
        (lambda net, x: x.sum() > 0, r"torch\.fx cannot follow Untraced \(.*\), so"),
        (lambda net, x: net.training, "Untraced does not run the same layers in training and in evaluation, so"),
    ],
    ids=["values", "mode"],
)
def test_a_model_that_cannot_be_traced_gathers(branches, why):
    class Untraced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.two(self.one(x)) if branches(self, x) else self.two(-self.one(x))

    net = of_blocks(Untraced().double(), "one", 4)
    x = torch.randn(2, 8, 3, 3, dtype=torch.double)
    for call in (lambda: regroup(net, {"one": 4}), lambda: groupwise.sweep(net, x, repeats=1)):
        # What a split could do is no way out here.
        with pytest.raises(GroupwiseError, match=f'^{why} that .*gather=True, .*form="factored", [^;]*$'):
            call()
    assert regroup(net, {"one": 4}, form="factored").rows[0].how == "factored"
    made = regroup(net, {"one": 4}, gather=True)
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("layer", "fixed"), [("one", "inputs"), ("three", "outputs")])
def test_where_one_end_is_pinned_the_channels_of_the_other_one_move(layer, fixed):
    torch.manual_seed(0)
    net = Stream().double()
    # Blocks of the stored order at one end, scrambled at the other.
    stored, other = torch.arange(8) // 2, torch.arange(8) * 3 % 8 // 2
    outputs, inputs = (other, stored) if fixed == "inputs" else (stored, other)
    with torch.no_grad():
        net.get_submodule(layer).weight *= (outputs[:, None] == inputs)[:, :, None, None]
    made = regroup(net, {layer: 4})
    (row,) = made.rows
    assert (row.how, row.fixed, row.kept, row.bound) == ("block", fixed, 1.0, 1.0)
    assert f"block, {fixed} as stored" in str(made)
    x = torch.randn(2, 8, 6, 6, dtype=torch.double)
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    assert made.model.get_submodule(layer).groups == 4
    # In random order the end that is pinned stays too.
    random = regroup(net, {layer: 4}, order="random")
    assert random.rows[0].kept < 1


class Joined(nn.Module):
    """Reads a concatenation, whose parts are written by layers that may have groups, by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 8, 1)
        self.read, self.also = nn.Conv2d(12, 6, 3), nn.Conv2d(12, 6, 3)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.last(torch.cat([self.read(x), self.also(x)], 1).relu())


def test_layers_around_concatenations():
    torch.manual_seed(0)
    net = Joined().double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.double)
    places, mixed = torch.arange(12) // 4, torch.tensor([0, 2, 1, 1, 0, 2])
    with torch.no_grad():
        for layer in (net.read, net.also):
            layer.weight *= (mixed[:, None] == places)[:, :, None, None]
    # Both read the parts as they are stored, and write other channels.
    made = regroup(net, {"read": 3, "also": 3})
    assert [(row.fixed, row.kept) for row in made.rows] == [("inputs", 1.0)] * 2
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    # A part cannot have the order of one layer's groups and be read by the groups of another.
    with pytest.raises(GroupwiseError, match="read: its input channels have the order of the groups of a"):
        regroup(net, {"a": 2, "read": 3})
    with pytest.raises(GroupwiseError, match="a: its output channels have the order of the groups of read"):
        regroup(net, {"read": 3, "a": 2})
    # Two that read the same channels need one order of them.
    with pytest.raises(GroupwiseError, match="b: its input channels have the order of the groups of a"):
        regroup(net, {"a": 2, "b": 2})
    order = torch.tensor([1, 0, 0, 1])
    with torch.no_grad():
        net.a.weight *= (order[:, None] == torch.tensor([0, 1, 1, 0, 1, 0]))[:, :, None, None]
    made = regroup(net, {"a": 2})
    assert (made.rows[0].fixed, made.rows[0].kept) == ("", 1.0)
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)


class Shuffled(nn.Module):
    """Two layers in a row, and between them channels of which a shuffle fixes the order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.last = (nn.Conv2d(n, m, 1) for n, m in ((2, 8), (8, 8), (8, 8), (8, 2)))

    def forward(self, x):
        x = self.a(self.stem(x))
        return self.last(self.b(x)) + F.channel_shuffle(x, 2)[:, :2]


def test_neighbours_are_refused_also_where_neither_moves_the_channels_between_them():
    assert [regroup(Shuffled(), {name: 2}).rows[0].fixed for name in "ab"] == ["outputs", "inputs"]
    with pytest.raises(GroupwiseError, match="b: its input channels have the order of the groups of a"):
        regroup(Shuffled(), {"a": 2, "b": 2})


def test_a_layer_beside_one_that_has_groups_is_refused_with_its_name():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)
    )
    with pytest.raises(
        GroupwiseError, match="3: the order of its input channels cannot change: 1 has groups=4 already"
    ):
        regroup(net, {"3": 2})


def test_neighbours_of_which_one_takes_the_order_are_refused_together():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))
    assert regroup(net, {"1": 2}).model[1].groups == 2
    with pytest.raises(GroupwiseError, match="3: its input channels have the order of the groups of 1"):
        regroup(net, {"1": 2, "3": 4})


def test_gathers_are_timed_and_fitted():
    net = Stream().double().eval()
    x = torch.randn(8, 8, 6, 6, dtype=torch.double)
    row = regroup(net, {"two": 2}, gather=True, data=x).rows[0]
    assert row.gather_ms > 0
    assert row.fitted < row.error


@pytest.mark.parametrize("names", list(itertools.permutations("123")))
def test_layers_fold_before_their_neighbours_gather_whatever_is_named_first(names):
    torch.manual_seed(0)
    shapes = [(3, 16, 1), (16, 16, 3), (16, 16, 3), (16, 16, 3), (16, 4, 1)]
    net = nn.Sequential(*(nn.Conv2d(*shape) for shape in shapes)).double().eval()
    for name in "123":
        # Groups that the weights have already, in another order: converted, the model computes the same.
        places = torch.randperm(16) % 4, torch.randperm(16) % 4
        with torch.no_grad():
            net.get_submodule(name).weight *= (places[0][:, None] == places[1])[:, :, None, None]
    made = regroup(net, dict.fromkeys(names, 4), gather=True)
    assert [row.layer for row in made.rows] == list(names)
    assert {row.kept for row in made.rows} == {1.0}
    assert any(isinstance(layer, GatheredConv) for layer in made.model)
    x = torch.randn(2, 3, 9, 9, dtype=torch.double)
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-11, atol=1e-12)


def test_a_gather_is_fitted_to_the_outputs_that_a_fold_behind_it_moved():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 4, 1)
    )
    net = net.double().eval()
    with torch.no_grad():
        net[3].weight.copy_(torch.arange(1, 17))
    x = torch.randn(16, 3, 9, 9, dtype=torch.double)
    wanted = net[:3](x).detach()

    def true_error(model: nn.Module) -> float:
        # The norm behind the layer tells where each of its channels went.
        places = model[3].weight.detach().long() - 1
        assert not torch.equal(places, torch.arange(16))
        made, target = model[:3](x).detach(), wanted[:, places]
        return float((made - target).square().sum() / target.square().sum())

    unfitted, fitted = (regroup(net, {"4": 4, "2": 4}, gather=True, data=data) for data in (None, [x]))
    (row,) = (row for row in fitted.rows if row.layer == "2")
    assert isinstance(fitted.model[2], GatheredConv)
    assert row.error == pytest.approx(true_error(unfitted.model), rel=1e-9)
    assert row.fitted == pytest.approx(true_error(fitted.model), rel=1e-9)
    assert row.fitted < row.error


def test_a_sweep_leaves_out_what_only_a_gather_converts_and_goes_on():
    net = Stream().eval()
    made = groupwise.sweep(net, torch.randn(2, 8, 6, 6), groups=[1, 2], repeats=1)
    refused = {row.layer: row.refused for row in made.rows if row.refused}
    assert "one" not in refused
    assert "as a residual sum demands" in refused["two"]
    for choice in made.predicted("params"):
        assert choice.gather == ()
        assert {name: row.groups for name, row in _rows(groupwise.regroup(net, choice)).items()} == choice.groups


@pytest.mark.parametrize("traced", [False, True])
def test_a_layer_that_channel_counts_leave_out_is_told_so_also_with_gathers(traced):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)

        def forward(self, x):
            x = self.one(x)
            return self.three(self.two(x) if traced or x.sum() > 0 else self.two(-x))

    made = groupwise.sweep(Net().eval(), torch.randn(1, 3, 4, 4), groups=[1, 4], repeats=1, gather=True)
    refused = {row.layer: row.refused for row in made.rows if row.refused}
    said = "it has groups=1, and no other value to try divides its channels; valid groups: "
    assert refused == {"one": f"{said}1", "three": f"{said}1, 2"}
    assert {row.groups for row in made.rows if row.layer == "two"} == {1, 4}


def _rows(made):
    return {row.layer: row for row in made.rows}


@pytest.mark.parametrize("train", [False, True])
def test_gathers_are_in_the_rows_of_a_sweep_in_its_choice_and_in_the_network(train, tmp_path):
    torch.manual_seed(0)
    net = Stream().train(train)
    x = torch.randn(2, 8, 6, 6)
    made = groupwise.sweep(net, x, groups=[1, 2, 4], layers=["two"], gather=True, repeats=2, train=train)
    rows = {row.groups: row for row in made.rows}
    assert rows[1].gather_ms is None
    assert all(rows[value].ms > rows[value].gather_ms > 0 for value in (2, 4))
    assert 0 < rows[4].kept <= rows[4].bound < 1
    assert "gathers, ms" in str(made)
    assert "move its channels at each call" in " ".join(str(made).split())
    assert "gathers, ms" in made.to_html()
    if train:
        assert all(0 < row.forward_ms < row.ms for row in rows.values())
    else:
        assert all(row.forward_ms == row.ms for row in rows.values())
    choice = made.choose(params=made.parameters - 1)
    assert (set(choice.groups), choice.gather) == ({"two"}, ("two",))
    assert choice.measured_ms > 0
    read = read_choice(choice.save(tmp_path / "choice.json"))
    for one in (choice, read):
        assert isinstance(groupwise.regroup(net, one).model.two, GatheredConv)
    # The other form keeps the order of channels, and needs no gather.
    assert groupwise.regroup(net, choice, form="factored").rows[0].how == "factored"


def test_the_gathers_of_a_choice_are_judged_with_data():
    torch.manual_seed(0)
    net, x = Stream().eval(), torch.randn(8, 8, 6, 6)
    made = groupwise.sweep(net, x, groups=[1, 2], layers=["two"], gather=True, repeats=1, data=x)
    (row,) = [row for row in made.rows if row.groups == 2]
    converted = groupwise.regroup(net, {"two": 2}, gather=True, data=x).model
    wanted = ((converted(x) - net(x)).square().sum() / net(x).square().sum()).item()
    assert row.risk == pytest.approx(wanted, rel=1e-4)
    assert 0 < row.risk < 1


def test_every_choice_of_a_sweep_converts_also_beside_layers_that_have_groups():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)),
    ).eval()
    made = groupwise.sweep(net, torch.randn(1, 3, 9, 9), groups=[1, 2, 4], repeats=1)
    values = {name: {row.groups for row in made.rows if row.layer == name} for name in ("1", "3", "5", "6", "7")}
    # Each of the neighbours can only have coarser groups; beside them the next layer stays dense.
    assert (values["1"], values["3"], values["5"]) == ({1, 2}, {1, 2}, {None})
    assert {1, 2, 4} in (values["6"], values["7"])
    for choice in made.predicted("params"):
        groupwise.regroup(net, choice)


def test_what_a_grouped_layer_keeps_is_a_part_of_its_dense_weight():
    torch.manual_seed(0)
    net = nn.Sequential(Bottleneck(8, 16, 8, groups=2)).eval()
    made = groupwise.sweep(net, torch.randn(1, 8, 5, 5), groups=[4], layers=["0.conv2"], repeats=1)
    (row,) = [row for row in made.rows if row.groups == 4]
    converted = groupwise.regroup(net, {"0.conv2": 4})
    assert row.kept == pytest.approx(converted.rows[0].kept)
    weights = [one[0].conv2.weight.double().square().sum() for one in (converted.model, net)]
    assert row.kept == pytest.approx((weights[0] / weights[1]).item())


@pytest.mark.parametrize("before", [1, 6])
def test_a_sweep_knows_which_finer_groups_lose_nothing(before):
    """Both ends are pinned, and the weight is that of blocks already."""
    torch.manual_seed(0)
    fine = nn.Sequential(nn.Conv2d(12, 12, 1, groups=12))
    net = groupwise.regroup(fine, {"0": before}).model.eval()
    assert groupwise.regroup(net, {"0": 4}).rows[0].how == "exact"
    x = torch.randn(1, 12, 5, 5)
    for gather in (False, True):
        made = groupwise.sweep(net, x, groups=[4], repeats=1, gather=gather)
        (row,) = [row for row in made.rows if row.groups == 4]
        assert (row.kept, row.bound, row.risk, row.gather_ms, row.refused) == (1, 1, 0, None, "")
    # Fewer parameters than now; what it chooses is what regroup makes.
    made = groupwise.sweep(net, x, groups=[12], repeats=1, gather=True)
    choice = made.choose(params=30)
    assert (choice.groups, choice.gather) == ({"0": 12}, ())
    assert type(groupwise.regroup(net, choice).model[0]) is nn.Conv2d


def test_beside_a_layer_that_may_have_groups_without_a_loss_all_choices_convert():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)).eval()
    with torch.no_grad():
        net[0].weight *= torch.block_diag(*[torch.ones(2, 2)] * 4)[:, :, None, None]
    made = groupwise.sweep(net, torch.randn(1, 8, 5, 5), groups=[1, 2, 4], repeats=1)
    reasons = {row.layer: row.refused for row in made.rows if row.refused}
    assert {row.groups for row in made.rows if row.layer == "0"} == {1, 2, 4}
    assert "0 can have groups in the stored order without a loss" in reasons["1"]
    for row in made.rows:
        for other in made.rows:
            if not row.refused and not other.refused and row.layer != other.layer:
                groupwise.regroup(net, {row.layer: row.groups, other.layer: other.groups})
