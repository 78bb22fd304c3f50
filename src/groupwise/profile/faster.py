"""`compare`: a model before and after `optimize`, timed in turn, and how far both are from float64."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from groupwise.draw.text import lines as text
from groupwise.errors import check_integer
from groupwise.profile.timing import dispatching
from groupwise.rewrite import Optimized
from groupwise.spec.legible import Printed


@dataclass(frozen=True)
class Comparison(Printed):
    """A model and the optimized network on one input. Times are medians of runs that alternate, in milliseconds."""

    contiguous_ms: float
    """The model on images as PyTorch stores them by default."""
    channels_last_ms: float
    """The model and its images in channels_last."""
    optimized_ms: float
    model_error: float
    """The largest difference between the model's output and that of its float64 copy, divided by the largest output."""
    optimized_error: float
    """The same of the optimized network."""
    threads: int
    repeats: int
    dtype: str = "float32"
    """What the layers of the network compute in."""

    @property
    def speedup(self) -> float:
        """How many times as fast as the model in its better memory format the network is."""
        return min(self.contiguous_ms, self.channels_last_ms) / self.optimized_ms

    @property
    def agrees(self) -> bool:
        """Whether the network's error is at most twice that of the model, give or take a few roundings."""
        return self.optimized_error <= 2 * self.model_error + 16 * torch.finfo(getattr(torch, self.dtype)).eps

    def __str__(self) -> str:
        best = min(self.contiguous_ms, self.channels_last_ms)
        table = [("", "ms", "speedup", "error against float64")]
        for name, ms, error in (
            ("model, contiguous", self.contiguous_ms, self.model_error),
            ("model, channels_last", self.channels_last_ms, None),
            ("optimized", self.optimized_ms, self.optimized_error),
        ):
            table.append((name, f"{ms:.2f}", f"{best / ms:.2f}", "" if error is None else f"{error:.1e}"))
        runs = f"median of {self.repeats} runs in turn, {self.threads} thread" + "s" * (self.threads != 1)
        agree = "the outputs agree" if self.agrees else "THE OUTPUTS DIFFER by more than rounding"
        return "\n".join([*text.rows(table), f"{runs}; {agree}"])

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types, and the speedup."""
        return {**asdict(self), "speedup": self.speedup, "agrees": self.agrees}


def compare(model: torch.nn.Module, network: Optimized, inputs: Sequence[Any], repeats: int = 10) -> Comparison:
    """Times a model and the network that `optimize` made of it, with PyTorch's kernels for the model."""
    check_integer("repeats", repeats, 1)
    last = _channels_last(model)
    images = tree_map_only(torch.Tensor, _to_last, tuple(inputs))
    with torch.inference_mode():
        calls: list[Callable[[], Any]] = [lambda: model(*inputs), lambda: last(*images), lambda: network(*inputs)]
        seconds: list[list[float]] = [[], [], []]
        for number in range(-2, repeats):
            # The network's own steps say which kernels they want.
            with dispatching(False):
                for call, found in zip(calls, seconds, strict=True):
                    start = time.perf_counter()
                    call()
                    if number >= 0:
                        found.append(time.perf_counter() - start)
        exact = copy.deepcopy(model).double()(*tree_map_only(torch.Tensor, _to_double, tuple(inputs)))
        with dispatching(False):
            before, after = (_error(call(), exact) for call in (calls[0], calls[2]))
    contiguous, channels_last, optimized = (statistics.median(found) * 1e3 for found in seconds)
    dtype = str(network.dtype or torch.float32).removeprefix("torch.")
    return Comparison(contiguous, channels_last, optimized, before, after, torch.get_num_threads(), repeats, dtype)


def _channels_last(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _to_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _to_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _error(made: Any, exact: Any) -> float:
    pairs = zip(tree_leaves(made), tree_leaves(exact), strict=True)
    found = [
        (one.double() - true).abs().max().item() / (true.abs().max().item() or 1.0)
        for one, true in pairs
        if isinstance(true, torch.Tensor) and true.is_floating_point() and true.numel()
    ]
    return max(found, default=0.0)
