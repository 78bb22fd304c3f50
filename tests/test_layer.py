"""Layers with an epilogue and weights packed once: every kernel, activation and format against float64."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import BESIDE, UNIT, poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import DIRECT, ISAS, here, needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


# Name and numbers -> PyTorch's function, and how far at most the result moves when its argument moves by one.
ACTIVATIONS = {
    ("none", ()): (lambda x: x, 1.0),
    ("relu", ()): (functional.relu, 1.0),
    ("relu6", ()): (functional.relu6, 1.0),
    ("hardtanh", (-0.7, 1.25)): (lambda x: functional.hardtanh(x, -0.7, 1.25), 1.0),
    ("leaky_relu", (0.3,)): (lambda x: functional.leaky_relu(x, 0.3), 1.0),
    ("silu", ()): (functional.silu, 1.1),
    ("hardswish", ()): (functional.hardswish, 1.5),
    ("hardsigmoid", ()): (functional.hardsigmoid, 1 / 6),
    ("sigmoid", ()): (torch.sigmoid, 0.25),
    ("tanh", ()): (torch.tanh, 1.0),
    ("gelu", ()): (functional.gelu, 1.13),
    ("gelu_tanh", ()): (lambda x: functional.gelu(x, approximate="tanh"), 1.13),
}
NONE = ("none", ())
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(weight, bias, case, before=NONE, residual=False, after=NONE, kernel=""):
    geometry = [case[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    epilogue = [before[0], list(before[1]), residual, after[0], list(after[1]), kernel]
    return torch.classes.groupwise.Layer(weight, bias, *geometry, *epilogue)


def convolve(source, weight, bias, case):
    names = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    return torch.convolution(source, weight, bias, *(case[name] for name in names))


@st.composite
def cases(draw):
    dims = draw(st.sampled_from([1, 2, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 3, 8, 24]))
    inputs, outputs = draw(
        st.sampled_from(
            [(1, 1), (1, 1), (1, 2), (2, 2), (3, 5), (4, 4), (8, 8), (8, 24), (16, 9), (33, 70), (3, 40), (2, 9)]
        )
    )
    if groups > 3:
        inputs, outputs = min(inputs, 8), min(outputs, 8)
    kernel = [draw(st.sampled_from([1, 1, 2, 3, 3, 5])) for _ in range(dims)]
    stride = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(dims)]
    transposed = draw(st.booleans())
    return {
        "batch": draw(st.sampled_from([1, 2, 3])),
        "size": [draw(st.sampled_from([5, 7, 8, 14, 19, 33])) for _ in range(dims)],
        "inputs": inputs * groups,
        "outputs": outputs * groups,
        "kernel": kernel,
        "stride": stride,
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": [draw(st.sampled_from([1, 1, 2])) for _ in range(dims)],
        "groups": groups,
        "transposed": transposed,
        "output_padding": [draw(st.integers(0, s - 1)) if transposed else 0 for s in stride],
        "bias": draw(st.booleans()),
        "format": draw(st.sampled_from(sorted(FORMATS))) if dims == 2 else "contiguous",
        "threads": draw(st.sampled_from([1, 2])),
        "residual": draw(st.sampled_from(["none", "apart", "output", "other"])),
        "seed": draw(st.integers(0, 2**20)),
    }


def tensors(case):
    generator = torch.Generator().manual_seed(case["seed"])
    between = (case["inputs"], case["outputs"] // case["groups"])
    if not case["transposed"]:
        between = (case["outputs"], case["inputs"] // case["groups"])
    weight = torch.randn(*between, *case["kernel"], generator=generator)
    source = torch.randn(case["batch"], case["inputs"], *case["size"], generator=generator)
    source = source.contiguous(memory_format=FORMATS[case["format"]])
    return source, weight, torch.randn(case["outputs"], generator=generator) if case["bias"] else None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), *[st.sampled_from(sorted(ACTIVATIONS))] * 2, st.sampled_from(["", *DIRECT]))
def test_a_layer_is_within_the_bound_of_its_sums(case, before, after, kernel):
    source, weight, bias = tensors(case)
    has_residual = case["residual"] != "none"
    after = after if has_residual else NONE
    layer = make(weight, bias, case, before, has_residual, after, kernel)
    if layer.refuses(source):
        return
    wide = None if bias is None else bias.double()
    exact = convolve(source.double(), weight.double(), wide, case)
    sizes = [None if each is None else each.double().abs() for each in (source, weight, bias)]
    size = convolve(*sizes, case)
    residual = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)) if has_residual else None
    count = case["inputs"] // case["groups"] * math.prod(case["kernel"])
    (first, steep), (second, steeper) = ACTIVATIONS[before], ACTIVATIONS[after]
    bound = (count + BESIDE) * UNIT * size * steep
    exact = first(exact)
    bound += 8 * UNIT * (exact.abs() + 1) * (before != NONE)
    if has_residual:
        exact = exact + residual.double()
        # A sum that begins with the residual rounds it as often as any product.
        bound = (bound + (count + BESIDE) * UNIT * residual.double().abs()) * steeper
        exact = second(exact)
        bound += 8 * UNIT * (exact.abs() + 1) * (after != NONE)
    with threads(case["threads"]), poisoned():
        out = layer.empty(source)
        if case["residual"] == "output":
            out.copy_(residual)
            layer.run_out(source, out, out)
        elif has_residual:
            like = torch.empty_like(out)
            if case["residual"] == "other":
                like = like.transpose(0, 1).contiguous().transpose(0, 1)
            kept = like.copy_(residual)
            before_run = kept.clone()
            layer.run_out(source, kept, out)
            assert torch.equal(kept, before_run)
        else:
            layer.run_out(source, None, out)
        if case["residual"] != "output":
            assert torch.equal(layer.run(source, residual), out)
    assert ((out.double() - exact).abs() <= bound).all()
    assert out.stride() == convolve(source, weight, bias, case).stride()


POINTS = {"stride": [1], "padding": [0], "dilation": [1], "transposed": False, "output_padding": [0], "groups": 1}


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS), ids=lambda each: each[0])
def test_an_activation_errs_at_most_twice_as_much_as_pytorchs(activation):
    x = torch.cat([torch.linspace(-12, 12, 40001), torch.linspace(-0.8, 0.8, 4001), torch.linspace(-100, 100, 2001)])
    layer = make(torch.ones(1, 1, 1), None, POINTS, activation)
    apply = ACTIVATIONS[activation][0]
    ours, theirs, exact = layer.run(x.reshape(1, 1, -1), None).flatten(), apply(x), apply(x.double())
    for low, high in itertools.pairwise([-100, -4, -2, -1, -0.3, 0.3, 1, 2, 4, 101]):
        here = (x >= low) & (x < high)
        worst = (theirs.double() - exact)[here].abs().max().item()
        assert (ours.double() - exact)[here].abs().max().item() <= 2 * worst + 2 * UNIT * exact[here].abs().max().item()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS), ids=lambda each: each[0])
def test_values_that_are_not_finite_come_out_as_pytorchs(activation):
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 3e38, -3e38, 1.0] * 5)
    layer = make(torch.ones(1, 1, 1), None, POINTS, activation)
    apply = ACTIVATIONS[activation][0]
    # PyTorch's float32 GELU makes NaN of an infinity.
    theirs = apply(x.double()).float() if activation[0] == "gelu" else apply(x)
    ours = layer.run(x.reshape(1, 1, -1), None).flatten()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("kernel", DIRECT)
def test_nan_of_the_source_stays_nan_through_relu(kernel):
    case = {**POINTS, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0]}
    layer = make(torch.randn(16, 16, 3, 3), torch.randn(16), case, ("relu", ()), kernel=kernel)
    source = torch.randn(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    source[0, 3, 4, 4] = math.nan
    if layer.refuses(source):
        pytest.skip(layer.refuses(source))
    out = layer.run(source, None)
    assert out[:, :, 3:6, 3:6].isnan().all()
    assert not out[:, :, :3].isnan().any()


@pytest.mark.parametrize("kernel", ["brgemm", "gemm"])
def test_a_linear_layer_takes_any_rows(kernel):
    if kernel not in here():
        pytest.skip(f"there is no {kernel}")
    for shape in [(24,), (5, 24), (2, 7, 24), (2, 3, 4, 24)]:
        source, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40)
        layer = torch.classes.groupwise.Layer(
            weight, bias, [], [], [], False, [], 1, "gelu", [], True, "relu", [], kernel
        )
        assert (layer.kernel(source), layer.refuses(source)) == (kernel, "")
        residual = torch.randn(*shape[:-1], 40)
        exact = (
            functional.gelu(functional.linear(source.double(), weight.double(), bias.double())) + residual.double()
        ).relu()
        for out in (layer.run(source, residual), layer.run_out(source, residual, residual.clone())):
            torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)


def test_threads_share_a_layer(isa):
    case = {**POINTS, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0], "groups": 4}
    layer = make(torch.randn(32, 8, 3, 3), torch.randn(32), case, ("silu", ()), True, kernel="groups")
    sources = [torch.randn(1, 32, 6 + i % 5, 9) for i in range(40)]
    residuals = [torch.randn(1, 32, 6 + i % 5, 9) for i in range(40)]

    def run(source, residual):
        # Each thread has an instruction set of its own.
        with forced(isa=isa):
            return layer.run(source, residual)

    alone = [run(*pair) for pair in zip(sources, residuals, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, sources, residuals))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_outputs_with_gaps_are_written_in_place():
    case = {**POINTS, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0]}
    weight, source = torch.randn(8, 8, 3, 3), torch.randn(2, 8, 7, 7)
    layer = make(weight, None, case, ("relu", ()), kernel="planar")
    room = torch.full((2, 8, 7, 14), 7.0)
    layer.run_out(source, None, room[..., ::2])
    assert torch.equal(room[..., ::2], layer.run(source, None))
    assert (room[..., 1::2] == 7).all()


PLAIN = {"transposed": False, "output_padding": [0, 0], "dilation": [1, 1], "stride": [1, 1]}


@pytest.mark.parametrize("kernel", ["brgemm", "gemm"])
@pytest.mark.parametrize("size", [7, 15])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("outputs", [128, 135, 144, 176, 240])
def test_threads_share_a_dense_layer(outputs, transposed, taps, size, kernel):
    # Few pixels are shared by output channels, more by pixels.
    case = {**PLAIN, "padding": [taps // 2] * 2, "groups": 1, "transposed": transposed}
    weight = torch.randn(*((72, outputs) if transposed else (outputs, 72)), taps, taps)
    source, bias = torch.randn(1, 72, size, size).contiguous(memory_format=torch.channels_last), torch.randn(outputs)
    layer = make(weight, bias, case, ("relu", ()), kernel=kernel)
    if layer.refuses(source):
        pytest.skip(layer.refuses(source))
    exact = convolve(source.double(), weight.double(), bias.double(), case).relu()
    for count in (2, 3):
        with threads(count), poisoned():
            made = layer.run(source, None)
        assert (made.double() - exact).abs().max() <= 72 * taps**2 * UNIT * 100


@pytest.mark.parametrize("size", [1, 7, 15])
@pytest.mark.parametrize("channels", [64, 200, 264, 960])
def test_threads_share_a_depthwise_layer(channels, size):
    case = {**PLAIN, "padding": [1, 1], "groups": channels}
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    source = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    layer = make(weight, bias, case, ("hardtanh", (-1.0, 2.0)), kernel="narrow")
    if layer.refuses(source):
        pytest.skip(layer.refuses(source))
    exact = functional.hardtanh(convolve(source.double(), weight.double(), bias.double(), case), -1, 2)
    for count in (1, 2, 3):
        with threads(count), poisoned():
            made = layer.run(source, None)
        assert (made.double() - exact).abs().max() <= 20 * UNIT * 40


@pytest.mark.parametrize("of_output", FORMATS)
@pytest.mark.parametrize("of_source", FORMATS)
@pytest.mark.parametrize("kernel", ["", *DIRECT])
@pytest.mark.parametrize("groups", [32, 4, 1])
def test_source_and_output_of_any_two_formats(kernel, groups, of_source, of_output):
    case = {**PLAIN, "padding": [1, 1], "groups": groups}
    source = torch.randn(2, 32, 9, 20).contiguous(memory_format=FORMATS[of_source])
    weight = torch.randn(32, 32 // groups, 3, 3)
    layer = make(weight, None, case, ("none", ()), True, ("relu", ()), kernel)
    # The output has gaps, and is the residual too.
    wide = torch.randn(2, 64, 9, 20).contiguous(memory_format=FORMATS[of_output])
    out = wide[:, :32]
    exact = (convolve(source.double(), weight.double(), None, case) + out.double()).relu()
    try:
        layer.run_out(source, out, out)
    except RuntimeError as error:
        if "cannot run" not in str(error):
            raise
        pytest.skip(str(error))
    assert (out.double() - exact).abs().max() <= 400 * UNIT * 30


def test_an_output_is_no_source():
    case = {**PLAIN, "padding": [1, 1], "groups": 2}
    layer, source = make(torch.randn(32, 16, 3, 3), None, case), torch.randn(1, 32, 8, 8)
    with pytest.raises(RuntimeError, match="single memory location"):
        layer.run_out(source, None, source)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", DIRECT)
def test_a_layer_that_runs_again_looks_at_what_it_gets(kernel, residual):
    case = {**PLAIN, "padding": [1, 1], "groups": 32 if kernel == "narrow" else 2}
    weight, bias = torch.randn(32, 32 // case["groups"], 3, 3), torch.randn(32)
    layer = make(weight, bias, case, ("relu", ()), residual, kernel=kernel)
    source, added = (
        torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last) if each else None
        for each in (True, residual)
    )
    if layer.refuses(source):
        pytest.skip(layer.refuses(source))

    def check(source, added, out):
        exact = convolve(source.double(), weight.double(), bias.double(), case).relu()
        exact = exact if added is None else exact + added.double()
        made = layer.run_out(source, added, out)
        assert (made.double() - exact).abs().max() <= 300 * UNIT * 200

    for count, isa in itertools.product((1, 2, 1), ISAS):
        with threads(count), forced(isa=isa):
            if not layer.refuses(source):
                check(source, added, torch.empty_like(source))
                check(source * 2, added, torch.empty_like(source))
    if residual:
        # The residual is the output, which no activation may touch before the sum.
        exact = convolve(source.double(), weight.double(), bias.double(), case).relu() + added.double()
        made = layer.run_out(source, added, added)
        assert (made.double() - exact).abs().max() <= 300 * UNIT * 200
    for size in (2, 1):
        with pytest.raises(RuntimeError, match="memory location"):
            layer.run_out(source[:size], added if added is None else added[:size], source[:size])
    with pytest.raises(RuntimeError, match="residual"):
        layer.run(source, None if residual else source)
    with pytest.raises(RuntimeError, match="float32"):
        layer.run(source.double(), added)


def wrong():
    case = {**POINTS, "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "output_padding": [0, 0]}
    weight, source = torch.randn(8, 8, 3, 3), torch.randn(1, 8, 7, 7)
    plain, summed = (make(weight, None, case, residual=each, kernel="planar") for each in (False, True))
    return {
        "float32": lambda: plain.run(source.double(), None),
        "cannot run on": lambda: plain.run(torch.randn(1, 9, 7, 7), None),
        "cannot write": lambda: plain.run_out(source, None, torch.empty(1, 8, 7, 8)),
        "with a residual": lambda: plain.run(source, source),
        "made with one": lambda: summed.run(source, None),
        "the output's shape": lambda: summed.run(source, torch.randn(1, 8, 7, 6)),
        "no kernel": lambda: make(weight, None, case, kernel="fast"),
        "not known": lambda: make(weight, None, case, ("swish", ())),
        "takes 1 numbers": lambda: make(weight, None, case, ("leaky_relu", ())),
        "one activation": lambda: make(weight, None, case, ("relu", ()), False, ("relu", ())),
        "an output channel": lambda: make(weight, torch.randn(7), case),
    }


@pytest.mark.parametrize("text", sorted(wrong()) if ISAS else [])
def test_a_layer_refuses_what_it_cannot_run(text):
    with pytest.raises(RuntimeError, match=text):
        wrong()[text]()


def test_a_layer_refuses_memory_that_it_cannot_tell_apart():
    weight, source = torch.randn(16, 16, 1, 1), torch.randn(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    layer = make(weight, None, {**PLAIN, "padding": [0, 0], "groups": 1}, residual=True, kernel="dots")
    wanted = layer.run(source, source)
    with pytest.raises(RuntimeError, match="float32 tensors"):
        layer.run(torch._neg_view(source), source)
    with pytest.raises(RuntimeError, match="more than one element"):
        layer.run_out(source, source, torch.empty_like(source[:1]).expand(2, -1, -1, -1))
    room = torch.zeros(3, 4, 4, 16).permute(0, 3, 1, 2)
    room[1:] = source
    for _ in range(2):
        # The residual is the samples behind the output's: the first call and later ones see that they overlap.
        with pytest.raises(RuntimeError, match="memory"):
            layer.run_out(source, room[1:], room[:2])
    assert torch.equal(layer.run(source, source), wanted)
