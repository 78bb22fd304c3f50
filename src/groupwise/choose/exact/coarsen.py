"""`coarser` and `finer`: the weight of the same layer with fewer groups, and with more where that loses nothing."""

from __future__ import annotations

import math

import torch

from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.spec.arguments import valid_groups


def coarser(weight: torch.Tensor, groups: int, new_groups: int) -> torch.Tensor:
    """Returns the weight of the layer with `new_groups` that computes what `weight` does with `groups`.

    `new_groups` divides `groups`; 1 makes the layer dense. Every number is kept as it is, and the rest is zero.

    - `weight`: (out_channels, in_channels / groups, ...), or (in_channels, out_channels / groups, ...) if transposed

    Raises `GroupwiseError` if `new_groups` does not divide `groups`, or `groups` does not divide the first dimension.

    Examples:
        >>> import torch
        >>> coarser(torch.ones(4, 1), groups=2, new_groups=1)
        tensor([[1., 0.],
                [1., 0.],
                [0., 1.],
                [0., 1.]])
    """
    # Both layouts have the groups along the first dimension, and the channels of one group along the second.
    rows, columns = _block(weight, groups)
    new_groups = check_integer("new_groups", new_groups, 1)
    if groups % new_groups:
        valid = list_some(list(valid_groups(groups, groups)), new_groups)
        raise GroupwiseError(
            f"new_groups={new_groups} must divide groups={groups}, so that the layer stays the same; valid: {valid}"
        )
    joined = groups // new_groups
    made = weight.new_zeros(new_groups, joined, rows, joined, columns, *weight.shape[2:])
    blocks = weight.reshape(new_groups, joined, rows, columns, *weight.shape[2:])
    for place in range(joined):
        made[:, place, :, place] = blocks[:, place]
    return made.reshape(weight.shape[0], joined * columns, *weight.shape[2:])


def finer(weight: torch.Tensor, groups: int, new_groups: int) -> torch.Tensor:
    """Returns the weight of the layer with `new_groups` that computes what `weight` does with `groups`.

    `new_groups` is a multiple of `groups`. It undoes `coarser`: the numbers between the new groups must be zero.

    - `weight`: as for `coarser`

    Raises `GroupwiseError` for a number of groups that does not fit, and for a weight that connects the new groups,
    with the fraction of its square that they would lose.
    """
    kept, lost = blocks(weight, groups, new_groups)
    if not math.isfinite(lost):
        raise GroupwiseError(
            f"with groups={new_groups} the weight would lose a part, and it has NaN or infinite values, so that "
            "nothing tells how much it would lose; all must be finite"
        )
    if lost:
        raise GroupwiseError(
            f"with groups={new_groups} the weight would lose {100 * lost:.3g} % of its square, which connects channels "
            'of different groups; use groupwise.regroup(model, groups, form="block") to drop them'
        )
    return kept


def blocks(weight: torch.Tensor, groups: int, new_groups: int) -> tuple[torch.Tensor, float]:
    """Returns the blocks of a weight that a layer with more groups keeps, and the fraction of its square they lack."""
    rows, columns = _block(weight, groups)
    new_groups = check_integer("new_groups", new_groups, 1)
    parts = new_groups // groups
    if new_groups % groups or rows % parts or columns % parts:
        valid = [
            groups * value for value in range(1, min(rows, columns) + 1) if rows % value == 0 and columns % value == 0
        ]
        raise GroupwiseError(
            f"new_groups={new_groups} must be a multiple of groups={groups} that divides both channel counts; "
            f"valid: {', '.join(map(str, valid))}"
        )
    split = weight.reshape(groups, parts, rows // parts, parts, columns // parts, *weight.shape[2:])
    kept = torch.stack([split[:, place, :, place] for place in range(parts)], 1)
    kept = kept.reshape(weight.shape[0], columns // parts, *weight.shape[2:])
    if torch.count_nonzero(weight) == torch.count_nonzero(kept):
        return kept, 0.0
    # Relative to the largest number: the square of one alone may be none that float64 has.
    largest = weight.detach().abs().max().double()
    whole, inside = ((one.detach().double() / largest).square().sum().item() for one in (weight, kept))
    return kept, max(1 - inside / whole, torch.finfo(torch.double).tiny)


def _block(weight: torch.Tensor, groups: int) -> tuple[int, int]:
    """Returns how many rows and columns the block of one group has."""
    groups = check_integer("groups", groups, 1)
    if weight.dim() < 2 or weight.shape[0] % groups:
        raise GroupwiseError(
            f"groups={groups} does not fit a weight of shape {tuple(weight.shape)}; it must divide the first of at "
            "least two dimensions"
        )
    return weight.shape[0] // groups, weight.shape[1]
