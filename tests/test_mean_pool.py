"""Means over the pixels of channels_last images, by vectors of channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.library import opcheck

from accuracy import UNIT, poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels
from optimized import check, kinds

pytestmark = needs_kernels

FORMATS = [torch.contiguous_format, torch.channels_last]


def operator(*args, **options):
    return torch.ops.groupwise.mean_pool2d(*args, **options)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_shape(data):
    sizes = [data.draw(st.integers(1, 30)) for _ in range(2)]
    channels = data.draw(st.one_of(st.integers(1, 140), st.sampled_from([256, 1280])))
    x = torch.randn(data.draw(st.integers(1, 3)), channels, *sizes) + data.draw(st.sampled_from([0, 3]))
    x = x.contiguous(memory_format=data.draw(st.sampled_from(FORMATS)))
    keepdim = data.draw(st.booleans())
    with threads(data.draw(st.sampled_from([1, 2]))), forced(isa=data.draw(st.sampled_from(ISAS))), poisoned():
        made = operator(x, keepdim)
    exact = x.double().mean((2, 3), keepdim)
    assert made.shape == exact.shape
    assert made.is_contiguous()
    # Sums of 64 addends, and of at most 15 such sums.
    bound = (64 + 16) * UNIT * x.double().abs().mean((2, 3), keepdim)
    assert ((made.double() - exact).abs() <= bound).all()


def test_the_same_bits_for_any_number_of_threads():
    x = torch.randn(3, 330, 31, 33).contiguous(memory_format=torch.channels_last)
    found = []
    for count in (1, 2, 3):
        with threads(count), poisoned():
            found.append(operator(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nan_and_inf():
    x = torch.randn(1, 20, 4, 5).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 1], x[0, 17, 0, 0] = torch.nan, torch.inf
    torch.testing.assert_close(operator(x), x.mean((2, 3), True), equal_nan=True)


def test_any_strides_and_any_out():
    whole = torch.randn(2, 20, 9, 11).contiguous(memory_format=torch.channels_last)
    for x in (whole[:, 3:11], whole[:, ::2, 1:], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1), whole):
        wanted = x.mean((2, 3), True)
        torch.testing.assert_close(operator(x), wanted)
        for out in (
            torch.empty(0),
            torch.full(wanted.shape, 7.0),
            torch.full((*wanted.shape[:2], 1, 2), 7.0)[..., :1],
        ):
            version = out._version
            assert operator(x, out=out) is out
            torch.testing.assert_close(out, wanted)
            assert out._version > version


def test_wrong_arguments():
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    for wrong, message in ((x.double(), "float32"), (x[0], "four dimensions")):
        with pytest.raises(RuntimeError, match=message):
            operator(wrong)
    with pytest.raises(RuntimeError, match="memory"):
        operator(x, out=x.as_strided((2, 8, 1, 1), (8, 1, 1, 1)))


def test_gradients_are_pytorchs():
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    (ours,) = torch.autograd.grad(operator(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(x.mean((2, 3), True).square().sum(), x)
    assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="no gradient"):
        operator(x, out=torch.empty(0))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("keepdim", [False, True])
def test_the_operator_passes_opcheck(memory_format, keepdim):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=memory_format)
    opcheck(torch.ops.groupwise.mean_pool2d.default, (x, keepdim))
    # torch.compile takes no operator of others that returns what it writes to.
    opcheck(
        torch.ops.groupwise.mean_pool2d.out,
        (x, keepdim),
        {"out": torch.empty(2, 8, 1, 1) if keepdim else torch.empty(2, 8)},
        test_utils=("test_schema", "test_faketensor"),
    )


class Mean(nn.Module):
    """The mean over dimensions."""

    def __init__(self, *args):
        super().__init__()
        self.args = args

    def forward(self, x):
        return x.mean(*self.args)


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        (nn.AdaptiveAvgPool2d(1), "mean_pool2d"),
        (nn.AdaptiveAvgPool2d((1, 1)), "mean_pool2d"),
        (Mean((2, 3)), "mean_pool2d"),
        (Mean((-1, 2), True), "mean_pool2d"),
        (Mean((1, 3)), "mean"),
        (nn.AdaptiveAvgPool2d((1, 2)), "adaptive_avg_pool2d"),
    ],
)
def test_optimized_networks_take_means_by_it(pool, kind):
    model = nn.Sequential(nn.Conv2d(8, 20, 3), nn.ReLU(), pool).eval()
    fast = check(model, torch.randn(2, 8, 10, 11))
    assert kind in kinds(fast)


def test_networks_without_convolutions_take_means_as_before():
    assert "mean_pool2d" not in kinds(check(Mean((2, 3)).eval(), torch.randn(2, 8, 10, 11)))
