"""Squeeze and excitation as one operator: held to float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

EPS = torch.finfo(torch.float32).eps
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
LAST = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def operator(*args, **options):
    return torch.ops.groupwise.squeeze_excite(*args, **options)


def composed(x, w1, b1, act1, w2, b2, act2):
    """In the dtype of the arguments."""

    def gate(v, w, b, act):
        if w is not None:
            v = v @ w.flatten(1).T
        return ACTIVATIONS[act](v if b is None else v + b)

    factor = gate(gate(x.flatten(2).mean(2), w1, b1, act1), w2, b2, act2)
    return x * factor.reshape(*factor.shape, *[1] * (x.dim() - 2))


def exact(*args):
    return composed(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))


def allowed(x, w1, b1, act1, w2, b2, act2):
    """How far each number may be off: roundings grow with the length of the sums and the sizes of what they add.

    No activation here is steeper than 1.5.
    """
    x, w1, b1, w2, b2 = (None if t is None else t.double().abs() for t in (x, w1, b1, w2, b2))
    pixels = x.flatten(2).shape[2]

    def gate(v, off, w, b):
        if w is not None:
            w = w.flatten(1)
            v, off = v @ w.T, off @ w.T + (w.shape[1] + 3) * EPS * (v @ w.T)
        size = v if b is None else v + b
        return 1.5 * size + 1.5, 1.5 * (off + 8 * EPS * (size + 1))

    mean = x.flatten(2).mean(2)
    size, off = gate(*gate(mean, (min(pixels, 600) + 3) * EPS * mean, w1, b1), w2, b2)
    return x * (off + 2 * EPS * size).reshape(*size.shape, *[1] * (x.dim() - 2))


def hold(args, got):
    off = (got.double() - exact(*args)).abs()
    assert got.shape == args[0].shape
    assert (off <= allowed(*args)).all(), (off - allowed(*args)).max()


def hold_low(args, got):
    """Of bfloat16 numbers each result is rounded once more."""
    off, true = (got.double() - exact(*args)).abs(), exact(*args).abs()
    assert got.dtype == torch.bfloat16
    assert (off <= allowed(*args) + 1.01 * 2**-8 * true).all(), (off / true).max()


def arguments(shape, hidden, act1="silu", act2="sigmoid", fmt=torch.channels_last, biases=True, ones=()):
    x = torch.randn(shape) + 0.3
    x = x.contiguous(memory_format=fmt)
    channels = shape[1]
    w1 = torch.randn(hidden, channels, *ones) / channels**0.5 if hidden else None
    w2 = torch.randn(channels, hidden or channels, *ones) / (hidden or channels) ** 0.5
    b1 = torch.randn(hidden) if hidden and biases else None
    return x, w1, b1, act1 if hidden else "none", w2, torch.randn(channels) if biases else None, act2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, isa):
    for other in ("relu", activation):
        for fmt in (torch.contiguous_format, torch.channels_last):
            args = arguments((2, 37, 9, 11), 5, other, activation, fmt)
            with forced(isa=isa), poisoned():
                hold(args, operator(*args))


@settings(max_examples=60)
@given(st.data())
def test_bfloat16(data):
    shape = [data.draw(st.integers(1, most)) for most in (3, 90, 20, 20)]
    fmt = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    acts = [data.draw(st.sampled_from(list(ACTIVATIONS))) for _ in range(2)]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    args = list(arguments(shape, data.draw(st.integers(0, 40)), *acts, fmt, data.draw(st.booleans())))
    # Weights and biases may be more exact than the image.
    low = [0, *(number for number in (1, 2, 4, 5) if data.draw(st.booleans()))]
    args = [a.bfloat16() if i in low and isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    count, isa = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from(ISAS))
    with threads(count), forced(isa=isa), poisoned():
        made = operator(*args)
        hold_low(args, made)
        out = args[0].clone()
        assert torch.equal(operator(out, *args[1:], out=out), made)


@settings(max_examples=80)
@given(st.data())
def test_any_shape(data):
    dims = data.draw(st.integers(1, 3))
    largest = {1: 3000, 2: 40, 3: 9}[dims]
    shape = (
        data.draw(st.integers(1, 5)),
        data.draw(st.one_of(st.integers(1, 70), st.sampled_from([300, 515]))),
        *(data.draw(st.integers(1, largest)) for _ in range(dims)),
    )
    fmt = data.draw(st.sampled_from([torch.contiguous_format, LAST[dims + 2]]))
    hidden, ones = data.draw(st.integers(0, 40)), data.draw(st.sampled_from([(), (1, 1)]))
    acts = [data.draw(st.sampled_from(list(ACTIVATIONS))) for _ in range(2)]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    args = arguments(shape, hidden, *acts, fmt, data.draw(st.booleans()), ones)
    count, isa = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from(ISAS))
    with threads(count), forced(isa=isa), poisoned():
        made = operator(*args)
        hold(args, made)
        assert made.is_contiguous(memory_format=fmt)
        if data.draw(st.booleans()):
            out = args[0].clone()
            assert torch.equal(operator(out, *args[1:], out=out), made)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 24, 80, 90), (3, 40, 40, 40), (1, 1200, 7, 7), (8, 16, 30, 30)])
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_any_number_of_threads_gives_the_same_bits(fmt, shape, isa):
    args, results = arguments(shape, shape[1] // 8, fmt=fmt), []
    for count in (1, 2, 3, 7):
        with threads(count), forced(isa=isa), poisoned():
            results.append(operator(*args))
    hold(args, results[0])
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_large_weights_are_shared_by_samples():
    args = arguments((5, 600, 3, 3), 400)
    for count in (1, 2):
        with threads(count), poisoned():
            hold(args, operator(*args))


def test_long_sums_stay_exact():
    for fmt in (torch.contiguous_format, torch.channels_last):
        x = torch.full((1, 16, 700, 700), 0.1).contiguous(memory_format=fmt)
        made = operator(x, None, None, "none", None, None, "none")
        torch.testing.assert_close(made.double(), x.double() ** 2, rtol=1e-5, atol=0)


def test_gates_without_weights():
    x = torch.randn(2, 9, 4, 4)
    for b1, b2 in ((None, None), (torch.randn(9), None), (None, torch.randn(9))):
        args = (x, None, b1, "tanh", None, b2, "sigmoid")
        hold(args, operator(*args))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:, ::2, 1:, ::3],
        lambda t: t.transpose(2, 3),
        lambda t: t.permute(0, 3, 2, 1),
        lambda t: t[:, :1].expand(-1, 8, -1, -1),
        lambda t: t.contiguous(memory_format=torch.channels_last)[:, 3:11],
    ],
)
def test_any_strides(change):
    x = change(torch.randn(3, 16, 8, 12))
    args = (x, *arguments(x.shape, 4)[1:])
    turned = (args[1].T.contiguous().T, *args[2:4], args[4].T.contiguous().T, *args[5:])
    with poisoned():
        hold(args, operator(*args))
        assert torch.equal(operator(x, *turned), operator(*args))
        if not x._is_view() or x.stride(1):
            own = torch.empty_strided(x.shape, x.stride()).copy_(x)
            hold(args, operator(own, *args[1:], out=own))


def test_out_is_any_tensor():
    args = arguments((2, 8, 5, 6), 3)
    wanted = operator(*args)
    for out in (
        torch.full((2, 8, 5, 6), 7.0),
        torch.full((2, 5, 6, 16), 7.0).permute(0, 3, 1, 2)[:, ::2],
        torch.empty(0),
    ):
        assert operator(*args, out=out) is out
        assert torch.equal(out, wanted)
    version = out._version
    operator(*args, out=out)
    assert out._version > version


def test_wrong_arguments():
    x, w1, b1, act1, w2, b2, act2 = arguments((2, 8, 5, 6), 3)
    for args, message in (
        ((x.double(), w1, b1, act1, w2, b2, act2), "float32"),
        ((x[0, 0], w1, b1, act1, w2, b2, act2), "samples, channels and pixels"),
        ((x, w1[:, :7], b1, act1, w2, b2, act2), "weight1"),
        ((x, w1, b1[:2], act1, w2, b2, act2), "bias"),
        ((x, w1, b1, act1, w2[:7], None, act2), "outputs"),
        ((x, w1, b1, "swish", w2, b2, act2), "swish"),
        ((x, w1.bfloat16(), b1, act1, w2, b2, act2), "weight1"),
    ):
        with pytest.raises(RuntimeError, match=message):
            operator(*args)
    row = torch.randn(3000)
    with pytest.raises(RuntimeError, match="memory"):
        operator(row[:480].view(2, 8, 5, 6), w1, b1, act1, w2, b2, act2, out=row[8:488].view(2, 8, 5, 6))
    with pytest.raises(RuntimeError, match="the dtype of x"):
        operator(x, w1, b1, act1, w2, b2, act2, out=x.double())


def test_nan_and_infinity_stay_in_their_sample():
    for value in (float("nan"), float("inf")):
        for fmt in (torch.contiguous_format, torch.channels_last):
            args = arguments((2, 19, 5, 5), 4, fmt=fmt)
            args[0][1, 3, 2, 2] = value
            made, theirs = operator(*args), composed(*args)
            assert torch.equal(made.isnan(), theirs.isnan())
            assert not made[0].isnan().any()


def test_empty_tensors():
    for shape in ((0, 8, 4, 4), (2, 8, 0, 4)):
        args = arguments(shape, 3)
        assert operator(*args).shape == shape


def test_gradients_are_pytorchs():
    args = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments((2, 8, 5, 6), 3)]
    leaves = [t for t in args if isinstance(t, torch.Tensor)]
    ours = torch.autograd.grad(operator(*args).square().sum(), leaves)
    theirs = torch.autograd.grad(composed(*args).square().sum(), leaves)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="no gradient"):
        operator(*args, out=torch.empty(2, 8, 5, 6))
    with torch.no_grad():
        assert torch.equal(operator(*args, out=torch.empty(2, 8, 5, 6)), operator(*args))


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_the_operator_passes_opcheck(fmt):
    opcheck(torch.ops.groupwise.squeeze_excite.default, arguments((2, 8, 5, 6), 3, fmt=fmt))
    opcheck(torch.ops.groupwise.squeeze_excite.default, arguments((2, 8, 5, 6), 0, fmt=fmt, ones=(1, 1)))
    # torch.compile takes no operator of others that returns what it writes to.
    opcheck(
        torch.ops.groupwise.squeeze_excite.out,
        arguments((2, 8, 5, 6), 3, fmt=fmt),
        {"out": torch.empty(2, 8, 5, 6)},
        test_utils=("test_schema", "test_faketensor"),
    )


def test_torch_compile_takes_it():
    args = arguments((2, 8, 5, 6), 3)
    compiled = torch.compile(lambda *given: operator(*given) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), operator(*args) + 1)
