"""Batch normalisation with an activation: held to float64, and to PyTorch's own error in float32."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import poisoned, threads
from groupwise import GroupwiseError
from groupwise.kernels.dispatch import forced
from groupwise.nn.functional import ACTIVATIONS, batch_norm_act
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

PYTORCH = {
    "none": lambda z, slope: z,
    "relu": lambda z, slope: F.relu(z),
    "relu6": lambda z, slope: F.relu6(z),
    "leaky_relu": F.leaky_relu,
    "silu": lambda z, slope: F.silu(z),
    "hardswish": lambda z, slope: F.hardswish(z),
    "hardsigmoid": lambda z, slope: F.hardsigmoid(z),
    "sigmoid": lambda z, slope: torch.sigmoid(z),
    "tanh": lambda z, slope: torch.tanh(z),
    "gelu": lambda z, slope: F.gelu(z),
}
OURS = [name for name in PYTORCH if name != "gelu"]
# Where a derivative jumps: there the float32 and the float64 value may be on different sides.
JUMPS = {"relu": [0], "relu6": [0, 6], "leaky_relu": [0], "hardswish": [-3, 3], "hardsigmoid": [-3, 3]}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def composed(x, mean, var, weight, bias, training, momentum, eps, activation, residual, slope=0.01):
    z = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    return PYTORCH[activation](z if residual is None else z + residual, slope)


def step(f, x, weight, bias, residual, grad, activation, training=True, mean=None, var=None, slope=0.01, eps=1e-5):
    """The output and all gradients of copies, and the running statistics after it."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias, residual)]
    stats = [None if t is None else t.clone() for t in (mean, var)]
    x, weight, bias, residual = leaves
    y = f(x, *stats, weight, bias, training, 0.1, eps, activation, residual, slope)
    inputs = [t for t in leaves if t is not None]
    names = [n for n, t in zip(("x", "weight", "bias", "residual"), leaves, strict=True) if t is not None]
    found = {"y": y.detach(), **dict(zip(names, torch.autograd.grad(y, inputs, grad), strict=True))}
    return found | {n: t for n, t in zip(("mean", "var"), stats, strict=True) if t is not None}


def away_from_jumps(x, weight, bias, residual, activation, grad, training, mean, var, eps=1e-5):
    """`grad` with zeros where rounding may decide the derivative."""
    args = [None if t is None else t.double() for t in (x, mean, var, weight, bias)]
    z = F.batch_norm(*args, training, 0.1, eps)
    z = z if residual is None else z + residual.double()
    safe = torch.ones_like(z, dtype=torch.bool)
    for jump in JUMPS.get(activation, []):
        safe &= (z - jump).abs() > 1e-2 if x.abs().max() > 100 else (z - jump).abs() > 1e-4
    return torch.where(safe, grad, 0.0)


def hold(x, weight, bias, residual, grad, activation, training=True, mean=None, var=None, slope=0.01, ours=None):
    """Hold every value to at most twice PyTorch's root mean square error, and the rounding of a few operations."""
    grad = away_from_jumps(x, weight, bias, residual, activation, grad, training, mean, var)
    arguments = (x, weight, bias, residual, grad, activation, training, mean, var)
    doubles = [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]
    exact = step(composed, *doubles, slope=slope)
    theirs = step(composed, *arguments, slope=slope)
    with poisoned():
        ours = ours or step(batch_norm_act, *arguments, slope=slope)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        got = ours[name]
        assert got.stride() == theirs[name].stride() or name == "residual", name
        error, their = ((t.double() - value).square().mean().sqrt().item() for t in (got, theirs[name]))
        # Sums cancel, so that their rounding is relative to what they sum.
        size = grad.abs().mean().item() * (x.numel() / x.shape[1]) ** 0.5 if name in ("weight", "bias") else 0.0
        floor = 4e-7 * (value.square().mean().sqrt().item() + size)
        if name == "x" and training:
            centered = (x - x.mean([d for d in range(x.dim()) if d != 1], keepdim=True)).square().mean().sqrt().item()
            floor += 4e-7 * grad.abs().max().item() / (centered + 1e-3)
        assert error <= 2 * their + floor, (name, error, their, floor)
    return ours


def tensors(shape, fmt, residual=False, affine=True, spread=1.0, middle=0.0):
    x = (torch.randn(shape) * spread + middle).contiguous(memory_format=fmt)
    grad = torch.randn(shape).contiguous(memory_format=fmt)
    r = torch.randn(shape).contiguous(memory_format=fmt) if residual else None
    channels = shape[1]
    weight, bias = (torch.rand(channels) + 0.5, torch.randn(channels)) if affine else (None, None)
    return x, weight, bias, r, grad


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", OURS)
def test_a_step_is_as_exact_as_pytorchs(activation, residual, isa):
    for fmt, training in itertools.product(FORMATS.values(), (True, False)):
        for shape in ((4, 37, 9, 11), (2, 5, 40, 50)):
            x, weight, bias, r, grad = tensors(shape, fmt, residual, spread=2.0)
            mean, var = torch.randn(shape[1]), torch.rand(shape[1]) + 0.5
            with forced(isa=isa):
                hold(x, weight, bias, r, grad, activation, training, mean, var)


