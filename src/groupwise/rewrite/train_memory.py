"""`memory_of`: what steps keep for their backward, and which activations are computed again so that it is less."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from groupwise.kernels import dispatch
from groupwise.rewrite.samples import first_samples, samples_of
from groupwise.rewrite.train_origin import sizes_seen
from groupwise.rewrite.train_region import Region, Settings
from groupwise.rewrite.train_trace import quietly

# By default a step keeps at most this part of what PyTorch's keeps. The largest activations are computed again first,
# as that takes the fewest calls.
MOST_KEPT = 0.7
# A normalisation needs two samples.
SAMPLES = 2


@dataclass(frozen=True)
class Memory:
    """The smallest activations that are computed again, and what that makes of the memory."""

    least: float
    """Their numbers a sample: 0 for all that can be, infinity for none."""
    mib: tuple[float, float]
    """What a forward of the example keeps for its backward beside parameters and arguments, here and in PyTorch."""


def memory_of(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], recompute: bool | None
) -> Memory | None:
    """Chooses what is computed again, and measures what steps keep, on the first samples of the example.

    `recompute` True and False choose all and nothing; None keeps at most `MOST_KEPT` of what PyTorch keeps, if it can.
    Where the model takes no two samples, the whole example is run. Returns None if the model fails on that too.
    """
    samples = samples_of(args, kwargs)
    few = min(SAMPLES, samples)
    for count in dict.fromkeys((few, samples)):
        try:
            least, here, pytorch = _measured(model, *first_samples(args, kwargs, count), recompute)
        except Exception:
            continue
        # All that is kept is taken to grow with the samples.
        scale = (samples / count if count else 1) / 2**20
        return Memory(least, (here * scale, pytorch * scale))
    return None


def _measured(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], recompute: bool | None
) -> tuple[float, int, int]:
    """Returns the least that is computed again, and the bytes that are kept then, here and in PyTorch."""
    outside = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]

    def kept(run: Callable[..., Any]) -> int:
        with quietly(), dispatch.by_pytorch():
            return _kept_bytes(lambda: run(*args, **kwargs), outside)

    @functools.cache
    def here(least: float) -> int:
        return kept(Region(model, "", Settings(least=least)))

    pytorch = kept(model)
    least = 0 if recompute else math.inf
    if recompute is None and here(math.inf) > MOST_KEPT * pytorch:
        with sizes_seen() as sizes:
            here(0)
        least = least_of(sorted(sizes), here, MOST_KEPT * pytorch)
    return least, here(least), pytorch


def least_of(sizes: Sequence[float], kept: Callable[[float], int], most: float) -> float:
    """Returns the largest size from which on activations are computed again so that at most so many bytes are kept.

    `kept` says how many bytes that are, which grow with the size. Returns 0 if no size is small enough, and infinity if
    there are none.
    """
    if not sizes:
        return math.inf
    if kept(sizes[0]) > most:
        return 0
    enough, too_large = 0, len(sizes)
    while too_large - enough > 1:
        middle = (enough + too_large) // 2
        if kept(sizes[middle]) <= most:
            enough = middle
        else:
            too_large = middle
    return sizes[enough]


def _kept_bytes(run: Callable[[], Any], outside: Iterable[Any]) -> int:
    """Returns the bytes that the graph of a call keeps, without those of the tensors outside it: each memory once."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) is torch.Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        # An output that its own node keeps would hold that node, and the graph would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = run()
    known = {it.untyped_storage().data_ptr() for it in outside if isinstance(it, torch.Tensor)}
    # Only now may a storage take the place of another.
    del results
    return sum(size for place, size in found.items() if place not in known)
