"""Data parallel beside a split, and ranks that disagree."""

from __future__ import annotations

import warnings

import pytest
import torch

from groupwise import GroupwiseError
from groupwise.parallel import ColwiseParallel, GroupParallel, RowwiseParallel, plan_split, split
from ranks import ranks
from test_parallel_split import OPTIMIZERS, data, learn, make, whole

NAME, DTYPE = "resnext", torch.float64


def with_data_parallel(mesh, kind):
    """Half of each batch to either row of the mesh."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    model = split(make(NAME, DTYPE), mesh["groups"])
    if kind == "fsdp":
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
        parallel = model
    else:
        parallel = DistributedDataParallel(model, device_mesh=mesh["data"])
    optimizer = OPTIMIZERS["sgd"](parallel.parameters())
    half = mesh["data"].get_local_rank()
    # In eval a batch norm does not depend on the others of its batch.
    parallel.eval()
    outputs, norms = [], []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for batch in data(NAME, DTYPE):
            out = parallel(batch[2 * half : 2 * half + 2])
            optimizer.zero_grad()
            out.square().mean().backward()
            norms.append(whole(torch.nn.utils.clip_grad_norm_(parallel.parameters(), torch.inf)))
            optimizer.step()
            outputs.append(out.detach())
    return half, outputs, norms[0], {str(one.message) for one in warned}


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_with_data_parallel_on_a_mesh_of_two_dimensions(kind):
    model = make(NAME, DTYPE).eval()
    expected, gradients = learn(model, data(NAME, DTYPE), OPTIMIZERS["sgd"](model.parameters()))
    length = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    for half, outputs, norm, warned in ranks.run((2, 2), with_data_parallel, kind):
        wanted = [out[2 * half : 2 * half + 2] for out in expected]
        torch.testing.assert_close(outputs, wanted, rtol=1e-9, atol=1e-11)
        if kind == "fsdp":
            torch.testing.assert_close(norm, length, rtol=1e-9, atol=0)
        taken = any("has taken the parameters out of a split model" in text for text in warned)
        assert taken == (kind == "ddp")


def disagree(mesh, what):
    rank = mesh.get_local_rank()
    model = make(NAME, torch.float32 if what == "dtype" and rank else DTYPE)
    if what == "model" and rank:
        model.fc = torch.nn.Linear(128, 11, dtype=DTYPE)
    try:
        split(model, mesh)
    except GroupwiseError as error:
        return str(error)
    return "split"


def test_ranks_that_disagree_are_told():
    first, second = ranks.run(2, disagree, "dtype")
    assert "stem.0.weight is (32, 1, 3, 3) of float64 on rank 0 and (32, 1, 3, 3) of float32 on rank 1 (" in first
    assert "stem.0.weight is (32, 1, 3, 3) of float32 on rank 1 and (32, 1, 3, 3) of float64 on rank 0 (" in second
    for text in ranks.run(2, disagree, "model"):
        assert text.startswith("fc is Linear(in_features=128, out_features=1")
        assert "(2 more differ)" in text


def errors(mesh):
    from torch.distributed.tensor import Partial, Shard
    from torch.distributed.tensor.parallel import parallelize_module
    from torch.nn.utils import parametrizations

    def told(call):
        try:
            call()
        except GroupwiseError as error:
            return str(error)
        return "nothing"

    grouped = torch.nn.Conv2d(8, 8, 3, groups=4)
    ready = parallelize_module(torch.nn.Conv2d(8, 8, 3, groups=4), mesh, GroupParallel(input_layouts=Shard(1)))
    return [
        told(lambda: parallelize_module(torch.nn.Conv2d(8, 4, 3), mesh, GroupParallel())),
        told(lambda: parallelize_module(torch.nn.Conv2d(9, 9, 3, groups=9), mesh, GroupParallel(uneven=False))),
        told(lambda: parallelize_module(grouped, mesh, GroupParallel(units=3))),
        told(lambda: parallelize_module(grouped, mesh, ColwiseParallel())),
        told(lambda: parallelize_module(torch.nn.ReLU(), mesh, GroupParallel())),
        told(lambda: parallelize_module(ready, mesh, GroupParallel())),
        told(lambda: parallelize_module(parametrizations.weight_norm(grouped), mesh, GroupParallel())),
        told(lambda: GroupParallel(output_layouts=Partial())),
        told(lambda: ready(torch.randn(1, 8, 5, 5))),
        repr(ready),
    ]


def test_errors_of_styles():
    texts = ranks.run(2, errors)[1]
    for text, part in zip(
        texts,
        [
            "this layer has groups=1; use ColwiseParallel() or RowwiseParallel(), or give it groups: 1, 2, 4",
            "groups=9 cannot be spread evenly over 2 ranks; valid numbers of ranks: 1, 3, 9; uneven=True spreads",
            "3 units must divide 4 groups; valid: 1, 2, 4",
            "ColwiseParallel is for dense layers, not for groups=4; use GroupParallel()",
            "GroupParallel is for convolutions, and this is a ReLU",
            "ShardConv2d is split already",
            "cannot split a layer whose tensors are computed (weight)",
            "output_layouts=P(sum) is not the layout of a whole tensor",
            "has 8 channels; with input_layouts=S(1) this GroupParallel layer takes 4 of 8 on rank 1",
            "GroupParallel: groups 2-3 of 4",
        ],
        strict=True,
    ):
        assert part in text


def several(mesh):
    try:
        split(make(NAME, DTYPE), mesh)
    except GroupwiseError as error:
        return str(error)
    return "split"


def test_a_mesh_of_several_dimensions():
    for text in ranks.run((2, 2), several):
        assert text == "split takes a mesh of 1 dimension, and this one has 2; choose one, as in mesh['groups']"


def single_samples(mesh):
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import parallelize_module

    def told(layer, *shape):
        try:
            return tuple(layer(torch.randn(shape)).shape)
        except GroupwiseError as error:
            return str(error)

    whole = {"input_layouts": Replicate(), "output_layouts": Replicate()}
    answers = []
    for layer, style in (
        (torch.nn.Conv2d(8, 8, 3, padding=1, groups=4), GroupParallel(**whole)),
        (torch.nn.Conv2d(8, 8, 3, padding=1), ColwiseParallel(**whole)),
        (torch.nn.Conv2d(8, 8, 3, padding=1), RowwiseParallel(**whole)),
        (torch.nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), GroupParallel(**whole)),
    ):
        ready = parallelize_module(layer, mesh, style)
        answers.append([told(ready, 8, 8, 5), told(ready, 8, 5, 8), told(ready, 8, 8, 8), told(ready, 1, 8, 8, 5)])
    line = parallelize_module(torch.nn.Conv1d(8, 8, 3, padding=1, groups=4), mesh, GroupParallel(**whole))
    answers.append([told(line, 8, 8), told(line, 1, 8, 8)])
    net = split(make("towers", torch.float32), mesh)
    return answers, told(net, 3, 12, 12), told(net, 1, 3, 12, 12)


def test_a_single_sample_has_to_be_a_batch_of_one():
    fix = "; give a single sample as a batch of one, input.unsqueeze(0)"
    for (*layers, line), net, batch in ranks.run(2, single_samples):
        for style, answers in zip(("Group", "Colwise", "Rowwise", "Group"), layers, strict=True):
            for shape, text in zip(((8, 8, 5), (8, 5, 8), (8, 8, 8)), answers, strict=False):
                has = f"has 3 dimensions; this {style}Parallel layer takes 4, (N, C, ...)"
                assert text == f"input of shape {shape} {has}{fix}"
            assert answers[3] == (1, 8, 8, 5)
        assert line[0] == f"input of shape (8, 8) has 2 dimensions; this GroupParallel layer takes 3, (N, C, ...){fix}"
        assert line[1] == (1, 8, 8)
        assert net.endswith(fix)
        assert batch == (1, 5)


def few_groups(mesh):
    layers = torch.nn.Conv2d(4, 8, 1), torch.nn.Conv2d(8, 8, 3, groups=2), torch.nn.Conv2d(8, 3, 1)
    try:
        split(torch.nn.Sequential(*layers), mesh, uneven=False)
    except GroupwiseError as error:
        return str(error)
    return "split"


def test_fewer_groups_than_ranks_are_refused_if_parts_have_to_be_even():
    rule = "1: groups=2 cannot be spread evenly over {} ranks; valid numbers of ranks: 1, 2; "
    rule += "uneven=True leaves the layer whole"
    assert ranks.run(3, few_groups) == [rule.format(3)] * 3
    assert ranks.run(2, few_groups) == ["split"] * 2
    layer = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Conv2d(8, 8, 3, groups=2))
    for count in (3, 4):
        with pytest.raises(GroupwiseError) as caught:
            plan_split(layer, count, uneven=False)
        assert str(caught.value) == rule.format(count)
        assert plan_split(layer, count).held == (layer[1].weight.numel() + 8,) * count
    assert plan_split(layer, 2, uneven=False)
