"""Sizes at the limits: many groups, one pixel, nothing at all, products beyond 64 bits, and memory that is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy
import pytest
import torch

from accuracy import check, threads
from groupwise import ConvSpec, record_plans
from groupwise.kernels.dispatch import forced
from kernels import needs_kernels

pytestmark = needs_kernels

MANY = 65_536
KERNEL = torch.ones(8, 1, 3, 3)
ENOUGH = 12 * 2**30


def outcome(compute):
    """Returns the shapes that a computation gives, or its error."""
    try:
        return [tuple(value.shape) for value in compute()]
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def image(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (ConvSpec(24, 24, 3, padding=1, groups=3), (1, 1)),
        (ConvSpec(24, 24, 31, padding=15, groups=24), (1, 1)),
        (ConvSpec(8, 16, (63, 1), padding=(31, 0), groups=4), (1, 2)),
    ],
)
def test_one_pixel_and_kernels_larger_than_the_image(spec, size):
    layer = getattr(torch.nn, f"Conv{'Transpose' * spec.transposed}{spec.dims}d")(
        spec.in_channels, spec.out_channels, spec.kernel_size, padding=spec.padding, groups=spec.groups
    )
    for workers in (1, 2):
        with threads(workers):
            check(
                layer,
                torch.randn(1, spec.in_channels, *size),
                torch.randn(1, spec.out_channels, *spec.output_size(size)),
            )


@pytest.mark.parametrize("kernel", [1, 3])
def test_as_many_groups_as_a_layer_has_channels(kernel):
    """Each value is one product, of the tap in the middle, and so exact."""
    x, grad = torch.randn(2, 1, MANY, 1, 1)
    weight = torch.randn(MANY, 1, kernel, kernel)
    given = [x.requires_grad_(), weight.requires_grad_()]
    for workers in (1, 2):
        with threads(workers), forced(True), record_plans() as plans:
            output = torch.nn.functional.conv2d(*given, padding=kernel // 2, groups=MANY)
            found = torch.autograd.grad(output, given, grad)
        assert len(plans) == 3
        assert "pytorch" not in {plan.kernel for plan in plans}
        middle = weight.detach()[:, 0, kernel // 2, kernel // 2].view(x.shape)
        assert torch.equal(output, x * middle)
        assert torch.equal(found[0], grad * middle)
        taps = torch.zeros(weight.shape)
        taps[:, 0, kernel // 2, kernel // 2] = (x * grad).flatten()
        assert torch.equal(found[1], taps.detach())


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        (image(0, 8, 5, 5), KERNEL, {}),
        (image(0, 8, 0, 5), KERNEL, {"padding": 2}),
        (image(1, 8, 0, 5), KERNEL, {"padding": 2}),
        (image(1, 0, 5, 5), image(8, 0, 3, 3), {"groups": 2}),
        (image(1, 8, 5, 5), image(0, 4, 3, 3), {"groups": 2}),
        (image(1, 8, 5, 5), image(8, 1, 0, 3), {}),
        (image(1, 8, 2, 2), KERNEL, {}),
        *((image(1, 8, 5, 5), KERNEL, {"padding": 2**power}) for power in (40, 62)),
        (image(1, 8, 5, 5), KERNEL, {"padding": 2**63 - 1}),
        *((image(1, 8, 5, 5), KERNEL, {"stride": 2**power}) for power in (31, 62)),
        *((image(1, 8, 5, 5), KERNEL, {"dilation": 2**power}) for power in (31, 62)),
        (image(1, 8, 5, 5), KERNEL, {"dilation": 2**61, "padding": 2**61}),
        (image(1, 8, 5, 5), KERNEL, {"stride": 2**61, "transposed": True}),
        (image(1, 8, 5, 5), KERNEL, {"stride": 2**62, "output_padding": 2**61, "transposed": True}),
        (image(1).expand(2**20, 8, 2**15, 2**15), KERNEL, {}),
    ],
)
def test_nothing_and_numbers_beyond_64_bits_end_as_without_groupwise(x, weight, options):
    options = {"groups": 8, **options}
    function = torch.nn.functional.conv_transpose2d if options.pop("transposed", False) else torch.nn.functional.conv2d

    def step():
        given = [tensor.detach().requires_grad_() for tensor in (x, weight)]
        output = function(*given, **options)
        return output, *torch.autograd.grad(output, given, torch.ones(1).expand(output.shape))

    with forced(False):
        theirs = outcome(step)
    with forced(True):
        assert outcome(step) == theirs


@pytest.mark.skipif(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < ENOUGH, reason="needs 12 GB of memory")
def test_offsets_beyond_31_bits():
    """Pages of zeros that nobody writes take no memory."""
    channels, side = 130, 4100
    x = torch.from_numpy(numpy.zeros((1, channels, side, side), numpy.float32))
    assert x.numel() > 2**31
    x[..., ::2000, ::2000] = torch.randn(1, channels, 3, 3)
    weight = torch.randn(channels, 1, 1, 1)
    with forced(True), record_plans() as plans:
        found = torch.nn.functional.conv2d(x, weight, stride=1000, groups=channels)
    assert plans[0].kernel != "pytorch"
    exact = x[..., ::1000, ::1000].double() * weight.double().view(1, channels, 1, 1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


# Memory for 2 GB of output is refused. What is computed afterwards, in the same process, is right.
REFUSED = """
import resource
import torch
from groupwise.kernels.dispatch import forced

weight = torch.randn(64, 1, 3, 3)
small = torch.randn(1, 64, 9, 9)
with forced(True):
    before = torch.nn.functional.conv2d(small, weight, groups=64)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, now + 2**28))
    for _ in range(20):
        try:
            torch.nn.functional.conv2d(torch.ones(1).expand(8, 64, 1024, 1024), weight, groups=64)
        except RuntimeError as error:
            assert "can't allocate memory" in str(error), error
        else:
            raise SystemExit("memory was found")
    assert torch.equal(torch.nn.functional.conv2d(small, weight, groups=64), before)
print("right")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by Linux's means")
def test_memory_that_cannot_be_had_is_an_error_and_nothing_is_lost():
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
