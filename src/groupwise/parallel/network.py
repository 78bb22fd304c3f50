"""Which style each layer of a network gets, and why: decided along the graph in which channels flow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.dropout import _DropoutNd

from groupwise.parallel.channelwise import STATELESS, ChannelwiseParallel, KeepWhole, parts_of
from groupwise.parallel.flow import Flow
from groupwise.parallel.styles import ChannelParallel, GroupParallel, SumParallel, sizes_of


class Joint:
    """Values that lie split alike: between them nothing moves. `parts` divide what each layer there asks for."""

    def __init__(self, parts: int = 0) -> None:
        self.parts = parts
        self._in: Joint | None = None

    def root(self) -> Joint:
        """The one that stands for all that have been joined."""
        return self if self._in is None else self._in.root()

    def ask(self, parts: int) -> None:
        """A layer here has so many parts that may not be cut."""
        self.root().parts = math.gcd(self.root().parts, parts)

    def join(self, other: Joint) -> None:
        """Both lie alike."""
        if self.root() is not other.root():
            self.ask(other.root().parts)
            other.root()._in = self.root()


@dataclass
class Step:
    """What is decided of a node: its style, and how its value and its input lie, None where they are whole."""

    value: Joint | None = None
    input: Joint | None = None
    style: type[ParallelStyle] | None = None
    reason: str = ""

    @property
    def parts(self) -> tuple[int | None, int | None]:
        """In how many parts its input and its value lie; None where they are whole."""
        inputs, outputs = (None if joint is None else joint.root().parts for joint in (self.input, self.value))
        return inputs, outputs


class Decision:
    """The styles of a model's layers, decided along its graph.

    - A grouped layer is split by its groups.
    - A dense layer is split by its outputs where these lead to split layers alone, and else by its inputs where these
      are split, so that the block's sum over its paths is the one exchange.
    - What is left would need an exchange of its own, and stays whole.

    `whole` holds the nodes whose input has to be whole: those with fewer parts than there are ranks, and those found
    out as the graph is walked, which then begins again.
    """

    def __init__(self, model: nn.Module, ranks: int) -> None:
        self.flow = Flow(model)
        self.ranks = ranks
        self.whole = {node for node in self.flow.graph.nodes if self._least(node) < ranks}
        while not self._walk():
            pass

    def layers(self) -> Iterator[tuple[str, Step, int]]:
        """What is decided of each module that is called, by name."""
        seen: set[str] = set()
        for node in self.flow.graph.nodes:
            if node.op == "call_module" and node.target not in seen:
                seen.add(node.target)
                yield node.target, self.steps[node], self.flow.channels(node)

    def _walk(self) -> bool:
        """Decide for each node in turn; False where a node turned out to need its input whole."""
        known = len(self.whole)
        self.steps: dict[fx.Node, Step] = {}
        self.ends: dict[fx.Node, frozenset[fx.Node] | None] = {}
        for node in self.flow.graph.nodes:
            self.steps[node] = self._step(node)
        for node, step in self.steps.items():
            if any(joint is not None and joint.root().parts < self.ranks for joint in (step.input, step.value)):
                self.whole.add(node)
        for node in self.steps:
            calls = self.flow.calls(node) if node.op == "call_module" else []
            if len({self._facts(call) for call in calls}) > 1:
                self.whole.update(calls)
        return len(self.whole) == known

    def _least(self, node: fx.Node) -> float:
        """The parts that a node could be split into."""
        layer, module = self.flow.layer(node), self.flow.module(node)
        if layer is None:
            return (parts_of(module) if module is not None else None) or math.inf
        groups = getattr(layer, "groups", 1)
        return groups if groups > 1 else min(sizes_of(layer))

    def _facts(self, node: fx.Node) -> tuple[Any, ...]:
        """What all calls of one module have to agree on."""
        step, module = self.steps[node], self.flow.module(node)
        if type(module) in STATELESS:
            return ()
        # A dropout alone is told how many channels there are.
        dropped = step.input is not None and isinstance(module, _DropoutNd)
        return step.style, *step.parts, self.flow.channels(node) if dropped else 0

    def _step(self, node: fx.Node) -> Step:
        inputs = node.all_input_nodes
        before = self.steps[inputs[0]].value if inputs else None
        layer = self.flow.layer(node)
        if layer is not None:
            return self._layer(node, layer, before)
        if self.flow.gates(node):
            other = self.steps[inputs[1]].value
            if (before is None) != (other is None):
                self.whole.add(node)
            elif before is not None and other is not None:
                before.join(other)
            return Step(before, before)
        if before is not None and self.flow.passes(node):
            module = self.flow.module(node)
            if module is not None and type(module) not in (*STATELESS, nn.Flatten):
                before.ask(parts_of(module) or 0)
                return Step(before, before, ChannelwiseParallel, "its channels do not meet in it")
            return Step(before, before)
        return Step()

    def _layer(self, node: fx.Node, layer: Any, before: Joint | None) -> Step:
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
            value = (before or Joint()) if ends else None
            for joint in {before, value} - {None}:
                joint.ask(layer.groups)  # type: ignore[union-attr]
            return Step(value, before, GroupParallel, "grouped: whole groups to each rank")
        if before is not None:
            before.ask(inputs)
            if ends and (isinstance(layer, nn.Linear) or inputs <= outputs):
                return Step(
                    Joint(outputs), before, ChannelParallel, "dense, before split layers: it reads all channels"
                )
            return Step(None, before, SumParallel, "dense, after split layers: each rank adds its paths")
        if ends and (grouped or len(ends) == 1):
            return Step(Joint(outputs), None, ChannelParallel, "dense, before split layers")
        return Step(reason="to split it would cost an exchange of its own")

    def _ends(self, node: fx.Node) -> frozenset[fx.Node] | None:
        """The layers that a node's value leads to through what can be computed of a part; None if also elsewhere."""
        if node not in self.ends:
            found: set[fx.Node] | None = set()
            for user in node.users:
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
    """The style of a module for what is decided of it; `channels` are those that a dropout is told of."""
    inputs, outputs = step.parts
    if step.style is None:
        return KeepWhole()
    dim = -1 if isinstance(module, nn.Linear) else 1
    before, after = (Replicate() if parts is None else Shard(dim) for parts in (inputs, outputs))
    layouts: dict[str, Any] = {"input_layouts": before, "output_layouts": after, "uneven": uneven}
    if step.style is ChannelwiseParallel:
        dropped = channels if isinstance(module, _DropoutNd) else None
        return ChannelwiseParallel(parts=inputs, channels=dropped, **layouts)
    if step.style is GroupParallel:
        return GroupParallel(parts=inputs or outputs, **layouts)
    return step.style(input_parts=inputs, output_parts=outputs, **layouts)  # type: ignore[call-arg]
