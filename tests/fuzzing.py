"""Compares random convolutions by groupwise's kernels with sums of long doubles until one is wrong or the time over.

    python tests/fuzzing.py [--seconds 60] [--seed 0] [--kernel planar]

A case is a layer, its dtype, the strides of its three tensors, an instruction set, a number of threads and a kernel.
It is right if output and gradients, where a kernel of groupwise computed them, are within the error that their sums
allow, if every value is written (memory starts as NaN), and if the memory of the inputs, also between and beside their
elements, is as it was. A case that fails is made smaller while it still fails, and printed as the one command that
repeats it. Cases run in another process, so that one which ends it is found too. tests/native has guard bands around
what the kernels write.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from accuracy import BESIDE, poisoned, runs_of, threads
from groupwise import ConvSpec, GroupwiseError, plan, record_plans
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import KERNELS
from longdoubles import exact
from scripts import load

sound = load("sweeping").sound

# Kernels of float32 whose error the sum of |x| |w| bounds; that of the FFT is relative to the norm of a row
# (tests/test_fft.py), and `pairs` computes bfloat16 alone.
DIRECT = tuple(name for name in KERNELS if name not in ("pytorch", "fft", "pairs"))
# What a case of each dtype forces. Only float32 has a choice, "": others fall back to PyTorch unless measured.
DTYPES = {
    "float32": ("", *DIRECT),
    "float64": ("planar", "narrow", "groups", "pixels", "gemm"),
    "bfloat16": (*DIRECT, "pairs"),
    "float16": DIRECT,
}
LAYOUTS = ("plain", "plain", "channels_last", "permuted", "sliced", "offset", "expanded", "overlapping")
# The most multiply-accumulates of a case, and numbers of one of its tensors.
MOST_MACS, MOST_NUMBERS = 4_000_000, 400_000


@dataclass(frozen=True)
class Case:
    """One convolution. Channels are counted in one group."""

    batch: int
    groups: int
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    bias: bool
    dtype: str
    layouts: tuple[str, ...]  # of the input, the weight and the gradient of the output
    threads: int
    isa: str
    kernel: str
    values: int  # the seed of the values and strides

    @property
    def spec(self) -> ConvSpec:
        """The layer. Raises `GroupwiseError` if the numbers make none."""
        return ConvSpec(
            self.groups * self.inputs,
            self.groups * self.outputs,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
            transposed=self.transposed,
            output_padding=self.output_padding if self.transposed else 0,
            dims=len(self.size),
        )

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of the input, the weight and the output."""
        spec = self.spec
        image = (self.batch, spec.in_channels, *self.size)
        return [image, spec.weight_shape, (self.batch, spec.out_channels, *spec.output_size(self.size))]

    def command(self) -> str:
        """Returns the command that repeats the case."""
        return f"python tests/fuzzing.py --case '{json.dumps(asdict(self), separators=(',', ':'))}'"

    @classmethod
    def of(cls, text: str) -> Case:
        """Reads the case of a command."""
        told = json.loads(text)
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


def supported() -> list[tuple[str, int]]:
    """Returns the pairs of a dtype and a number of dimensions that a kernel computes: it is asked for each."""
    found = []
    for dtype in DTYPES:
        for dims in (1, 2, 3):
            x, weight = (torch.ones(1, 8, *[9] * dims), torch.ones(8, 1, *[3] * dims))
            given = [tensor.to(getattr(torch, dtype)) for tensor in (x, weight)]
            with forced(True, "planar"), record_plans() as plans:
                torch.ops.aten.convolution(*given, None, [1] * dims, [0] * dims, [1] * dims, False, [0] * dims, 8)
            if plans and plans[0].kernel != "pytorch":
                found.append((dtype, dims))
    return found


