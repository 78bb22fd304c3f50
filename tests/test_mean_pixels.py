"""The mean of each channel over all pixels: held to float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.library import opcheck

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels
from optimized import check, kinds

pytestmark = needs_kernels

operator = torch.ops.groupwise.mean_pixels
EPS = {torch.float32: torch.finfo(torch.float32).eps, torch.bfloat16: 2.0**-8 * 1.01}


def exact(x, keepdim=True):
    return x.double().mean(tuple(range(2, x.dim())), keepdim)


@settings(max_examples=100)
@given(st.data())
def test_any_shape(data):
    dims = data.draw(st.integers(1, 3))
    sizes = [data.draw(st.integers(1, {1: 3000, 2: 50, 3: 9}[dims])) for _ in range(dims)]
    shape = (data.draw(st.integers(1, 4)), data.draw(st.one_of(st.integers(1, 70), st.just(515))), *sizes)
    last = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    dtype, fmt = data.draw(st.sampled_from(list(EPS))), data.draw(st.sampled_from([torch.contiguous_format, last]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = (torch.randn(shape) + 0.3).to(dtype).contiguous(memory_format=fmt)
    keepdim = data.draw(st.booleans())
    with threads(data.draw(st.sampled_from([1, 2]))), forced(isa=data.draw(st.sampled_from(ISAS))), poisoned():
        made = operator(x, keepdim)
        out = torch.empty_like(made)
        assert operator(x, keepdim, out=out) is out
    assert torch.equal(out, made)
    true = exact(x, keepdim)
    assert (made.shape, made.dtype) == (true.shape, dtype)
    rounding = 600 * EPS[torch.float32] * exact(x.abs(), keepdim)
    assert ((made.double() - true).abs() <= rounding + EPS[dtype] * true.abs()).all()


def test_the_same_bits_for_any_number_of_threads():
    x = torch.randn(3, 330, 31, 33).contiguous(memory_format=torch.channels_last)
    found = []
    for count in (1, 2, 3):
        with threads(count), poisoned():
            found.append(operator(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_any_strides_and_any_out():
    whole = torch.randn(2, 20, 9, 11).contiguous(memory_format=torch.channels_last)
    for x in (whole[:, 3:11], whole[:, ::2, 1:], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1), whole):
        wanted = x.mean((2, 3), True)
        for out in (torch.empty(0), torch.full((*wanted.shape[:2], 1, 2), 7.0)[..., :1]):
            version = out._version
            assert operator(x, out=out) is out
            torch.testing.assert_close(out, wanted)
            assert out._version > version


def test_arguments_and_gradients():
    x = torch.randn(2, 5, 4, 3)
    for wrong in (x.double(), x[0, 0]):
        with pytest.raises(RuntimeError, match="float32 or bfloat16"):
            operator(wrong)
    with pytest.raises(RuntimeError, match="the dtype and the device"):
        operator(x, out=torch.empty(2, 5, 1, 1).double())
    with pytest.raises(RuntimeError, match="memory"):
        operator(x, out=x.flatten()[:10].view(2, 5, 1, 1))
    assert operator(torch.empty(2, 5, 0, 3)).isnan().all()
    for fmt in (torch.contiguous_format, torch.channels_last):
        opcheck(operator.default, (x.contiguous(memory_format=fmt),))
    opcheck(operator.out, (x,), {"out": torch.empty(2, 5, 1, 1)}, test_utils=("test_schema", "test_faketensor"))
    x.requires_grad_()
    (made,) = torch.autograd.grad(operator(x).sum(), x)
    assert torch.equal(made, torch.full_like(x, 1 / 12))
    with pytest.raises(RuntimeError, match="no gradient"):
        operator(x, out=torch.empty(2, 5, 1, 1))


class Mean(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.mean, self.conv = mean, nn.Conv2d(8, 16, 3)

    def forward(self, x):
        return self.mean(self.conv(x))


def test_networks_run_it():
    x = torch.randn(2, 8, 10, 10)
    for mean in (
        nn.AdaptiveAvgPool2d(1),
        lambda y: y.mean((2, 3), keepdim=True),
        lambda y: y.mean((-1, -2), True),
        lambda y: y.mean((2, 3)),
        lambda y: F.avg_pool2d(y, 8),
    ):
        assert "mean_pixels" in kinds(check(Mean(mean).eval(), x, tune=False))
    for mean in (
        nn.AdaptiveAvgPool2d(2),
        lambda y: y.mean((1, 2, 3), keepdim=True),
        lambda y: y.mean(2, keepdim=True),
        lambda y: y.mean((2, 3), keepdim=True, dtype=torch.float64),
        lambda y: F.avg_pool2d(y, 7),
    ):
        assert "mean_pixels" not in kinds(check(Mean(mean).eval(), x, tune=False))
