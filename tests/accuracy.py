"""How exact a kernel must be: a bound that holds for any data, and PyTorch's own error beside it.

A float32 result is a sum of n products. Every product and every partial sum is rounded once, by at most u = eps / 2 of
its size, and none is larger than S, the sum of |x| |w|. So a value whose products pass through at most d roundings is
off by at most d u / (1 - d u) S, however its terms cancel (Higham, Accuracy and Stability of Numerical Algorithms,
section 4.2). No bound relative to the result exists: where 38 products cancel, it is as small as their rounding.

A sum in one go has d = n. A blocked one adds up runs of at most RUN products, then the runs: d = RUN + number of runs.
"""

from __future__ import annotations

import contextlib
import copy
import math

import torch

from groupwise import record_plans
from groupwise.kernels.dispatch import forced

UNIT = torch.finfo(torch.float32).eps / 2
# Products that an accumulator takes before it is added to a total (csrc/layout.h). The taps of a channel stay together.
RUN = 192
# The shortest run of a kernel where there is more to sum: half of the 64 of a strided gradient, as runs are even.
SHORTEST_RUN = 32
# Beside the sum: the product itself, the lanes of a vector, a bias, the parts of threads, the folds of a padding mode.
BESIDE = 12
# Root mean square errors of fewer values than this tell little of a kernel: their own spread is a tenth and more.
MANY = 500


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def poisoned():
    """Memory that a kernel gets is NaN, so that what it does not write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def step(layer, source, grad):
    """Output and all gradients, of copies, so that nothing of one step is in the next."""
    source = source.detach().requires_grad_()
    parameters = list(layer.parameters())
    output = layer(source)
    gradients = torch.autograd.grad(output, [source, *parameters], grad)
    return {
        "output": output.detach(),
        "grad_input": gradients[0],
        "grad_weight": gradients[1],
        **({"grad_bias": gradients[2]} if len(gradients) > 2 else {}),
    }


def oracle(layer, source, grad, of=lambda values: values):
    """The step in float64 and contiguous, on what `of` makes of each value.

    Contiguous, because PyTorch's own gradient of an unbatched channels_last layer's weight is wrong, in float64 too.
    """

    def plain(tensor):
        return of(tensor.detach().double().clone(memory_format=torch.contiguous_format))

    twin = copy.deepcopy(layer).double()
    for parameter in twin.parameters():
        parameter.data = plain(parameter)
    with forced(False):
        return step(twin, plain(source), plain(grad))


def depths(layer, source, grad, blocked):
    """The most roundings that a product of each value of a step passes through; `blocked` names sums made in runs."""
    taps = math.prod(layer.kernel_size)
    dims = len(layer.kernel_size)
    batch = source.shape[0] if source.dim() == dims + 2 else 1
    positions = math.prod((source if layer.transposed else grad).shape[-dims:])
    # n, the longest run and the number of runs.
    sums = {
        "output": (layer.in_channels // layer.groups * taps, max(RUN, taps), None),
        "grad_input": (layer.out_channels // layer.groups * taps, max(RUN, taps), None),
        "grad_weight": (batch * positions, RUN, batch * math.ceil(positions / SHORTEST_RUN)),
        "grad_bias": (grad.numel() // layer.out_channels, RUN, None),
    }
    return {
        name: (min(n, run + (runs or math.ceil(n / SHORTEST_RUN))) if name in blocked else n) + BESIDE
        for name, (n, run, runs) in sums.items()
    }


def mean_error(value, exact):
    return (value.double() - exact).square().mean().sqrt().item()


def check_values(ours, theirs, layer, source, grad, blocked=frozenset()):
    """Hold each value of `ours` to the bound, and their error to twice PyTorch's; `blocked` names sums made in runs."""
    exact, size = oracle(layer, source, grad), oracle(layer, source, grad, torch.abs)
    roundings = depths(layer, source, grad, blocked)
    for name, value in ours.items():
        most = roundings[name] * UNIT / (1 - roundings[name] * UNIT)
        beyond = ((value.double() - exact[name]).abs() - most * size[name]).max().item()
        # Of products below float32's normal numbers the last digits are lost.
        assert beyond <= 1e-37, (name, beyond, roundings[name])
        # A gradient that is one number everywhere makes one rounding error everywhere. How PyTorch sums depends on the
        # machine: a quarter of a rounding of S is allowed beside twice its error.
        if value.numel() >= MANY and grad.stride()[-1] != 0:
            mine, yours = mean_error(value, exact[name]), mean_error(theirs[name], exact[name])
            floor = UNIT * size[name].square().mean().sqrt().item() / 4
            assert mine <= 2 * yours + floor, (name, mine, yours, floor)


def check(layer, source, grad, kernel=""):
    """Run a step by a kernel and by PyTorch and hold both to float64; the plans that ran."""
    with forced(False):
        theirs = step(layer, source, grad)
    with forced(True, kernel), poisoned(), record_plans() as plans:
        ours = step(layer, source, grad)
    # The forward of a transposed convolution is a plain one's gradient of the input, and the other way round.
    values = ["grad_input", "output"] if layer.transposed else ["output", "grad_input"]
    value_of = {"forward": values[0], "grad_input": values[1], "grad_weight": "grad_weight"}
    blocked = {value_of[p.direction] for p in plans if p.kernel != "pytorch"}
    check_values(ours, theirs, layer, source, grad, blocked)
    for name, value in ours.items():
        assert strides(value) == strides(theirs[name]), name
    # The kernel asked for ran, or the plan says why it could not.
    assert all(p.kernel == kernel or kernel in p.refused for p in plans if kernel)
    return plans


def strides(tensor):
    """Strides that mean something."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
