"""What `optimize` folds and fuses, and what it must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import groupwise
from kernels import needs_kernels
from optimized import Both, Excite, Residual, Shuffle, check, kinds, layers, settle


def source(*shape):
    return torch.randn(shape or (2, 8, 10, 10))


CONVOLUTIONS = {
    "1d": (nn.Conv1d(8, 6, 3, padding=1), nn.BatchNorm1d(6), (2, 8, 11)),
    "2d": (nn.Conv2d(8, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), (2, 8, 10, 10)),
    "3d": (nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6), (1, 4, 5, 6, 7)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4, dilation=2), nn.BatchNorm2d(12, eps=1e-3), (2, 8, 10, 10)),
    "depthwise": (nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.BatchNorm2d(8, affine=False), (2, 8, 10, 10)),
    "same": (nn.Conv2d(8, 6, 3, padding="same"), nn.BatchNorm2d(6), (2, 8, 10, 10)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(6), (2, 8, 5, 5)),
    "transposed groups": (nn.ConvTranspose2d(8, 12, 3, groups=4), nn.BatchNorm2d(12), (2, 8, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(8, 12, 3, groups=2), nn.BatchNorm1d(12), (2, 8, 5)),
    "transposed 3d": (nn.ConvTranspose3d(4, 2, 3), nn.BatchNorm3d(2), (1, 4, 3, 4, 5)),
    "linear": (nn.Linear(8, 6), nn.BatchNorm1d(6), (5, 8)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_batch_norm_after_a_layer_is_folded(kind):
    layer, norm, shape = CONVOLUTIONS[kind]
    fast = check(settle(nn.Sequential(layer, norm, nn.ReLU())), source(*shape))
    assert layers(fast) == [("linear" if kind == "linear" else "convolution", ("batch norm", "relu"))]
    assert "batch_norm" not in kinds(fast)


@pytest.mark.parametrize(
    ("layer", "shape", "folded"),
    [
        (nn.Conv2d(8, 6, 3), (2, 8, 10, 10), True),
        (nn.Conv2d(8, 12, 3, groups=4, bias=False), (2, 8, 10, 10), True),
        (nn.Conv1d(8, 6, 3), (2, 8, 10), True),
        (nn.Linear(8, 6), (5, 8), True),
        (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 10, 10), False),
        (nn.ConvTranspose2d(8, 6, 3), (2, 8, 10, 10), False),
    ],
)
def test_a_batch_norm_before_a_layer_is_folded_where_no_padding_mixes_zeros_with_it(layer, shape, folded):
    norm = nn.BatchNorm2d(8) if len(shape) == 4 else nn.BatchNorm1d(8)
    fast = check(settle(nn.Sequential(norm, layer)), source(*shape))
    assert ("batch_norm" not in kinds(fast)) == folded


def test_two_batch_norms_in_a_row():
    model = settle(nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)))
    assert layers(check(model, source())) == [("convolution", ("batch norm", "batch norm"))]


def norms(fast):
    """What each BatchNorm that no layer took computes beside itself."""
    return [step.fused for step in fast.plan.steps if step.kind == "batch_norm_act"]


def test_a_batch_norm_alone_stays():
    assert "batch_norm" in kinds(check(settle(nn.Sequential(nn.BatchNorm2d(8), nn.Softmax(1))), source()))


@needs_kernels
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("activation", "word"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.SiLU(), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.LeakyReLU(0.3), "leaky_relu"),
        (nn.GELU(), ""),
        (nn.Hardtanh(-0.5, 0.7), ""),
    ],
)
def test_a_batch_norm_that_no_layer_takes_is_one_operator_with_what_follows(activation, word, residual):
    norm = nn.BatchNorm2d(8, affine=word != "tanh", eps=1e-2)
    model = Residual(norm, after=activation) if residual else nn.Sequential(norm, activation)
    words = tuple(part for part in ("sum" if residual else "", word) if part)
    for x in (source(), source().contiguous(memory_format=torch.channels_last)):
        fast = check(settle(model), x)
        assert norms(fast) == ([words] if words else [])
    empty = source(0, 8, 10, 10)
    with torch.inference_mode():
        assert fast(empty).shape == model(empty).shape
    assert norms(groupwise.optimize(model.double(), source().double())) == []


@needs_kernels
def test_a_batch_norm_that_others_read_is_not_joined():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            made = self.norm(x)
            return torch.relu(made) + made.mean() + (self.norm(x) + self.norm(x)[:1]).relu()

    assert norms(check(settle(Read()), source())) == []


@needs_kernels
@pytest.mark.parametrize("activation", groupwise.nn.functional.ACTIVATIONS)
def test_a_batch_norm_with_an_activation_of_groupwise_is_folded(activation):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), groupwise.nn.BatchNormAct2d(8, activation=activation)

        def forward(self, x):
            return self.norm(self.conv(x), x)

    words = ("batch norm", "sum", *[activation] * (activation != "none"))
    assert layers(check(settle(Block()), source())) == [("convolution", words)]


def test_a_batch_norm_of_the_wrong_dimension_stays():
    model = settle(nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(8)))
    assert "batch_norm" in kinds(check(model, source(2, 8, 10)))


class Twice(nn.Module):
    """A convolution whose output is read beside its BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        made = self.conv(x)
        return made + self.norm(made)


