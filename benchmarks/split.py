"""Time training steps of split networks on this machine's processors, beside what `groupwise.parallel.predict` says.

    python benchmarks/split.py                       # 2 ranks of one thread, and 4 that share the processors

The links are fitted to all-reduces and all-gathers of 4 KiB to 16 MiB, which layers ask gloo for; the overhead of a
layer is fitted to a network of tiny ones on a single rank. A rank's arithmetic and memory are measured once and scaled,
for each network, to the step of the whole network on all ranks at once. The prediction is for the step of the split
network, which is in no fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import RECORDS, about, keep_memory, write_record
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from groupwise import models
from groupwise.examples.digits import DigitsResNeXt
from groupwise.parallel import Collective, Link, Machine, plan_split, predict, split
from groupwise.parallel.runtime import collectives
from groupwise.spec.partition import Partition

UNIT = ("benchmark", "network", "ranks")
KIB = 1024
SIZES = [2**power * KIB for power in (2, 6, 8, 10, 12, 14)]
# The inputs make a step of each network last some tenths of a second.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "resnext of digits": (DigitsResNeXt, (64, 1, 8, 8)),
    "resnext50_32x4d": (models.resnext50_32x4d, (4, 3, 96, 96)),
    "resnext101_32x8d": (models.resnext101_32x8d, (4, 3, 64, 64)),
    "alexnet": (models.alexnet, (16, 3, 224, 224)),
}


def main() -> None:
    """Starts the ranks; rank 0 writes the record."""
    parser = argparse.ArgumentParser(description="Time steps of split networks, and predict them.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "split.jsonl")
    options = parser.parse_args()
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            job = (ranks, folder, options)
            multiprocessing.spawn(_rank, job, nprocs=ranks)  # type: ignore[no-untyped-call]
    print(f"wrote {options.output}; read it with: python benchmarks/summary.py")


def _rank(rank: int, ranks: int, folder: str, options: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    keep_memory()
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        both = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("all", "alone"))
        mesh = both["all"]
        link = _fit_link(mesh)
        base = Machine(_arithmetic(), _memory(), link, link, overhead=_overhead(both["alone"]))
        for name, (make, shape) in NETWORKS.items():
            if options.only in name:
                row = _network(mesh, name, make, shape, base, options.repeats)
                if rank == 0:
                    write_record(options.output, [{"benchmark": "split", **row, **about()}], UNIT)
                    print(row)
    finally:
        distributed.destroy_process_group()


def _network(
    mesh: DeviceMesh,
    name: str,
    make: Callable[[], torch.nn.Module],
    shape: tuple[int, ...],
    base: Machine,
    repeats: int,
) -> dict[str, Any]:
    """Returns medians of a whole step, a split one and a data-parallel one on the slowest rank, and the predictions."""
    ranks = mesh.size()
    torch.manual_seed(0)
    whole, parts, replica = make(), make(), make()
    steps = {
        "whole": _step(whole, torch.randn(shape)),
        "split": _step(split(parts, mesh), torch.randn(shape)),
        "data": _step(DistributedDataParallel(replica), torch.randn(shape[0] // ranks, *shape[1:])),
    }
    times: dict[str, list[float]] = {key: [] for key in steps}
    for number in range(repeats + 2):
        for key, step in steps.items():
            distributed.barrier()
            seconds = _slowest(_timed(step))
            if number >= 2:
                times[key].append(seconds)
    found = {key: statistics.median(values) for key, values in times.items()}
    alone, over_ranks = (plan_split(whole, count, input_shape=shape) for count in (1, ranks))
    scale = predict(alone, base).seconds / found["whole"]
    machine = dataclasses.replace(base, macs=base.macs * scale, memory=base.memory * scale)
    told = {
        "split": predict(over_ranks, machine),
        "data": predict(alone, machine, data=ranks),
    }
    return {
        "network": name,
        "ranks": ranks,
        "input": list(shape),
        "repeats": repeats,
        "processors": os.cpu_count(),
        **{f"{key}_ms": round(seconds * 1e3, 3) for key, seconds in found.items()},
        **{f"{key}_predicted_ms": round(made.seconds * 1e3, 3) for key, made in told.items()},
        "exchange_predicted_ms": round(told["split"].collectives * 1e3, 3),
        "latency_us": round(base.near.latency * 1e6, 2),
        "bandwidth_gb_s": round(base.near.bandwidth / 1e9, 3),
        "overhead_us": round(machine.overhead * 1e6, 1),
        "gmacs": round(machine.macs / 1e9, 2),
        "memory_gb_s": round(machine.memory / 1e9, 2),
    }


def _step(model: torch.nn.Module, pictures: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.zeros(len(pictures), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _fit_link(mesh: DeviceMesh) -> Link:
    """Fits latency and bandwidth to all-reduces and all-gathers by least squares of the relative errors."""
    ranks, rows = mesh.size(), []
    for size in SIZES:
        count = size // 4 // ranks * ranks
        partition = Partition(ranks, ranks)
        whole, part = torch.randn(1, count), torch.randn(1, count // ranks)
        for operation, tensor, source in (("all_reduce", whole, Partial()), ("all_gather", part, Shard(1))):
            ask = functools.partial(collectives.redistribute, tensor, mesh, source, Replicate(), 1, count, partition)
            seconds = statistics.median(_repeat(ask, 30 if size <= 256 * KIB else 9))
            collective = Collective("", False, operation, 4 * count)
            messages = Link(1, float("inf")).seconds(collective, ranks)
            rows.append((messages / seconds, collective.moved(ranks) / seconds))
    # The rows are those of messages * alpha + bytes * beta = seconds, divided by the seconds.
    system, ones = torch.tensor(rows, dtype=torch.float64), torch.ones(len(rows), 1, dtype=torch.float64)
    alpha, beta = torch.linalg.lstsq(system, ones).solution.flatten().tolist()
    return Link(alpha, 1 / beta)


def _overhead(alone: DeviceMesh) -> float:
    """Measures the seconds a layer by which splitting slows a network of tiny layers down on a single rank."""
    model, shape = DigitsResNeXt(), (2, 1, 8, 8)
    layers = sum(bool(choice.parameters) for choice in plan_split(model, 1).choices)
    whole, parts = _step(DigitsResNeXt(), torch.randn(shape)), _step(split(model, alone), torch.randn(shape))
    longer = [after - before for before, after in zip(_repeat(whole, 15), _repeat(parts, 15), strict=True)]
    return max(0.0, statistics.median(longer) / layers)


def _repeat(call: Callable[[], Any], count: int) -> list[float]:
    for _ in range(3):
        call()
    found = []
    for _ in range(count):
        distributed.barrier()
        found.append(_slowest(_timed(call)))
    return found


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _slowest(seconds: float) -> float:
    """Returns the longest of all ranks' times."""
    longest = torch.tensor(seconds, dtype=torch.float64)
    distributed.all_reduce(longest, distributed.ReduceOp.MAX)
    return longest.item()


def _arithmetic() -> float:
    """Measures the multiply-accumulates per second of a matrix product."""
    a = torch.randn(768, 768)
    return 768**3 / min(_timed(lambda: a @ a) for _ in range(20))


def _memory() -> float:
    """Measures the bytes per second, read and written, of an activation of 16 MiB."""
    x = torch.randn(4 << 20)
    return 2 * 4 * x.numel() / min(_timed(x.relu) for _ in range(10))


if __name__ == "__main__":
    main()
