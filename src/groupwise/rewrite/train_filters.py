"""The convolutions of a graph for training: layers of `torch.nn` and what inherits their code, and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from groupwise.nn.forwards import known_forward

_LAYERS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_BY_DIMS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_FUNCTIONS = set(_BY_DIMS.values())
FUNCTIONS = _FUNCTIONS | {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def is_layer(module: torch.nn.Module | None) -> bool:
    """Tells whether a module computes a convolution by the code of `torch.nn`: a subclass with its own may do more."""
    if module is None or type(module).__call__ is not torch.nn.Module.__call__:
        return False
    return known_forward(module, _LAYERS)


def convolves(node: Node, input: Node, modules: Mapping[str, torch.nn.Module]) -> bool:
    """Tells whether a node is a convolution of `input`, and reads that for nothing else."""
    if not node.args or node.args[0] is not input or any(it is input for it in (*node.args[1:], *node.kwargs.values())):
        return False
    if node.op == "call_module":
        return len(node.args) == 1 and not node.kwargs and is_layer(modules.get(str(node.target)))
    return node.op == "call_function" and node.target in _FUNCTIONS


def layer_of(graph: Graph, node: Node) -> Node:
    """Adds a node for the layer of a convolution: the module, or the `Filters` of a function."""
    if node.op == "call_module":
        return graph.get_attr(str(node.target))
    return graph.call_function(filters, node.args[1:], dict(node.kwargs))


@dataclass(frozen=True)
class Filters:
    """What a function is given beside the input, by the names that a layer of `torch.nn` has for it."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: ClassVar[str] = "zeros"

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Returns the convolution of a tensor."""
        function: Callable[..., torch.Tensor] = _BY_DIMS[len(self.stride)]
        return function(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def filters(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Filters:
    """Returns the filters of a call of `F.conv2d`, say, whose arguments are these behind the input."""
    dims = weight.dim() - 2
    around = padding if isinstance(padding, str) else _each(padding, dims)
    return Filters(weight, bias, _each(stride, dims), around, _each(dilation, dims), groups)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """Returns one number a dimension: PyTorch takes one number, or a sequence of one, for all of them."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dims if len(values) == 1 else values
