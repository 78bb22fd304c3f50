"""What a training step of an optimized network spends its time on, beside the roofline floor of each kind of work.

    python benchmarks/steps.py [--networks resnext50_32x4d ...] [--batch 8] [--threads 2] [--no-tune]

The time of a kind is that of its operators by torch.profiler, without what they call of another kind, scaled to the
median of steps that are not profiled. The floor of a convolution or linear layer, forward and each gradient, is the
larger of its FLOP at the peak and its bytes, read and written once, at the rate of a copy. That of batch normalisation
is five such passes over its input: two forward, which read and write it, and three backward. That of all else is 0.
Bytes count at the rate at which a tensor of 32 MiB is copied, as the tensors of a step come from memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import floor
import torch
import whole_networks
from measuring import RECORDS, about, keep_memory, write_record
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import groupwise
from groupwise.kernels import native
from groupwise.kernels.processor import processor_class

UNIT = ("benchmark", "network", "batch", "threads")
KINDS = {
    "convolutions and linear layers": re.compile(
        r"groupwise::(planar|narrow|groups|dots|pixels|gemm|brgemm|stem|fft)|conv|aten::(add)?mm$|aten::bmm|[Ll]inear"
    ),
    "batch normalisation": re.compile(r"batch_norm|BatchNorm"),
    "squeeze and excitation": re.compile(r"squeeze_excite|SqueezeExcite"),
    "activations": re.compile(r"gelu|relu|silu|hardswish|hardsigmoid|sigmoid|tanh", re.IGNORECASE),
}
REST = "all else"
# A step or call that takes less is told to a hundredth of a millisecond.
SHORT_MS = 50
STEPS, PROFILED = 7, 3
# Caches do not hold such tensors.
COPIED_MIB, COPIES = (32,), 20


def main() -> None:
    """Profiles steps, and prints and records the times of each kind."""
    parser = argparse.ArgumentParser(description="Profile training steps of optimized networks.")
    parser.add_argument("--networks", nargs="+", default=list(whole_networks.TORCHVISION), help="parts of names")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-tune", action="store_true", help="run the kernels that the tables choose")
    parser.add_argument("--output", type=pathlib.Path, help="default: steps.jsonl of this processor in the records")
    options = parser.parse_args()
    names = named(options.networks)
    keep_memory()
    torch.set_num_threads(options.threads)
    peaks = dataclasses.replace(floor.measure(options.threads), copied_bytes=floor.copy_rate(COPIED_MIB, COPIES))
    isa = native.status().isa
    output = options.output or RECORDS / f"{processor_class()}-{isa}" / "steps.jsonl"
    for name in names:
        kinds = split(name, options.batch, not options.no_tune, peaks)
        facts = {"benchmark": "steps", "network": name, "batch": options.batch, **about(), "isa": isa}
        facts |= rates_of(peaks)
        write_record(output, [{**facts, "tune": not options.no_tune, "kinds": kinds}], UNIT)
        print(row(name, kinds), flush=True)


def named(parts: Sequence[str]) -> list[str]:
    """Returns the networks that have one of the parts in their names; ends the program if there is none."""
    names = [name for name in whole_networks.NETWORKS if any(part in name for part in parts)]
    if not names:
        valid = ", ".join(whole_networks.NETWORKS)
        raise SystemExit(f"no network has {' or '.join(parts)} in its name; valid: {valid}")
    return names


def rates_of(peaks: floor.Peaks) -> dict[str, float]:
    """Returns the peaks as a record holds them."""
    return {"gflops": round(peaks.flop / 1e9, 1), "copied_gbs": round(peaks.copied_bytes / 1e9, 1)}


def split(name: str, batch: int, tune: bool, peaks: floor.Peaks) -> dict[str, dict[str, float]]:
    """Returns the time and the floor of each kind of work in a step, in ms."""
    images, labels = whole_networks.inputs(batch)
    images = images.to(memory_format=torch.channels_last)
    network = groupwise.optimize(whole_networks.build(name).train(), images, train=True, tune=True if tune else None)

    def step() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    seconds = []
    with groupwise.record_plans() as plans:
        step()
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    # A profile with shapes divides the memory that steps keep, and large tensors wait for new pages: it gives no times.
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED):
            step()
    ms: Counter[str] = Counter()
    for event in found.key_averages():
        ms[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / PROFILED
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    normalised = sum(
        4 * math.prod(event.input_shapes[0]) * event.count
        for event in found.key_averages(group_by_input_shape=True)
        if event.key == "groupwise::batch_norm_act" and event.input_shapes
    )
    scale = statistics.median(seconds) * 1e3 / sum(ms.values())
    floors = {
        "convolutions and linear layers": sum(floor_ms(plan, peaks) for plan in plans),
        "batch normalisation": 1e3 * 5 * normalised / peaks.copied_bytes,
    }
    shown = [*KINDS, REST]
    return {kind: {"ms": round(scale * ms[kind], 4), "floor_ms": round(floors.get(kind, 0.0), 4)} for kind in shown}


def kind_of(operator: str) -> str:
    """Returns the kind of work of an operator, by its name in the profile."""
    return next((kind for kind, names in KINDS.items() if names.search(operator)), REST)


def floor_ms(plan: groupwise.Plan, peaks: floor.Peaks) -> float:
    """Returns the roofline floor of one pass of a layer, in ms."""
    shape: dict[str, Any] = dict(plan.shape)
    taps, inputs = math.prod(shape["kernel_size"]), shape["in_channels"] // shape["groups"]
    written = shape["batch"] * shape["out_channels"] * math.prod(shape["output_size"])
    read = shape["batch"] * shape["in_channels"] * math.prod(shape["input_size"])
    moved = 4 * (written + read + shape["out_channels"] * inputs * taps)
    return 1e3 * max(2 * written * inputs * taps / peaks.flop, moved / peaks.copied_bytes)


def row(name: str, kinds: dict[str, dict[str, float]]) -> str:
    """Returns a line of a Markdown table: the time and the floor of the step and of each kind of work."""
    return f"| {' | '.join(cells(name, kinds))} |"


def cells(name: str, kinds: dict[str, dict[str, float]]) -> list[str]:
    """Returns the network's name, and time and floor of the step and of each kind of work, in ms.

    Those of less than SHORT_MS altogether have two places.
    """
    whole = {key: sum(one[key] for one in kinds.values()) for key in ("ms", "floor_ms")}
    places = 2 if whole["ms"] < SHORT_MS else 0

    def shown(ms: float) -> str:
        return f"{ms:.{places}f}" if ms else "0"

    times = [
        f"{shown(one['ms'])} / {shown(one['floor_ms'])}" if one["floor_ms"] else shown(one["ms"])
        for one in (whole, *kinds.values())
    ]
    return [name.rsplit(":", maxsplit=1)[-1], *times]


if __name__ == "__main__":
    main()