class Shared(nn.Module):
    """One convolution that runs twice, before and after its own output."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.conv(torch.relu(self.norm(self.conv(x))))


def test_an_output_that_others_read_is_not_folded():
    assert layers(check(settle(Twice()), source())) == [("convolution", ())]


def test_a_shared_layer_is_folded_where_it_may():
    assert layers(check(settle(Shared()), source())) == [("convolution", ("batch norm", "relu")), ("convolution", ())]


class Scaled(nn.Module):
    """ConvNeXt's block: a linear layer in channels_last, moved back and scaled for each channel."""

    def __init__(self, where):
        super().__init__()
        self.linear, self.where = nn.Linear(8, 8), where
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        made = self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        scale = self.scale if self.where == "channel" else self.scale.view(8, 1)[:, :1].expand(8, 10).contiguous()
        return made * scale + x


def test_a_scale_goes_through_a_permutation():
    assert layers(check(Scaled("channel").eval(), source())) == [("linear", ("scale", "sum"))]


def test_a_scale_that_is_not_one_for_each_channel_stays():
    assert layers(check(Scaled("width").eval(), source(2, 8, 8, 10))) == [("linear", ())]


class Moved(nn.Module):
    """A sum with what a layer computes, behind moves of dimensions."""

    def __init__(self, move, other_side):
        super().__init__()
        self.linear, self.move, self.other_side = nn.Linear(6, 6), move, other_side

    def forward(self, x, y):
        made = self.move(self.linear(x))
        return (y + made if self.other_side else made + y).relu()


@pytest.mark.parametrize("other_side", [False, True])
@pytest.mark.parametrize(
    "move",
    [
        lambda t: t.permute(0, 3, 1, 2),
        lambda t: t.permute(-1, 0, -2, 1),
        lambda t: t.transpose(1, -1),
        lambda t: t.permute(3, 0, 1, 2).transpose(0, 2).permute(1, 0, 3, 2),
    ],
)
def test_a_sum_behind_moves_of_dimensions_is_fused(move, other_side):
    x = torch.randn(2, 3, 4, 6)
    fast = check(Moved(move, other_side).eval(), x, torch.randn(move(x).shape))
    assert layers(fast) == [("linear", ("sum",))]
    assert "add" not in kinds(fast)


def test_a_sum_behind_a_move_that_is_read_twice_is_not_fused():
    class Read(Moved):
        def forward(self, x, y):
            made = self.move(self.linear(x))
            return made + y, made.mean()

    model = Read(lambda t: t.transpose(1, 3), False).eval()
    assert layers(check(model, torch.randn(2, 3, 4, 6), torch.randn(2, 6, 4, 3))) == [("linear", ())]


@pytest.mark.parametrize(
    ("activation", "word"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.Hardtanh(-0.5, 0.7), "hardtanh"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu"),
        (nn.LeakyReLU(0.2), "leaky_relu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
    ],
)
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(10, 10)]
)
def test_an_activation_is_fused(layer, activation, word):
    fast = check(nn.Sequential(layer, activation).eval(), source())
    assert [fused for _, fused in layers(fast)] == [(word,)]
    both = check(Residual(nn.Sequential(layer, activation), after=activation).eval(), source())
    assert [fused for _, fused in layers(both)] == [(word, "sum", word)]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        made = self.conv(x)
        return made * torch.sigmoid(made)


def test_x_times_its_sigmoid_is_silu():
    assert layers(check(Gated().eval(), source())) == [("convolution", ("silu",))]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_sum_is_fused(inplace, groups):
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8))
    fast = check(settle(Residual(block, inplace, nn.ReLU())), source())
    assert layers(fast) == [("convolution", ("batch norm", "sum", "relu"))]


def test_two_convolutions_are_summed_whichever_comes_last():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            first = self.a(x)
            return torch.relu(first + self.b(x)) + first.mean()

    assert ("sum", "relu") in [fused for _, fused in layers(check(Two().eval(), source()))]


