"""Where the channels of a value lie, and what transposes, slices and paddings of positions do to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx

from groupwise.parallel.planning import operations as ops
from groupwise.parallel.planning.operations import argument, attribute, does


class Axis(NamedTuple):
    """The dimension of the channels of a value.

    - `place`: counted from the last dimension, which is -1
    - `dims`: how many dimensions the value has, None if that is unknown
    """

    place: int
    dims: int | None

    @property
    def is_map(self) -> bool:
        """Whether the value is (N, C, ...) with positions after the channels."""
        return self.dims is not None and self.dims > 2 and self.place == 1 - self.dims

    @property
    def is_row(self) -> bool:
        """Whether the value is (N, C)."""
        return self.dims == 2 and self.place == -1

    def counted(self, dim: Any) -> int | None:
        """Returns `dim` counted from the last dimension; None if that is unknown."""
        if type(dim) is not int or (dim >= 0 and self.dims is None):
            return None
        return dim if dim < 0 else dim - (self.dims or 0)


def reordered(node: fx.Node, axis: Axis) -> Axis | None:
    """Returns where the channels lie after a transpose or permute; None if that is unknown."""
    name = attribute(node)
    if axis.dims is None or not (does(node, ops.REORDERS) or name in ops.TRANSPOSES) or len(node.all_input_nodes) != 1:
        return None
    if name in ops.MATRIX_TRANSPOSES and axis.dims != 2:
        return None
    function: Any = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    options = {name: value for name, value in node.kwargs.items() if name != "input"}
    # The size of each dimension of the sample is its name.
    sample = torch.empty(tuple(range(1, axis.dims + 1)), device="meta")
    try:
        shape = list(function(sample, *node.args[1:], **options).shape)
    except (RuntimeError, IndexError, TypeError):
        return None
    return axis._replace(place=shape.index(axis.dims + axis.place + 1) - axis.dims)


def keeps_channels(node: fx.Node, axis: Axis) -> bool:
    """Says whether a node slices or pads a tensor along positions alone."""
    if does(node, ops.PADS):
        return not pads(argument(node, 1, "pad"), axis.place)
    if does(node, ops.INDEXING):
        return _index_keeps(node.args[1], axis)
    if does(node, ops.NARROWS | ops.PIECES):
        dim = axis.counted(argument(node, 1 if does(node, ops.NARROWS) else 2, "dim", 0))
        return dim is not None and dim != axis.place
    return False


def pads(padding: Any, place: int) -> bool:
    """Says whether a padding, two numbers for each dimension from the last one on, may reach dimension `place`."""
    if not isinstance(padding, (tuple, list)):
        return True
    return any(type(size) is not int or size != 0 for size in padding[-2 * place - 2 : -2 * place])


def slices_only(index: Any) -> bool:
    """Says whether an index keeps all dimensions."""
    items = index if isinstance(index, tuple) else (index,)
    return sum(item is Ellipsis for item in items) <= 1 and all(isinstance(i, slice) or i is Ellipsis for i in items)


def _index_keeps(index: Any, axis: Axis) -> bool:
    if not slices_only(index):
        return False
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis not in items:
        items.append(Ellipsis)
    before = items.index(Ellipsis)
    after = len(items) - before - 1
    if -axis.place <= after:
        return bool(items[axis.place] == slice(None))
    if before == 0:
        return True
    # The slices before the ellipsis count from the first dimension.
    if axis.dims is None:
        return False
    at = axis.dims + axis.place
    return at >= before or bool(items[at] == slice(None))
