"""Time how much groups save, in PyTorch and with groupwise.

For each shape, every valid `groups` from dense to depthwise is timed in both memory formats, in turn in one process.

    python benchmarks/groups.py [--repeats 30] [--threads 2] [--output benchmarks/records/FILE.jsonl]
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from measuring import RECORDS, Case, Effort, about, figures, interleaved
from shapes import FORMATS

from groupwise import ConvSpec, cost, valid_groups
from groupwise.kernels import native

# Channels and size of the grouped 3x3 layers of ResNeXt's four stages. Every groups value is tried on them.
SHAPES = [(128, 56), (256, 28), (512, 14), (1024, 7)]
COLD_START = "cold start of `groupwise explain`"


def main() -> None:
    """Measures, and writes one line a figure."""
    parser = argparse.ArgumentParser(description="Time grouped convolutions against dense ones.")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "groups.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = {**about(), "isa": native.status().isa, "batch": 1}
    lines = [{**row, **facts} for channels, size in SHAPES for row in sweep(channels, size, options.repeats)]
    lines.append({"benchmark": COLD_START, **figures(_cold_start()), **facts})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    print(f"wrote {len(lines)} figures to {options.output}; draw them with: python benchmarks/chart.py")


def sweep(channels: int, size: int, repeats: int) -> list[dict[str, Any]]:
    """Returns the median forward time of every groups value of one shape, also as `of_dense`, PyTorch's dense layer."""
    cases = {}
    # groupwise is off for PyTorch even if the environment enables it; without a library there is nothing to turn off.
    sides = {"pytorch": False, "groupwise": True} if native.available() else {"pytorch": None}
    for groups in valid_groups(channels, channels):
        for name, memory_format in FORMATS.items():
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
            layer = layer.to(memory_format=memory_format)
            source = torch.randn(1, channels, size, size).to(memory_format=memory_format)
            cases |= {(groups, name, side): Case(functools.partial(layer, source), on) for side, on in sides.items()}
    with torch.inference_mode():
        times = interleaved(cases, Effort(repeats, budget=0, most=repeats))
    print(f"{channels} channels, {size}×{size}: done", file=sys.stderr)
    dense = {name: statistics.median(times[1, name, "pytorch"]) for name in FORMATS}
    return [
        {
            "benchmark": "groups",
            "channels": channels,
            "size": size,
            "kernel": 3,
            "groups": groups,
            "memory_format": name,
            "implementation": side,
            "macs": cost(ConvSpec(channels, channels, 3, padding=1, groups=groups), size).macs.forward,
            **figures(seconds),
            "of_dense": statistics.median(seconds) / dense[name],
        }
        for (groups, name, side), seconds in times.items()
    ]


def _cold_start(runs: int = 11) -> list[float]:
    """Times the command in processes of their own; returns seconds."""
    command = [sys.executable, "-m", "groupwise", "explain", "8", "4", "--groups", "4", "--size", "56"]
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