def draw(seed: int, number: int, pairs: list[tuple[str, int]], kernel: str = "") -> Case:
    """Returns draw `number` of a seed: a layer that exists and is small enough for float64."""
    chance = random.Random(f"{seed} {number}")
    pairs = [(dtype, dims) for dtype, dims in pairs if not kernel or kernel in DTYPES[dtype]]
    while True:
        dtype, dims = chance.choice(pairs)

        def each(*values: int, count: int = dims) -> tuple[int, ...]:
            return tuple(chance.choice(values) for _ in range(count))

        size = each(1, 2, 3, 5, 7, 8, 9, 14, 17, 26, 33, 64)
        kernel_size = each(1, 1, 2, 3, 3, 4, 5, 7, 11, 31)
        if chance.random() < 0.2:
            # Kernels about as large as the image.
            kernel_size = tuple(max(1, n + chance.choice((-1, 0, 1, 9))) for n in size)
        depthwise = chance.random() < 0.4
        case = Case(
            chance.choice((1, 1, 2, 3, 5)),
            chance.choice((1, 2, 3, 4, 8, 16, 19, 40)),
            1 if depthwise else chance.choice((1, 2, 3, 4, 5, 8, 12, 16, 17, 40)),
            chance.choice((1, 1, 1, 2, 3)) if depthwise else chance.choice((1, 2, 3, 4, 5, 8, 12, 16, 17, 40)),
            size,
            kernel_size,
            each(1, 1, 1, 2, 3, 5),
            tuple(chance.choice((0, 0, 1, 2, k // 2, k - 1, k + 1)) for k in kernel_size),
            each(1, 1, 1, 2, 3),
            each(0, 0, 1),
            chance.random() < 0.3,
            chance.random() < 0.5,
            dtype,
            each(*range(len(LAYOUTS)), count=3),
            chance.choice((1, 2, 2, 3)),
            chance.choice(native.runnable()),
            kernel or chance.choice(DTYPES[dtype]),
            chance.randrange(2**31),
        )
        case = replace(case, layouts=tuple(LAYOUTS[at] for at in case.layouts))
        if makes_sense(case):
            return case


def makes_sense(case: Case) -> bool:
    """Tells whether the layer exists and is small enough."""
    try:
        image, weight, output = case.shapes()
    except GroupwiseError:
        return False
    positions = math.prod(case.size if case.transposed else output[2:])
    macs = case.batch * case.groups * case.inputs * case.outputs * math.prod(case.kernel_size) * positions
    return macs <= MOST_MACS and max(map(math.prod, (image, weight, output))) <= MOST_NUMBERS


def safe_by_pytorch(case: Case) -> bool:
    """Tells whether PyTorch's kernels stay inside their tensors, should a kernel refuse the case.

    oneDNN's, which have no float64, may not where an output sees only padding, for strided 1x1 layers and for depths
    that a kernel exceeds ("Where PyTorch is wrong").
    """
    if case.dtype == "float64":
        return True
    if math.prod(case.kernel_size[-2:]) == 1 and max(case.stride) > 1:
        return False
    spec, size = case.spec, case.size
    deep = case.dilation[0] * (case.kernel_size[0] - 1) >= min(size[0], spec.output_size(size)[0])
    return sound(spec, size) and not (len(size) == 3 and case.padding[0] > 0 and deep)


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, chance: random.Random) -> torch.Tensor:
    """Returns random values between -1 and 1, laid out as a user's tensor might be."""
    order = list(range(len(shape)))[::-1]
    if layout == "channels_last":
        order = [1, *order[:-2], 0]
    elif layout == "permuted":
        chance.shuffle(order)
    gap = 2 if layout == "sliced" else 1
    strides, step = [0] * len(shape), gap
    for dimension in order:
        strides[dimension] = step
        step *= shape[dimension] + (chance.choice((0, 1, 3)) if layout == "sliced" else 0)
    if layout == "expanded":
        strides = [chance.choice((0, stride)) for stride in strides]
    elif layout == "overlapping":
        strides = [chance.choice((1, 2, stride)) for stride in strides]
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    offset = chance.choice((1, 3, 17)) if layout in ("offset", "sliced", "overlapping") else 0
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    whole = (torch.rand(offset + span + 19, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)
    return whole.as_strided(shape, strides, offset)


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """Returns all of the memory in which a tensor lies."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)


Values = dict[str, torch.Tensor]


def step(case: Case, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, grad: torch.Tensor) -> Values:
    """Returns the output and all gradients, by the operators in which PyTorch's convolutions end."""
    output_padding = case.output_padding if case.transposed else [0] * len(case.size)
    settings = (case.stride, case.padding, case.dilation, case.transposed, output_padding, case.groups)
    output = torch.ops.aten.convolution(x, weight, bias, *settings)
    sizes = None if bias is None else [len(bias)]
    mask = [True, True, bias is not None]
    found = torch.ops.aten.convolution_backward(grad, x, weight, sizes, *settings, mask)
    return {"output": output, **dict(zip(("grad_input", "grad_weight", "grad_bias"), found, strict=True))}


def failure(case: Case, compute: Callable[..., Values] = step) -> str | None:
    """Returns what is wrong with a case, or None. `compute` stands for `step` by groupwise's kernels."""
    kernel = case.kernel if safe_by_pytorch(case) else ""
    for direction in ("forward", "grad_input", "grad_weight"):
        with forced(True, kernel, case.isa):
            told = plan(case.spec, case.shapes()[0], case.dtype, direction=direction)
        if told.kernel == "pytorch" and not safe_by_pytorch(case):
            return None
    chance = random.Random(case.values)
    dtype = getattr(torch, case.dtype)
    shapes = [*case.shapes(), (case.groups * case.outputs,)]
    x, weight, grad, bias = (
        laid_out(shape, layout, dtype, chance) for shape, layout in zip(shapes, (*case.layouts, "plain"), strict=True)
    )
    given = (x, weight, bias if case.bias else None, grad)
    before = [whole_of(tensor).clone() for tensor in (x, weight, bias, grad)]
    ran = forced(True, kernel, case.isa)
    with torch.inference_mode(), threads(case.threads), ran, poisoned(), record_plans() as plans:
        found = compute(case, *given)
    after = [whole_of(tensor) for tensor in (x, weight, bias, grad)]
    names = ("input", "weight", "bias", "gradient of the output")
    for name, old, new in zip(names, before, after, strict=True):
        if not torch.equal(old, new):
            return f"memory of the {name} changed"
    runs = runs_of(plans, case.transposed)
    # A bias's gradient is summed with the weight's.
    ours = {name: value for name, value in found.items() if name.replace("bias", "weight") in runs}
    return out_of_bounds(case, given, ours)


def out_of_bounds(case: Case, given: tuple[torch.Tensor | None, ...], ours: Values) -> str | None:
    """Returns which value is further from sums of long doubles than its roundings allow, or None."""
    wide = [None if tensor is None else tensor.double() for tensor in given]
    names = ("output", "grad_input", "grad_weight", "grad_bias")
    rights = dict(zip(names, exact(case.spec, *wide), strict=False))
    _, _, output = case.shapes()
    taps, images = math.prod(case.kernel_size), case.batch * math.prod(case.size if case.transposed else output[2:])
    counts = {"output": case.inputs * taps, "grad_input": case.outputs * taps, "grad_weight": images}
    counts["grad_bias"] = case.batch * math.prod(output[2:])
    own = torch.finfo(getattr(torch, case.dtype))
    # Sums of narrower dtypes are of float32, and their results are rounded once more.
    summed = torch.finfo(torch.float64 if case.dtype == "float64" else torch.float32)
    least = 8 * summed.smallest_normal + own.smallest_normal * own.eps / 2
    for name, value in ours.items():
        if value is None:
            continue
        right, size, _ = rights[name]
        if value.shape != right.shape or str(value.dtype) != f"torch.{case.dtype}":
            return f"{name} is {value.dtype} of {tuple(value.shape)}"
        roundings = (counts[name] + BESIDE) * summed.eps / 2
        sure = roundings / (1 - roundings) * size
        bound = sure + least if own.eps <= summed.eps else sure + own.eps / 2 * (abs(right) + sure) + least
        wrong = ~(abs(value.double().contiguous().numpy().astype(np.longdouble) - right) <= bound)
        if wrong.any():
            at = tuple(int(where) for where in np.argwhere(wrong)[0])
            return f"{name}{list(at)} is {value[at].item()}, not {float(right[at])} +- {float(bound[at]):.2g}"
    return None


def smaller(case: Case) -> Iterator[Case]:
    """Yields cases that are simpler in one respect each."""
    least: dict[str, int] = {"output_padding": 0, "padding": 0}
    for field in fields(case):
        value: Any = getattr(case, field.name)
        low = least.get(field.name, 1)
        if field.name == "layouts":
            options: list[Any] = [(*value[:i], "plain", *value[i + 1 :]) for i in range(3)]
        elif isinstance(value, bool):
            options = [False]
        elif isinstance(value, tuple):
            tries = [(i, n) for i, now in enumerate(value) for n in (low, now // 2, now - 1)]
            options = [(*value[:i], max(low, n), *value[i + 1 :]) for i, n in tries]
        elif isinstance(value, int) and field.name != "values":
            options = [max(low, n) for n in (low, value // 2, value - 1)]
        else:
            options = []
        yield from (replace(case, **{field.name: option}) for option in options if option != value)


def shrunk(case: Case, fails: Callable[[Case], object]) -> Case:
    """Returns the smallest case that still fails, of those that single steps reach."""
    while True:
        found = next((one for one in smaller(case) if makes_sense(one) and fails(one)), None)
        if found is None:
            return case
        case = found


def work(options: argparse.Namespace, first: int, pipe: Any) -> None:
    """Sends the number of each draw before it runs, and at the end what is wrong, from draw `first` on."""
    pairs = supported()
    number = first
    while True:
        case = draw(options.seed, number, pairs, options.kernel)
        pipe.send((case, None))
        if failure(case):
            small = shrunk(case, failure)
            pipe.send((small, failure(small)))
            return
        number += 1


def fuzz(options: argparse.Namespace) -> tuple[int, str | None]:
    """Runs cases until the time is over; returns how many ran, and what is wrong with the last."""
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    worker = multiprocessing.get_context("spawn").Process(target=work, args=(options, 0, there), daemon=True)
    worker.start()
    there.close()
    ran, case, end = 0, None, time.monotonic() + options.seconds
    try:
        while time.monotonic() < end:
            if not here.poll(max(0.0, min(1.0, end - time.monotonic()))):
                continue
            case, wrong = here.recv()
            if wrong:
                return ran, f"{wrong}\nrepeat it with: {case.command()}"
            ran += 1
    except EOFError:
        worker.join()
        told = "before any case" if case is None else f"\nrepeat it with: {case.command()}"
        return ran, f"the process ended with {worker.exitcode} {told}"
    finally:
        worker.kill()
        worker.join()
    return ran, None


def main() -> None:
    """Fuzzes, or repeats one case."""
    parser = argparse.ArgumentParser(description="Compare random convolutions with float64.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="by default a new one")
    parser.add_argument(
        "--kernel",
        choices=sorted({*DIRECT, *DTYPES["bfloat16"]}),
        default="",
        help="the kernel to force, by default one of all",
    )
    parser.add_argument("--case", help="repeat this case, as a failure prints it")
    options = parser.parse_args()
    if problem := native.status().problem:
        raise SystemExit(problem)
    if options.case:
        wrong = failure(Case.of(options.case))
        raise SystemExit(wrong or print("right"))
    print(f"seed {options.seed}", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        ran, wrong = fuzz(options)
        print(f"{ran} cases of seed {options.seed}")
        raise SystemExit(wrong)


if __name__ == "__main__":
    main()
