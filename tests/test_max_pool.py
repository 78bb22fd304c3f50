"""Max pooling by vectors of channels: the same bits as PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.library import opcheck

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels
from optimized import check, kinds

pytestmark = needs_kernels

FORMATS = [torch.contiguous_format, torch.channels_last]


def operator(*args, **options):
    return torch.ops.groupwise.max_pool2d(*args, **options)


def loops(x, kernel, stride, padding, shape):
    """The largest number of each window, one by one."""
    found = torch.full(shape, -torch.inf)
    for n, c, i, j in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        rows, columns = (
            slice(max(at * s - p, 0), at * s - p + k)
            for at, k, s, p in zip((i, j), kernel, stride, padding, strict=True)
        )
        found[n, c, i, j] = x[n, c, rows, columns].max()
    return found


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_window_has_its_largest_number(ceil_mode, isa):
    for kernel, stride, padding in (([3, 3], [2, 2], [1, 1]), ([2, 3], [3, 1], [0, 1]), ([1, 1], [1, 2], [0, 0])):
        x = torch.randn(2, 19, 6, 7).contiguous(memory_format=torch.channels_last)
        with forced(isa=isa), poisoned():
            made = operator(x, kernel, stride, padding, ceil_mode)
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(made, loops(x, kernel, stride, padding, made.shape))
        assert made.shape == F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode).shape


@settings(max_examples=100)
@given(st.data())
def test_any_shape(data):
    kernel, stride = ([data.draw(st.integers(1, 5)) for _ in range(2)] for _ in range(2))
    padding = [data.draw(st.integers(0, size // 2)) for size in kernel]
    sizes = [data.draw(st.integers(1, 30)) for _ in range(2)]
    ceil_mode = data.draw(st.booleans())
    channels = data.draw(st.one_of(st.integers(1, 70), st.sampled_from([128, 200])))
    x = torch.randn(data.draw(st.integers(1, 3)), channels, *sizes)
    x = x.contiguous(memory_format=data.draw(st.sampled_from(FORMATS)))
    with torch.no_grad():
        odd = torch.tensor([torch.nan, torch.inf, -torch.inf])
        x[torch.rand(x.shape) < 0.05] = odd[data.draw(st.integers(0, 2))]
    x = x.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    try:
        wanted = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            operator(x, kernel, stride, padding, ceil_mode)
        assume(False)
    isa = data.draw(st.sampled_from(ISAS))
    with threads(data.draw(st.sampled_from([1, 2]))), forced(isa=isa), poisoned():
        made = operator(x, kernel, stride, padding, ceil_mode)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0, equal_nan=True)
    assert made.stride() == wanted.stride()


def test_large_images_on_threads():
    x = torch.randn(2, 24, 90, 91).contiguous(memory_format=torch.channels_last)
    for count in (1, 2, 3):
        with threads(count), poisoned():
            assert torch.equal(operator(x, [3, 3], [2, 2], [1, 1]), F.max_pool2d(x, 3, 2, 1))


def test_any_strides_and_any_out():
    whole = torch.randn(2, 20, 9, 11).contiguous(memory_format=torch.channels_last)
    for x in (whole[:, 3:11], whole[:, ::2, 1:], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1), whole):
        wanted = F.max_pool2d(x, 3, 2, 1)
        with poisoned():
            assert torch.equal(operator(x, [3, 3], [2, 2], [1, 1]), wanted)
        for out in (
            torch.empty(0),
            torch.full(wanted.shape, 7.0),
            torch.full(wanted.shape, 7.0).contiguous(memory_format=torch.channels_last),
        ):
            version = out._version
            assert operator(x, [3, 3], [2, 2], [1, 1], out=out) is out
            assert torch.equal(out, wanted)
            assert out._version > version


def test_wrong_arguments():
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    for args, message in (
        ((x.double(), [2, 2], [2, 2]), "float32"),
        ((x[0], [2, 2], [2, 2]), "four dimensions"),
        ((x, [2, 2], [0, 2]), "positive"),
        ((x, [2, 2], [2, 2], [2, 0]), "half"),
        ((x, [7, 2], [2, 2]), "larger"),
    ):
        with pytest.raises(RuntimeError, match=message):
            operator(*args)
    with pytest.raises(RuntimeError, match="memory"):
        operator(x, [1, 1], [1, 1], out=x)


def test_gradients_are_pytorchs():
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    (ours,) = torch.autograd.grad(operator(x, [3, 3], [2, 2], [1, 1]).square().sum(), x)
    (theirs,) = torch.autograd.grad(F.max_pool2d(x, 3, 2, 1).square().sum(), x)
    assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="no gradient"):
        operator(x, [3, 3], [2, 2], out=torch.empty(0))


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_operator_passes_opcheck(fmt):
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=fmt)
    opcheck(torch.ops.groupwise.max_pool2d.default, (x, [3, 3], [2, 2], [1, 1], True))
    # torch.compile takes no operator of others that returns what it writes to.
    opcheck(
        torch.ops.groupwise.max_pool2d.out,
        (x, [3, 3], [2, 2], [1, 1]),
        {"out": torch.empty(2, 8, 3, 3)},
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("pool", "engine"),
    [
        (nn.MaxPool2d(3, 2, 1), "groupwise"),
        (nn.MaxPool2d(2), "groupwise"),
        (nn.MaxPool2d((2, 3), (1, 2), (1, 0), ceil_mode=True), "groupwise"),
        (nn.MaxPool2d(2, dilation=2), "pytorch"),
    ],
)
def test_optimized_networks_pool_by_it(pool, engine):
    model = nn.Sequential(nn.Conv2d(8, 20, 3), nn.ReLU(), pool, nn.Conv2d(20, 4, 1)).eval()
    fast = check(model, torch.randn(2, 8, 10, 11))
    (step,) = [step for step in fast.plan.steps if step.kind == "max_pool2d"]
    assert step.engine == engine


def test_networks_without_convolutions_pool_as_before():
    fast = check(nn.MaxPool2d(3, 2, 1).eval(), torch.randn(2, 8, 10, 11))
    assert kinds(fast) == ["max_pool2d"]
    assert fast.plan.steps[0].engine == "pytorch"
