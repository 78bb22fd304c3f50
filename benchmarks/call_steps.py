"""What a call of an optimized network spends its time on, beside the roofline floor of each kind of step.

    python benchmarks/call_steps.py [--networks mobilenet_v2 ...] [--dtype bfloat16] [--batch 1 8] [--threads 2]

The time of a step is the median over calls in which each step is timed by itself, scaled to the median of calls that
are not. The floor of a step with layers is the larger of their FLOP at the peak of the dtype, and its bytes at the rate
of a copy: the weights, what the step reads first and what it writes. That of all else is 0.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import floor
import torch
import whole_networks
from measuring import RECORDS, about, keep_memory, write_record
from steps import REST, named, rates_of, row

import groupwise
from groupwise.kernels import native
from groupwise.kernels.processor import processor_class
from groupwise.rewrite import Step
from groupwise.rewrite.timing import step_times

UNIT = ("benchmark", "network", "batch", "threads", "dtype")
PRODUCTS, GROUPED, OTHERS = "1x1 and linear layers", "grouped layers", "other convolutions"
SQUEEZE, CHAINS = "squeeze and excitation", "chains of layers"
KINDS = (PRODUCTS, GROUPED, OTHERS, SQUEEZE, CHAINS)
BY_STEP = {"linear": PRODUCTS, "squeeze_excite": SQUEEZE, "chain": CHAINS}
CALLS, WARM = 25, 5


def main() -> None:
    """Times the steps of each network, and prints and records the times of each kind."""
    parser = argparse.ArgumentParser(description="Time the steps of optimized networks in inference.")
    parser.add_argument("--networks", nargs="+", default=list(whole_networks.TORCHVISION), help="parts of names")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=pathlib.Path, help="default: this processor's call_steps.jsonl")
    options = parser.parse_args()
    names = named(options.networks)
    keep_memory()
    torch.set_num_threads(options.threads)
    peaks = floor.measure(options.threads, options.dtype)
    isa = native.status().isa
    output = options.output or RECORDS / f"{processor_class()}-{isa}" / "call_steps.jsonl"
    for batch in options.batch:
        for name in names:
            kinds = split(name, batch, options.dtype, peaks)
            facts = {"benchmark": "call_steps", "network": name, "batch": batch, **about(options.dtype), "isa": isa}
            facts |= rates_of(peaks)
            write_record(output, [{**facts, "kinds": kinds}], UNIT)
            print(row(name, kinds), flush=True)


def split(name: str, batch: int, dtype: str, peaks: floor.Peaks) -> dict[str, dict[str, float]]:
    """Returns the time and the floor of each kind of work in a call, in ms."""
    model, images = whole_networks.build(name).eval(), whole_networks.inputs(batch)[0]
    number = getattr(torch, dtype)
    network = groupwise.optimize(model, images, **({} if dtype == "float32" else {"dtype": number}))
    work = Work(model, images, number.itemsize, peaks)
    with torch.inference_mode():
        for _ in range(WARM):
            network(images)
        whole = statistics.median(_seconds(lambda: network(images)) for _ in range(CALLS))
        found = [step_times(network, [images], {}) for _ in range(CALLS)]
    ms: Counter[str] = Counter()
    floors: Counter[str] = Counter()
    for timed in zip(*found, strict=True):
        step = timed[0][0]
        kind = work.kind_of(step)
        ms[kind] += 1e3 * statistics.median(seconds for _, seconds in timed)
        floors[kind] += work.floor_ms(step)
    scale = 1e3 * whole / sum(ms.values())
    shown = [*KINDS, REST]
    return {kind: {"ms": round(scale * ms[kind], 4), "floor_ms": round(floors[kind], 4)} for kind in shown}


class Work:
    """The layers of a model on an input, from which the kind and the floor of a step follow."""

    def __init__(self, model: torch.nn.Module, images: torch.Tensor, itemsize: int, peaks: floor.Peaks) -> None:
        self._modules: Mapping[str, torch.nn.Module] = dict(model.named_modules())
        self._macs = {call.name: call.cost.macs.forward for call in groupwise.count(model, images)}
        self._itemsize, self._peaks = itemsize, peaks

    def kind_of(self, step: Step | None) -> str:
        """Returns the kind of work of a step."""
        if step is None or step.kind != "convolution":
            return REST if step is None else BY_STEP.get(step.kind, REST)
        if step.groups is not None and step.groups > 1:
            return GROUPED
        return PRODUCTS if math.prod(self._weight(step.name).shape[2:]) == 1 else OTHERS

    def floor_ms(self, step: Step | None) -> float:
        """Returns the roofline floor of a step, in ms."""
        if step is None or self.kind_of(step) == REST:
            return 0.0
        layers = step.layers or (step.name,)
        # `count` knows convolutions; a linear layer multiplies each number that it writes by a row of its weight.
        macs = sum(self._macs.get(name) or math.prod(step.output_shape) * step.input_shape[-1] for name in layers)
        numbers = math.prod(step.input_shape) + math.prod(step.output_shape)
        moved = self._itemsize * (numbers + sum(self._weight(name).numel() for name in layers))
        return 1e3 * max(2 * macs / self._peaks.flop, moved / self._peaks.copied_bytes)

    def _weight(self, name: str) -> torch.Tensor:
        # A step that computes in another dtype than its module has a name of its own, below the module's.
        found: Any = self._modules[name if name in self._modules else name.rpartition(".")[0]]
        weight: torch.Tensor = found.weight
        return weight


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
