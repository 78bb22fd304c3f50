"""Ranks compare notes before a split: what differs is told, and who does not come is named."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
from torch import nn

from groupwise import GroupwiseError
from groupwise.parallel import split
from groupwise.parallel.runtime.agreement import agree
from ranks import ranks


def model():
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1))


def grouped():
    return nn.Conv2d(8, 8, 3, padding=1, groups=4)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = grouped()

    def forward(self, x):
        return nn.functional.dropout(self.conv(x), 0.5, self.training)


def other_seeds(mesh, function):
    torch.manual_seed(mesh.get_local_rank())
    try:
        split(Dropping() if function else nn.Sequential(grouped(), nn.Dropout(), grouped()), mesh)
    except GroupwiseError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("function", [False, True])
def test_seeds_that_differ_are_told_where_values_are_dropped(function):
    for text in ranks.run(2, other_seeds, function):
        assert "the state of random numbers is " in text
        assert "set the same seed" in text


def other_layers(mesh):
    first, told = mesh.get_local_rank() == 0, []
    for model in (
        nn.Sequential(nn.Conv2d(8, 8, 3, 1 if first else 2, groups=4)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="zeros" if first else "circular", groups=4)),
        nn.Sequential(grouped(), nn.ReLU() if first else nn.Sigmoid()),
        nn.Sequential(grouped(), nn.Dropout(0.5 if first else 0.3)),
        nn.Sequential(grouped(), nn.BatchNorm2d(8).train(first)),
        nn.Sequential(grouped().requires_grad_(first)),
    ):
        torch.manual_seed(0)
        try:
            split(model, mesh)
        except GroupwiseError as error:
            told.append(str(error).split("; ")[0])
    return told


def test_layers_that_differ_are_told():
    first, _ = ranks.run(2, other_layers)
    parts = ("stride=(1, 1)", "padding_mode=circular", "Sigmoid()", "p=0.3", " in evaluation", ", frozen")
    assert len(first) == len(parts)
    for text, part in zip(first, parts, strict=True):
        assert part in text
        assert " on rank 0 and " in text


def compare(mesh, *rounds):
    """Returns the outcome of each round; `rounds` say with which mesh each rank comes, None for none."""
    from torch.distributed.device_mesh import DeviceMesh

    # All of the world take part in making a mesh.
    meshes = {members: DeviceMesh("cpu", list(members)) for members in ((0, 1), (0, 1, 2))}
    said = []
    for members in rounds:
        torch.distributed.barrier()
        mine = members[mesh.get_local_rank()]
        try:
            said.append(mine and agree(model(), meshes[mine], patience=timedelta(seconds=3)))
        except GroupwiseError as error:
            said.append(str(error))
    return said


PAIR, THREE = (0, 1), (0, 1, 2)
LATE = "has not come within 3 s to split a model over ranks"


@pytest.fixture(scope="module")
def noted():
    """What each rank was told at four rounds in a row."""
    rounds = (
        [None, THREE, THREE, None],
        [PAIR, PAIR, THREE, None],
        [PAIR, THREE, THREE, None],
        [PAIR, PAIR, None, None],
    )
    try:
        return ranks.run(4, compare, *rounds)
    finally:
        # No test after this uses ranks that failed to compare notes.
        ranks.stop()


def test_a_rank_that_does_not_come_is_named(noted):
    assert [said[0] is None for said in noted] == [True, False, False, True]
    for said in noted[1:3]:
        assert said[0].startswith(f"rank 0 {LATE} [0, 1, 2] of cpu")
        assert said[0].endswith("; each rank of a mesh has to call split with that mesh")


def test_a_rank_that_the_others_leave_out_is_told(noted):
    # These two agree, and the third is not theirs.
    assert noted[0][1] is noted[1][1] is None
    assert noted[2][1].startswith(
        f"rank 0 {LATE} [0, 1, 2] of cpu (it last came with ranks [0, 1] of cpu); each rank of a mesh"
    )


def test_ranks_that_come_with_other_meshes_are_told(noted):
    with_pair, with_three = "(it last came with ranks [0, 1] of cpu)", "(it last came with ranks [0, 1, 2] of cpu)"
    assert noted[0][2].startswith(f"rank 1 {LATE} [0, 1] of cpu {with_three}; each rank of a mesh has to call split")
    for said in noted[1:3]:
        assert said[2].startswith(f"rank 0 {LATE} [0, 1, 2] of cpu {with_pair}; each rank of a mesh has to call split")


def test_ranks_compare_again_after_a_round_that_failed(noted):
    assert [said[3] for said in noted] == [None] * 4


def late(mesh, delays, patience):
    """Returns the outcomes of a round to which ranks come after so many seconds, and of one with a collective."""
    torch.distributed.barrier(mesh.get_group())
    rank, said, began = mesh.get_local_rank(), [], time.monotonic()
    for delay in (delays[rank], max(delays) + 3 * patience):
        time.sleep(max(0, delay - (time.monotonic() - began)))
        try:
            said.append(agree(model(), mesh, patience=timedelta(seconds=patience)))
        except GroupwiseError as error:
            said.append(str(error).split(" to split")[0])
    counted = torch.ones(())
    torch.distributed.all_reduce(counted, group=mesh.get_group())
    return said, float(counted)


def test_a_rank_that_leaves_ends_the_round_for_those_who_wait():
    """The first leaves at 2 s, when the third has waited for 1 s; the second comes at 3 s to nobody."""
    first, second, third = ranks.run(3, late, (0, 3, 1), 2)
    assert first == third == (["rank 1 has not come within 2 s", None], 3.0)
    assert second == (["rank 0 has not come within 2 s", None], 3.0)
