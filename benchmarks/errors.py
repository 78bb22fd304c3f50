"""Measure how far results are from float64, beside PyTorch's: every kernel, both memory formats, three kinds of values.

Errors are in roundings: |result - exact| / (u S), where u is 2**-24 and S the sum of |x| |w| over the products of the
result. PyTorch's own errors depend on the processor, because its kernels sum in other runs on others.

    python benchmarks/errors.py [--seeds 3] [--output benchmarks/records/FILE.jsonl]
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from measuring import RECORDS, about, write_record
from peak import KINDS as TIMED
from peak import Kind
from shapes import FORMATS
from torch import Tensor

from groupwise import record_plans
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import DIRECTIONS, KERNELS

UNIT = ("benchmark", "direction", "kernel", "values")
# On small images PyTorch sums a weight's gradient in shorter runs, which round less.
KINDS = (*TIMED, Kind("groups of 4, 3x3, small", 128, 32, 14, 3), Kind("groups of 32, 3x3, small", 128, 4, 14, 3))
ROUNDING = torch.finfo(torch.float32).eps / 2
# What the input and the gradient of the output are made of random numbers by; the weight only by the last.
VALUES = {"both signs": torch.clone, "after ReLU": torch.relu, "one sign": torch.abs}


def main() -> None:
    """Measures, and writes one line for each direction, kernel and kind of values."""
    parser = argparse.ArgumentParser(description="Compare the errors of the kernels with PyTorch's.")
    parser.add_argument("--seeds", type=int, default=3, help="how many random inputs each layer gets")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "errors.jsonl")
    options = parser.parse_args()
    # With more threads the parts of a sum are shorter.
    torch.set_num_threads(1)
    facts = {**about(), "isa": native.status().isa, "seeds": options.seeds}
    rows = [{"benchmark": "errors", **row, **facts} for row in measured(KINDS, options.seeds)]
    write_record(options.output, rows, UNIT)
    for row in rows:
        print(
            f"{row['direction']:<12} {row['kernel']:<9} {row['values']:<11} {row['cases']:>3} cases: at most "
            f"{row['most_roundings']:6.2f} u S; {row['of_pytorch']:.2f} times PyTorch's error (median), at most "
            f"{row['of_pytorch_most']:.2f}"
        )


def measured(kinds: Sequence[Kind], seeds: int) -> Iterator[dict[str, Any]]:
    """Yields one row for each direction, kernel and kind of values, over all layers, memory formats and seeds."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for kind in kinds:
        for values in VALUES:
            for memory_format in FORMATS:
                for seed in range(seeds):
                    for (direction, kernel), errors in errors_of(kind, values, memory_format, seed).items():
                        found[direction, kernel, values].append(errors)
    for (direction, kernel, values), errors in sorted(found.items()):
        ratios = [ratio for _, ratio in errors]
        yield {
            "direction": direction,
            "kernel": kernel,
            "values": values,
            "cases": len(errors),
            "most_roundings": round(max(most for most, _ in errors), 3),
            "of_pytorch": round(statistics.median(ratios), 3),
            "of_pytorch_most": round(max(ratios), 3),
        }


def errors_of(kind: Kind, values: str, memory_format: str, seed: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Returns for each direction and kernel the largest error in roundings, and the mean error over PyTorch's."""
    generator = torch.Generator().manual_seed(seed)
    spec, make = kind.spec, VALUES[values]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).contiguous(memory_format=FORMATS[memory_format])

    size = (kind.size, kind.size)
    tensors = [
        make(random(1, spec.out_channels, *spec.output_size(size))),
        make(random(1, spec.in_channels, *size)),
        random(*spec.weight_shape),
    ]
    if values == "one sign":
        tensors[2] = tensors[2].abs()
    exact = results([tensor.double().contiguous() for tensor in tensors], spec)
    sizes = results([tensor.double().abs().contiguous() for tensor in tensors], spec)
    with forced(False):
        pytorch = results(tensors, spec)
    found = {}
    for kernel in KERNELS:
        if kernel == "pytorch":
            continue
        with forced(True, kernel), record_plans() as plans:
            ours = results(tensors, spec)
        for plan in plans:
            if plan.kernel != kernel:
                continue
            right, mine, theirs = (which[plan.direction] for which in (exact, ours, pytorch))
            most = ((mine - right).abs() / (ROUNDING * sizes[plan.direction]).clamp_min(1e-30)).max().item()
            ratio = ((mine - right).norm() / (theirs - right).norm()).item()
            found[plan.direction, kernel] = most, ratio
    return found


def results(tensors: Sequence[Tensor], spec: Any) -> Mapping[str, Tensor]:
    """Returns the result of every direction in float64, computed in the dtype of the tensors, without a bias."""
    grad, source, weight = tensors
    options = (spec.stride, spec.padding, spec.dilation, False, (0, 0), spec.groups)
    forward = torch.ops.aten.convolution(source, weight, None, *options)
    gradients = torch.ops.aten.convolution_backward(grad, source, weight, None, *options, (True, True, False))
    return {name: value.double() for name, value in zip(DIRECTIONS, (forward, *gradients[:2]), strict=True)}


if __name__ == "__main__":
    main()