@settings(max_examples=60)
@given(st.data())
def test_any_shape(data):
    dims = data.draw(st.integers(0, 3))
    sizes = [data.draw(st.integers(1, 19 if dims < 3 else 6)) for _ in range(dims)]
    shape = (
        data.draw(st.integers(1, 6)),
        data.draw(st.one_of(st.integers(1, 40), st.sampled_from([300, 512, 513, 600]))),
        *sizes,
    )
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims, torch.contiguous_format)
    fmt = data.draw(st.sampled_from([torch.contiguous_format, last]))
    residual, affine = data.draw(st.booleans()), data.draw(st.booleans())
    training = data.draw(st.booleans()) and shape[0] * torch.Size(sizes).numel() > 1
    activation, isa = data.draw(st.sampled_from(OURS)), data.draw(st.sampled_from(ISAS))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, weight, bias, r, grad = tensors(shape, fmt, residual, affine)
    mean, var = (
        (torch.randn(shape[1]), torch.rand(shape[1]) + 0.5)
        if data.draw(st.booleans()) or not training
        else (None, None)
    )
    with forced(isa=isa):
        hold(x, weight, bias, r, grad, activation, training, mean, var)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("middle", [1e4, -3e5])
def test_a_large_mean_does_not_cancel(middle, fmt, isa):
    x, weight, bias, _, _ = tensors((4, 20, 30, 30), fmt, middle=middle)
    with forced(isa=isa):
        _, mean, variance = torch.ops.groupwise.batch_norm_act(
            x, weight, bias, None, None, None, True, 1e-5, "none", 0.0
        )
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean([0, 2, 3]), rtol=2e-7, atol=0)
    torch.testing.assert_close(variance.double(), exact.var([0, 2, 3], correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_one_outlier_does_not_spoil_the_variance(fmt, isa):
    x = torch.randn(4, 20, 30, 30).contiguous(memory_format=fmt)
    x[0, :, 0, 0] = 1e6
    with forced(isa=isa):
        _, _, variance = torch.ops.groupwise.batch_norm_act(x, None, None, None, None, None, True, 1e-5, "none", 0.0)
    torch.testing.assert_close(variance.double(), x.double().var([0, 2, 3], correction=0), rtol=2e-5, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("jumping", [slice(1, 2), slice(3, 4), slice(0, 4, 2), slice(0, 1)], ids=str)
def test_means_that_jump_do_not_spoil_the_variance(jumping, fmt, isa):
    # A piece has many blocks of values, and each is summed about the mean of the one before.
    x = torch.randn(4, 20, 60, 60)
    x[jumping] += 1e5
    x[:, :, 20:23] -= 300
    x = x.contiguous(memory_format=fmt)
    with forced(isa=isa):
        _, mean, variance = torch.ops.groupwise.batch_norm_act(x, None, None, None, None, None, True, 1e-5, "none", 0.0)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean([0, 2, 3]), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var([0, 2, 3], correction=0), rtol=2e-6, atol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape", [(8, 48, 40, 40), (2, 3, 200, 200), (4, 600, 7, 7), (2, 1000, 24, 24), (1, 1, 300, 300)]
)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_any_number_of_threads_gives_the_same_bits(fmt, shape, isa):
    x, weight, bias, r, grad = tensors(shape, fmt, True)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count), forced(isa=isa):
            results.append(step(batch_norm_act, x, weight, bias, r, grad, "silu", True))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "tanh", "hardswish", "hardsigmoid"])
def test_activations_over_their_whole_range(activation, isa):
    # With these statistics x passes exactly.
    sizes = torch.cat([torch.logspace(-38, 2.1, 40_000), torch.linspace(0, 110, 100_000)])
    x = torch.cat([sizes, -sizes]).view(2, 1, -1)
    with forced(isa=isa):
        y = batch_norm_act(x, torch.zeros(1), torch.ones(1), eps=0.0, activation=activation)
    exact = PYTORCH[activation](x.double(), 0.0)
    ulps = (y.double() - exact).abs() / (exact.abs() * 2.0**-23).clamp_min(2.0**-149)
    # Below -88.7 e**-x is infinite, as it is in PyTorch, and the result 0.
    if activation in ("silu", "sigmoid"):
        ulps[(x < -88.7) & (y == 0)] = 0.0
    # The exponential's 1.5 ulp, an addition, a division and perhaps a product.
    assert ulps.max().item() <= 4, x.flatten()[ulps.argmax()].item()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", OURS)
