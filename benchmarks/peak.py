"""Measure the fraction of one core's arithmetic peak that each kind of kernel reaches: the whole operator with padding.

Each turn times a loop of fused multiply-adds and then the kernels, so that both see the same moment of the machine.
What a compiler can spoil shows here: a tile whose sums spill from the registers falls to half of the recorded fraction.

    python benchmarks/peak.py [--only depthwise] [--budget 2]
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import floor
import torch
from measuring import RECORDS, Case, Effort, Forced, about, interleaved, takes, write_record
from shapes import FORMATS

from groupwise import ConvSpec, cost
from groupwise.kernels.plan import DIRECTIONS, KERNELS

UNIT = ("benchmark", "kind", "direction", "memory_format", "kernel")
# This many rounds take one core about 0.2 ms.
BURN = 100_000


@dataclass(frozen=True)
class Kind:
    """One layer that stands for a kind; none is a layer of `data/`."""

    name: str
    channels: int
    groups: int
    size: int
    kernel: int
    stride: int = 1

    @functools.cached_property
    def spec(self) -> ConvSpec:
        """The layer as numbers, with the padding that keeps the size."""
        keep = {"kernel_size": self.kernel, "padding": self.kernel // 2, "stride": self.stride}
        return ConvSpec(self.channels, self.channels, groups=self.groups, **keep)


KINDS = (
    Kind("groups of 4, 3x3", 96, 24, 48, 3),
    Kind("groups of 8, 3x3", 192, 24, 32, 3),
    Kind("groups of 16, 3x3", 256, 16, 24, 3),
    Kind("groups of 16, 3x3, stride 2", 256, 16, 48, 3, 2),
    Kind("groups of 48, 5x5", 192, 4, 24, 5),
    Kind("depthwise 3x3", 96, 96, 40, 3),
    Kind("depthwise 3x3, stride 2", 96, 96, 80, 3, 2),
    Kind("depthwise 5x5", 192, 192, 32, 5),
    Kind("depthwise 7x7", 128, 128, 40, 7),
    Kind("depthwise 21x21", 64, 64, 48, 21),
)


def main() -> None:
    """Measures kind by kind, and writes the rows of each as soon as they are there."""
    parser = argparse.ArgumentParser(description="Measure the fraction of one core's peak that the kernels reach.")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each kind, direction and memory format")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "peak.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    peaks = floor.measure(1)
    for kind in KINDS:
        if options.only in kind.name:
            for direction in DIRECTIONS:
                for memory_format in FORMATS:
                    rows = measure(kind, direction, memory_format, Effort(20, options.budget, 1000), peaks)
                    write_record(options.output, [{**row, **about()} for row in rows], UNIT)
            print(f"{kind.name}: done", file=sys.stderr)
    print(f"wrote {options.output}; read it with: python benchmarks/summary.py")


def measure(
    kind: Kind, direction: str, memory_format: str, effort: Effort, peaks: floor.Peaks
) -> list[dict[str, object]]:
    """Returns a row for PyTorch and for each kernel of groupwise that takes the layer: the median fraction of peak."""
    call = operator(kind, direction, memory_format)
    burn = floor.loop()
    cases = {"peak": Case(functools.partial(burn, BURN)), "pytorch": Case(call, ours=False)}
    for name in KERNELS:
        if name != "pytorch" and takes(call, name):
            cases[name] = Forced(call, kernel=name)
    expense = cost(kind.spec, kind.size)
    flop = 2 * expense.macs.forward
    with torch.inference_mode():
        times = interleaved(cases, effort)
    rows = []
    for name, seconds in times.items():
        if name == "peak":
            continue
        reached = [flop / took / (burn(BURN) / at_peak) for took, at_peak in zip(seconds, times["peak"], strict=True)]
        row = {"benchmark": "peak", "kind": kind.name, "direction": direction, "memory_format": memory_format}
        median = float(f"{statistics.median(reached):.4g}")
        row |= {"kernel": name, "fraction_of_peak": median, "repeats": len(reached)}
        # Moving the layer's bytes once, at the cache's copy rate, allows no more than this.
        row["attainable"] = round(min(1.0, flop / peaks.flop / (expense.bytes / peaks.copied_bytes)), 4)
        rows.append(row)
    return rows


def operator(kind: Kind, direction: str, memory_format: str) -> Callable[[], object]:
    """Returns one pass of the layer, by the operators in which PyTorch's convolutions end."""
    spec, layout = kind.spec, FORMATS[memory_format]
    x = torch.randn(1, kind.channels, kind.size, kind.size).contiguous(memory_format=layout)
    weight = torch.randn(spec.weight_shape).contiguous(memory_format=layout)
    settings = ([kind.stride] * 2, [kind.kernel // 2] * 2, [1, 1], False, [0, 0], kind.groups)
    if direction == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *settings)
    grad = torch.ops.aten.convolution(x, weight, None, *settings)
    mask = [direction == "grad_input", direction == "grad_weight", False]
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)


if __name__ == "__main__":
    main()
