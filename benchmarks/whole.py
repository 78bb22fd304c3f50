"""Time whole networks by every engine at hand, in turn: inference of 1 and 8 images, and a training step of 8.

An engine has a process of its own. A turn is a few calls of one engine; the turns alternate, with a pause in which
threads fall asleep. What an engine computes is compared with float64 before its time counts.

    python benchmarks/whole.py [--networks torchvision] [--passes forward] [--batch 1 8] [--threads 1 2]
                               [--engines eager groupwise ...] [--envs DIR] [--rounds 8] [--budget 4]
                               [--dtype bfloat16]

In bfloat16 a model is converted before it runs, groupwise gets its `dtype`, and OpenVINO chooses by itself.

`torch.compile` compiles for each number of threads anew, which takes as long as all other engines together. So it is
timed with the most threads only, unless --compile-everywhere is given.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import whole_engines
import whole_networks
from measuring import RECORDS, about, busy, figures, write_record
from whole_engines import ENGINES, Point

from groupwise import GroupwiseError
from groupwise.kernels import native
from groupwise.kernels.processor import processor_class

UNIT = ("benchmark", "network", "pass", "batch", "threads", "dtype")
PASSES = ("forward", "training")
BATCHES = {"forward": (1, 8), "training": (8,)}
# A turn has as many calls as take about TURN seconds, after one that does not count; a pause precedes it.
TURN, MOST_CALLS, PAUSE = 0.1, 10, 0.03
LEAST_ROUNDS = 4
# An engine's error may be so many times that of PyTorch, or this: another order of sums is no mistake.
TIMES_EAGER, ROUNDING = 4, {"forward": 1e-4, "training": 1e-3}
MOST_CHECKED = 2


def main() -> None:
    """Measures point by point, and writes the rows of each as soon as they are there."""
    parser = argparse.ArgumentParser(description="Time whole networks by every engine.")
    parser.add_argument("--networks", nargs="+", default=["torchvision", "timm"], help="parts of names; default: all")
    parser.add_argument("--passes", nargs="+", choices=PASSES, help="default: all, and forward in bfloat16")
    parser.add_argument("--dtype", choices=whole_engines.DTYPES, default="float32")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 1 and 8, and 8 in training")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--envs", type=pathlib.Path, help="the folder that engines.py --make-envs made, for openvino")
    parser.add_argument("--rounds", type=int, default=8, help="turns of each engine, at most")
    parser.add_argument("--budget", type=float, default=4, help=f"seconds a point, after {LEAST_ROUNDS} turns of each")
    parser.add_argument("--compile-everywhere", action="store_true", help="torch.compile with fewer threads too")
    machine = f"{processor_class()}-{native.status().isa}"
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / machine / "whole.jsonl")
    options = parser.parse_args()
    passes = options.passes or (PASSES if options.dtype == "float32" else ("forward",))
    names = [name for name in whole_networks.NETWORKS if any(part in name for part in options.networks)]
    if not names:
        parser.error(f"no network is called so; there are: {', '.join(whole_networks.NETWORKS)}")
    start_server()
    for name, which in itertools.product(names, passes):
        for batch in options.batch or BATCHES[which]:
            try:
                measure(Point("", name, batch, 0, which == "training", options.dtype), options)
            except GroupwiseError as error:
                # torchvision or timm is not installed.
                print(f"{name}: left out: {error}", file=sys.stderr)
                break
    print(f"wrote {options.output}; read it with: python benchmarks/whole_tables.py")


def start_server() -> None:
    """Lets processes begin as copies of one that has imported everything and has no threads yet."""
    paths = [str(pathlib.Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    multiprocessing.set_forkserver_preload(["whole_engines"])


class Worker:
    """An engine's process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=whole_engines.serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.kill()

    def ask(self, *question: Any) -> dict[str, Any]:
        """Returns the answer of the process, or a problem if it has ended."""
        try:
            self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(10)
            return {"problem": f"its process ended with status {self.process.exitcode}"}


