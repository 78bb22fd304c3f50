"""Time inference engines, which rearrange constant weights beforehand, against PyTorch and this package.

Each engine has an environment and a process of its own. A turn is a few calls of one engine, and the turns alternate.
An engine's output is compared with float64 before its time counts.

    python benchmarks/engines.py --make-envs DIR
    python benchmarks/engines.py --envs DIR [--dtype float32 bfloat16] [--threads 1 2] [--only resnext] [--repeats 15]

An engine that cannot compute a dtype says so, or its result does, and the record has its reason.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from typing import Any

import checking
import layers
import numpy as np
import shapes
import torch
from measuring import Case, about, busy, figures, forget, keep_memory, write_record
from shapes import Layer

from groupwise import GroupwiseError

WORKER = pathlib.Path(__file__).with_name("engine_worker.py")
UNIT = ("benchmark", "set", "layer", "threads", "dtype")
# Each environment holds these packages, in the versions last tried.
PACKAGES = {
    "onnxruntime": ["onnxruntime==1.32.0", "onnx==1.23.2"],
    "openvino": ["openvino==2026.4.1", "onnx==1.23.2"],
    "ncnn": ["ncnn==1.0.20261020", "numpy"],
    "mnn": ["MNN==3.6.1", "onnx==1.23.2"],
    "litert": ["ai-edge-litert==2.3.0", "numpy", "flatbuffers"],
}
# A turn has as many calls as take about this many seconds; the pause after it lets spinning threads go to sleep.
TURN, MOST_CALLS, PAUSE = 0.01, 20, 0.02


def main() -> None:
    """Makes the environments, or measures layer by layer."""
    parser = argparse.ArgumentParser(description="Time inference engines against groupwise.")
    parser.add_argument("--make-envs", type=pathlib.Path, metavar="DIR", help="make the environments there and stop")
    parser.add_argument("--envs", type=pathlib.Path, metavar="DIR", help="where they are")
    parser.add_argument("--dtype", nargs="+", choices=layers.DTYPES, default=["float32"], metavar="DTYPE")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--repeats", type=int, default=15, help="turns of each")
    parser.add_argument("--only", default="", help="layers whose name or network contains this")
    parser.add_argument("--output", type=pathlib.Path, help="default: beside the layers' record of the dtype")
    options = parser.parse_args()
    if options.make_envs:
        make_envs(options.make_envs)
        return
    names = [name for name in PACKAGES if options.envs and interpreter(options.envs, name).exists()]
    if not names:
        parser.error("no engine is there; make the environments with --make-envs DIR and give --envs DIR")
    refused = []
    # The first layer is measured before a record asks for this.
    keep_memory()
    for dtype, threads in itertools.product(options.dtype, options.threads):
        torch.set_num_threads(threads)
        output = options.output or layers.record_of(dtype, "engines")
        try:
            refused += run(dtype, names, output, options)
        except GroupwiseError as error:
            raise SystemExit(str(error)) from None
        print(f"wrote {output}; read it with: python benchmarks/summary.py")
    if refused:
        raise SystemExit("not timed, as their results are wrong:\n" + "\n".join(refused))


def run(dtype: str, names: list[str], output: pathlib.Path, options: argparse.Namespace) -> list[str]:
    """Measures layer by layer, and writes the rows of each as soon as they are there; returns what was refused."""
    threads, refused = torch.get_num_threads(), []
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(options.envs, name)) for name in names}
        for layer in shapes.chosen("listed", options.only):
            facts = {"benchmark": "engine", "set": "listed", "layer": layer.name}
            load = busy()
            try:
                found = measure(layer, workers, options.repeats, dtype)
            except checking.WrongResult as error:
                forget(output, {**facts, "threads": threads, "dtype": dtype})
                refused.append(f"{error} ({dtype})")
                continue
            write_record(output, [{**facts, "busy": load, **row, **about(dtype)} for row in found], UNIT)
            problems = ", ".join(f"not {row['implementation']}" for row in found if "problem" in row)
            print(f"{layer.name}, {dtype}, threads {threads}: {problems or 'done'}", file=sys.stderr)
    return refused


def make_envs(folder: pathlib.Path) -> None:
    """Makes an environment for each engine, and leaves out one that cannot be installed."""
    for name, packages in PACKAGES.items():
        venv.create(folder / name, with_pip=True, clear=True)
        command = [
            interpreter(folder, name),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *packages,
        ]
        if subprocess.run(command, check=False).returncode:
            interpreter(folder, name).unlink()
            print(f"{name} cannot be installed here, and is left out", file=sys.stderr)
        else:
            print(f"{name}: {', '.join(packages)}")


def interpreter(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the Python of an engine's environment."""
    return folder / name / "bin" / "python"


class Stopped(Exception):
    """Raised for an engine that failed while it was timed."""


