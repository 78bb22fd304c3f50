"""The words of a rewritten graph: convolutions and linear layers with what they compute before they store.

A rewritten graph is a `torch.fx.Graph` of PyTorch's operators, in which `convolution` and `linear` stand for the layers
that an engine computes. Their `Epilogue` says which activation and which sum follow before the result is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function.

    - `name`: what a plan calls it
    - `attribute`, `scalars`, `algorithm`: how oneDNN's operators know it
    - `in_place`: the operator that computes it in place, and its arguments after the tensor
    """

    name: str
    attribute: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""

    @property
    def in_place(self) -> tuple[Any, tuple[float, ...], dict[str, str]]:
        """The operator that computes the activation in place, and its arguments after the tensor."""
        return _IN_PLACE[self.attribute], self.scalars, {"approximate": self.algorithm} if self.algorithm else {}


_IN_PLACE: dict[str, Any] = {
    "relu": aten.relu_.default,
    "hardtanh": aten.hardtanh_.default,
    "swish": aten.silu_.default,
    "hardswish": aten.hardswish_.default,
    "hardsigmoid": aten.hardsigmoid_.default,
    "gelu": aten.gelu_.default,
    "leaky_relu": aten.leaky_relu_.default,
    "sigmoid": aten.sigmoid_.default,
    "tanh": aten.tanh_.default,
}


def _hardtanh(low: float = -1.0, high: float = 1.0) -> Activation:
    return Activation("relu6" if (low, high) == (0, 6) else "hardtanh", "hardtanh", (float(low), float(high)))


def _clamp(low: Any = None, high: Any = None) -> Activation | None:
    if not all(isinstance(bound, int | float) for bound in (low, high)):
        return None
    return _hardtanh(low, high)


# PyTorch's operator -> what makes its activation from the arguments after the tensor.
ACTIVATIONS: dict[Any, Callable[..., Activation | None]] = {
    aten.relu.default: lambda: Activation("relu", "relu"),
    aten.relu6.default: lambda: _hardtanh(0, 6),
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.silu.default: lambda: Activation("silu", "swish"),
    aten.hardswish.default: lambda: Activation("hardswish", "hardswish"),
    aten.hardsigmoid.default: lambda: Activation("hardsigmoid", "hardsigmoid"),
    aten.gelu.default: lambda approximate="none": Activation("gelu", "gelu", (), approximate),
    aten.leaky_relu.default: lambda slope=0.01: Activation("leaky_relu", "leaky_relu", (float(slope),)),
    aten.sigmoid.default: lambda: Activation("sigmoid", "sigmoid"),
    aten.tanh.default: lambda: Activation("tanh", "tanh"),
}


def activation_of(node: Node) -> Activation | None:
    """Returns the activation that a node computes of its first argument, if it computes one."""
    make = ACTIVATIONS.get(node.target)
    return None if make is None else make(*args_of(node)[1:], **node.kwargs)


@dataclass(frozen=True)
class Epilogue:
    """What a layer computes before it stores: an activation, the sum with a residual, another activation."""

    before: Activation | None = None
    residual: bool = False
    after: Activation | None = None

    @property
    def last(self) -> Activation | None:
        """The activation that nothing follows."""
        return self.after if self.residual else self.before

    def with_activation(self, activation: Activation) -> Epilogue:
        """Returns the epilogue with an activation at its end."""
        return replace(self, after=activation) if self.residual else replace(self, before=activation)

    @property
    def words(self) -> tuple[str, ...]:
        """What a plan lists."""
        parts = (self.before and self.before.name, "sum" if self.residual else None, self.after and self.after.name)
        return tuple(part for part in parts if part)


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    @property
    def is_padded(self) -> bool:
        """Whether it reads zeros beside its input, or writes beside what it computes."""
        return any(self.padding) or self.transposed


def put(graph: Graph, parts: Sequence[Node], target: Any, args: tuple[Any, ...], meta: Mapping[str, Any]) -> Node:
    """Puts one call in place of nodes, which are erased in their order. It has the first's meta, and `meta`."""
    with graph.inserting_before(parts[0]):
        made = graph.call_function(target, args)
    made.meta = {**parts[0].meta, **meta}
    parts[0].replace_all_uses_with(made)
    for part in parts:
        graph.erase_node(part)
    return made