def measure(point: Point, options: argparse.Namespace) -> None:
    """Measures a network on a batch for each number of threads, and writes the rows of each."""
    checked = point.batch if point.training else min(point.batch, MOST_CHECKED)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        torch.set_num_threads(max(options.threads))
        torch.save(whole_engines.exact(point.network, checked, point.training), folder / "exact.pt")
        problems = {
            name: whole_engines.missing(name, point.training, options.envs, point.dtype) for name in options.engines
        }
        exported = exporting(point, [name for name, problem in problems.items() if problem is None], folder)
        if exported is not None:
            problems |= {name: problems[name] or exported for name in whole_engines.OF_ONNX if name in problems}
        for threads in dict.fromkeys(options.threads):
            start = time.perf_counter()
            some = dict(problems)
            if threads != max(options.threads) and not options.compile_everywhere:
                some.pop("torch.compile", None)
            rows = rows_of(replace(point, threads=threads), some, folder, options)
            write_record(options.output, rows, UNIT)
            print(f"{told(rows)}; {time.perf_counter() - start:.0f} s", file=sys.stderr)


def rows_of(
    point: Point, problems: dict[str, str | None], folder: pathlib.Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Returns the rows of one point: every engine with its time, or the reason why it has none."""
    torch.set_num_threads(point.threads)
    facts = {"benchmark": "whole", "network": point.network, "pass": PASSES[point.training], "batch": point.batch}
    facts |= {"size": whole_networks.SIZE, "busy": busy(), **about(), "isa": native.status().isa, "dtype": point.dtype}
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, problem in problems.items():
            rows[name] = {"implementation": name, "problem": problem}
            if problem is None:
                worker = workers[name] = stack.enter_context(Worker())
                answer = worker.ask("prepare", replace(point, engine=name), folder, options.envs)
                rows[name] = {"implementation": name, **answer}
        refuse_wrong(rows.values(), PASSES[point.training])
        workers = {name: worker for name, worker in workers.items() if "problem" not in rows[name]}
        for name, found in alternate(workers, options.rounds, options.budget).items():
            rows[name] |= found
    return [{**facts, **row} for row in rows.values()]


def exporting(point: Point, names: Iterable[str], folder: pathlib.Path) -> str | None:
    """Writes the network as ONNX if an engine needs that; returns why it failed."""
    if not set(names) & set(whole_engines.OF_ONNX):
        return None
    with Worker() as worker:
        problem = worker.ask("export", point.network, point.batch, folder).get("problem")
    return None if problem is None else f"it cannot be exported: {problem}"


def refuse_wrong(rows: Iterable[dict[str, Any]], which: str) -> None:
    """Puts a problem in the rows whose error is too large beside PyTorch's."""
    rows = list(rows)
    errors = [row["error"] for row in rows if row["implementation"].startswith("eager") and "error" in row]
    allowed = max([ROUNDING[which], *(TIMES_EAGER * error for error in errors)])
    for row in rows:
        if not row.get("error", 0) <= allowed:
            row["problem"] = f"its error against float64 is {row['error']:.1e}; at most {allowed:.1e} is timed"


def alternate(workers: dict[str, Any], rounds: int, budget: float) -> dict[str, dict[str, Any]]:
    """Returns for each engine its figures, or the problem that ended it, from turns that alternate."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    least, calls, problems = dict.fromkeys(workers, float("inf")), dict.fromkeys(workers, 1), {}
    start = time.perf_counter()
    for number in range(-1, rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > budget:
            break
        for name in [name for name in workers if name not in problems]:
            time.sleep(PAUSE)
            answer = workers[name].ask("run", 1 + calls[name])
            if "problem" in answer:
                problems[name] = answer["problem"]
                continue
            counted = answer["seconds"][1:]
            if number < 0:
                # The first round says how many calls make a turn.
                calls[name] = max(1, min(MOST_CALLS, round(TURN / counted[0])))
            else:
                times[name].append(statistics.median(counted))
                least[name] = min(least[name], *counted)
    return {
        name: {"problem": problems[name]}
        if name in problems
        else {**figures(times[name]), "least_ms": round(least[name] * 1e3, 6)}
        for name in workers
    }


def told(rows: Sequence[dict[str, Any]]) -> str:
    """Says in one line what was measured."""
    shown = (f"{row['implementation']} {row['ms']:.1f}" for row in rows if "ms" in row)
    problems = ", ".join(f"not {row['implementation']}: {row['problem']}" for row in rows if "problem" in row)
    where = "{network}, {pass}, {dtype}, batch {batch}, threads {threads}".format(**rows[0])
    return f"{where}: {', '.join(shown)} ms" + (f" ({problems})" if problems else "")


if __name__ == "__main__":
    main()
