"""The collectives of a step, by hand and by PyTorch's own count."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from groupwise.parallel import Collective, Collectives, split, traffic
from ranks import ranks
from test_parallel_split import NETWORKS, make


def counted(mesh, name):
    from torch.distributed.tensor.debug import CommDebugMode

    model = split(make(name, torch.float32), mesh)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    x = torch.randn(4, *NETWORKS[name][1])
    collectives = traffic(model, x)
    assert all(bool((parameter.grad.to_local() == 1).all()) for parameter in model.parameters())
    if name != "mobile":
        return collectives, None
    theirs = CommDebugMode()
    with theirs:
        model(x).sum().backward()
    return collectives, theirs.get_total_counts()


def test_a_block_of_resnext_all_reduces_its_sum_and_nothing_else():
    sums = [4 * 64 * 64 * 4, 4 * 128 * 16 * 4, 4 * 128 * 16 * 4]
    inputs = [4 * 32 * 64 * 4, 4 * 64 * 64 * 4, 4 * 128 * 16 * 4]
    for collectives, _ in ranks.run(2, counted, "resnext"):
        forward = [Collective(f"blocks.{n}.conv3", False, "all_reduce", size) for n, size in enumerate(sums)]
        backward = [Collective(f"blocks.{n}.conv1", True, "all_reduce", size) for n, size in enumerate(inputs)]
        assert list(collectives) == forward + backward[::-1]


def test_towers_gather_where_alexnets_do():
    gathered = {"conv3": 4 * 12 * 25 * 4, "fc5": 4 * 48 * 4, "fc6": 4 * 20 * 4}
    for collectives, _ in ranks.run(2, counted, "towers"):
        gathers = [Collective(name, False, "all_gather", size) for name, size in gathered.items()]
        scatters = [Collective(name, True, "reduce_scatter", size) for name, size in gathered.items()]
        assert list(collectives) == [*gathers, Collective("fc7", False, "all_reduce", 4 * 5 * 4), *scatters[::-1]]


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_as_pytorch_counts(count):
    for collectives, theirs in ranks.run(count, counted, "mobile"):
        assert len(collectives) == theirs


def test_what_a_rank_sends_in_a_ring():
    assert Collective("a", False, "all_reduce", 900).moved(3) == 1200
    assert Collective("a", False, "all_gather", 900).moved(3) == 600
    assert Collective("a", False, "reduce_scatter", 900).moved(1) == 0
    assert Collective("a", False, "all_to_all", 90).moved(3) == 90


def test_collectives_as_data():
    made = Collectives([Collective("conv3", False, "all_gather", 900), Collective("", True, "all_reduce", 8)])
    facts = made.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert [Collective(**one) for one in facts["collectives"]] == list(made)
    assert str(made).splitlines() == [
        "all_gather of 900 bytes for conv3, forward",
        "all_reduce of 8 bytes for the model, backward",
    ]
    assert str(made) in made._repr_html_()
    assert list(csv.reader(made.to_csv().splitlines())) == [
        ["layer", "backward", "operation", "payload"],
        ["conv3", "False", "all_gather", "900"],
        ["", "True", "all_reduce", "8"],
    ]
    assert made.to_markdown().splitlines()[2] == "| conv3 | False | all_gather | 900 |"
    assert str(Collectives()) == "no collective"
