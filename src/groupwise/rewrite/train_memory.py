"""`Memory`: what steps keep for their backward, and which activations are computed again so that it is less."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from groupwise.kernels import dispatch
from groupwise.rewrite.samples import first_samples, samples_of
from groupwise.rewrite.train_region import Region, Settings
from groupwise.rewrite.train_trace import quietly

# By default a step keeps at most this part of what PyTorch's keeps. The largest activations are computed again first,
# as that takes the fewest calls.
MOST_KEPT = 0.7
# A normalisation needs two samples.
SAMPLES = 2


@dataclass(frozen=True)
class Memory:
    """From how many numbers a sample on activations are computed again, and what that makes of the memory."""

    least: float
    mib: tuple[float, float]
    """What a forward of the example keeps for its backward beside parameters and arguments, here and in PyTorch."""


def memory_of(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], recompute: bool | None
) -> Memory | None:
    """Chooses what is computed again, and measures what steps keep, on the first samples of the example.

    `recompute` True and False choose all and nothing; None keeps at most `MOST_KEPT` of what PyTorch keeps, if it can.
    Returns None where the example has no samples, or the model fails on these.
    """
    samples = samples_of(args, kwargs)
    few = min(SAMPLES, samples)
    if few == 0:
        return None
    args, kwargs = first_samples(args, kwargs, few)
    outside = [*model.parameters(), *model.buffers(), *tree_leaves((args, kwargs))]

    def kept(run: Callable[..., Any]) -> Counter[int]:
        with quietly(), dispatch.by_pytorch():
            return _storages(lambda: run(*args, **kwargs), outside)

    @functools.cache
    def here(least: float) -> Counter[int]:
        return kept(Region(model, "", Settings(least=least)))

    try:
        pytorch = kept(model)
        least = 0 if recompute else math.inf
        if recompute is None:
            most = MOST_KEPT * _bytes(pytorch)
            for size in sizes_to_try(here(math.inf), here(0), most):
                # Float32 numbers of so many samples.
                least = size / (4 * few)
                if _bytes(here(least)) <= most:
                    break
        scale = samples / few / 2**20
        return Memory(least, (_bytes(here(least)) * scale, _bytes(pytorch) * scale))
    except Exception:
        return None


def sizes_to_try(kept: Counter[int], again: Counter[int], most: float) -> list[float]:
    """Returns from how many bytes on activations are computed again, so that at most so many bytes are kept.

    `kept` says how many storages of each size a network keeps that computes nothing again, and `again` one that
    computes all again. The largest size comes first that may do. It need not: a sum of two activations is computed
    again only if both are, whatever their sizes.
    """
    sizes = sorted((kept - again).items())
    totals = itertools.accumulate((size * count for size, count in sizes), initial=_bytes(again))
    # Those below a size are kept.
    least = [*(size for size, _ in sizes), math.inf]
    return [size for size, total in zip(least, totals, strict=True) if total <= most][::-1] + ([0] if sizes else [])


def _storages(run: Callable[[], Any], outside: Iterable[Any]) -> Counter[int]:
    """Returns how many storages of each size the graph of a call keeps."""
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) is torch.Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = run()
    known = {it.untyped_storage().data_ptr() for it in outside if isinstance(it, torch.Tensor)}
    # Only now may a storage take the place of another.
    del results
    return Counter(size for place, size in found.items() if place not in known)


def _bytes(storages: Counter[int]) -> int:
    return sum(size * count for size, count in storages.items())