# The words are never called: an engine stands in for each.
def convolution(source: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
    """Stands for a convolution; `node.meta` has its `geometry` and its `epilogue`."""
    raise NotImplementedError


def linear(source: Any, weight: Any, bias: Any, residual: Any = None) -> Any:
    """Stands for a linear layer; `node.meta` has its `epilogue`."""
    raise NotImplementedError


def chain(source: Any, weights: Any, residual: Any = None) -> Any:
    """Stands for layers that run band by band; `weights` has the weight and the bias of each, in order."""
    raise NotImplementedError


LAYERS = (convolution, linear)


def args_of(node: Node) -> Any:
    """Returns the arguments of a node, which may be anything."""
    return node.args


def is_layer(node: Any) -> bool:
    """Tells whether the node is one of the two words."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in LAYERS


def value(node: Node) -> torch.Tensor:
    """Returns the fake tensor that has the node's shape and dtype."""
    found = node.meta["val"]
    assert isinstance(found, torch.Tensor)
    return found


def is_tensor(node: Any) -> bool:
    """Tells whether the node computes one tensor."""
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def is_plain(node: Any, dtype: torch.dtype | None = None) -> bool:
    """Tells whether the node computes one tensor of a dtype that native operators know: of `dtype`, if it is given."""
    return is_tensor(node) and value(node).dtype in ((torch.float32, torch.bfloat16) if dtype is None else (dtype,))


def only_reader(node: Node) -> Node | None:
    """Returns the one node that reads this one, once; None if there are more or none."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    return reader if reader.all_input_nodes.count(node) == 1 and _reads(reader, node) == 1 else None


def _reads(reader: Node, node: Node) -> int:
    count = 0

    def visit(argument: Node) -> Node:
        nonlocal count
        count += argument is node
        return argument

    torch.fx.node.map_arg((reader.args, reader.kwargs), visit)
    return count


def name_layers(graph: Graph) -> None:
    """Puts the two words in place of PyTorch's operators, where those take a batch and constant weights.

    Needs the marks of constants.
    """
    for node in list(graph.nodes):
        made = _layer(node) if node.op == "call_function" else None
        if made is None:
            continue
        word, source, weight, bias, geometry = made
        with graph.inserting_before(node):
            layer = graph.call_function(word, (source, weight, bias))
        layer.meta = {**node.meta, "geometry": geometry, "epilogue": Epilogue(), "fused": ()}
        node.replace_all_uses_with(layer)
        graph.erase_node(node)


def _layer(node: Node) -> tuple[Callable[..., Any], Node, Node, Any, Geometry | None] | None:
    given = _arguments(node)
    if not {"input", "weight"} <= given.keys() or not (is_tensor(given["input"]) and is_tensor(given["weight"])):
        return None
    source, weight, bias = given["input"], given["weight"], given.get("bias")
    if not all(each.meta["constant"] for each in (weight, bias) if each is not None):
        return None
    # A layer of a constant, such as a table of positions, is computed once.
    if source.meta["constant"]:
        return None
    # PyTorch refuses two dtypes when it runs.
    if value(source).dtype != value(weight).dtype:
        return None
    if node.target is aten.linear.default:
        return linear, source, weight, bias, None
    if node.target not in _CONVOLUTIONS:
        return None
    dims = value(weight).dim() - 2
    padding = _padding(given.get("padding", 0), value(weight).shape[2:], given, dims)
    # An input without a batch has one dimension fewer.
    if value(source).dim() != dims + 2 or padding is None:
        return None
    transposed = bool(given.get("transposed", "transpose" in str(node.target)))
    geometry = Geometry(
        stride=_each(given.get("stride", 1), dims),
        padding=padding,
        dilation=_each(given.get("dilation", 1), dims),
        groups=int(given.get("groups", 1)),
        transposed=transposed,
        output_padding=_each(given.get("output_padding", 0), dims),
    )
    return convolution, source, weight, bias, geometry


_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.convolution.default,
}


def _arguments(node: Node) -> dict[str, Any]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, args_of(node), strict=False)), **node.kwargs}


def _each(number: int | Sequence[int], dims: int) -> tuple[int, ...]:
    numbers = [number] if isinstance(number, int) else list(number)
    return tuple(numbers * dims if len(numbers) == 1 else numbers)


def _padding(
    given: int | str | Sequence[int], kernel: Sequence[int], others: dict[str, Any], dims: int
) -> tuple[int, ...] | None:
    """Returns the padding as numbers; None where it is longer on one side, which PyTorch alone computes."""
    if not isinstance(given, str):
        return _each(given, dims)
    if given == "valid":
        return (0,) * dims
    whole = [d * (k - 1) for d, k in zip(_each(others.get("dilation", 1), dims), kernel, strict=True)]
    return None if any(pad % 2 for pad in whole) else tuple(pad // 2 for pad in whole)
