"""How exact a kernel must be: a bound that holds for any data, and the error that its additions are expected to have.

A float32 result is a sum of n products. Every product and every partial sum is rounded once, by at most u = eps / 2 of
its size, and none is larger than S, the sum of |x| |w| and |bias|. So a value whose products pass through at most d
roundings is off by at most d u / (1 - d u) S, however its terms cancel (Higham, Accuracy and Stability of Numerical
Algorithms, section 4.2). No bound relative to the result exists: where 38 products cancel, it is as small as their
rounding.

A sum in one go has d = n. A blocked one adds up runs of at most `run` products, then the runs: d = run + number of
runs.

The bound is far above what random data give, so it alone would let a kernel round ten times as much as it must. A
rounding of a partial sum s is at most u |s|, and its root mean square at most u |s| / sqrt(3), as it is spread evenly.
Independent errors add up as squares. So the root mean square error of a result is at most u sqrt(V / 3), where V is the
sum of s**2 over all its additions. For products in random order V needs only the sum m of the products and the sum q of
their squares: after k of n products the square of the partial sum is k**2 / n**2 m**2 + k / n (1 - k / n) q on average.
This depends neither on PyTorch nor on the processor. It holds for data of one sign, where m**2 is large, and for data
that cancel, where q is.
"""

from __future__ import annotations

import contextlib
import copy
import math

import torch

from groupwise import record_plans
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from remembered import Remembered, fingerprint

UNIT = torch.finfo(torch.float32).eps / 2
# Products that an accumulator takes before it is added to a total (csrc/kernels/layout.h). The taps of a channel stay
# together.
RUN = 192
# The same in a gradient of the input with a stride or a dilation, and in a gradient of the weight from copied pixels.
SHORT_RUN = 64
# Beside the sum: the product itself, the lanes of a vector, a bias, the parts of threads, the folds of a padding mode.
BESIDE = 12
# Root mean square errors of fewer values than this tell little of a kernel: their own spread is a tenth and more.
MANY = 500
# How far the error may exceed the expected one, for data whose order is not random.
MARGIN = 1.5