class Worker:
    """An engine's process."""

    def __init__(self, envs: pathlib.Path, name: str) -> None:
        self.command = [interpreter(envs, name), WORKER, name]

    def __enter__(self) -> Worker:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, text=True, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **question: Any) -> dict[str, Any]:
        """Returns the answer of the process, or a problem if it has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self.process.stdin, flush=True)
            if answer := self.process.stdout.readline():
                return json.loads(answer)
        status = self.process.wait()
        self.__enter__()
        return {"problem": f"its process ended with status {status}"}


def measure(layer: Layer, workers: dict[str, Worker], repeats: int, dtype: str = "float32") -> list[dict[str, Any]]:
    """Returns the rows of one layer: PyTorch, this package, and every engine or the reason it has no time."""
    given = layer.tensors(1).to(lambda t: t.to(getattr(torch, dtype)))
    exact = given.to(torch.Tensor.double).forward()
    layers.check(layer, given, "forward")
    rows, turns = [], {}
    for key, case in layers.cases_of(layer, given, "forward").items():
        rows.append({"implementation": key[0], "memory_format": key[1]})
        turns[len(rows) - 1] = turn_of(case)
    with tempfile.TemporaryDirectory() as folder:
        path = save(layer, given, exact, pathlib.Path(folder))
        for name, worker in workers.items():
            row, answer = {"implementation": name}, worker.ask(load=str(path), threads=torch.get_num_threads())
            rows.append(row)
            try:
                if "problem" in answer:
                    raise checking.WrongResult(answer["problem"])
                output = torch.from_numpy(np.load(answer["output"])).reshape(exact.shape)
                error = checking.check_engine(f"{layer.name} by {name}", output, exact, dtype)
                row["error"] = float(f"{error:.3g}")
            except checking.WrongResult as error:
                row["problem"] = str(error)
                continue
            row |= {"variant": answer["variant"], "version": answer["version"]}
            turns[len(rows) - 1] = turn_of_worker(worker)
    times, problems = alternate(turns, repeats)
    for number, seconds in times.items():
        rows[number] |= {"problem": problems[number]} if number in problems else figures(seconds)
    return [{**row, "batch": 1, "samples": layer.samples(1)} for row in rows]


def turn_of(case: Case) -> Callable[[int], list[float]]:
    """Returns a turn of a case: calls one after the other, as a worker makes them."""

    def turn(calls: int) -> list[float]:
        found = []
        with torch.inference_mode(), case.dispatching():
            for _ in range(calls):
                start = time.perf_counter()
                case.call()
                found.append(time.perf_counter() - start)
        return found

    return turn


def turn_of_worker(worker: Worker) -> Callable[[int], list[float]]:
    """Returns a turn of an engine's process, which raises `Stopped` if the process fails."""

    def turn(calls: int) -> list[float]:
        answer = worker.ask(run=calls)
        if "problem" in answer:
            raise Stopped(answer["problem"])
        return answer["seconds"]

    return turn


def save(layer: Layer, given: shapes.Tensors, output: torch.Tensor, folder: pathlib.Path) -> pathlib.Path:
    """Saves the layer as a worker reads it: a 1-D layer in 2-D with height 1, and 16 bits as float32."""
    spec, path = layer.spec, folder / "layer.npz"

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).numpy()

    def flat(tensor: torch.Tensor) -> np.ndarray:
        return array(tensor if spec.dims > 1 else tensor.unsqueeze(2))

    def pair(values: tuple[int, ...], first: int) -> list[int]:
        return list(values) if spec.dims > 1 else [first, *values]

    np.savez(
        path,
        input=flat(given.input),
        weight=flat(given.weight),
        bias=array(given.bias),
        stride=pair(layer.stride, 1),
        padding=pair(layer.padding, 0),
        dilation=pair(layer.dilation, 1),
        groups=layer.groups,
        transposed=spec.transposed,
        output_shape=flat(output).shape,
        dtype=str(given.input.dtype).removeprefix("torch."),
    )
    return path


def alternate(
    turns: dict[int, Callable[[int], list[float]]], repeats: int
) -> tuple[dict[int, list[float]], dict[int, str]]:
    """Returns for each key the median of every turn's calls, and for each key that stopped the reason.

    The first call of a turn does not count, because others have used the caches since. When one stops, the others
    continue.
    """
    times: dict[int, list[float]] = {key: [] for key in turns}
    calls, problems = dict.fromkeys(turns, 3), {}
    # The first round determines how many calls make a turn.
    for number in range(-1, repeats):
        for key in [key for key in turns if key not in problems]:
            time.sleep(PAUSE)
            try:
                seconds = turns[key](calls[key])
            except Stopped as error:
                problems[key] = str(error)
                continue
            if number < 0:
                calls[key] = 1 + min(MOST_CALLS, max(2, round(TURN / statistics.median(seconds))))
            else:
                times[key].append(statistics.median(seconds[1:]))
    return times, problems


if __name__ == "__main__":
    main()
