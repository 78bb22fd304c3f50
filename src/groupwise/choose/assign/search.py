"""`assign`: which channels of a dense layer make a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groupwise.choose.assign.alternate import Climb, by_group, climb, improve
from groupwise.choose.assign.bound import upper_bound
from groupwise.choose.assign.enumerate import best_of_all
from groupwise.choose.assign.planted import planted
from groupwise.choose.assign.starts import starts
from groupwise.choose.assign.transport import Floats, Labels, transport
from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.spec.arguments import check_groups
from groupwise.spec.legible import Printed

# Random starts: as many as keep wide layers to seconds.
_MOST_RANDOMS = 32
_RANDOM_WORK = 2**24
SIDES = ("inputs", "outputs")
# What two sums of the same energies may differ by, relative to them.
_ROUNDING = 1e-12


@dataclass(frozen=True, repr=False)
class Assignment(Printed):
    """A balanced partition of a dense layer's channels into groups.

    - `outputs`, `inputs`: permutations; `weight[outputs][:, inputs]` has the blocks on its diagonal (a transposed
      weight: `weight[inputs][:, outputs]`). Channels of a group keep their order.
    - `groups`: how many blocks
    - `kept`: the fraction of the weight's squared norm inside the blocks, weighted by the moments where they are given
    - `stored`: the same fraction for the channels in their stored order
    - `bound`: no partition keeps a larger fraction
    - `exact`: whether `kept` is proven to be the largest
    - `fixed`: the side in stored order, `inputs` or `outputs`; empty if both were free. The others are then of the
      partitions that leave it so
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    groups: int
    kept: float
    stored: float
    bound: float
    exact: bool
    fixed: str = ""

    def __str__(self) -> str:
        sizes = f"{len(self.outputs) // self.groups}x{len(self.inputs) // self.groups}"
        most = "the most possible" if self.exact else f"at most {100 * self.bound:.1f} % is possible"
        stay = f" with {self.fixed} as stored" if self.fixed else ""
        return (
            f"{self.groups} groups of {sizes} channels (outputs x inputs) keep {100 * self.kept:.1f} % of the squared "
            f"weight: {most}{stay}, and the stored order keeps {100 * self.stored:.1f} %"
        )

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name; the permutations are lists."""
        return {**vars(self), "outputs": list(self.outputs), "inputs": list(self.inputs)}


def assign(
    weight: Tensor,
    groups: int,
    *,
    moments: Tensor | None = None,
    transposed: bool = False,
    fixed: str | None = None,
    seed: int = 0,
) -> Assignment:
    """Finds the balanced partition of a dense layer's channels whose blocks keep most of the squared weight.

    A layer with `groups` keeps one block of the weight for each group and drops the rest. Which channels make a group
    is free wherever their order can be undone; this function looks for the best choice. Weights that already consist
    of blocks are recovered exactly. Few channels are enumerated. Otherwise the result is a local optimum of several
    starts; `bound` says how much a better one could keep.

    Args:
        weight: (outputs, inputs, ...) of a layer with groups=1; (inputs, outputs, ...) if `transposed`. A linear
            layer's weight works too.
        groups: divides both channel counts.
        moments: (inputs, K, K), with K the kernel's size in all: the second moments of each input channel's patches
            on calibration data. An entry then counts by the output energy that it makes, as if input channels were
            uncorrelated.
        transposed: whether the weight is a transposed convolution's.
        fixed: leaves the `inputs` or the `outputs` in their stored order, as where they are those of a model. The best
            partition of the others is found exactly.
        seed: of the random starts; the result depends on nothing else.

    Raises:
        GroupwiseError: the weight has fewer than 2 dimensions, no values, or values that are not finite; it is
            quantized, complex or float16; `groups` does not divide the channels; the moments have another shape, are
            not finite or not positive semidefinite.
    """
    energy = energies(weight, moments, transposed)
    outputs, inputs = energy.shape
    groups = check_groups(inputs, outputs, groups)
    seed = check_integer("seed", seed, 0)
    if fixed is not None:
        check_choice("fixed", fixed, SIDES)
    total = float(energy.sum())
    found, exact = (_one_sided(energy, groups, fixed), True) if fixed else _found(energy, groups, seed)
    order = [np.repeat(np.arange(groups), count // groups) for count in (outputs, inputs)]
    stored = Climb(order[0], order[1], 0.0)
    stored.held, found.held = _held(energy, stored), _held(energy, found)
    if found.held <= stored.held * (1 + _ROUNDING):
        found = stored
    bound = found.held if exact else min(total, max(upper_bound(energy, groups), found.held))
    rows, columns = (_listed(found.outputs), _listed(found.inputs)) if fixed else _permutations(found, groups)
    return Assignment(
        rows,
        columns,
        groups,
        kept=_fraction(found.held, total),
        stored=_fraction(stored.held, total),
        bound=_fraction(bound, total),
        exact=exact or found.held >= bound * (1 - _ROUNDING),
        fixed=fixed or "",
    )


def _fraction(held: float, total: float) -> float:
    """Returns held / total; sums that differ by rounding, and two zeros, are equal."""
    return 1.0 if held >= total * (1 - _ROUNDING) else held / total


def energies(weight: Tensor, moments: Tensor | None = None, transposed: bool = False) -> Floats:
    """Returns (outputs, inputs) in float64: the squared norms of the kernels, relative to the largest value.

    With moments C, entry (o, i) is w C[i] w for the kernel w from i to o. It raises `GroupwiseError` as `assign` does.
    """
    values = _checked("weight", weight)
    if values.ndim < 2:
        raise GroupwiseError(
            f"weight has shape {tuple(values.shape)}; it must have an output and an input dimension, as the weight of "
            "a convolution or a linear layer has"
        )
    if transposed:
        values = values.transpose(0, 1)
    values = values.flatten(2) if values.ndim > 2 else values.unsqueeze(2)
    # Squares of very large or small values leave the range of float64.
    values = values / (values.abs().max() or 1.0)
    if moments is None:
        return np.ascontiguousarray(values.square().sum(dim=2).numpy())
    wanted = (values.shape[1], values.shape[2], values.shape[2])
    if tuple(moments.shape) != wanted:
        raise GroupwiseError(
            f"moments has shape {tuple(moments.shape)}; this weight needs {wanted}: (inputs, kernel, kernel)"
        )
    second = _checked("moments", moments)
    second = second / (second.abs().max() or 1.0)
    energy = torch.einsum("oik,ikl,oil->oi", values, second, values)
    if energy.min() < -1e-6 * energy.abs().max():
        raise GroupwiseError("moments give a negative energy; second moments are positive semidefinite: sum x x^T")
    return np.ascontiguousarray(energy.clamp_min(0).numpy())


def _checked(name: str, value: Tensor) -> Tensor:
    """Returns the tensor's values in float64 on the CPU."""
    if not isinstance(value, Tensor):
        raise GroupwiseError(f"{name}={value!r} is a {type(value).__name__}; it must be a tensor")
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        raise GroupwiseError(
            f"{name} is a meta, quantized or sparse tensor; pass a dense one with floating-point values"
        )
    if not value.numel():
        raise GroupwiseError(f"{name} has shape {tuple(value.shape)}; it must have values")
    if value.is_complex() or value.dtype == torch.float16:
        kind = str(value.dtype).removeprefix("torch.")
        fix = "pass .float()" if value.dtype == torch.float16 else "pass real values"
        raise GroupwiseError(f"{name} is {kind}, which no layer converts from; {fix}")
    wide = value.detach().cpu().to(torch.float64)
    bad = int((~torch.isfinite(wide)).sum())
    if bad:
        raise GroupwiseError(f"{name} has {bad} values that are NaN or infinite; all must be finite")
    return wide


