"""Interleaved channels: held to a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

operators = torch.ops.groupwise
DTYPES = [torch.float32, torch.bfloat16]


def exact(a, b):
    rows = [tensor[:, channel] for channel in range(a.shape[1]) for tensor in (a, b)]
    return torch.stack(rows, 1)


def hold(a, b):
    wanted, channels = exact(a, b), a.shape[1]
    with poisoned():
        whole, halves = operators.interleave(a, b), operators.interleave_halves(a, b)
    assert torch.equal(whole, wanted)
    assert torch.equal(halves[0], wanted[:, :channels])
    assert torch.equal(halves[1], wanted[:, channels:])
    return whole, halves


@settings(max_examples=80)
@given(st.data())
def test_any_shape(data):
    dims = data.draw(st.integers(0, 3))
    shape = (
        data.draw(st.integers(0, 3)),
        data.draw(st.integers(1, 80)),
        *(data.draw(st.integers(0, 12)) for _ in range(dims)),
    )
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.contiguous_format)
    fmt = data.draw(st.sampled_from([torch.contiguous_format, last]))
    dtype = data.draw(st.sampled_from(DTYPES))
    a, b = (torch.randn(shape).to(dtype).contiguous(memory_format=fmt) for _ in range(2))
    with threads(data.draw(st.sampled_from([1, 2, 3]))), forced(isa=data.draw(st.sampled_from(ISAS))):
        whole, halves = hold(a, b)
    # Strides do not tell the formats of one channel, or one pixel, apart.
    for made in (whole, *halves) if fmt is torch.contiguous_format or not a.is_contiguous() else ():
        assert made.is_contiguous(memory_format=fmt)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 15, 16, 29, 58, 64, 116, 232])
def test_large_images(channels, dtype, isa):
    a, b = (torch.randn(2, channels, 30, 31).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    for count in (1, 2):
        with threads(count), forced(isa=isa):
            hold(a, b)


def test_any_strides():
    whole = torch.randn(2, 20, 6, 7).contiguous(memory_format=torch.channels_last)
    hold(whole[:, :10], whole[:, 10:])
    hold(whole[:, ::2], whole.contiguous()[:, 1::2])
    hold(whole.transpose(2, 3), whole.flip(1).transpose(2, 3))
    hold(whole[:1].expand(2, -1, -1, -1), whole)


def test_out_is_any_tensor():
    a, b = (torch.randn(2, 9, 5, 4).contiguous(memory_format=torch.channels_last) for _ in range(2))
    wanted = exact(a, b)
    last = torch.full((2, 5, 4, 18), 7.0).permute(0, 3, 1, 2)
    for out in (last, torch.full((2, 18, 5, 4), 7.0), torch.empty(0)):
        assert operators.interleave(a, b, out=out) is out
        assert torch.equal(out, wanted)
    version = out._version
    operators.interleave(a, b, out=out)
    assert out._version > version
    first, second = torch.empty(2, 5, 4, 9).permute(0, 3, 1, 2), torch.empty(2, 9, 5, 4)
    for pair in ((first, first.clone()), (first, second), (torch.empty(0), torch.empty(0))):
        operators.interleave_halves(a, b, first=pair[0], second=pair[1])
        assert torch.equal(torch.cat(pair, 1), wanted)


def test_wrong_arguments():
    a = torch.randn(2, 8, 5, 6)
    for pair, message in (
        ((a, a[:, :4]), "one shape"),
        ((a, a.double()), "float32"),
        ((a.double(), a), "float32"),
        ((a, a.bfloat16()), "one dtype"),
        ((a[0, 0, 0], a[0, 0, 0]), "samples and channels"),
    ):
        for function in (operators.interleave, operators.interleave_halves):
            with pytest.raises(RuntimeError, match=message):
                function(*pair)
    with pytest.raises(RuntimeError, match="memory"):
        operators.interleave_halves(a, a.clone(), first=a, second=torch.empty_like(a))
    with pytest.raises(RuntimeError, match="memory"):
        operators.interleave_halves(a, a, first=(out := torch.empty_like(a)), second=out)
    with pytest.raises(RuntimeError, match="out must have"):
        operators.interleave(a, a, out=torch.empty(2, 16, 5, 6).double())


def test_gradients_are_pytorchs():
    a, b = (torch.randn(2, 5, 4, 3, requires_grad=True) for _ in range(2))
    weight = torch.randn(2, 10, 4, 3)
    wanted = torch.autograd.grad((exact(a, b) * weight).sum(), (a, b))
    for made in (operators.interleave(a, b), torch.cat(operators.interleave_halves(a, b), 1)):
        for ours, theirs in zip(torch.autograd.grad((made * weight).sum(), (a, b)), wanted, strict=True):
            assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="no gradient"):
        operators.interleave(a, b, out=torch.empty(2, 10, 4, 3))


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_the_operators_pass_opcheck(fmt):
    a, b = (torch.randn(2, 5, 4, 3).contiguous(memory_format=fmt) for _ in range(2))
    opcheck(operators.interleave.default, (a, b))
    opcheck(operators.interleave_halves.default, (a, b))
    # torch.compile takes no operator of others that returns what it writes to.
    utils = ("test_schema", "test_faketensor")
    opcheck(operators.interleave.out, (a, b), {"out": torch.empty(2, 10, 4, 3)}, test_utils=utils)
    halves = {"first": torch.empty(2, 5, 4, 3), "second": torch.empty(2, 5, 4, 3)}
    opcheck(operators.interleave_halves.out, (a, b), halves, test_utils=utils)
