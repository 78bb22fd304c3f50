"""The kernel gemm: panels and tiles of every size, runs, residuals, and threads that share pixels or channels.

Numbers are small and whole, so that every sum is exact, in any order.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import poisoned, threads
from groupwise import record_plans
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import plan
from groupwise.spec.convspec import ConvSpec
from kernels import needs_kernels
from test_layer import NONE, PLAIN, make

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


def whole(generator, *shape):
    return torch.randint(-4, 5, shape, generator=generator).float()


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return {
        "groups": groups,
        # More than a run of input channels, pixels whole pages apart, and all remainders of vectors of output channels.
        "inputs": groups * draw(st.one_of(st.integers(8, 40), st.sampled_from([191, 192, 193, 400, 512, 1024]))),
        "outputs": groups * draw(st.integers(8, 120)),
        "samples": draw(st.integers(1, 3)),
        "size": (draw(st.integers(1, 15)), draw(st.integers(1, 15))),
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)])),
        "threads": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**20)),
    }


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases(), st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.booleans())
def test_sums_of_whole_numbers_are_exact(case, dtype, bias, turned):
    generator = torch.Generator().manual_seed(case["seed"])
    groups, stride = case["groups"], case["stride"]
    x = last(whole(generator, case["samples"], case["inputs"], *case["size"]).to(dtype)).requires_grad_()
    weight = whole(generator, case["outputs"], case["inputs"] // groups, 1, 1).to(dtype)
    if turned:
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    shift = whole(generator, case["outputs"]).to(dtype) if bias else None
    exact = functional.conv2d(*(None if t is None else t.double() for t in (x, weight, shift)), stride, 0, 1, groups)
    grad = last(whole(generator, *exact.shape))
    (exact_grad,) = torch.autograd.grad(exact, x, grad.double(), retain_graph=True)
    with forced(True, "gemm"), threads(case["threads"]), poisoned(), record_plans() as plans:
        found = functional.conv2d(x, weight, shift, stride, 0, 1, groups)
        (found_grad,) = torch.autograd.grad(found, x, grad.to(dtype))
    assert torch.equal(found.double(), exact)
    assert torch.equal(found_grad.double(), exact_grad.double())
    ran = {each.direction for each in plans if each.kernel == "gemm"}
    assert ran >= ({"forward", "grad_input"} if stride == (1, 1) else {"forward"})


def test_outputs_that_read_no_input_fall_back():
    generator = torch.Generator().manual_seed(0)
    x, weight = last(whole(generator, 1, 24, 5, 6)), whole(generator, 24, 16, 1, 1)
    exact = functional.conv_transpose2d(x.double(), weight.double(), output_padding=1, dilation=2)
    with forced(True, "gemm"), poisoned(), record_plans() as plans:
        found = functional.conv_transpose2d(x, weight, output_padding=1, dilation=2)
    assert torch.equal(found.double(), exact)
    assert not any(each.kernel == "gemm" for each in plans)


ACTIVATIONS = {
    NONE: lambda x: x,
    ("relu", ()): functional.relu,
    ("relu6", ()): functional.relu6,
    ("hardtanh", (-3.0, 40.0)): lambda x: functional.hardtanh(x, -3.0, 40.0),
    ("leaky_relu", (0.5,)): lambda x: functional.leaky_relu(x, 0.5),
}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases(), *[st.sampled_from(sorted(ACTIVATIONS))] * 2, st.sampled_from(["none", "apart", "output"]), st.booleans()
)
def test_what_follows_a_layer_is_exact(case, before, after, residual, bias):
    generator = torch.Generator().manual_seed(case["seed"])
    x = last(whole(generator, case["samples"], case["inputs"], *case["size"]))
    weight = whole(generator, case["outputs"], case["inputs"] // case["groups"], 1, 1)
    shift = whole(generator, case["outputs"]) if bias else None
    after = after if residual != "none" else NONE
    geometry = {**PLAIN, "stride": list(case["stride"]), "padding": [0, 0], "groups": case["groups"]}
    layer = make(weight, shift, geometry, before, residual != "none", after, "gemm")
    exact = functional.conv2d(x.double(), weight.double(), None if shift is None else shift.double(), case["stride"],
                              0, 1, case["groups"])  # fmt: skip
    exact = ACTIVATIONS[before](exact)
    added = last(whole(generator, *exact.shape)) if residual != "none" else None
    if added is not None:
        exact = ACTIVATIONS[after](exact + added.double())
    with threads(case["threads"]), poisoned():
        for _ in range(2):
            out = layer.empty(x)
            if residual == "output":
                out.copy_(added)
                layer.run_out(x, out, out)
            else:
                layer.run_out(x, added, out)
            assert torch.equal(out.double(), exact)


def test_pixels_with_gaps_are_read_and_written_in_place():
    generator = torch.Generator().manual_seed(0)
    wide, room = last(whole(generator, 2, 60, 6, 9)), last(torch.full((2, 50, 6, 9), 7.0))
    x, out, weight = wide[:, 20:45, ::2, 1:], room[:, 11:34, ::2, 1:], whole(generator, 23, 25, 1, 1)
    layer = make(weight, None, {**PLAIN, "padding": [0, 0], "groups": 1}, ("relu", ()), kernel="gemm")
    layer.run_out(x, None, out)
    assert torch.equal(out.double(), functional.conv2d(x.double(), weight.double()).relu())
    out.fill_(7.0)
    assert (room == 7).all()


def test_a_tile_has_no_more_pixels_than_a_set_of_the_cache_has_lines():
    def tile(inputs, dtype):
        spec = ConvSpec(inputs, 64, 1, bias=False)
        with forced(True, "gemm"):
            return int(plan(spec, (1, inputs, 14, 14), memory_format="channels_last", dtype=dtype).tile.split()[0])

    assert tile(1024, torch.float32) == tile(2048, torch.float32) == min(8, tile(1008, torch.float32))
    assert tile(512, torch.float64) == min(8, tile(504, torch.float64))
    assert tile(512, torch.float32) == tile(504, torch.float32)


def test_threads_get_as_many_blocks_of_pixels():
    spec = ConvSpec(64, 64, 1, bias=False)
    with forced(True, "gemm"), threads(2):
        tasks = [plan(spec, (8, 64, size, size), memory_format="channels_last").tasks for size in range(12, 20)]
    assert all(count % 2 == 0 for count in tasks), tasks


def test_what_it_cannot_compute_is_told():
    def refusal(spec, shape=(1, 32, 9, 9), **words):
        return plan(spec, shape, **{"memory_format": "channels_last", **words}).refused["gemm"]

    assert "one tap" in refusal(ConvSpec(32, 32, 3))
    assert "one tap" in refusal(ConvSpec(32, 32, 1, padding=1))
    assert "8 input" in refusal(ConvSpec(32, 32, 1, groups=8))
    assert "side by side" in refusal(ConvSpec(32, 32, 1), memory_format="contiguous")
    assert "stride 1" in refusal(ConvSpec(32, 32, 1, stride=2), direction="grad_input")
