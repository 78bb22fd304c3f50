"""What a rank computes and sends in a step of a split network, from a run of its graph on shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupwise.errors import GroupwiseError
from groupwise.parallel.planning.decision import Decision, Step, UnionFind, style_of
from groupwise.parallel.planning.moves import end_moves, tensor_moves
from groupwise.parallel.planning.patterns import patterns
from groupwise.parallel.styles.base import LayerStyle
from groupwise.parallel.styles.dense import RowwiseParallel
from groupwise.spec.collectives import Collective
from groupwise.spec.cost import cost
from groupwise.spec.partition import Partition


@dataclass(frozen=True)
class Task:
    """The work of one node of the graph, on the rank that holds most.

    - `name`: the name of the layer, or of the node if it is no layer
    - `macs`: the multiply-accumulates of its forward
    - `bytes`: the bytes that the operations of its forward read and write
    - `gradients`: how many passes of as many MACs and bytes its backward takes
    - `collectives`: the collectives that it needs
    """

    name: str
    macs: int
    bytes: float
    gradients: int
    collectives: tuple[Collective, ...]


def tasks(decision: Decision, input_shape: Sequence[int]) -> tuple[Task, ...]:
    """Returns the work of a step on inputs of (N, C, ...), node by node. It computes shapes and no values.

    Raises `GroupwiseError` if the model does not take an input of that shape.
    """
    model = decision.flow.root
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    walk = _Walk(decision)
    try:
        walk.run(torch.empty(tuple(input_shape), dtype=dtype, device="meta"))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise GroupwiseError(
            f"{type(model).__name__} does not take an input of shape {tuple(input_shape)}: {reason}"
        ) from error
    return tuple(walk.tasks)


class _Walk(fx.Interpreter):
    """Runs the graph on shapes, and collects the task of each node."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.flow.root, graph=decision.flow.graph)
        self.tasks: list[Task] = []
        self._decision, self._ranks = decision, decision.ranks

    def run_node(self, n: fx.Node) -> Any:
        """Returns the node's value."""
        with _Bytes() as moved:
            value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            # Code may make tensors from nothing, such as an arange, on another device.
            value = value.to("meta")
        if n.op.startswith("call_") and isinstance(value, torch.Tensor):
            self.tasks.append(self._task(n, value, moved.total))
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Returns the module's value; SyncBatchNorm keeps the shape, but does not run on shapes alone."""
        if isinstance(self.fetch_attr(target), nn.SyncBatchNorm):
            return args[0].clone()
        return super().call_module(target, args, kwargs)

    def _task(self, node: fx.Node, output: torch.Tensor, moved: int) -> Task:
        step, layer = self._decision.steps[node], self._decision.flow.layer(node)
        given = [self.env[argument] for argument in node.all_input_nodes]
        inputs = [tensor for tensor in given if isinstance(tensor, torch.Tensor)]
        name = str(node.target) if node.op == "call_module" else node.name
        wanted = any(tensor.requires_grad for tensor in inputs)
        if layer is None:
            fraction = self._most(step.value or step.input)
            rows = self._moves(node, name, inputs[0], output) if inputs else ()
            return Task(name, 0, moved * fraction, 2 * wanted, tuple(rows))
        before, after = self._most(step.input), self._most(step.value)
        whole = step.style is None
        held = (
            1.0 if whole else before if step.style is RowwiseParallel else self._most(step.value or step.input, layer)
        )
        # A grouped layer reads only its groups' channels of a whole input, and a dense layer all of it.
        read = _size(inputs[0]) * (held if getattr(layer, "groups", 1) > 1 else before)
        written = _size(output) * (
            1.0 if step.style is RowwiseParallel or whole else held if step.value is None else after
        )
        weights = sum(_size(parameter) for parameter in layer.parameters(recurse=False)) * held
        return Task(
            name,
            round(_macs(layer, inputs[0], output) * held),
            read + written + weights,
            wanted + any(parameter.requires_grad for parameter in layer.parameters(recurse=False)),
            (*self._patterns(name, step, inputs[0], output), *self._moves(node, name, inputs[0], output)),
        )

    def _patterns(self, name: str, step: Step, given: torch.Tensor, made: torch.Tensor) -> Iterator[Collective]:
        if step.style is None or self._ranks == 1:
            return
        for operation, backward, end in patterns(step.style, step.input is not None, step.value is not None):
            if not backward or given.requires_grad:
                yield Collective(name, backward, operation, _size(given if end == "input" else made))

    def _moves(self, node: fx.Node, name: str, given: torch.Tensor, made: torch.Tensor) -> Iterator[Collective]:
        """Yields the rows that uneven shards move."""
        flow = self._decision.flow
        module = flow.module(node)
        style = style_of(module, self._decision.steps[node], flow.channels(node)) if module is not None else None
        if module is not None and isinstance(style, LayerStyle):
            shard = style.shard(module, self._ranks, 0)
            moves = (*tensor_moves(shard, module, self._ranks), *end_moves(shard, given, made, self._ranks))
            yield from (move.collective(name) for move in moves)

    def _most(self, values: UnionFind | None, layer: Any = None) -> float:
        """Returns the largest fraction that a rank holds: of a value's units, or of a layer's groups if it is whole."""
        units = values.root().units if values is not None else getattr(layer, "groups", 0)
        return max(Partition(units, self._ranks).lengths(units)) / units if units else 1.0


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(_size(tensor) for tensor in tensors)
        return made


def _macs(layer: Any, given: torch.Tensor, made: torch.Tensor) -> int:
    """Returns the multiply-accumulates of the forward of a convolution or a `Linear`."""
    if isinstance(layer, _ConvNd):
        return cost(layer, input_shape=given).macs.forward
    return math.prod(made.shape) * int(layer.in_features)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
