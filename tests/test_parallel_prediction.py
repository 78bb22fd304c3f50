"""What a step computes and sends, against what ranks really send, and the time that follows from it, by hand."""

from __future__ import annotations

import json
import re

import pytest
import torch

from groupwise import GroupwiseError, models
from groupwise.parallel import Collective, Link, Machine, Prediction, plan_split, predict, split, traffic
from groupwise.parallel.planning.decision import Decision
from groupwise.parallel.planning.work import tasks
from ranks import ranks
from scripts import BENCHMARKS, load
from test_parallel_split import NETWORKS, make

LINK = Link(latency=1e-3, bandwidth=1e6)
MACHINE = Machine(macs=1e9, memory=1e9, near=LINK, far=Link(1e-2, 1e5), node=4)


def counted_on(mesh, name):
    model = split(make(name, torch.float32), mesh)
    return traffic(model, torch.randn(4, *NETWORKS[name][1]))


def told(name, count):
    plan = plan_split(make(name, torch.float32), count, input_shape=(4, *NETWORKS[name][1]))
    return [collective for choice in plan.choices for collective in choice.collectives]


def facts(collective):
    return collective.layer, collective.backward, collective.operation, collective.payload


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_plan_tells_the_collectives_of_ranks(name, count):
    # Each rank runs the collectives in the same order; for rows that move, the rank counts that receives most.
    steps = zip(*ranks.run(count, counted_on, name), strict=True)
    counted = sorted(max(map(facts, collectives)) for collectives in steps)
    planned = sorted(map(facts, told(name, count)))
    assert [collective[:3] for collective in counted] == [collective[:3] for collective in planned]
    for (*_, operation, real), (layer, *_, expected) in zip(counted, planned, strict=True):
        if operation == "all_to_all" or (count == 2 and layer != "alone"):
            assert real == expected, layer
        # DTensor fills shards up to equal chunks before it gathers them.
        assert expected <= real < 1.4 * expected or real == expected == 0


def test_work_of_one_process():
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1))
    conv, relu, last = tasks(Decision(model, 1), (5, 4, 6, 6))
    assert (conv.name, conv.macs, conv.gradients) == ("0", 5 * 8 * 2 * 9 * 16, 1)
    assert conv.bytes == 4 * (5 * 4 * 36 + 8 * 2 * 9 + 8 + 5 * 8 * 16)
    assert (relu.macs, relu.bytes, relu.gradients) == (0, 2 * 4 * 5 * 8 * 16, 2)
    assert (last.macs, last.gradients, last.collectives) == (5 * 2 * 8 * 16, 2, ())


@pytest.mark.parametrize("count", [2, 4, 8])
def test_shards_add_up(count):
    with torch.device("meta"):
        model = models.resnext50_32x4d()
    whole, shards = tasks(Decision(model, 1), (2, 3, 64, 64)), tasks(Decision(model, count), (2, 3, 64, 64))
    assert [task.name for task in whole] == [task.name for task in shards]
    for one, shard in zip(whole, shards, strict=True):
        shared = one.name.startswith("layer") and ".conv" in one.name
        assert shard.macs == (one.macs // count if shared else one.macs), one.name
    assert {task.name for task in shards if task.collectives} == {
        name for name, _ in model.named_modules() if name.endswith((".conv1", ".conv3"))
    }


def test_uneven_shards_are_those_of_the_rank_with_most():
    (one,) = tasks(Decision(torch.nn.Sequential(torch.nn.Conv1d(10, 10, 3, groups=5)), 2), (1, 10, 5))
    assert one.macs == 3 / 5 * 10 * 2 * 3 * 3
    gather, *rows = one.collectives
    assert (gather.operation, gather.payload) == ("all_gather", 4 * 30)
    assert {row.operation for row in rows} == {"all_to_all"}
    # 5 and 5 rows of chunks for 6 and 4 of groups: one of the weight, of the bias, of the input and of the output.
    one_row = [2 * 3 * 4, 4, 5 * 4, 3 * 4]
    assert sorted(row.payload for row in rows if not row.backward) == sorted(one_row)
    # The input asks for no gradient.
    assert sorted(row.payload for row in rows if row.backward) == sorted(set(one_row) - {20})


def test_the_time_of_a_collective():
    # 900 bytes to 3 ranks: in a ring 2 or 4 messages of a third each.
    assert LINK.seconds(Collective("", False, "all_gather", 900), 3) == pytest.approx(2e-3 + 600e-6)
    assert LINK.seconds(Collective("", False, "all_reduce", 900), 3) == pytest.approx(4e-3 + 1200e-6)


def test_the_time_of_a_step():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1, groups=2, bias=False))
    step = predict(plan_split(model, 1, input_shape=(1000, 4, 100)), MACHINE)
    # Forward and the weight's gradient are bound by 3.2 MB each; the update by 5 times the 4 bytes of 8 weights.
    assert step.seconds == pytest.approx(2 * (2 * 4 * 400_000 + 32) / 1e9 + 5 * 32 / 1e9)
    assert step.memory == 3 * 32
    # Two replicas, in one node, sum 32 bytes; eight reach over the node.
    near = predict(plan_split(model, 1, input_shape=(1000, 4, 100)), MACHINE, data=2)
    assert near.gradients == pytest.approx(2e-3 + 32e-6)
    assert near.compute == pytest.approx(2 * (4 * 400_000 + 32) / 1e9 + 5 * 32 / 1e9)
    far = predict(plan_split(model, 1, input_shape=(1000, 4, 100)), MACHINE, data=8)
    assert far.gradients == pytest.approx(14e-2 + 56e-5)
    # Its groups on two ranks: half of the output each, gathered.
    shards = predict(plan_split(model, 2, input_shape=(1000, 4, 100)), MACHINE)
    assert shards.collectives == pytest.approx(1e-3 + 0.8)
    assert shards.compute == pytest.approx(2 * (4 * 400_000 + 16) / 1e9 + 5 * 16 / 1e9)
    assert shards.memory == 3 * 16


