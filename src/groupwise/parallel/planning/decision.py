"""Decides which style each layer of a network gets, and why, along the graph in which channels flow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.dropout import _DropoutNd

from groupwise.parallel.planning.flow import Flow
from groupwise.parallel.styles.base import sizes_of
from groupwise.parallel.styles.channelwise import STATELESS, ChannelwiseParallel, KeepWhole, units_of
from groupwise.parallel.styles.dense import ColwiseParallel, RowwiseParallel
from groupwise.parallel.styles.group import GroupParallel


class UnionFind:
    """A set of values that are split alike, so that nothing moves between them: a node of a union-find.

    `units`, at the root, divides the number of units of every layer that takes or returns these values.
    """

    def __init__(self, units: int = 0) -> None:
        self.units = units
        self._parent: UnionFind | None = None

    def root(self) -> UnionFind:
        """Returns the node that represents the whole set."""
        return self if self._parent is None else self._parent.root()

    def restrict(self, units: int) -> None:
        """Adds a layer that has this many units, none of which may be cut."""
        self.root().units = math.gcd(self.root().units, units)

    def union(self, other: UnionFind) -> None:
        """Makes one set of two."""
        if self.root() is not other.root():
            self.restrict(other.root().units)
            other.root()._parent = self.root()


@dataclass
class Step:
    """The decision about a node: its style, and the sets of its value and its input, None where they are whole."""

    value: UnionFind | None = None
    input: UnionFind | None = None
    style: type[ParallelStyle] | None = None
    reason: str = ""

    @property
    def units(self) -> tuple[int | None, int | None]:
        """Returns the number of units of its input and of its value, None where they are whole."""
        inputs, outputs = (None if values is None else values.root().units for values in (self.input, self.value))
        return inputs, outputs


class Decision:
    """The styles of a model's layers, decided along its graph.

    - A grouped layer is split by its groups.
    - A dense layer whose outputs lead only to split layers is split by its outputs. Any other dense layer with split
      inputs is split by its inputs, so that the block's sum over its paths is the one collective.
    - All other layers would need a collective of their own, and stay whole.

    `whole` holds the nodes whose input has to be whole: those with fewer units than there are ranks, and those that a
    walk along the graph finds, which is then repeated.
    """

    def __init__(self, model: nn.Module, ranks: int) -> None:
        self.flow = Flow(model)
        self.ranks = ranks
        self.whole = {node for node in self.flow.graph.nodes if self._least(node) < ranks}
        while not self._walk():
            pass

    def layers(self) -> Iterator[tuple[str, Step, int]]:
        """Yields the name, the decision and the channels of each module that is called."""
        seen: set[str] = set()
        for node in self.flow.graph.nodes:
            if node.op == "call_module" and node.target not in seen:
                seen.add(node.target)
                yield node.target, self.steps[node], self.flow.channels(node)

    def _walk(self) -> bool:
        """Decides each node in turn. Returns False if that found another node that needs its input whole."""
        known = len(self.whole)
        self.steps: dict[fx.Node, Step] = {}
        self.ends: dict[fx.Node, frozenset[fx.Node] | None] = {}
        for node in self.flow.graph.nodes:
            self.steps[node] = self._step(node)
        for node, step in self.steps.items():
            if any(values is not None and values.root().units < self.ranks for values in (step.input, step.value)):
                self.whole.add(node)
        for node in self.steps:
            calls = self.flow.calls(node) if node.op == "call_module" else []
            if len({self._facts(call) for call in calls}) > 1:
                self.whole.update(calls)
        return len(self.whole) == known

    def _least(self, node: fx.Node) -> float:
        """Returns into how many units a node could be split."""
        layer, module = self.flow.layer(node), self.flow.module(node)
        if layer is None:
            return (units_of(module) if module is not None else None) or math.inf
        groups = getattr(layer, "groups", 1)
        return groups if groups > 1 else min(sizes_of(layer))

    def _facts(self, node: fx.Node) -> tuple[Any, ...]:
        """Returns what has to be equal for all calls of one module."""
        step, module = self.steps[node], self.flow.module(node)
        if type(module) in STATELESS:
            return ()
        # Only a dropout gets the number of channels from the plan.
        dropped = step.input is not None and isinstance(module, _DropoutNd)
        return step.style, *step.units, self.flow.channels(node) if dropped else 0

    def _step(self, node: fx.Node) -> Step:
        inputs = self.flow.tensors(node)
        before = self.steps[inputs[0]].value if inputs else None
        layer = self.flow.layer(node)
        if layer is not None:
            return self._layer(node, layer, before)
        if self.flow.gates(node):
            other = self.steps[inputs[1]].value
            if (before is None) != (other is None):
                self.whole.add(node)
            elif before is not None and other is not None:
                before.union(other)
            return Step(before, before)
        if before is not None and self.flow.passes(node):
            module = self.flow.module(node)
            if module is not None and type(module) not in (*STATELESS, nn.Flatten):
                before.restrict(units_of(module) or 0)
                return Step(
                    before, before, ChannelwiseParallel, "it computes each channel, or group of channels, alone"
                )
            return Step(before, before)
        return Step()

    def _layer(self, node: fx.Node, layer: Any, before: UnionFind | None) -> Step:
        ends = self._ends(node)
        grouped = {end for end in ends or () if getattr(self.flow.layer(end), "groups", 1) > 1}
        inputs, outputs = sizes_of(layer)
        if self._least(node) < self.ranks:
            return Step(reason=f"fewer than {self.ranks} groups or channels, so that ranks would be left without")
        if getattr(layer, "groups", 1) > 1:
            if before is None and not ends:
                if layer.groups == layer.in_channels:
                    return Step(reason="depthwise between whole values: to split it costs more than to compute it")
                return Step(style=GroupParallel, reason="grouped: whole groups to each rank")
            value = (before or UnionFind()) if ends else None
            for values in {before, value} - {None}:
                values.restrict(layer.groups)  # type: ignore[union-attr]
            return Step(value, before, GroupParallel, "grouped: whole groups to each rank")
        if before is not None:
            before.restrict(inputs)
            if ends and (isinstance(layer, nn.Linear) or inputs <= outputs):
                return Step(
                    UnionFind(outputs), before, ColwiseParallel, "dense, before split layers: it reads all channels"
                )
            return Step(None, before, RowwiseParallel, "dense, after split layers: each rank adds its paths")
        if ends and (grouped or len(ends) == 1):
            return Step(UnionFind(outputs), None, ColwiseParallel, "dense, before split layers")
        return Step(reason="to split it would cost a collective of its own")

    def _ends(self, node: fx.Node) -> frozenset[fx.Node] | None:
        """Returns the layers that a node's value leads to through what computes channels alone; None if also others."""
        if node not in self.ends:
            found: set[fx.Node] | None = set()
            for user in node.users:
                if self.flow.reads_common(user, node):
                    continue
                if user in self.whole:
                    more: frozenset[fx.Node] | None = None
                elif self.flow.layer(user) is not None:
                    more = frozenset([user])
                else:
                    more = self._ends(user) if self.flow.passes(user) or self.flow.gates(user) else None
                found = None if more is None or found is None else found | more
            self.ends[node] = None if found is None else frozenset(found)
        return self.ends[node]


def style_of(module: nn.Module, step: Step, channels: int = 0, uneven: bool = True) -> ParallelStyle:
    """Returns the style of a module for the decision about it; `channels` is the number that a dropout needs."""
    inputs, outputs = step.units
    if step.style is None:
        return KeepWhole()
    dim = -1 if isinstance(module, nn.Linear) else 1
    before, after = (Replicate() if units is None else Shard(dim) for units in (inputs, outputs))
    layouts: dict[str, Any] = {"input_layouts": before, "output_layouts": after, "uneven": uneven}
    if step.style is ChannelwiseParallel:
        dropped = channels if isinstance(module, _DropoutNd) else None
        return ChannelwiseParallel(units=inputs, channels=dropped, **layouts)
    if step.style is GroupParallel:
        return GroupParallel(units=inputs or outputs, **layouts)
    return step.style(input_units=inputs, output_units=outputs, **layouts)  # type: ignore[call-arg]
