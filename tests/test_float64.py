"""float64 convolutions by every kernel that computes them, against sums of NumPy's long doubles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accuracy import poisoned, threads
from cases import specs
from groupwise import ConvSpec, GroupwiseError, enabled, plan, record_plans
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

KERNELS = ["planar", "narrow", "groups", "pixels"]
UNIT = np.finfo(np.float64).eps / 2
LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


class Sums:
    """A plain convolution of long doubles: x and y are its input and output, whichever of them a pass computes."""

    def __init__(self, spec, x_size, y_size):
        self.spec, self.x_size, self.y_size = spec, x_size, y_size

    def _padded(self, x):
        """Returns x with zeros round it, as far as the outputs read, and the place of x therein."""
        spec = self.spec
        numbers = zip(self.x_size, self.y_size, spec.kernel_size, spec.stride, spec.padding, spec.dilation, strict=True)
        size = [max(n + p, (out - 1) * s + (k - 1) * d + 1) for n, out, k, s, p, d in numbers]
        padded = np.zeros((*x.shape[:3], *size), np.longdouble)
        inner = (..., *(slice(p, p + n) for n, p in zip(self.x_size, spec.padding, strict=True)))
        padded[inner] = x
        return padded, inner

    def _taps(self, padded):
        """Yields the index of each tap and a view of the positions that the outputs read by it."""
        spec = self.spec
        for tap in itertools.product(*map(range, spec.kernel_size)):
            numbers = zip(tap, self.y_size, spec.stride, spec.dilation, strict=True)
            yield (..., *tap), padded[(..., *(slice(k * d, k * d + (out - 1) * s + 1, s) for k, out, s, d in numbers))]

    def y(self, x, w):
        padded, _ = self._padded(x)
        return sum(np.einsum("ngc...,goc->ngo...", read, w[tap]) for tap, read in self._taps(padded))

    def x(self, y, w):
        padded, inner = self._padded(np.zeros((*y.shape[:2], w.shape[2], *self.x_size)))
        for tap, read in self._taps(padded):
            np.add(read, np.einsum("ngo...,goc->ngc...", y, w[tap]), out=read)
        return padded[inner]

    def w(self, x, y):
        padded, _ = self._padded(x)
        grad = y.reshape(*y.shape[:3], -1)
        made = [np.einsum("ngop,ngcp->goc", grad, read.reshape(*read.shape[:3], -1)) for _, read in self._taps(padded)]
        return np.stack(made, -1).reshape(*made[0].shape, *self.spec.kernel_size)


def longs(t, groups, first=False):
    """The tensor as long doubles with a dimension of groups: (n, g, c, ...), or (g, o, c, ...) of a weight."""
    values = t.detach().contiguous().numpy().astype(np.longdouble)
    if first:
        return values.reshape(groups, -1, *values.shape[1:])
    return values.reshape(values.shape[0], groups, -1, *values.shape[2:])


def flat(values, first=False):
    if first:
        return values.reshape(-1, *values.shape[2:])
    return values.reshape(values.shape[0], -1, *values.shape[3:])


def exact(spec, source, weight, bias, grad):
    """Output and gradients, and of each the sum of |x||w| and the most products that a value sums."""
    size, out = tuple(source.shape[2:]), tuple(grad.shape[2:])
    sums = Sums(spec, out, size) if spec.transposed else Sums(spec, size, out)
    a, g, w = longs(source, spec.groups), longs(grad, spec.groups), longs(weight, spec.groups, True)

    def results(a, g, w, b):
        if spec.transposed:
            found = [sums.x(a, w), sums.y(g, w), sums.w(g, a)]
        else:
            found = [sums.y(a, w), sums.x(g, w), sums.w(a, g)]
        values = [flat(found[0]), flat(found[1]), flat(found[2], True)]
        if b is None:
            return values
        values[0] = values[0] + b.reshape(1, -1, *[1] * spec.dims)
        return [*values, flat(g).sum((0, *range(2, 2 + spec.dims)))]

    b = None if bias is None else bias.detach().numpy().astype(np.longdouble)
    taps = int(np.prod(spec.kernel_size))
    positions = grad[:, 0].numel() + source[:, 0].numel()
    terms = [w.shape[2] * taps, w.shape[1] * taps, positions, positions]
    terms = [w.shape[1] * taps, w.shape[2] * taps, positions, positions] if spec.transposed else terms
    values = results(a, g, w, b)
    sizes = results(abs(a), abs(g), abs(w), None if b is None else abs(b))
    return list(zip(values, sizes, terms, strict=False))


def convolve(spec, source, weight, bias):
    if spec.transposed:
        function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][spec.dims - 1]
        return function(
            source, weight, bias, spec.stride, spec.padding, spec.output_padding, spec.groups, spec.dilation
        )
    function = [F.conv1d, F.conv2d, F.conv3d][spec.dims - 1]
    return function(source, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def tensors(spec, size, batch, last=False, expanded=False, sliced=False):
    """Returns input, weight, bias and gradient of the output, in float64."""
    wide = (*size[:-1], size[-1] * 2) if sliced else size
    source = torch.randn(batch, spec.in_channels, *wide, dtype=torch.float64)
    source = source[..., ::2] if sliced else source
    weight = torch.randn(spec.weight_shape, dtype=torch.float64)
    bias = torch.randn(spec.out_channels, dtype=torch.float64) if spec.bias else None
    shape = (batch, spec.out_channels, *spec.output_size(size))
    grad = torch.randn((), dtype=torch.float64).expand(shape) if expanded else torch.randn(shape, dtype=torch.float64)
    if last and not sliced:
        source = source.contiguous(memory_format=LAST[spec.dims])
        weight = weight.contiguous(memory_format=LAST[spec.dims])
        grad = grad if expanded else grad.contiguous(memory_format=LAST[spec.dims])
    return source, weight, bias, grad


def check(spec, given, kernel, isa):
    """Compares a step with the exact sums. Returns the kernels that ran."""
    source, weight, bias, grad = given
    leaves = [t.detach().requires_grad_() for t in (source, weight, bias) if t is not None]
    with forced(True, kernel, isa), poisoned(), record_plans() as plans:
        output = convolve(spec, *leaves[:2], leaves[2] if bias is not None else None)
        found = [output.detach(), *torch.autograd.grad(output, leaves, grad)]
    names = ["output", "grad_input", "grad_weight", "grad_bias"][: len(found)]
    for name, got, (right, total, terms) in zip(names, found, exact(spec, source, weight, bias, grad), strict=True):
        assert got.dtype == torch.float64
        assert got.shape == right.shape
        # Beside the products: a bias, the lanes of a vector, the parts of threads, and the taps of a depth.
        bound = (terms + 24) * UNIT * total
        excess = float((abs(got.numpy().astype(np.longdouble) - right) - bound).max())
        assert excess <= 0, f"{name} of {spec} by {kernel or 'choice'} exceeds its bound by {excess:.3g}"
    return {one.kernel for one in plans}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spec=specs(40).filter(lambda s: s.padding_mode == "zeros" and not isinstance(s.padding, str)),
    size=st.tuples(*[st.sampled_from([1, 3, 4, 7, 8, 9, 14, 17, 33])] * 3),
    batch=st.integers(1, 3),
    layout=st.sampled_from(["contiguous", "last", "sliced"]),
    expanded=st.booleans(),
    workers=st.sampled_from([1, 2]),
)
def test_every_kernel_sums_in_float64(kernel, isa, spec, size, batch, layout, expanded, workers):
    # Volumes stay small enough for long doubles.
    size = tuple(min(n, 9) for n in size) if spec.dims == 3 else size[: spec.dims]
    try:
        spec.output_size(size)
    except GroupwiseError:
        return
    with threads(workers):
        check(spec, tensors(spec, size, batch, layout == "last", expanded, layout == "sliced"), kernel, isa)


LAYERS = [
    ("depthwise", ConvSpec(40, 40, 3, padding=1, groups=40), (19, 30), 2),
    ("depthwise, stride 2", ConvSpec(24, 24, 3, 2, 1, groups=24), (30, 31), 2),
    ("depthwise, 7x7", ConvSpec(20, 20, 7, padding=3, groups=20), (14, 14), 2),
    ("dilated", ConvSpec(16, 16, 3, padding=2, dilation=2, groups=16), (17, 18), 1),
    ("multiplier", ConvSpec(12, 24, 3, padding=1, groups=12), (9, 40), 1),
    ("groups of 4", ConvSpec(32, 32, 3, padding=1, groups=8), (14, 14), 2),
    ("groups of 16", ConvSpec(32, 64, 3, 2, 1, groups=2), (15, 14), 2),
    ("one tap", ConvSpec(48, 40, 1, groups=2), (14, 14), 1),
    ("a kernel larger than the input", ConvSpec(8, 8, 9, padding=4, groups=8), (5, 6), 2),
    ("a kernel as large as the input", ConvSpec(8, 8, 7, groups=8), (7, 7), 2),
    ("dense", ConvSpec(16, 24, 3, padding=1), (12, 13), 1),
    ("1-D", ConvSpec(24, 24, 31, padding=15, groups=24, dims=1), (300,), 2),
    ("1-D, causal", ConvSpec(32, 32, 4, padding=3, groups=32, dims=1), (65,), 2),
    ("3-D", ConvSpec(16, 16, 3, padding=1, groups=16, dims=3), (5, 9, 10), 2),
    ("3-D, groups of 8", ConvSpec(16, 32, 3, 2, 1, groups=2, dims=3), (5, 8, 8), 1),
    ("transposed", ConvSpec(24, 12, 4, 2, 1, groups=6, transposed=True), (9, 20), 2),
    ("transposed, depthwise", ConvSpec(16, 16, 3, 2, 1, groups=16, transposed=True, output_padding=1), (9, 10), 2),
    ("transposed, 3-D", ConvSpec(8, 8, 3, 2, 1, groups=8, transposed=True, dims=3), (3, 5, 6), 1),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "spec", "size", "batch"), LAYERS, ids=[row[0] for row in LAYERS])
def test_layers_of_every_kind(name, spec, size, batch, last, isa):
    ran = set()
    for kernel in KERNELS:
        ran |= check(spec, tensors(spec, size, batch, last), kernel, isa)
    assert "planar" in ran


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("spec", [ConvSpec(8, 8, 3, padding=1, groups=8), ConvSpec(8, 16, 3, 2, groups=1)], ids=str)
def test_gradcheck(kernel, last, spec):
    source, weight, bias, _ = tensors(spec, (5, 6), 1, last)
    leaves = [t.requires_grad_() for t in (source, weight, bias)]
    with enabled(tune=False), forced(True, kernel):
        assert torch.autograd.gradcheck(lambda x, w, b: convolve(spec, x, w, b), leaves)


def test_not_chosen_where_nothing_was_measured():
    """PyTorch's time in float64 is in no record, so a plan says so and keeps PyTorch."""
    made = plan(ConvSpec(32, 32, 3, padding=1, groups=32), (1, 32, 14, 14), "float64")
    assert made.kernel == "pytorch"
    assert "PyTorch's time in float64 is not known here" in made.others["planar"]
    assert made.refused["stem"] == "computes no float64"


def test_other_dtypes_are_refused():
    made = plan(ConvSpec(32, 32, 3, padding=1, groups=32), (1, 32, 14, 14), "complex64")
    assert made.kernel == "pytorch"
    assert set(made.refused.values()) == {"computes float32, float64, bfloat16 and float16 only"}
