"""Models that a split would change without a word are refused, or kept as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from groupwise import GroupwiseError
from groupwise.parallel import ColwiseParallel, GroupParallel, Link, Machine, plan_split, split
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
    # A group that is there cannot be copied.
    assert ranks.run(1, planned_with_group) == ["ChannelwiseParallel"]


def planned_with_group(mesh):
    model = nn.Sequential(grouped(), nn.SyncBatchNorm(8, process_group=mesh.get_group()), grouped())
    return styles(plan_split(model, 2, input_shape=(2, 8, 6, 6)))["1"]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = grouped(), grouped()


class ByMode(Two):
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
    with pytest.raises(GroupwiseError, match="Standardised has a forward of its own, so that ColwiseParallel"):
        ColwiseParallel().shard(Standardised(8, 8, 3), 2, 0)
    patched = grouped()
    patched.forward = lambda x: x
    with pytest.raises(GroupwiseError, match="Conv2d has a forward of its own, so that GroupParallel"):
        GroupParallel().shard(patched, 2, 0)


class Experts(nn.Conv2d):
    def __init__(self):
        super().__init__(8, 8, 3, padding=1, groups=4)
        self.weight = nn.Parameter(torch.randn(4, 8, 2, 3, 3))

    def forward(self, input):
        return nn.functional.conv2d(input, self.weight.mean(0), self.bias, padding=1, groups=4)


def test_a_weight_of_another_shape():
    model = nn.Sequential(grouped(), nn.ReLU(), Experts())
    plan = plan_split(model, 2, input_shape=(1, 8, 5, 5))
    assert styles(plan) == {"0": "GroupParallel", "2": "KeepWhole"}
    assert plan.choices[1].held == (4 * 8 * 2 * 9 + 8,) * 2
    model[0].weight = nn.Parameter(torch.randn(4, 2, 3, 3))
    with pytest.raises(GroupwiseError, match=r"0: .*weight"):
        plan_split(model, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_a_hook_computes():
    with pytest.raises(GroupwiseError, match="Conv2d has a weight that a hook computes, so that GroupParallel"):
        GroupParallel().shard(nn.utils.weight_norm(grouped()), 2, 0)


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
    with pytest.raises(GroupwiseError, match=r"conv\.weight is read outside its own layer"):
        plan_split(Reader(), 2)


class Holder(nn.Module):
    """Reads what others hold."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.norm, self.what = grouped(), nn.BatchNorm2d(8), what
        self.several = nn.ParameterList([torch.ones(1)])

    def forward(self, x):
        y = self.conv(x)
        if self.what == "several":
            return y * self.several[0]
        return nn.functional.batch_norm(y, None, None, self.norm.weight, training=True)


@pytest.mark.parametrize(("what", "name"), [("several", r"several\.0"), ("norm", r"norm\.weight")])
def test_parameters_of_modules_that_are_not_called(what, name):
    with pytest.raises(GroupwiseError, match=f"{name} is read outside its own layer.*a parameter of the model itself"):
        plan_split(Holder(what), 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_dtensors_cannot_stand_for():
    for name, rule in (("weight_norm", nn.utils.weight_norm), ("spectral_norm", nn.utils.spectral_norm)):
        with pytest.raises(
            GroupwiseError, match=rf"1 has a hook of torch\.nn\.utils\.{name}, .*parametrizations\.{name}"
        ):
            plan_split(nn.Sequential(grouped(), rule(nn.Conv2d(8, 4, 1))), 2)
    with pytest.raises(GroupwiseError, match=r"1\.weight does not know its size yet; run the model on an input"):
        plan_split(nn.Sequential(grouped(), nn.LazyConv2d(4, 1)), 2)
    for hook in ("register_hook", "register_post_accumulate_grad_hook"):
        model = nn.Sequential(grouped(), nn.ReLU())
        getattr(model[0].weight, hook)(lambda _: None)
        with pytest.raises(GroupwiseError, match=r"0\.weight has hooks, .*add them after the split"):
            plan_split(model, 2)


def test_what_is_no_network():
    for what in (grouped(), nn.Linear(2, 2), 5):
        with pytest.raises(
            GroupwiseError, match=rf"{type(what).__name__} is not a network .* parallelize_module\(layer, mesh"
        ):
            plan_split(what, 2)
    for mesh in (None, 2):
        with pytest.raises(
            GroupwiseError, match=rf"split takes a DeviceMesh, not {mesh} of {type(mesh).__name__}; make"
        ):
            split(nn.Sequential(grouped()), mesh)


class Leaving(nn.Module):
    """What a trace must not leave behind: a count, an average, and the state of random numbers."""

    def __init__(self):
        super().__init__()
        self.conv = grouped()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x) + torch.rand(1)


