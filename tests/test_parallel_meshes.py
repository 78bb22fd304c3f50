"""Checkpoints from rank to rank, data parallel beside a split, and ranks that disagree."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import torch

from groupwise import GroupwiseError
from groupwise.parallel import (
    ChannelParallel,
    GroupParallel,
    SumParallel,
    list_checkpoints,
    load,
    plan_split,
    save,
    split,
)
from groupwise.parallel.agreement import agree
from ranks import ranks
from test_parallel_split import OPTIMIZERS, data, learn, make, whole

NAME, DTYPE = "resnext", torch.float64


def train(mesh, model, name=NAME, optimizer="adam"):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    learn(model, data(name, DTYPE)[:3], optimizer)
    return optimizer


def saved(mesh, folder, name):
    model = split(make(name, DTYPE), mesh)
    optimizer = train(mesh, model, name)
    path = save(folder, 3, model, optimizer, group=mesh.get_group(), epoch=1)
    outputs, _ = learn(model, data(name, DTYPE)[3:6], optimizer)
    return str(path), outputs


def loaded(mesh, path, name):
    torch.manual_seed(5)
    model = make(name, DTYPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    split(model, mesh)
    optimizer = train(mesh, model, name)
    facts = load(path, model, optimizer, group=mesh.get_group())
    return facts, learn(model, data(name, DTYPE)[3:6], optimizer)[0]


@pytest.mark.parametrize("name", ["resnext", "towers"])
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(name, tmp_path):
    answers = ranks.run(2, saved, str(tmp_path), name)
    path = answers[0][0]
    assert [str(found) for found in list_checkpoints(tmp_path)] == [path]
    for count in (1, 3, 4):
        for facts, outputs in ranks.run(count, loaded, path, name):
            assert facts == {"step": 3, "epoch": 1}
            torch.testing.assert_close(outputs, answers[0][1], rtol=1e-9, atol=1e-11)


def refused(mesh, path, name):
    model = split(make(name, DTYPE), mesh)
    optimizer = train(mesh, model, name)
    before = {key: whole(value).clone() for key, value in model.state_dict().items()}
    try:
        load(path, model, optimizer, group=mesh.get_group())
    except GroupwiseError as error:
        after = {key: whole(value) for key, value in model.state_dict().items()}
        assert all(torch.equal(after[key], before[key]) for key in before)
        return str(error)
    return "loaded"


def test_what_is_no_checkpoint_of_this_model(tmp_path):
    path = ranks.run(2, saved, str(tmp_path), NAME)[0][0]
    for text in ranks.run(2, refused, path, "towers"):
        assert f"checkpoint {path} is of another model: " in text
        assert "here" in text
    for text in ranks.run(2, refused, str(tmp_path), NAME):
        assert f"{tmp_path} is not a checkpoint of groupwise" in text
    files = [file for file in list_checkpoints(tmp_path)[0].iterdir() if file.suffix == ".distcp"]
    files[0].write_bytes(files[0].read_bytes()[:-100])
    for text in ranks.run(2, refused, path, NAME):
        assert f"checkpoint {path} is truncated: {files[0].name} has " in text
    files[0].unlink()
    for text in ranks.run(2, refused, path, NAME):
        assert f"{files[0].name} is missing" in text
    (list_checkpoints(tmp_path)[0] / "groupwise.json").write_text(json.dumps({"step": 1}))
    for text in ranks.run(2, refused, path, NAME):
        assert "is not a checkpoint of groupwise" in text


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
    outputs = []
    for batch in data(NAME, DTYPE):
        out = parallel(batch[2 * half : 2 * half + 2])
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()
        outputs.append(out.detach())
    return half, outputs


@pytest.mark.parametrize("kind", ["fsdp", "ddp"])
def test_with_data_parallel_on_a_mesh_of_two_dimensions(kind):
    model = make(NAME, DTYPE).eval()
    expected, _ = learn(model, data(NAME, DTYPE), OPTIMIZERS["sgd"](model.parameters()))
    for half, outputs in ranks.run((2, 2), with_data_parallel, kind):
        wanted = [out[2 * half : 2 * half + 2] for out in expected]
        torch.testing.assert_close(outputs, wanted, rtol=1e-9, atol=1e-11)


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
        assert "fc.weight is " in text
        assert "(1 more differ)" in text


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
        told(lambda: parallelize_module(grouped, mesh, GroupParallel(parts=3))),
        told(lambda: parallelize_module(grouped, mesh, ChannelParallel())),
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
            "this layer has groups=1; use ChannelParallel() or SumParallel(), or give it groups: 1, 2, 4",
            "groups=9 cannot be spread evenly over 2 ranks; valid numbers of ranks: 1, 3, 9; uneven=True spreads",
            "3 parts must divide 4 groups; valid: 1, 2, 4",
            "ChannelParallel is for dense layers, not for groups=4; use GroupParallel()",
            "GroupParallel is for convolutions, and this is a ReLU",
            "PartConv2d is split already",
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


def meet(mesh, *meetings):
    """What each meeting gave, where `meetings` say which mesh a rank comes with, by rank; None for none."""
    from torch.distributed.device_mesh import DeviceMesh

    # All of the world take part in making a mesh.
    meshes = {members: DeviceMesh("cpu", list(members)) for members in ((0, 1), (0, 1, 2))}
    said = []
    for members in meetings:
        torch.distributed.barrier()
        mine = members[mesh.get_local_rank()]
        try:
            said.append(mine and agree(make(NAME, DTYPE), meshes[mine], timedelta(seconds=3)))
        except GroupwiseError as error:
            said.append(str(error))
    return said


PAIR, THREE = (0, 1), (0, 1, 2)
LATE = "has not come within 3 s to split a model over ranks"


@pytest.fixture(scope="module")
def met():
    """What each rank was told at four meetings in a row."""
    meetings = (
        [None, THREE, THREE, None],
        [PAIR, PAIR, THREE, None],
        [PAIR, THREE, THREE, None],
        [PAIR, PAIR, None, None],
    )
    try:
        return ranks.run(4, meet, *meetings)
    finally:
        # No test after this uses ranks that have failed to meet.
        ranks.stop()


def test_a_rank_that_does_not_come_is_named(met):
    assert [said[0] is None for said in met] == [True, False, False, True]
    for said in met[1:3]:
        assert said[0].startswith(f"rank 0 {LATE} [0, 1, 2] of cpu")
        assert said[0].endswith("; each rank of a mesh has to call split with that mesh")


def test_a_rank_that_the_others_leave_out_is_told(met):
    # These two agree, and the third is not theirs.
    assert met[0][1] is met[1][1] is None
    assert met[2][1].startswith(
        f"rank 0 {LATE} [0, 1, 2] of cpu (it came with ranks [0, 1] of cpu); each rank of a mesh"
    )


def test_ranks_that_come_with_other_meshes_are_told(met):
    with_pair, with_three = "(it came with ranks [0, 1] of cpu)", "(it came with ranks [0, 1, 2] of cpu)"
    assert met[0][2].startswith(f"rank 1 {LATE} [0, 1] of cpu {with_three}; each rank of a mesh has to call split")
    for said in met[1:3]:
        assert said[2].startswith(f"rank 0 {LATE} [0, 1, 2] of cpu {with_pair}; each rank of a mesh has to call split")


def test_ranks_meet_again_after_a_meeting_that_failed(met):
    assert [said[3] for said in met] == [None] * 4


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
        (torch.nn.Conv2d(8, 8, 3, padding=1), ChannelParallel(**whole)),
        (torch.nn.Conv2d(8, 8, 3, padding=1), SumParallel(**whole)),
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
        for style, answers in zip(("Group", "Channel", "Sum", "Group"), layers, strict=True):
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
    rule = "groups=2 cannot be spread evenly over {} ranks; valid numbers of ranks: 1, 2; "
    rule += "uneven=True leaves the layer whole"
    assert ranks.run(3, few_groups) == [rule.format(3)] * 3
    assert ranks.run(2, few_groups) == ["split"] * 2
    layer = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=2))
    for count in (3, 4):
        with pytest.raises(GroupwiseError) as caught:
            plan_split(layer, count, uneven=False)
        assert str(caught.value) == rule.format(count)
        assert plan_split(layer, count).held == (layer[0].weight.numel() + 8,) * count
    assert plan_split(layer, 2, uneven=False)
