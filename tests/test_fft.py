"""Long kernels: by the FFT, within a bound relative to norms, and by the direct kernels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import groupwise
from accuracy import check, oracle, poisoned, step, threads
from cases import layer_of
from groupwise import ConvSpec, GroupwiseError, plan, record_plans
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels
EPS = torch.finfo(torch.float32).eps


def bounds(layer, source, grad):
    """Twice eps log2(n) of the norms of all that a result may read: of a group, or of a channel and its gradient."""
    groups, taps, n = layer.groups, layer.weight.double(), max(source.shape[-1], source.shape[-2], layer.weight.numel())
    x, g = (t.double().unflatten(1, (groups, -1)).transpose(0, 1).flatten(1).norm(dim=1) for t in (source, grad))
    w = taps.unflatten(0, (groups, -1)).flatten(1).norm(dim=1)
    scale = 2 * EPS * math.log2(4 * n)
    found = {"output": x * w, "grad_input": g * w, "grad_weight": x * g}
    return {name: scale * value.max().item() for name, value in found.items()}


def held(layer, source, grad, workers=1):
    """Runs a step by the FFT and holds it to the bound; the plans that ran."""
    exact, most = oracle(layer, source, grad), bounds(layer, source, grad)
    with forced(True, "fft"), poisoned(), threads(workers), record_plans() as plans:
        ours = step(layer, source, grad)
    for name, bound in most.items():
        error = (ours[name].double() - exact[name]).abs().max().item()
        bias = 0.0 if layer.bias is None else EPS * (layer.bias.abs().max().item() + exact[name].abs().max().item())
        assert error <= bound + bias, (name, error, bound)
    return plans


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    groups=st.integers(1, 5),
    inside=st.sampled_from([(1, 1), (1, 1), (1, 2), (2, 1), (3, 4), (16, 16)]),
    taps=st.one_of(st.integers(1, 200), st.sampled_from([64, 1025, 5000])),
    extra=st.integers(0, 150),
    padding=st.sampled_from(["none", "half", "causal"]),
    dilation=st.sampled_from([1, 1, 2, 3]),
    transposed=st.booleans(),
    bias=st.booleans(),
    batch=st.integers(1, 3),
    form=st.sampled_from(["1-D", "row", "column", "column, channels_last"]),
    layout=st.sampled_from(["plain", "sliced", "expanded"]),
    workers=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_the_fft_is_within_its_bound(
    groups, inside, taps, extra, padding, dilation, transposed, bias, batch, form, layout, workers, seed
):
    torch.manual_seed(seed)
    if taps > 500:
        # PyTorch's own float64 kernel copies the input once for each tap.
        groups, inside, padding, dilation, batch, extra = min(groups, 2), (1, 1), "none", 1, 1, extra % 20
    reach = dilation * (taps - 1)
    pad = {"none": 0, "half": reach // 2, "causal": reach}[padding]
    size = reach + 1 + extra if padding == "none" else 1 + extra + reach // 3
    if not transposed:
        size = max(size, reach + 1 - 2 * pad)
    elif size + reach - 2 * pad < 1:
        size = 2 * pad - reach + 1
    channels = inside[0] * groups, inside[1] * groups
    numbers = (taps, pad, dilation, size)
    if form != "1-D":
        still = (1, 0, 1, 1)
        pairs = [(a, b) if form != "row" else (b, a) for a, b in zip(numbers, still, strict=True)]
    else:
        pairs = [(number,) for number in numbers]
    spec = ConvSpec(*channels, pairs[0], 1, pairs[1], pairs[2], groups, bias, transposed=transposed)
    layer = layer_of(spec, torch.float32)
    source = torch.randn(batch, spec.in_channels, *pairs[3])
    shape = (batch, spec.out_channels, *spec.output_size(pairs[3]))
    grad = torch.randn(()).expand(shape) if layout == "expanded" else torch.randn(shape)
    if layout == "sliced":
        source = torch.randn(*source.shape[:-1], 2 * source.shape[-1])[..., ::2]
    if form.endswith("channels_last"):
        source = source.contiguous(memory_format=torch.channels_last)
        layer = layer.to(memory_format=torch.channels_last)
    plans = held(layer, source, grad, workers)
    ran = {p.kernel for p in plans}
    assert ran == ({"fft"} if taps >= 64 else {"pytorch"}), plans


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["planar", "narrow", "pixels"])
@pytest.mark.parametrize(("channels", "groups", "taps"), [(9, 9, 2500), (8, 2, 1100)])
def test_direct_kernels_take_long_rows_of_taps(isa, kernel, channels, groups, taps):
    torch.manual_seed(1)
    spec = ConvSpec(channels, channels, taps, 1, taps // 2, 1, groups, dims=1)
    source = torch.randn(1, channels, 60)
    with forced(isa=isa):
        check(layer_of(spec, torch.float32), source, torch.randn(1, channels, *spec.output_size((60,))), kernel)


def test_kernels_beyond_the_limit_fall_back():
    spec = ConvSpec(1, 1, 70_000, padding=35_000, dims=1)
    refused = plan(spec, (1, 1, 64)).refused
    assert set(refused.values()) == {
        "supports strides and dilations to 1024, paddings and kernels to 65536 and sizes to 2**24"
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["source", "weight", "grad"])
@pytest.mark.parametrize("width", [1, 4])
def test_values_that_are_not_finite_reach_only_what_sees_them(value, where, width):
    torch.manual_seed(0)
    groups, taps = 3, 80
    layer = torch.nn.Conv1d(groups * width, groups * width, taps, groups=groups)
    source = torch.randn(2, groups * width, 400)
    grad = torch.randn(2, groups * width, 321)
    if where == "weight":
        layer.weight.data[1, 0, 17] = value
    else:
        {"source": source, "grad": grad}[where][0, width, 200] = value
    # A weight that is not finite meets the zeros of the padding in a direct kernel too (docs/kernels.md).
    with forced(where == "weight", "planar" if where == "weight" else ""):
        theirs = step(layer, source, grad)
    with forced(True, "fft"), record_plans() as plans:
        ours = step(layer, source, grad)
    assert {p.kernel for p in plans} == {"fft"}
    for name, result in ours.items():
        assert torch.equal(result.isfinite(), theirs[name].isfinite()), name
        torch.testing.assert_close(result, theirs[name], rtol=1e-3, atol=1e-3, equal_nan=True, msg=name)


def test_no_kernel_of_another_dtype_sums_them():
    # Wide rows of taps, for which even the smallest block of most kernels exceeds the scratch.
    layer = torch.nn.Conv2d(256, 16, (1, 1024)).to(memory_format=torch.channels_last)
    source = torch.randn(1, 256, 1, 1030).contiguous(memory_format=torch.channels_last)
    source[0, 3, 0, 1029] = torch.nan
    with torch.no_grad(), forced(False):
        theirs = layer(source)
    with torch.no_grad(), forced(True, "fft"):
        ours = layer(source)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_spectra_that_overflow_are_summed_directly():
    layer = torch.nn.Conv1d(2, 2, 64, groups=2, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[..., 3] = 1
    source = torch.full((1, 2, 500), 3e38)
    with forced(True, "fft"):
        output = layer(source)
    assert torch.equal(output, source[..., :437])


def test_the_same_bits_on_every_run():
    layer, source, grad = torch.nn.Conv1d(8, 8, 200, groups=2), torch.randn(2, 8, 700), torch.randn(2, 8, 501)
    with forced(True, "fft"), threads(2):
        runs = [step(layer, source, grad) for _ in range(4)]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize(
    ("spec", "size", "reason"),
    [
        (ConvSpec(4, 4, 64, 2, groups=4, dims=1), (200,), "with a stride"),
        (ConvSpec(4, 4, 63, groups=4, dims=1), (200,), "fewer than 64 taps"),
        (ConvSpec(4, 4, (64, 1), groups=4), (200, 2), "along one axis"),
    ],
)
def test_the_plan_says_why_not(spec, size, reason):
    assert reason in plan(spec, (1, 4, *size)).refused["fft"]


def test_the_fft_is_chosen_only_if_it_is_allowed(monkeypatch):
    spec, shape = ConvSpec(8, 8, 2000, padding=1000, groups=8, dims=1), (1, 8, 4000)
    layer, source = layer_of(spec, torch.float32), torch.randn(shape)

    def ran(**options):
        with groupwise.enabled(**options), record_plans() as plans, torch.inference_mode():
            layer(source)
        return plans[0]

    closed = ran()
    assert closed.kernel != "fft"
    assert "enable(fft=True) allows it" in closed.others["fft"]
    opened = ran(fft=True)
    assert "allows it" not in opened.others.get("fft", "")
    with groupwise.enabled(fft=True):
        assert "allows it" not in ran().others.get("fft", ""), "a block keeps what an outer one set"
        assert "allows it" in ran(fft=False).others["fft"]
    assert "allows it" in ran().others["fft"]
    with pytest.raises(GroupwiseError, match="fft=1 is a int; give True, False or None"), groupwise.enabled(fft=1):
        pass