def test_a_plan_leaves_the_model_and_the_random_numbers_alone():
    model, state = Leaving(), torch.get_rng_state()
    plan = plan_split(model, 2, input_shape=(1, 8, 5, 5))
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert plan.random
    assert not plan_split(nn.Sequential(grouped(), nn.Dropout(0.0)), 2).random
    for draws in (nn.Dropout(0.5), nn.RReLU(), nn.LSTM(8, 8, 2, dropout=0.5)):
        assert plan_split(nn.Sequential(grouped(), draws), 2).random


class Wired(Two):
    """The same layers in both modes, of other values."""

    def forward(self, x):
        y = self.one(x)
        w = self.two(y)
        return torch.amax(w if self.training else y, 1, keepdim=True) + y.mean() + w.mean()


def test_other_wires_in_evaluation():
    with pytest.raises(GroupwiseError, match="does not run the same layers in training and in evaluation"):
        plan_split(Wired(), 2)


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
    one = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 4, 1), nn.Flatten())
    shards, x = copy.deepcopy(one), torch.randn(2, 4, 6, 6)
    split(shards, mesh)
    with torch.autocast("cpu", torch.bfloat16):
        expected, made = one(x), shards(x)
    made.float().sum().backward()
    return expected.dtype, made.dtype, float((made.float() - expected.float()).abs().max())


@pytest.mark.parametrize("count", [2, 3])
def test_autocast_keeps_its_dtype(count):
    for expected, made, difference in ranks.run(count, under_autocast):
        assert expected == made == torch.bfloat16
        assert difference < 0.05


def twice(mesh):
    model = split(nn.Sequential(nn.Conv2d(4, 8, 1), grouped(), nn.Conv2d(8, 4, 1)), mesh)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def test_second_derivatives_are_refused():
    for text in ranks.run(2, twice):
        assert "once_differentiable" in text


def with_nothing_to_split(mesh):
    with pytest.warns(UserWarning, match="nothing of Sequential is split over 2 ranks"):
        split(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU()), mesh)


def test_a_split_of_nothing_warns():
    ranks.run(2, with_nothing_to_split)


def noted(mesh):
    model = nn.Sequential(grouped(), nn.Conv2d(8, 4, 1))
    model[0].weight.lr_scale = model[1].bias.lr_scale = 0.5
    split(model, mesh)
    return model[0].weight.lr_scale, model[1].bias.lr_scale


def test_attributes_of_parameters_stay():
    assert ranks.run(2, noted) == [(0.5, 0.5)] * 2


def loaded(mesh, groups):
    torch.manual_seed(3)
    plain = nn.Sequential(
        nn.Conv2d(4, 2 * groups, 1), nn.Conv2d(2 * groups, 2 * groups, 3, groups=groups), nn.BatchNorm2d(2 * groups)
    )
    plain.append(nn.Conv2d(2 * groups, 4, 1))
    plain(torch.randn(2, 4, 5, 5))
    torch.manual_seed(4)
    model = split(nn.Sequential(*(type(layer)(**arguments(layer)) for layer in plain)), mesh)
    before = dict(model.named_parameters())
    keys = str(model.load_state_dict(plain.state_dict()))
    same = all(before[name] is parameter for name, parameter in model.named_parameters())
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    wrong = plain.state_dict() | {"1.weight": torch.zeros(3, 3)}
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.weight"):
        model.load_state_dict(wrong)
    return keys, same


def arguments(layer):
    if isinstance(layer, nn.BatchNorm2d):
        return {"num_features": layer.num_features}
    return {name: getattr(layer, name) for name in ("in_channels", "out_channels", "kernel_size", "groups")}


@pytest.mark.parametrize("groups", [4, 5])
def test_a_plain_state_dict_is_loaded_into_a_split_model(groups):
    assert ranks.run(2, loaded, groups) == [("<All keys matched successfully>", True)] * 2


def test_machines_that_cannot_be():
    with pytest.raises(GroupwiseError, match="macs=0 must be above 0"):
        Machine(0, 1, Link(0, 1), Link(0, 1))
    with pytest.raises(GroupwiseError, match="overlap=5 must be a fraction"):
        Machine(1, 1, Link(0, 1), Link(0, 1), overlap=5)


def test_a_mean_over_one_of_two_dimensions_is_no_pooling():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = grouped(), nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(self.conv(x).mean(-1))

    assert styles(plan_split(Rows(), 2))["fc"] == "KeepWhole"
