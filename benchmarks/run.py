"""Time what groups give back in PyTorch today, and append the figures to a record.

For each shape, every power-of-two `groups` from dense to depthwise is timed in both memory formats, interleaved in one
process, and the medians are written with the machine, threads, dtype, torch version and commit beside them.

    python benchmarks/run.py [--repeats 30] [--threads 2] [--output benchmarks/records/FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from groupwise import ConvSpec, cost, valid_groups
from groupwise.reporting import machine

RECORDS = pathlib.Path(__file__).parent / "records"
# The grouped 3x3 layers of ResNeXt's four stages: channels and size. Every groups value is tried on them.
SHAPES = [(128, 56), (256, 28), (512, 14), (1024, 7)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    """Measure and append one line a figure."""
    parser = argparse.ArgumentParser(description="Time grouped convolutions of PyTorch against dense ones.")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "groups.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = {**machine(), "commit": _commit(), "repeats": options.repeats, "dtype": "float32", "batch": 1}
    lines = [{**row, **about} for channels, size in SHAPES for row in sweep(channels, size, options.repeats)]
    lines.append({"benchmark": "cold start of `groupwise explain`", "ms": _cold_start(), **about})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    print(f"wrote {len(lines)} figures to {options.output}; draw them with: python benchmarks/chart.py")


def sweep(channels: int, size: int, repeats: int) -> list[dict[str, Any]]:
    """Median forward time of every groups value of one shape."""
    cases: dict[tuple[int, str], Callable[[], object]] = {}
    for groups in valid_groups(channels, channels):
        for name, memory_format in FORMATS.items():
            layer = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
            layer = layer.to(memory_format=memory_format)
            source = torch.randn(1, channels, size, size).to(memory_format=memory_format)
            cases[groups, name] = lambda layer=layer, source=source: layer(source)
    times: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    with torch.inference_mode():
        # In turn, so that a slow moment of the machine falls on all alike; the first three rounds warm up.
        for number in range(-3, repeats):
            for case, call in cases.items():
                start = time.perf_counter()
                call()
                seconds = time.perf_counter() - start
                if number >= 0:
                    times[case].append(seconds)
        print(f"{channels} channels, {size}×{size}: done", file=sys.stderr)
    dense = {name: statistics.median(times[1, name]) for name in FORMATS}
    return [
        {
            "benchmark": "groups",
            "channels": channels,
            "size": size,
            "kernel": 3,
            "groups": groups,
            "memory_format": name,
            "macs": cost(ConvSpec(channels, channels, 3, padding=1, groups=groups), size).macs.forward,
            "ms": statistics.median(seconds) * 1e3,
            "ms_20_percent": statistics.quantiles(seconds, n=5)[0] * 1e3,
            "ms_80_percent": statistics.quantiles(seconds, n=5)[3] * 1e3,
            "of_dense": statistics.median(seconds) / dense[name],
        }
        for (groups, name), seconds in times.items()
    ]


def _cold_start(runs: int = 11) -> float:
    command = [sys.executable, "-m", "groupwise", "explain", "8", "4", "--groups", "4", "--size", "56"]
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _commit() -> str:
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
