"""Models that a split would change without a word are refused, or kept as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from groupwise import GroupwiseError
from groupwise.parallel import ChannelParallel, GroupParallel, Link, Machine, list_checkpoints, plan_split, save, split
from ranks import ranks


def grouped():
    return nn.Conv2d(8, 8, 3, padding=1, groups=4)


def styles(plan):
    return {choice.name: type(choice.style).__name__ for choice in plan.choices}


def test_tied_parameters():
    model = nn.Sequential(grouped(), nn.ReLU(), grouped())
    model[2].weight = model[0].weight
    with pytest.raises(GroupwiseError, match=r"0\.weight and 2\.weight are one parameter, and would be two"):
        plan_split(model, 2)
    # One layer that is called twice is no such thing.
    assert plan_split(nn.Sequential(layer := grouped(), nn.ReLU(), layer), 2)


def test_synchronised_statistics_of_other_channels():
    model = nn.Sequential(grouped(), nn.SyncBatchNorm(8), grouped())
    with pytest.raises(GroupwiseError, match="averages over all ranks, which hold other channels here"):
        plan_split(model, 2)
    model[1].process_group = object()
    assert styles(plan_split(model, 2))["1"] == "ChannelwiseParallel"


class ByMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = grouped(), grouped()

    def forward(self, x):
        x = self.one(x)
        return self.two(x if self.training else nn.functional.normalize(x, dim=1))


def test_other_layers_in_evaluation():
    model = ByMode()
    for mode in (True, False):
        with pytest.raises(GroupwiseError, match="does not run the same layers in training and in evaluation"):
            plan_split(model.train(mode), 2)
        assert model.one.training is mode


class Standardised(nn.Conv2d):
    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias, padding=1)


def test_a_forward_of_its_own():
    model = nn.Sequential(grouped(), nn.ReLU(), Standardised(8, 8, 3))
    assert styles(plan_split(model, 2)) == {"0": "GroupParallel", "2": "KeepWhole"}
    with pytest.raises(GroupwiseError, match="Standardised has a forward of its own, so that ChannelParallel"):
        ChannelParallel().part(Standardised(8, 8, 3), 2, 0)
    patched = grouped()
    patched.forward = lambda x: x
    with pytest.raises(GroupwiseError, match="Conv2d has a forward of its own, so that GroupParallel"):
        GroupParallel().part(patched, 2, 0)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes():
    with pytest.raises(GroupwiseError, match="Conv2d has a weight that a hook computes, so that GroupParallel"):
        GroupParallel().part(nn.utils.weight_norm(grouped()), 2, 0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attend = grouped(), nn.MultiheadAttention(8, 2)

    def forward(self, x):
        x = self.conv(x).flatten(2).permute(2, 0, 1)
        return self.attend(x, x, x)[0]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = grouped()

    def forward(self, x):
        return nn.functional.conv2d(self.conv(x), self.conv.weight, padding=1, groups=4)


def test_weights_that_are_read_beside_their_layer():
    with pytest.raises(GroupwiseError, match="attend is a MultiheadAttention, which reads the weight of its out_proj"):
        plan_split(Attention(), 2)
    with pytest.raises(GroupwiseError, match=r"conv\.weight is read beside its own layer"):
        plan_split(Reader(), 2)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.calls = grouped(), nn.Parameter(torch.ones(())), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.scale


def counted(mesh):
    model = split(Counting(), mesh)
    before = model.calls
    model(torch.randn(1, 8, 5, 5)), model(torch.randn(1, 8, 5, 5))
    return before, model.calls


def test_what_a_model_notes_of_itself_stays():
    model = Counting()
    plan_split(model, 2)
    assert model.calls == 0
    assert ranks.run(2, counted) == [(0, 2)] * 2


def buffers(mesh):
    model = nn.Sequential(nn.BatchNorm2d(8), grouped(), nn.BatchNorm2d(8), grouped()).eval()
    for index in (0, 2):
        model[index].running_mean.fill_(float(mesh.get_local_rank() + 1))
    split(model, mesh)
    return [model[index].state_dict()["running_mean"] for index in (0, 2)]


def plain(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def first_of_all(mesh):
    return [float(plain(tensor).mean()) for tensor in buffers(mesh)]


def test_statistics_are_those_of_the_first_rank():
    assert ranks.run(2, first_of_all) == [[1.0, 1.0]] * 2


def under_autocast(mesh):
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten())  # noqa: E731
    one, parts, x = make(), make(), torch.randn(2, 4, 6, 6)
    parts.load_state_dict(one.state_dict())
    split(parts, mesh)
    with torch.autocast("cpu", torch.bfloat16):
        expected, made = one(x), parts(x)
    made.float().sum().backward()
    return expected.dtype, made.dtype, float((made.float() - expected.float()).abs().max())


@pytest.mark.parametrize("count", [2, 3])
def test_autocast_keeps_its_dtype(count):
    for expected, made, difference in ranks.run(count, under_autocast):
        assert expected == made == torch.bfloat16
        assert difference < 0.05


def other_seeds(mesh):
    torch.manual_seed(mesh.get_local_rank())
    try:
        split(nn.Sequential(grouped(), nn.Dropout(), grouped()), mesh)
    except GroupwiseError as error:
        return str(error)
    return ""


def test_seeds_that_differ_are_told_where_values_are_dropped():
    for text in ranks.run(2, other_seeds):
        assert "the state of random numbers is " in text
        assert "seeded alike" in text


def written(mesh, folder):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = mesh.get_group()
    return [save(folder, step, model, optimizer, group=group).name for step in (100, 200, 5)]


def test_an_earlier_step_of_a_new_run_is_kept(tmp_path):
    ranks.run(1, written, str(tmp_path))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000005", "step-00000200"]


def test_machines_that_cannot_be():
    with pytest.raises(GroupwiseError, match="macs=0 must be above 0"):
        Machine(0, 1, Link(0, 1), Link(0, 1))
    with pytest.raises(GroupwiseError, match="overlap=5 must be a share"):
        Machine(1, 1, Link(0, 1), Link(0, 1), overlap=5)


def test_a_mean_over_one_of_two_dimensions_is_no_pooling():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = grouped(), nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(self.conv(x).mean(-1))

    assert styles(plan_split(Rows(), 2))["fc"] == "KeepWhole"