def test_a_sum_that_is_broadcast_is_not_fused():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.conv(x.mean((2, 3), keepdim=True))

    assert layers(check(Wide().eval(), source())) == [("convolution", ())]


def test_a_channel_shuffle_is_one_step():
    model = nn.Sequential(nn.Conv2d(8, 12, 1), Shuffle(3), nn.Conv2d(12, 4, 1)).eval()
    assert "native_channel_shuffle" in kinds(check(model, source()))


@needs_kernels
@pytest.mark.parametrize("channels", [8, 7, 2, 40])
def test_a_shuffle_of_two_joined_tensors_is_one_step(channels):
    model = nn.Sequential(Both(nn.Conv2d(8, channels, 1), nn.Conv2d(8, channels, 3, padding=1)), Shuffle(2))
    fast = check(nn.Sequential(model, nn.ReLU()).eval(), source())
    assert "interleave" in kinds(fast)
    assert not {"cat", "native_channel_shuffle"} & set(kinds(fast))


class Halved(nn.Module):
    """ShuffleNetV2: both halves of the shuffled channels have readers of their own."""

    def __init__(self, channels, halve):
        super().__init__()
        self.first = nn.Sequential(Both(nn.Conv2d(8, channels, 1), nn.Conv2d(8, channels, 3, padding=1)), Shuffle(2))
        self.second, self.halve = nn.Conv2d(channels, channels, 1), halve

    def forward(self, x):
        left, right = self.halve(self.first(x))
        return torch.cat([left, self.second(right)], 1)


@needs_kernels
@pytest.mark.parametrize("channels", [8, 7, 1, 33])
def test_halves_of_a_shuffle_are_one_step(channels):
    for halve in (
        lambda t: t.chunk(2, 1),
        lambda t: t.split(t.shape[1] // 2, -3),
        lambda t: t.split([t.shape[1] // 2] * 2, 1),
    ):
        fast = check(Halved(channels, halve).eval(), source())
        assert "interleave_halves" in kinds(fast)
        assert not {"chunk", "split", "native_channel_shuffle"} & set(kinds(fast))


def test_other_shuffles_stay():
    for halve in (
        lambda t: t.chunk(2, 2),
        lambda t: (t[:, ::2], t[:, 1::2]),
        lambda t: t.split([3, 13], 1)[::-1],
    ):
        model = Halved(8, halve)
        model.second = nn.Identity()
        assert "interleave_halves" not in kinds(check(model.eval(), torch.randn(2, 8, 10, 10)))
    joined = nn.Sequential(Both(nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 1)), Shuffle(2))
    assert not {"interleave", "interleave_halves"} & set(kinds(check(joined.eval(), source())))
    joined = nn.Sequential(Both(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), Shuffle(4))
    assert not {"interleave", "interleave_halves"} & set(kinds(check(joined.eval(), source())))


def test_images_change_their_layout_once():
    first = Both(nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3))
    model = settle(nn.Sequential(first, Both(Excite(8, nn.Sigmoid()), nn.MaxPool2d(1)), nn.Conv2d(16, 4, 1)))
    fast = check(model, source())
    assert kinds(fast).count("to_channels_last") == 1
    check(model, source().contiguous(memory_format=torch.channels_last), fast=fast)


def test_a_model_with_nothing_to_fuse():
    x = source()
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval()
    assert torch.equal(groupwise.optimize(model, x)(x), model(x))
    assert groupwise.optimize(nn.Identity().eval(), x)(x) is x


def test_dropout_and_identities_are_left_out():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(), nn.Identity(), nn.Dropout2d(inplace=True), nn.ReLU()).eval()
    assert kinds(check(model, source())) == ["convolution"]
    for dropout in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout):
        assert not check(nn.Sequential(dropout(inplace=True), nn.Conv2d(8, 8, 1)).eval(), source()).plan.left


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_folded_too(dtype):
    model = settle(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).to(dtype)
    x = source().to(dtype)
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        torch.testing.assert_close(
            fast(x), model(x), **({"rtol": 0.05, "atol": 0.05} if dtype is torch.bfloat16 else {})
        )
    assert sum(fast.plan.engines.values()) == 1
    if dtype is torch.float64:
        assert fast.plan.engines == {"pytorch": 1}
        assert "float" in fast.plan.steps[0].refused["onednn"]


def test_what_only_looks_like_a_channel_shuffle_is_none():
    class Rows(nn.Module):
        def forward(self, x):
            return x.reshape(2, 8, 10, 5, 2).transpose(1, 2).reshape(2, 8, 10, 10)

    model = nn.Sequential(nn.Conv2d(8, 8, 1), Rows(), nn.Conv2d(8, 4, 1)).eval()
    assert "native_channel_shuffle" not in kinds(check(model, source()))
