"""The first samples of an example, on which a network or a layer is tried in less time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from groupwise.draw.base import phrases


def samples_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Returns the size of the first dimension that all tensors have in common; 0 if there is none.

    Whether they are samples, or steps of time, is not known: as many of either are an example that takes less time.
    """
    sizes = {leaf.shape[:1] for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)}
    return int(sizes.pop()[0]) if len(sizes) == 1 and all(sizes) else 0


def first_samples(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Returns the arguments with so many samples, or as they are if they have no more."""
    if samples_of(args, kwargs) <= count:
        return args, kwargs
    few: tuple[tuple[Any, ...], Mapping[str, Any]] = tree_map(
        lambda leaf: leaf[:count] if isinstance(leaf, torch.Tensor) else leaf, (args, dict(kwargs))
    )
    return few


def cut(tensors: Sequence[torch.Tensor], whole: int, count: int) -> list[torch.Tensor]:
    """Returns the first samples of those tensors that have `whole` samples, and the others as they are."""
    return [each[:count] if each.shape[:1] == (whole,) else each for each in tensors]


def of_samples(samples: int | None) -> str:
    """Returns of how many samples a time is, if not of all of the example."""
    return "" if samples is None else f" of {phrases.plural(samples, 'sample')}"
