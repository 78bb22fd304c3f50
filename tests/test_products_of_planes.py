"""The kernel brgemm on 1x1 layers of contiguous tensors, whose products' columns are pixels, read in place or gathered.

Numbers are small and whole, so that every sum is exact, in any order.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import poisoned, threads
from groupwise import ConvSpec, plan, record_plans
from groupwise.kernels.dispatch import forced
from kernels import here, needs_kernels
from test_layer import NONE, PLAIN, make

pytestmark = [needs_kernels, pytest.mark.skipif("brgemm" not in here(), reason="there is no brgemm")]


def whole(generator, *shape):
    return torch.randint(-4, 5, shape, generator=generator).float()


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return {
        "groups": groups,
        # More than a run of input channels, and as many output channels as threads share, with and without a rest.
        "inputs": groups * draw(st.one_of(st.integers(8, 40), st.sampled_from([192, 193, 400, 1024]))),
        "outputs": groups * draw(st.one_of(st.integers(8, 70), st.sampled_from([128, 129, 200, 260, 300]))),
        "samples": draw(st.sampled_from([1, 1, 2, 3])),
        "size": (draw(st.integers(1, 21)), draw(st.integers(1, 21))),
        "stride": draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (5, 2)])),
        # The gradient of the input of a padded layer reads the gradient of the output within.
        "padding": draw(st.sampled_from([(0, 0), (0, 0), (1, 1), (0, 2)])),
        "threads": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**20)),
    }


PLAIN_CASE = {"groups": 1, "samples": 1, "padding": (0, 0), "threads": 2}
SHARED = {**PLAIN_CASE, "inputs": 40, "outputs": 300, "size": (7, 7), "stride": (1, 1)}
# Inputs that are gathered some runs at a time, blocks of some rows, and blocks of some columns of one row.
IN_RUNS = {**PLAIN_CASE, "inputs": 1024, "outputs": 20, "size": (33, 30), "stride": (2, 2)}
IN_ROWS = {**PLAIN_CASE, "inputs": 400, "outputs": 24, "size": (70, 64), "stride": (2, 2), "threads": 1}
IN_COLUMNS = {**PLAIN_CASE, "inputs": 30, "outputs": 24, "size": (1, 150), "stride": (2, 2), "threads": 3}
PADDED = {**PLAIN_CASE, "inputs": 40, "outputs": 130, "size": (9, 8), "stride": (1, 1), "padding": (1, 1)}
FOR_ALL = settings(max_examples=150, deadline=None)


@FOR_ALL
@given(cases(), st.booleans())
@example({**SHARED, "seed": 1}, True)
@example({**SHARED, "size": (13, 14), "stride": (2, 2), "seed": 2}, False)
@example({**IN_RUNS, "seed": 3}, True)
@example({**IN_ROWS, "seed": 4}, True)
@example({**IN_COLUMNS, "seed": 5}, False)
@example({**PADDED, "seed": 6}, False)
def test_sums_of_whole_numbers_are_exact(case, bias):
    generator = torch.Generator().manual_seed(case["seed"])
    groups = case["groups"]
    x = whole(generator, case["samples"], case["inputs"], *case["size"]).requires_grad_()
    weight = whole(generator, case["outputs"], case["inputs"] // groups, 1, 1)
    shift = whole(generator, case["outputs"]) if bias else None
    exact = functional.conv2d(*(None if t is None else t.double() for t in (x, weight, shift)), case["stride"],
                              case["padding"], 1, groups)  # fmt: skip
    grad = whole(generator, *exact.shape)
    (exact_grad,) = torch.autograd.grad(exact, x, grad.double(), retain_graph=True)
    with forced(True, "brgemm"), threads(case["threads"]), poisoned(), record_plans() as plans:
        found = functional.conv2d(x, weight, shift, case["stride"], case["padding"], 1, groups)
        (found_grad,) = torch.autograd.grad(found, x, grad)
    assert torch.equal(found.double(), exact)
    assert torch.equal(found_grad.double(), exact_grad.double())
    ran = {each.direction for each in plans if each.kernel == "brgemm"}
    # More than a fifth of the products would be with padding, in many of the others.
    assert ran >= ({"forward", "grad_input"} if case["padding"] == (0, 0) and case["stride"] == (1, 1) else set())


@FOR_ALL
@given(cases(), st.sampled_from([NONE, ("relu", ())]), st.sampled_from(["none", "apart", "output"]), st.booleans())
@example({**SHARED, "seed": 1}, NONE, "output", True)
@example({**SHARED, "size": (13, 14), "stride": (2, 2), "seed": 2}, ("relu", ()), "apart", True)
def test_what_follows_a_layer_is_exact(case, before, residual, bias):
    generator = torch.Generator().manual_seed(case["seed"])
    x = whole(generator, case["samples"], case["inputs"], *case["size"])
    weight = whole(generator, case["outputs"], case["inputs"] // case["groups"], 1, 1)
    shift = whole(generator, case["outputs"]) if bias else None
    geometry = {**PLAIN, "stride": list(case["stride"]), "padding": list(case["padding"]), "groups": case["groups"]}
    layer = make(weight, shift, geometry, before, residual != "none", NONE, "brgemm")
    if layer.refuses(x):
        return
    exact = functional.conv2d(x.double(), weight.double(), None if shift is None else shift.double(), case["stride"],
                              case["padding"], 1, case["groups"])  # fmt: skip
    exact = exact.relu() if before != NONE else exact
    added = whole(generator, *exact.shape)
    exact = exact if residual == "none" else exact + added.double()
    with threads(case["threads"]), poisoned():
        for _ in range(2):
            out = layer.empty(x)
            if residual == "output":
                out.copy_(added)
            layer.run_out(x, {"none": None, "apart": added, "output": out}[residual], out)
            assert torch.equal(out.double(), exact)


def test_inputs_and_outputs_with_gaps():
    generator = torch.Generator().manual_seed(0)
    wide, room = whole(generator, 2, 60, 9, 12), torch.full((2, 80, 5, 6), 7.0)
    x, out, weight = wide[:, 20:45, :, 1:], room[:, 11:70, :, :], whole(generator, 59, 25, 1, 1)
    layer = make(weight, None, {**PLAIN, "stride": [2, 2], "padding": [0, 0], "groups": 1}, kernel="brgemm")
    layer.run_out(x, None, out)
    assert torch.equal(out.double(), functional.conv2d(x.double(), weight.double(), stride=2))
    out.fill_(7.0)
    assert (room == 7).all()


def test_threads_share_the_output_channels_of_a_small_image():
    # Halves of its pixels would fill vectors badly, and each thread would read all weights.
    for stride in (1, 2):
        with forced(True, "brgemm"), threads(2):
            told = plan(ConvSpec(512, 1024, 1, stride), (1, 512, 7 * stride, 7 * stride))
        assert (told.kernel, told.tasks) == ("brgemm", 2)
        assert told.block["rows"] * told.block["columns"] == 49
