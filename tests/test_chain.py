"""Chains of layers that run band by band: random ones against float64, and what they refuse."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import BESIDE, UNIT, poisoned, threads
from groupwise import record_plans
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


# PyTorch's function, and how far at most the result moves when its argument moves by one.
ACTIVATIONS = {
    "none": (lambda x: x, 1.0),
    "relu": (functional.relu, 1.0),
    "relu6": (functional.relu6, 1.0),
    "silu": (functional.silu, 1.1),
    "hardswish": (functional.hardswish, 1.5),
}
KERNELS = ["planar", "planar", "narrow", "groups", "gemm", "brgemm", "dots", ""]


class Case:
    """A layer: its tensors, and how it moves."""

    def __init__(
        self, inputs, outputs, groups=1, kernel=1, stride=1, padding=0, dilation=1, act="relu", residual=False
    ):
        two = [kernel, kernel] if isinstance(kernel, int) else list(kernel)
        self.weight = torch.randn(outputs, inputs // groups, *two) / math.sqrt(inputs // groups * math.prod(two))
        self.bias = torch.randn(outputs)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.act, self.residual = act, residual

    def make(self, kernel=""):
        each = [[n, n] if isinstance(n, int) else list(n) for n in (self.stride, self.padding, self.dilation)]
        first, last = ("none", self.act) if self.residual else (self.act, "none")
        return torch.classes.groupwise.Layer(
            self.weight, self.bias, *each, False, [0, 0], self.groups, first, [], self.residual, last, [], kernel
        )

    def sums(self, source, weight, bias):
        return functional.conv2d(source, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def exact(self, source, residual=None):
        out = self.sums(source, self.weight.double(), self.bias.double())
        return ACTIVATIONS[self.act][0](out if residual is None else out + residual.double())

    def bound(self, source, error, exact):
        """How far a result may be off whose source is off by `error`."""
        weight, steep = self.weight.double().abs(), ACTIVATIONS[self.act][1]
        size = self.sums(source.abs() + error, weight, self.bias.double().abs())
        sums = (weight[0].numel() + BESIDE) * UNIT * size + self.sums(error, weight, None)
        return steep * sums + 8 * UNIT * (exact.abs() + 1)


def chain(layers, kernels=None, rows=0):
    names = kernels or [""] * len(layers)
    made = tuple(layer.make(name) for layer, name in zip(layers, names, strict=True))
    return torch.classes.groupwise.Chain(made, rows)


def image(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def check(layers, made, source):
    """Compares with float64, within the bound of all sums, on one thread and on two."""
    wanted, error, residual = source.double(), torch.zeros(()).double(), None
    for layer in layers:
        if layer.residual:
            residual = image(*layer.sums(wanted.float(), layer.weight, layer.bias).shape)
        exact = layer.exact(wanted, residual)
        error = layer.bound(wanted, error.expand_as(wanted), exact)
        if residual is not None:
            error = error + 2 * UNIT * residual.double().abs()
        wanted = exact
    found = []
    for count in (1, 2):
        with threads(count), poisoned():
            # What an earlier call left in the windows is no number.
            made.run(torch.full_like(source, math.nan), residual)
            out = made.run(source, residual)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert out.shape == wanted.shape
        assert ((out.double() - wanted).abs() <= error).all()
        found.append(out)
    return found


@st.composite
def chains(draw):
    channels = draw(st.sampled_from([1, 3, 8, 16, 24, 40]))
    first, layers, kernels = channels, [], []
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    source = (draw(st.sampled_from([1, 1, 2, 3])), first, height, width)
    torch.manual_seed(draw(st.integers(0, 2**20)))
    count = draw(st.integers(2, 4))
    for number in range(count):
        outputs = draw(st.sampled_from([channels, channels, 8, 16, 48]))
        groups = draw(st.sampled_from([g for g in (1, 2, 8, channels) if channels % g == 0 and outputs % g == 0]))
        kernel, dilation = [], []
        for _ in range(2):
            kernel.append(draw(st.sampled_from([1, 1, 2, 3, 3, 5, 7])))
            dilation.append(draw(st.sampled_from([1, 1, 1, 2, 3])))
        # No output sees padding alone, and the kernel fits.
        padding = [min(draw(st.integers(0, k // 2 + 1)), (k - 1) * d) for k, d in zip(kernel, dilation, strict=True)]
        for axis, size in enumerate((height, width)):
            if size + 2 * padding[axis] < (kernel[axis] - 1) * dilation[axis] + 1:
                kernel[axis], padding[axis] = 1, 0
        stride = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2)]
        residual = number == count - 1 and draw(st.booleans())
        act = draw(st.sampled_from(sorted(ACTIVATIONS)))
        layers.append(Case(channels, outputs, groups, kernel, stride, padding, dilation, act, residual))
        kernels.append(draw(st.sampled_from(KERNELS)))
        height, width = layers[-1].sums(torch.empty(1, channels, height, width), layers[-1].weight, None).shape[2:]
        channels = outputs
    return layers, kernels, source, draw(st.sampled_from([0, 1, 1, 2, 3, 5]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chains())
def test_a_chain_is_within_the_bound_of_its_sums(case):
    layers, kernels, shape, rows = case
    source = image(*shape)
    made = chain(layers, kernels, rows)
    if made.refuses(source):
        # Some kernel does not run a band; planar runs all.
        made = chain(layers, ["planar"] * len(layers), rows)
    if made.refuses(source):
        assert "padding alone" in made.refuses(source)
        return
    check(layers, made, source)


def inverted(inputs=16, middle=96, outputs=16, kernel=3, stride=1, residual=True):
    return [
        Case(inputs, middle, act="relu6"),
        Case(middle, middle, middle, kernel, stride, kernel // 2, act="relu6"),
        Case(middle, outputs, act="none", residual=residual),
    ]


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "batch", "size"), [(3, 1, 1, 28), (3, 2, 2, 31), (5, 1, 3, 14), (7, 2, 1, 9)]
)
def test_an_inverted_residual_has_the_same_bits_on_two_threads(kernel, stride, batch, size, rows):
    layers = inverted(kernel=kernel, stride=stride)
    one, two = check(layers, chain(layers, ["groups", "narrow", "groups"], rows), image(batch, 16, size, size))
    assert torch.equal(one, two)


def test_a_bottleneck_of_groups():
    layers = [Case(64, 32), Case(32, 32, 8, 3, 1, 1), Case(32, 64, residual=True)]
    check(layers, chain(layers, rows=3), image(2, 64, 13, 13))


def test_bands_fill_half_of_the_cache_at_most():
    layers = inverted(middle=32)
    made = chain(layers)
    assert made.rows(image(1, 16, 7, 7)) == 7
    large = made.rows(image(1, 16, 512, 64))
    assert 1 < large < 512
    assert 1 <= made.rows(image(1, 16, 512, 128)) < large


def test_a_chain_reads_and_writes_images_with_gaps():
    layers = inverted()
    made = chain(layers)
    wide, room, residual = image(2, 40, 12, 12), image(2, 24, 12, 12), torch.randn(2, 16, 12, 12)
    kept = room.clone()
    made.run_out(wide[:, 8:24], residual, room[:, 4:20])
    assert torch.equal(room[:, 4:20], made.run(wide[:, 8:24].contiguous(memory_format=torch.channels_last), residual))
    assert torch.equal(room[:, :4], kept[:, :4])
    assert torch.equal(room[:, 20:], kept[:, 20:])


def test_threads_share_a_chain(isa):
    layers = inverted()
    made = chain(layers, rows=2)
    sources = [image(1, 16, 6 + i % 5, 9) for i in range(40)]
    residuals = [image(*source.shape) for source in sources]

    def run(source, residual):
        # Each thread has an instruction set of its own.
        with forced(isa=isa):
            return made.run(source, residual)

    alone = [run(*pair) for pair in zip(sources, residuals, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, sources, residuals))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def wrong():
    layers, plain = inverted(), inverted(residual=False)
    source, residual = image(1, 16, 8, 8), image(1, 16, 8, 8)
    return {
        "two layers or more": lambda: chain(layers[:1]),
        "at least one row": lambda: chain(layers, rows=-1),
        "only the last layer": lambda: chain([layers[2], layers[0]]),
        "2-D convolutions": lambda: torch.classes.groupwise.Chain((linear(), linear()), 0),
        "runs channels_last": lambda: chain(plain).run(source.contiguous(), None),
        "writes channels_last": lambda: chain(plain).run_out(source, None, torch.empty(1, 16, 8, 8)),
        "cannot write": lambda: chain(plain).run_out(source, None, image(1, 16, 8, 9)),
        "cannot run on": lambda: chain(plain).run(image(1, 17, 8, 8), None),
        "made with one": lambda: chain(layers).run(source, None),
        "with a residual": lambda: chain(plain).run(source, residual),
        "the output's shape": lambda: chain(layers).run(source, image(1, 16, 8, 7)),
        "single memory location": lambda: chain(layers).run_out(source, residual, residual),
        "see padding alone": lambda: chain([Case(16, 16, padding=2), *layers]).run(source, image(1, 16, 12, 12)),
        "rows of layer 1 cannot run": lambda: chain(plain, ["", "brgemm", ""]).run(source, None),
        "float32": lambda: chain(plain).run(source.double(), None),
    }


def linear():
    return torch.classes.groupwise.Layer(
        torch.randn(8, 8), None, [], [], [], False, [], 1, "none", [], False, "none", [], "brgemm"
    )


@pytest.mark.parametrize("text", sorted(wrong()) if ISAS else [])
def test_a_chain_refuses_what_it_cannot_run(text):
    with pytest.raises(RuntimeError, match=text):
        wrong()[text]()


def test_refuses_says_why_and_computes_nothing():
    layers = inverted(residual=False)
    assert chain(layers).refuses(image(1, 16, 8, 8)) == ""
    assert "channels_last" in chain(layers).refuses(torch.randn(1, 16, 8, 8))
    assert "brgemm" not in chain(layers, ["", "narrow", ""]).refuses(image(1, 16, 8, 8))
    assert "layer 1" in chain(layers, ["", "brgemm", ""]).refuses(image(1, 16, 8, 8))


@torch.no_grad()
def test_a_chain_records_the_plan_of_each_layer():
    chain = torch.classes.groupwise.Chain((Case(8, 32).make("groups"), Case(32, 32, 32, 3, 1, 1).make("narrow")), 2)
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        with record_plans() as plans:
            chain.run(x, None)
        assert [plan.kernel for plan in plans] == ["groups", "narrow"]
