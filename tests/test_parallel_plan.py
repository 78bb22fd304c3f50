"""Who would hold what, told without a process group."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groupwise import GroupwiseError, models
from groupwise.parallel import ColwiseParallel, GroupParallel, KeepWhole, Partition, RowwiseParallel, plan_split


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 3))
def test_partitions(units, ranks, length):
    partition = Partition(units, ranks)
    held = [partition.of(rank) for rank in range(ranks)]
    assert [unit for one in held for unit in one] == list(range(units))
    assert partition.lengths(units * length) == [len(one) * length for one in held]
    # No rank has more than it has to, nor none where there are enough.
    assert max(map(len, held)) == -(-units // ranks)
    assert units < ranks or min(map(len, held)) > 0
    assert partition.even == (len(set(map(len, held))) == 1)
    chunks = [len(chunk) for chunk in torch.arange(units).chunk(ranks)]
    if len(chunks) == ranks:
        assert [len(one) for one in held] == chunks


def test_partitions_that_cannot_be():
    with pytest.raises(GroupwiseError, match="5 units must divide a dimension of 12"):
        Partition(5, 2).span(0, 12)
    with pytest.raises(GroupwiseError, match="units=0 is too small"):
        Partition(0, 2)
    with pytest.raises(GroupwiseError, match=r"groups=6 .* over 4 ranks; valid .* 1, 2, 3, 6; .* as 2, 2, 1, 1"):
        Partition(6, 4).check_even("groups")


def table(plan):
    return {choice.name: (type(choice.style), choice.forward) for choice in plan.choices}


def test_alexnet_is_the_papers():
    with torch.device("meta"):
        plan = plan_split(models.alexnet(), 2)
    rows = table(plan)
    assert {name: row[1] for name, row in rows.items() if row[1]} == {
        "conv3": "all-gathers inputs",
        "fc6": "all-gathers inputs",
        "fc7": "all-gathers inputs",
        "fc8": "all-reduces outputs",
    }
    assert {name for name, row in rows.items() if row[0] is GroupParallel} == {"conv2", "conv4", "conv5"}
    # Each of two ranks has half of every layer; fc8's bias is whole on both.
    assert plan.held == ((60_965_224 + 1000) // 2,) * 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 32])
def test_a_block_of_resnext_costs_one_collective(ranks):
    with torch.device("meta"):
        plan = plan_split(models.resnext50_32x4d(), ranks)
    rows = table(plan)
    sums = [f"layer{stage + 1}.{block}.conv3" for stage, blocks in enumerate((3, 4, 6, 3)) for block in range(blocks)]
    # 32 groups over 3 ranks are other rows than DTensor's chunks.
    found = [name for name, row in rows.items() if row[1] not in ("", "moves rows")]
    assert found == (sums if ranks > 1 else [])
    assert any("moves rows" in row[1] for row in rows.values()) == (ranks == 3)
    for name, (style, _) in rows.items():
        place = name.split(".")[-1]
        if name.startswith("layer") and "downsample" not in name and place.startswith("conv"):
            assert style is {"conv1": ColwiseParallel, "conv2": GroupParallel, "conv3": RowwiseParallel}[place]
    assert rows["fc"] == (KeepWhole, "")
    # All parameters are there, once where they are split.
    assert sum(choice.parameters for choice in plan.choices) == 25_028_904
    split = [choice for choice in plan.choices if choice.input or choice.output]
    assert all(sum(choice.held) == choice.parameters for choice in split)


def test_the_plan_as_text_and_json():
    with torch.device("meta"):
        plan = plan_split(models.alexnet(), 2)
    lines = str(plan).splitlines()
    assert lines[0] == "AlexNet over 2 ranks"
    assert "conv3    Conv2d             ColwiseParallel       885 k   443 k  all-gathers inputs" in lines
    assert lines[-1] == "61.0 M parameters, of which a rank holds 30.5 M; 4 collectives in a forward."
    facts = plan.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["layers"][0]["reason"] == "dense, before split layers"


def test_ranks_that_do_not_divide():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 10, 1), torch.nn.Conv2d(10, 10, 3, groups=5), torch.nn.Conv2d(10, 2, 1)
    )
    assert plan_split(model, 2).choices[1].held == (108 + 6, 72 + 4)
    with pytest.raises(
        GroupwiseError, match=r"1: groups=5 cannot be spread evenly over 2 ranks; valid numbers of ranks: 1, 5"
    ):
        plan_split(model, 2, uneven=False)
    assert plan_split(model, 5, uneven=False)
    # More ranks than groups: nothing is left without work, but each does all.
    assert {type(choice.style) for choice in plan_split(model, 6).choices} == {KeepWhole}


class Shared(torch.nn.Module):
    """One layer that is called on split channels and on whole ones."""

    def __init__(self):
        super().__init__()
        self.expand = torch.nn.Conv2d(4, 8, 1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.depthwise = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = torch.nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.norm(self.project(self.depthwise(self.norm(self.expand(x)))))


def test_a_layer_that_is_called_twice_lies_alike_both_times():
    rows = table(plan_split(Shared(), 2))
    assert rows["norm"][0] is KeepWhole
    assert rows["expand"][0] is KeepWhole


class Stubborn(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_planned():
    with pytest.raises(GroupwiseError, match=r"torch.fx cannot follow Stubborn, .* name each layer's style"):
        plan_split(Stubborn(), 2)
    with pytest.raises(GroupwiseError, match="ranks=0 is too small"):
        plan_split(Shared(), 0)


def test_an_input_shape_is_a_shape_or_a_tensor_of_it():
    model, x = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=4)), torch.zeros(1, 8, 5, 5)
    plan = plan_split(model, 2, input_shape=x)
    assert plan.input_shape == (1, 8, 5, 5)
    assert plan.to_dict() == plan_split(model, 2, input_shape=[1, 8, 5, 5]).to_dict()
    for wrong in (5, "1x8x5x5"):
        with pytest.raises(GroupwiseError, match=f"input_shape={wrong!r} is neither a tensor nor a shape"):
            plan_split(model, 2, input_shape=wrong)
    with pytest.raises(GroupwiseError, match=r"does not take an input of shape \(1, 4, 5, 5\)") as refused:
        plan_split(model, 2, input_shape=torch.zeros(1, 4, 5, 5))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("input_shape", [None, (2, 3, 224, 224)])
def test_the_table_of_a_plan_as_data(input_shape):
    with torch.device("meta"):
        plan = plan_split(models.alexnet(), 2, input_shape=input_shape)
    rows = list(csv.DictReader(plan.to_csv().splitlines()))
    assert [row["name"] for row in rows] == [choice.name for choice in plan.choices]
    assert [row["style"] for row in rows] == [type(choice.style).__name__ for choice in plan.choices]
    assert sum(int(row["most_held"]) for row in rows) == plan.held[0]
    for row, choice in zip(rows, plan.choices, strict=True):
        for direction, back in (("forward", False), ("backward", True)):
            payload = sum(one.payload for one in choice.collectives if one.backward is back)
            assert row[f"{direction}_bytes"] == ("" if input_shape is None else str(payload))
        assert row["forward"] == choice.forward
    head, rule, *body = plan.to_markdown().splitlines()
    assert head.split(" | ")[0] == "| name"
    assert len(body) == len(rows)
    assert head.count("|") == rule.count("|")
    assert plan.to_svg() in plan._repr_html_()