def _found(energy: Floats, groups: int, seed: int) -> tuple[Climb, bool]:
    """Returns the best labels found, and whether they are proven the best."""
    outputs, inputs = energy.shape
    own = np.arange(groups)
    if groups == 1:
        return Climb(np.zeros(outputs, np.int64), np.zeros(inputs, np.int64), 0.0), True
    # With one channel of a side in each group, only the other side is open: one exact transport.
    if groups == outputs:
        return Climb(own, transport(energy), 0.0), True
    if groups == inputs:
        return Climb(transport(energy.T), own, 0.0), True
    total = float(energy.sum())
    best: Climb | None = None
    blocks = planted(energy, groups)
    if blocks is not None:
        best = Climb(*blocks, 0.0)
        best.held = _held(energy, best)
        if best.held >= total * (1 - _ROUNDING):
            return best, True
        best = climb(energy, groups, best.outputs)
    randoms = min(_MOST_RANDOMS, _RANDOM_WORK // (energy.size * groups))
    climbs = [climb(energy, groups, start) for start in starts(energy, groups, randoms, seed)]
    climbs = sorted([*([best] if best else []), *climbs], key=lambda found: -found.held)
    top = max((improve(energy, groups, found) for found in climbs[: 1 + randoms // 4]), key=lambda found: found.held)
    all_tried = best_of_all(energy, groups, top.held)
    if all_tried is not None:
        proven = Climb(*all_tried, 0.0)
        proven.held = _held(energy, proven)
        return max(top, proven, key=lambda found: found.held), True
    return top, False


def _one_sided(energy: Floats, groups: int, fixed: str) -> Climb:
    """Returns the best labels of one side for contiguous ones of the other: one exact transport."""
    outputs, inputs = (np.repeat(np.arange(groups), count // groups) for count in energy.shape)
    if fixed == "inputs":
        return Climb(transport(by_group(energy.T, inputs, groups)), inputs, 0.0)
    return Climb(outputs, transport(by_group(energy, outputs, groups)), 0.0)


def _held(energy: Floats, found: Climb) -> float:
    return float(energy[found.outputs[:, None] == found.inputs].sum())


def _permutations(found: Climb, groups: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the channels of group after group; groups follow the order of their first outputs."""
    first = [int(np.argmax(found.outputs == t)) for t in range(groups)]
    rank = np.argsort(np.argsort(first))
    rows, columns = (_listed(rank[labels]) for labels in (found.outputs, found.inputs))
    return rows, columns


def _listed(labels: Labels) -> tuple[int, ...]:
    return tuple(int(channel) for channel in np.argsort(labels, kind="stable"))