@contextlib.contextmanager
def threads(count):
    """So many threads, which share the least work too, whatever their start takes on this machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    start_takes = native.library().groupwise_start_takes if native.status().problem is None else lambda seconds: None
    start_takes(0.0)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        start_takes(-1.0)


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


_oracles = Remembered()


def itself(values):
    return values


def oracle(layer, source, grad, of=itself):
    """The step in float64 and contiguous, on what `of`, a function of the module level, makes of each value.

    Contiguous, because PyTorch's own gradient of an unbatched channels_last layer's weight is wrong, in float64 too.
    Equal numbers give equal results, which kernels, instruction sets, memory formats and threads share.
    """
    key = (repr(layer), of, *map(fingerprint, (source, grad, *layer.parameters())))
    # A new dict: its values are shared.
    return dict(_oracles.get(key, lambda: compute_oracle(layer, source, grad, of), bytes_of))


def bytes_of(values):
    return sum(value.numel() * value.element_size() for value in values.values())


def compute_oracle(layer, source, grad, of):
    def plain(tensor):
        return of(tensor.detach().double().clone(memory_format=torch.contiguous_format))

    twin = copy.deepcopy(layer).double()
    for parameter in twin.parameters():
        parameter.data = plain(parameter)
    with forced(False):
        return step(twin, plain(source), plain(grad))


def runs_of(plans, transposed=False):
    """The longest run of each value of a step that a kernel summed; values that PyTorch summed are left out."""
    # The forward of a transposed convolution is a plain one's gradient of the input, and the other way round.
    values = ["grad_input", "output"] if transposed else ["output", "grad_input"]
    value_of = {"forward": values[0], "grad_input": values[1], "grad_weight": "grad_weight"}
    return {value_of[plan.direction]: longest_run(plan) for plan in plans if plan.kernel != "pytorch"}


def longest_run(plan):
    if plan.direction == "grad_weight":
        return SHORT_RUN if plan.kernel == "pixels" else RUN
    axes = zip(*(plan.shape[name] for name in ("kernel_size", "stride", "dilation")), strict=True)
    spread = any(kernel > 1 and max(stride, dilation) > 1 for kernel, stride, dilation in axes)
    run = SHORT_RUN if plan.direction == "grad_input" and spread else RUN
    run = max(run, math.prod(plan.shape["kernel_size"]))
    channels = plan.shape["in_channels" if plan.direction == "forward" else "out_channels"] // plan.shape["groups"]
    if plan.kernel == "narrow" and channels <= 4:
        # Lanes that hold several groups sum a row of taps of all their channels.
        run = max(run, plan.shape["kernel_size"][1] * channels)
    return run


def sums(layer, source, grad, runs):
    """Name of a value -> (products of a sum, the longest run, the most runs). `runs` is what `runs_of` returns.

    Runs are even, so that none has less than half the products of the longest. Those of a gradient of the weight end
    with rows and images too.
    """
    taps = math.prod(layer.kernel_size)
    dims = len(layer.kernel_size)
    batch = source.shape[0] if source.dim() == dims + 2 else 1
    positions = math.prod((source if layer.transposed else grad).shape[-dims:])
    counts = {
        "output": layer.in_channels // layer.groups * taps,
        "grad_input": layer.out_channels // layer.groups * taps,
        "grad_weight": batch * positions,
        "grad_bias": grad.numel() // layer.out_channels,
    }
    found = {}
    for name, count in counts.items():
        run = min(count, runs.get(name, count))
        if run == count and (name != "grad_weight" or name not in runs):
            found[name] = count, count, 1
        elif name == "grad_weight":
            found[name] = count, min(run, positions), batch * math.ceil(positions / min(32, run / 4))
        else:
            found[name] = count, run, math.ceil(2 * count / run)
    return found


def depths(layer, source, grad, runs):
    """The most roundings that a product of each value of a step passes through."""
    each = sums(layer, source, grad, runs).items()
    return {name: min(count, run + most) + BESIDE for name, (count, run, most) in each}


def mean_error(value, exact):
    return (value.double() - exact).square().mean().sqrt().item()


def expected_errors(layer, source, grad, runs):
    """The root mean square error that each value of `runs` should at most have, if its products are in random order."""
    exact, squares = oracle(layer, source, grad), oracle(layer, source, grad, torch.square)
    counts, found = sums(layer, source, grad, runs), {}
    for name in runs:
        count, run, most = counts[name]
        one, all_of = exact[name].square().mean().item(), squares[name].mean().item()
        # The additions of a run, one by one; and of the runs, if there are several. Products are rounded too.
        within = run * (run / count * one / 3 + all_of / 2)
        between = most * (one / 3 + all_of / 2) if most > 1 else 0.0
        found[name] = UNIT * math.sqrt((within + between + all_of) / 3)
    return found


def check_values(ours, layer, source, grad, runs=None):
    """Hold each value of `ours` to the bound, and those that `runs` names to the expected error too.

    `runs` is what `runs_of` returns.
    """
    runs = runs or {}
    exact, size = oracle(layer, source, grad), oracle(layer, source, grad, torch.abs)
    roundings, expected = depths(layer, source, grad, runs), expected_errors(layer, source, grad, runs)
    for name, value in ours.items():
        most = roundings[name] * UNIT / (1 - roundings[name] * UNIT)
        beyond = ((value.double() - exact[name]).abs() - most * size[name]).max().item()
        # Of products below float32's normal numbers the last digits are lost.
        assert beyond <= 1e-37, (name, beyond, roundings[name])
        # A gradient that is one number everywhere makes one rounding error everywhere.
        if name in runs and value.numel() >= MANY and grad.stride()[-1] != 0:
            mean = mean_error(value, exact[name])
            assert mean <= MARGIN * expected[name], (name, mean, expected[name])


_layouts = {}


def strides_of_pytorch(layer, source, grad):
    """The strides of each value of PyTorch's own step. They depend on those of its tensors, on no number in them."""
    tensors = [(tensor.shape, tensor.stride()) for tensor in (source, grad, *layer.parameters())]
    key = (repr(layer), source.dtype, torch.get_num_threads(), *tensors)
    if key not in _layouts:
        with forced(False):
            _layouts[key] = {name: strides(value) for name, value in step(layer, source, grad).items()}
    return _layouts[key]


def check(layer, source, grad, kernel=""):
    """Run a step by a kernel and hold it to float64, and its strides to PyTorch's; the plans that ran."""
    theirs = strides_of_pytorch(layer, source, grad)
    with forced(True, kernel), poisoned(), record_plans() as plans:
        ours = step(layer, source, grad)
    check_values(ours, layer, source, grad, runs_of(plans, layer.transposed))
    weighed = any(p.direction == "grad_weight" and p.kernel != "pytorch" for p in plans)
    for name, value in ours.items():
        # PyTorch gives a weight's gradient the memory format of the input.
        own = name == "grad_weight" and weighed and is_dense(layer.weight)
        assert strides(value) == (strides(layer.weight) if own else theirs[name]), name
    # The kernel asked for ran, or the plan says why it could not.
    able = {row["name"]: row["directions"] for row in native.build()["kernels"]}
    for p in plans:
        assert not kernel or p.kernel == kernel or kernel in p.refused or p.direction not in able[kernel]
    return plans


def is_dense(tensor):
    """Tells whether the elements lie side by side, in any order of the dimensions."""
    order = sorted(zip(strides(tensor), [size for size in tensor.shape if size > 1], strict=True))
    floats = 1
    for stride, size in order:
        if stride != floats:
            return False
        floats *= size
    return True


def strides(tensor):
    """Strides that mean something."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
