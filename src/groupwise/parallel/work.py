"""What a rank computes and exchanges in a step of a split network, from a run of its graph on shapes alone."""

from __future__ import annotations

import copy
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
from groupwise.parallel.crossing import Crossing, meetings
from groupwise.parallel.flow import held
from groupwise.parallel.moves import end_moves, tensor_moves
from groupwise.parallel.network import Decision, Joint, Step, style_of
from groupwise.parallel.styles import LayerStyle, SumParallel
from groupwise.spec.cost import cost
from groupwise.spec.partition import Share


@dataclass(frozen=True)
class Task:
    """One node of the graph, on the rank that holds most.

    - `name`: the layer's, or the node's where it is no layer
    - `macs`, `bytes`: of its forward; bytes are those of the tensors that its operations read and write
    - `gradients`: how many passes of as many MACs and bytes its backward takes
    - `crossings`: what it exchanges
    """

    name: str
    macs: int
    bytes: float
    gradients: int
    crossings: tuple[Crossing, ...]


def tasks(model: nn.Module, input_shape: Sequence[int], ranks: int = 1) -> tuple[Task, ...]:
    """The step of `model` over so many ranks on inputs of (N, C, ...), node by node; nothing is computed.

    Raises `GroupwiseError` for a model that `torch.fx` cannot follow, and for an input that it does not take.
    """
    twin = _on_meta(model)
    decision = Decision(twin, ranks)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    walk = _Walk(decision, ranks)
    try:
        walk.run(torch.empty(tuple(input_shape), dtype=dtype, device="meta"))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).split("\n")[0]
        raise GroupwiseError(
            f"{type(model).__name__} does not take an input of shape {tuple(input_shape)}: {reason}"
        ) from error
    return tuple(walk.tasks)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model with shapes for values."""
    shapes: dict[int, Any] = {}
    for one in (*model.parameters(), *model.buffers(), *held(model)):
        shapes[id(one)] = torch.empty_like(one, device="meta") if isinstance(one, torch.Tensor) else one
        if isinstance(one, nn.Parameter):
            shapes[id(one)] = nn.Parameter(shapes[id(one)], requires_grad=one.requires_grad)
    return copy.deepcopy(model, shapes)


class _Walk(fx.Interpreter):
    """Runs the graph on shapes, and notes each node's task."""

    def __init__(self, decision: Decision, ranks: int) -> None:
        super().__init__(decision.flow.root, graph=decision.flow.graph)
        self.tasks: list[Task] = []
        self._decision, self._ranks = decision, ranks

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, as `fx.Interpreter` has it."""
        with _Bytes() as moved:
            value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            # Also one that code makes of nothing, such as an arange.
            value = value.to("meta")
        if n.op.startswith("call_") and isinstance(value, torch.Tensor):
            self.tasks.append(self._task(n, value, moved.total))
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The module's value; a SyncBatchNorm takes no shapes alone, and keeps them."""
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
            share = self._most(step.value or step.input)
            rows = self._moves(node, name, inputs[0], output) if inputs else ()
            return Task(name, 0, moved * share, 2 * wanted, tuple(rows))
        before, after = self._most(step.input), self._most(step.value)
        whole = step.style is None
        held = 1.0 if whole else before if step.style is SumParallel else self._most(step.value or step.input, layer)
        # The parts of an input that is whole are read where they are asked for; of a dense layer's all are.
        read = _size(inputs[0]) * (held if getattr(layer, "groups", 1) > 1 else before)
        written = _size(output) * (1.0 if step.style is SumParallel or whole else held if step.value is None else after)
        weights = sum(_size(parameter) for parameter in layer.parameters(recurse=False)) * held
        return Task(
            name,
            round(_macs(layer, inputs[0], output) * held),
            read + written + weights,
            wanted + any(parameter.requires_grad for parameter in layer.parameters(recurse=False)),
            (*self._crossings(name, step, inputs[0], output), *self._moves(node, name, inputs[0], output)),
        )

    def _crossings(self, name: str, step: Step, given: torch.Tensor, made: torch.Tensor) -> Iterator[Crossing]:
        if step.style is None or self._ranks == 1:
            return
        for operation, backward, end in meetings(step.style, step.input is not None, step.value is not None):
            if not backward or given.requires_grad:
                yield Crossing(name, backward, operation, _size(given if end == "input" else made))

    def _moves(self, node: fx.Node, name: str, given: torch.Tensor, made: torch.Tensor) -> Iterator[Crossing]:
        """The rows of uneven parts."""
        flow = self._decision.flow
        module = flow.module(node)
        style = style_of(module, self._decision.steps[node], flow.channels(node)) if module is not None else None
        if module is not None and isinstance(style, LayerStyle):
            part = style.part(module, self._ranks, 0)
            moves = (*tensor_moves(part, module, self._ranks), *end_moves(part, given, made, self._ranks))
            yield from (move.crossing(name) for move in moves)

    def _most(self, joint: Joint | None, layer: Any = None) -> float:
        """The share of the rank that holds most: of a value's parts, or where it is whole of a layer's groups."""
        parts = joint.root().parts if joint is not None else getattr(layer, "groups", 0)
        return max(Share(parts, self._ranks).lengths(parts)) / parts if parts else 1.0


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operations read and write; views move nothing."""

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
    """Multiply-accumulates of a convolution or a `Linear` forward."""
    if isinstance(layer, _ConvNd):
        return cost(layer, input_shape=given).macs.forward
    return math.prod(made.shape) * int(layer.in_features)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