def test_the_backward_hides_what_it_may():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1, groups=2, bias=False))
    overlapping = Machine(1e9, 1e9, LINK, LINK, overlap=1.0)
    assert predict(plan_split(model, 1, input_shape=(1000, 4, 100)), overlapping, data=2).gradients == pytest.approx(
        2e-3 + 32e-6 - 1.6e-3, rel=0.02
    )
    assert predict(plan_split(model, 1, input_shape=(100_000, 4, 100)), overlapping, data=2).gradients == 0


def test_a_flatten_module_is_passed_like_the_function():
    layers = [
        torch.nn.Conv2d(8, 8, 3, groups=4),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 8),
    ]
    plan = plan_split(torch.nn.Sequential(*layers), 2)
    assert [(choice.name, choice.forward) for choice in plan.choices] == [("0", ""), ("3", "all-reduces outputs")]


def test_what_cannot_be_predicted():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1, groups=4))
    with pytest.raises(GroupwiseError, match=r"data=3 must divide the 4 samples of a step; the next valid: 2"):
        predict(plan_split(model, 1, input_shape=(4, 4, 5)), MACHINE, data=3)
    with pytest.raises(GroupwiseError, match=r"Sequential does not take an input of shape \(4, 5, 5\): "):
        predict(plan_split(model, 1, input_shape=(4, 5, 5)), MACHINE)
    with pytest.raises(GroupwiseError, match="data=0 is too small"):
        predict(plan_split(model, 1, input_shape=(4, 4, 5)), MACHINE, data=0)


PAGE = (BENCHMARKS.parent / "docs" / "when-to-split.md").read_text(encoding="utf-8")


# All rows of a ResNeXt take a minute.
@pytest.mark.parametrize(
    ("network", "rows"),
    [
        ("AlexNet", {}),
        ("ResNeXt-50 32x4d", {"batches": (128,), "counts": (8, 64)}),
        ("ResNeXt-101 32x8d", {"batches": (128,), "counts": (8, 64)}),
    ],
)
def test_the_tables_of_the_docs_are_what_is_predicted(network, rows):
    scale = load("scale")
    told = [line for line in PAGE.splitlines() if line.startswith(f"| {network} |")]
    every = [(str(batch), str(gpus)) for batch in scale.BATCHES for gpus in scale.GPUS]
    assert [tuple(line.split(" | ")[1:3]) for line in told] == every
    made = [scale.markdown_row(row) for row in scale.table(network, **rows)]
    assert made == [told[every.index((batch, gpus))] for _, batch, gpus, *_ in map(cells, made)]
    assert len(made) == (2 if rows else len(told))


def cells(line):
    return line.strip("| ").split(" | ")


def test_the_example_of_the_docs_is_of_the_tables_machine(capsys):
    scale = load("scale")
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.S).groups()
    names = {}
    exec(compile(code, "docs", "exec"), names)
    assert capsys.readouterr().out == printed
    assert names["gpu"] == scale.GPU
    (row,) = scale.table("AlexNet", (1024,), (64,))
    assert (row[5], row[6]) == (f"{names['step'].seconds * 1e3:.3g}", "2 × 32")
    assert scale.ASSUMED in PAGE


def test_many_ranks_sum_along_trees():
    summed, trees = Collective("", True, "all_reduce", 1000), Link(1e-3, 1e6, trees=True)
    assert trees.seconds(summed, 2) == LINK.seconds(summed, 2)
    # 9 messages up and 9 down, before 2 * 511 round the ring.
    assert trees.seconds(summed, 512) == pytest.approx(18e-3 + 2e-3)
    assert trees.seconds(Collective("", False, "all_gather", 1000), 512) == LINK.seconds(
        Collective("", False, "all_gather", 1000), 512
    )


def test_a_prediction_as_text_and_json():
    step = Prediction(2, 4, 128, 1.5e-3, 2.5e-4, 0.0, 12_345_678.0)
    facts = step.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["seconds"] == step.seconds == pytest.approx(1.75e-3)
    assert str(step) == (
        "a step of 128 samples on 2 x 4 ranks takes 1.75 ms: 1.5 ms of work, 0.25 ms of collectives in the network, "
        "0 ms more to sum gradients; a rank holds 12.3 MB of parameters, gradients and momentum"
    )
    assert str(step) in step._repr_html_()
    small = str(Prediction(1, 1, 1, 1.0, 0.0, 0.0, 1234.0))
    assert small.startswith("a step of 1 sample on 1 x 1 rank takes 1e+03 ms: ")
    assert " on 2 x 1 ranks takes " in str(Prediction(2, 1, 1, 1.0, 0.0, 0.0, 0.0))
    assert small.endswith("a rank holds 1.23 kB of parameters, gradients and momentum")


def test_a_plan_without_a_shape_predicts_nothing():
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 1, groups=4))
    with pytest.raises(GroupwiseError, match=r"the plan of Sequential has no input_shape, .* input_shape=\(N, C"):
        predict(plan_split(model, 2), MACHINE)
