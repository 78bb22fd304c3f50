"""A dense layer as two cheaper ones that mix all groups: no order of the channels is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.spec.arguments import check_groups, valid_groups
from groupwise.spec.legible import Printed


@dataclass(frozen=True, repr=False)
class Factored(Printed):
    """Two weights that stand for one.

    - `first`: of the first layer, which has the dense layer's kernel, stride, padding and dilation and no bias
    - `second`: of the 1x1 layer behind it, which has the dense layer's bias
    - `groups`: the groups of both layers
    - `shuffle`: the order in which the second layer reads the first one's outputs; None is as they are
    - `rank`: singular values kept of each block
    - `error`: squared error of the product, relative to the squared weight
    - `macs_ratio`: multiply-accumulates of both layers, relative to the dense layer
    """

    first: Tensor
    second: Tensor
    groups: tuple[int, int]
    shuffle: tuple[int, ...] | None
    rank: int
    error: float
    macs_ratio: float

    def __str__(self) -> str:
        return (
            f"rank {self.rank} with groups {self.groups[0]} and {self.groups[1]} keeps {100 * (1 - self.error):.1f} % "
            f"of the squared weight for {100 * self.macs_ratio:.1f} % of the multiply-accumulates"
        )

    __repr__ = __str__


@torch.no_grad()
def factored(weight: Tensor, groups: int, rank: int | None = None) -> Factored:
    """Factors a dense weight into a grouped layer with the same kernel and a dense 1x1 layer.

    The inputs are split into `groups` blocks, and the weight of each block, (outputs, inputs / groups * kernel), is
    truncated to `rank` singular values. This is the best approximation of that rank (Eckart and Young).

    Args:
        weight: (outputs, inputs, ...), of a plain convolution or a linear layer.
        groups: divides the inputs.
        rank: the first layer has groups * rank outputs. None takes the largest rank that costs no more than 1 / groups
            of the dense layer's multiply-accumulates, and at least 1.

    Raises:
        GroupwiseError: groups that do not divide the inputs, a rank out of range, values that are not finite.
    """
    wide = _checked(weight)
    outputs, inputs = wide.shape[:2]
    kernel = wide[0, 0].numel()
    groups = check_integer("groups", groups, 1)
    if inputs % groups:
        valid = list_some(list(valid_groups(inputs, inputs)), groups)
        raise GroupwiseError(f"groups={groups} must divide in_channels={inputs}; valid groups: {valid}")
    unit = 1 / outputs + groups / (inputs * kernel)
    rank = _rank(rank, unit, groups, min(outputs, inputs // groups * kernel))
    blocks = wide.reshape(outputs, groups, -1).transpose(0, 1)
    left, right, error = _truncated(blocks, rank)
    first = right.reshape(groups * rank, inputs // groups, *wide.shape[2:])
    second = left.transpose(0, 1).reshape(outputs, groups * rank, *[1] * (wide.ndim - 2))
    return Factored(first.to(weight), second.to(weight), (groups, 1), None, rank, error, rank * unit)


@torch.no_grad()
def monarch(weight: Tensor, groups: int, rank: int | None = None) -> Factored:
    """Factors a dense 1x1 weight into two grouped 1x1 layers with a channel shuffle between them.

    The weight is cut into groups x groups blocks, and each is truncated to `rank` singular values: the closest such
    product, as the blocks are independent. Rank 1 is a Monarch matrix.

    Args:
        weight: (outputs, inputs) or (outputs, inputs, 1, ...).
        groups: of both layers; divides the inputs and the outputs.
        rank: None takes the largest rank that costs no more than 1 / groups of the dense layer, and at least 1.

    Raises:
        GroupwiseError: a kernel larger than 1, groups that do not divide the channels, a rank out of range, values
            that are not finite.
    """
    wide = _checked(weight)
    outputs, inputs = wide.shape[:2]
    if wide[0, 0].numel() != 1:
        raise GroupwiseError(
            f"weight has shape {tuple(weight.shape)}; monarch takes kernels of size 1: use factored for this one"
        )
    groups = check_groups(inputs, outputs, groups)
    unit = groups / outputs + groups / inputs
    rank = _rank(rank, unit, groups, min(outputs, inputs) // groups)
    blocks = wide.reshape(groups, outputs // groups, groups, inputs // groups).transpose(1, 2)
    left, right, error = _truncated(blocks, rank)
    first = right.transpose(0, 1).reshape(groups * groups * rank, inputs // groups, *wide.shape[2:])
    second = left.transpose(1, 2).reshape(outputs, groups * rank, *wide.shape[2:])
    shuffle = torch.arange(groups * groups * rank).reshape(groups, groups, rank).transpose(0, 1).flatten()
    return Factored(
        first.to(weight), second.to(weight), (groups, groups), tuple(shuffle.tolist()), rank, error, rank * unit
    )


def _checked(weight: Tensor) -> Tensor:
    """Returns the weight in float64."""
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not weight.is_floating_point() or not weight.numel():
        raise GroupwiseError(
            "weight must be a tensor of real floating-point values, (outputs, inputs, ...); "
            f"this is {tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__}"
        )
    if not torch.isfinite(weight).all():
        raise GroupwiseError("weight has NaN or infinite values; all must be finite")
    return weight.double()


def _rank(rank: int | None, unit: float, groups: int, most: int) -> int:
    """Returns the rank, checked; `unit` is the cost of rank 1 relative to the dense layer."""
    if rank is None:
        return max(1, min(most, math.floor(1 / (groups * unit) * (1 + 1e-12))))
    return check_integer("rank", rank, 1, most)


def _truncated(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Returns factors of each block, (..., rows, rank) and (..., rank, columns), and the relative squared error."""
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    # Both factors get the root of the singular values, so that neither has much larger entries.
    root = values[..., :rank].sqrt()
    total = float(values.square().sum())
    error = float(values[..., rank:].square().sum()) / total if total else 0.0
    return left[..., :rank] * root[..., None, :], root[..., None] * right[..., :rank, :], error
