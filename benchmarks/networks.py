"""Time whole networks with this package's kernels and without, inference and training step, in both memory formats.

A training step is the loss and its gradients, without an optimiser. Dropout and stochastic depth are off, so that all
cases compute the same; their logits and gradients are first compared with float64.

    python benchmarks/networks.py [--threads 2] [--batch 1 8] [--only mobilenet] [--repeats 15]
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import checking
import torch
from measuring import RECORDS, Case, Effort, about, busy, figures, forget, interleaved, write_record
from shapes import FORMATS, PASSES
from torch import Tensor, nn
from torch.nn import functional as F

import groupwise
from groupwise import GroupwiseError
from groupwise.cli.targets import import_torchvision

UNIT = ("benchmark", "network", "pass", "batch", "threads")
NETWORKS = ("resnext50_32x4d", "mobilenet_v2", "convnext_tiny", "regnet_x_400mf")
SIZE = 224
# A check uses at most this many images: float64 is slow, and larger batches are checked layer by layer.
MOST_CHECKED = 2


def main() -> None:
    """Measures network by network, and writes the rows of each as soon as they are there."""
    parser = argparse.ArgumentParser(description="Time networks with groupwise and without.")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=Effort.repeats)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "networks.jsonl")
    options = parser.parse_args()
    effort, refused = Effort(options.repeats, budget=0, most=options.repeats), []
    names = [name for name in NETWORKS if options.only in name]
    for name, batch, which in itertools.product(names, options.batch, PASSES):
        for threads in options.threads:
            torch.set_num_threads(threads)
            facts = {"network": name, "batch": batch, "busy": busy()}
            try:
                rows = [{**facts, **row, **about()} for row in measure(name, batch, which, effort)]
                write_record(options.output, rows, UNIT)
                print(f"{name}, {which}, batch {batch}, threads {threads}: done", file=sys.stderr)
            except checking.WrongResult as error:
                refused.append(str(error))
                forget(options.output, {"network": name, "batch": batch, "pass": which, "threads": threads})
                print(f"refused: {error}", file=sys.stderr)
            except GroupwiseError as error:
                # torchvision may be missing; so may the kernels, which the first network says.
                print(f"{name}: not timed: {error}", file=sys.stderr)
    print(f"wrote {options.output}; read it with: python benchmarks/summary.py")
    if refused:
        raise SystemExit("not timed, as their results are wrong:\n" + "\n".join(refused))


def build(name: str) -> nn.Module:
    """Builds a network, this package's own or torchvision's, with random weights that are the same in every process."""
    torch.manual_seed(0)
    if name in groupwise.models.MODELS:
        model = groupwise.models.MODELS[name]()
    else:
        model = getattr(import_torchvision(), name)()
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return model


def inputs(samples: int) -> tuple[Tensor, Tensor]:
    """Draws images and labels, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(1000, (samples,), generator=generator)


def measure(name: str, batch: int, which: str, effort: Effort) -> list[dict[str, Any]]:
    """Returns the rows of one pass: with and without this package's kernels, in each memory format."""
    training = which == "training"
    error, error_of_pytorch = check(name, min(batch, MOST_CHECKED), training)
    images, labels = inputs(batch)
    cases = {}
    for implementation, memory_format in itertools.product(("pytorch", "groupwise"), FORMATS):
        model = build(name).train(training).to(memory_format=FORMATS[memory_format])
        given = images.to(memory_format=FORMATS[memory_format])
        run = step(model, given, labels) if training else functools.partial(model, given)
        # Adding to existing gradients is more work, so every step begins without any.
        prepare = model.zero_grad if training else lambda: None
        cases[implementation, memory_format] = Case(run, implementation == "groupwise", prepare)
    with torch.inference_mode(not training):
        times = interleaved(cases, effort)
    rows = []
    for (implementation, memory_format), seconds in times.items():
        row = {"benchmark": "network", "pass": which, "implementation": implementation, "memory_format": memory_format}
        row |= figures(seconds)
        if implementation == "groupwise":
            row["kernels"] = kernels(cases[implementation, memory_format], training)
            row["error"], row["error_of_pytorch"] = float(f"{error:.3g}"), float(f"{error_of_pytorch:.3g}")
        rows.append(row)
    return rows


def kernels(case: Case, training: bool) -> dict[str, int]:
    """Counts how often each kernel runs in one pass."""
    with torch.inference_mode(not training), groupwise.record_plans() as plans:
        case.seconds()
    return dict(collections.Counter(f"{plan.direction} {plan.kernel}" for plan in plans))


def step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Returns a call that computes the loss of a model and its gradients."""
    return lambda: F.cross_entropy(model(images), labels).backward()


def check(name: str, samples: int, training: bool) -> tuple[float, float]:
    """Returns the largest errors of groupwise and of PyTorch in logits and gradients.

    A tensor's error is its mean one, because rounding in a deep network is too chaotic for a single value to count.
    Raises `WrongResult` if groupwise's error is too large.
    """
    right = exact(name, samples, training)
    errors: dict[bool, list[list[float]]] = {True: [], False: []}
    for memory_format, ours in itertools.product(FORMATS.values(), errors):
        model = build(name).train(training).to(memory_format=memory_format)
        images, labels = inputs(samples)
        with Case(model, ours).dispatching():
            found = results(model, images.to(memory_format=memory_format), labels)
        errors[ours].append([checking.mean_error(found[key], right[key]) for key in right])
    ours, pytorch = ([max(of_tensor) for of_tensor in zip(*errors[which], strict=True)] for which in (True, False))
    for key, mine, theirs in zip(right, ours, pytorch, strict=True):
        checking.check_error(f"{name}: {key}", mine, theirs)
    return max(ours), max(pytorch)


@functools.lru_cache(maxsize=1)
def exact(name: str, samples: int, training: bool) -> dict[str, Tensor]:
    """Returns the results in float64, without gradients that are all rounding (a bias before a normalisation, say)."""
    images, labels = inputs(samples)
    found = results(build(name).train(training).double(), images.double(), labels)
    largest = max(tensor.norm() for tensor in found.values())
    return {key: tensor for key, tensor in found.items() if tensor.norm() > 1e-9 * largest}


def results(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Returns the logits, and for a model in training the gradient of every parameter."""
    if not model.training:
        with torch.inference_mode():
            return {"logits": model(images)}
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    return {"logits": logits.detach(), **{key: parameter.grad for key, parameter in model.named_parameters()}}


if __name__ == "__main__":
    main()