def test_nan_and_infinity_reach_what_they_reach_in_pytorch(activation, isa):
    odd = [float("nan"), float("inf"), -float("inf")]
    for fmt, value, where in itertools.product(FORMATS.values(), odd, ("x", "residual", "grad")):
        x, weight, bias, r, grad = tensors((2, 19, 5, 5), fmt, True)
        {"x": x, "residual": r, "grad": grad}[where][1, 3, 2, 2] = value
        theirs = step(composed, x, weight, bias, r, grad, activation)
        with forced(isa=isa):
            ours = step(batch_norm_act, x, weight, bias, r, grad, activation)
        for name, got in ours.items():
            if activation == "hardswish" and name in ("bias", "residual"):
                # PyTorch's derivative of NaN is NaN in a vector and 1 beyond the last one.
                continue
            assert torch.equal(got.isnan(), theirs[name].isnan()), (name, where, value)
            assert torch.equal(got.isinf(), theirs[name].isinf()), (name, where, value)


def test_leaky_slopes_of_either_sign():
    for slope in (0.3, 0.0, -0.5):
        for residual in (False, True):
            x, weight, bias, r, grad = tensors((2, 20, 6, 6), torch.channels_last, residual)
            if slope >= 0:
                hold(x, weight, bias, r, grad, "leaky_relu", slope=slope)
            else:
                ours = step(batch_norm_act, x, weight, bias, r, grad, "leaky_relu", slope=slope)
                theirs = step(composed, x, weight, bias, r, grad, "leaky_relu", slope=slope)
                torch.testing.assert_close(ours["x"], theirs["x"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "frozen", [("x",), ("weight",), ("bias",), ("weight", "bias"), ("residual", "x"), ("residual",)]
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
def test_frozen_inputs_have_no_gradient(frozen, training, activation):
    x, weight, bias, r, grad = tensors((3, 20, 5, 5), torch.channels_last, True)
    mean, var = torch.randn(20), torch.rand(20) + 0.5
    whole = step(batch_norm_act, x, weight, bias, r, grad, activation, training, mean, var)
    leaves = {"x": x, "weight": weight, "bias": bias, "residual": r}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen)
    y = batch_norm_act(x, mean, var, weight, bias, training, activation=activation, residual=r)
    y.backward(grad)
    for name, leaf in leaves.items():
        assert (leaf.grad is None) == (name in frozen)
        assert leaf.grad is None or torch.equal(leaf.grad, whole[name])


def test_any_strides():
    for make in (
        lambda t: t[:, ::2, 1:, ::3],
        lambda t: t.transpose(2, 3),
        lambda t: t[:, :1].expand(-1, 8, -1, -1),
        lambda t: t.permute(0, 3, 2, 1),
        lambda t: t.flip(1),
    ):
        x, r = make(torch.randn(3, 16, 8, 12)), make(torch.randn(3, 16, 8, 12))
        grad = torch.randn(()).expand(x.shape)
        hold(x, torch.rand(x.shape[1]), torch.randn(x.shape[1]), r, grad, "relu")


def test_what_the_operator_does_not_take_is_pytorchs(monkeypatch):
    x, weight, bias, r, _ = tensors((2, 8, 4, 4), torch.contiguous_format, True)
    cases = [
        ((x.double(), weight.double(), bias.double()), "relu", None),
        ((x.bfloat16(), weight, bias), "silu", None),
        ((x, weight, bias), "gelu", None),
        ((x, weight, bias), "relu", r[:1]),
        ((x, weight, bias), "relu", r.double()),
        ((x[:0], weight, bias), "relu", None),
    ]
    for (source, w, b), activation, residual in cases:
        args = (
            source,
            torch.zeros(8, dtype=w.dtype),
            torch.ones(8, dtype=w.dtype),
            w,
            b,
            True,
            0.1,
            1e-5,
            activation,
            residual,
        )
        ours, theirs = batch_norm_act(*args), composed(*args)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_wrong_arguments_raise_pytorchs_errors():
    x = torch.randn(2, 8, 4, 4)
    cases = [
        (x, None, None, torch.ones(7), None, True),
        (x, torch.zeros(7), torch.ones(8), None, None, True),
        (x, None, None, None, None, False),
        (x.double(), None, None, torch.ones(8), None, True),
        (x[:1, :, :1, :1], None, None, None, None, True),
        (x, None, None, None, None, True, 0.1, 0.0),
        (torch.randn(3), None, None, None, None, True),
    ]
    for case in cases:
        errors = []
        for f in (F.batch_norm, batch_norm_act):
            with pytest.raises((RuntimeError, ValueError, IndexError)) as raised:
                f(*case)
            errors.append((type(raised.value), str(raised.value)))
        assert errors[0] == errors[1]
    with pytest.raises(GroupwiseError, match="activation='swish'"):
        batch_norm_act(x, None, None, training=True, activation="swish")


def test_the_list_of_activations_is_the_operators():
    assert set(ACTIVATIONS) == set(PYTORCH)
    x = torch.randn(2, 3, 4, 4)
    for name in ACTIVATIONS:
        expected = pytest.raises(RuntimeError, match="gelu") if name == "gelu" else contextlib.nullcontext()
        with expected:
            torch.ops.groupwise.batch_norm_act(x, None, None, None, None, None, True, 1e-5, name, 0.0)
