"""`Program`: a rewritten graph, made ready to run: weights packed, engines chosen, calls in a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import TreeSpec

from groupwise.rewrite.capture import Captured, module_of
from groupwise.rewrite.chain import Chained, Link, chain_recipe, choose_chains, link, linked_step, runs_of, weights_of
from groupwise.rewrite.choose import Choice, Deadline, choose
from groupwise.rewrite.compiled import Compiled, NotCompiled
from groupwise.rewrite.engines import Work
from groupwise.rewrite.fold import fold, mark_constants
from groupwise.rewrite.functional import make_functional, memory_of
from groupwise.rewrite.fuse import fuse
from groupwise.rewrite.heap import Freed
from groupwise.rewrite.norms import batch_norm_act, norm_recipe
from groupwise.rewrite.plan import Step
from groupwise.rewrite.pool import name_pools
from groupwise.rewrite.precision import lower
from groupwise.rewrite.recipe import Operation, Recipe, Slot
from groupwise.rewrite.shuffle import name_shuffles
from groupwise.rewrite.simplify import change_layout, copy_shared_outputs, remove_unread, simplify, to_channels_last
from groupwise.rewrite.squeeze import name_means, name_squeezes
from groupwise.rewrite.steps import ACTIVATIONS, args_of, chain, is_layer, is_tensor, name_layers, value
from groupwise.rewrite.tape import Tape

aten = torch.ops.aten

# Operators that may write where their first argument is, once nothing else reads that.
IN_PLACE: dict[Any, Any] = {
    operator: getattr(getattr(aten, operator.name().split("::")[1].split(".")[0] + "_"), operator._overloadname)
    for operator in (*ACTIVATIONS, aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor)
    if operator is not aten.relu6.default
}


def _channels_last_recipe(given: int, source: Any) -> Recipe:
    return Recipe(given, Operation(aten.contiguous.default, (source,), {"memory_format": torch.channels_last}))


# Python functions in a graph, as operators, which the core can call. A row takes the number of values, and arguments.
RECIPES: dict[Any, Callable[..., Recipe]] = {to_channels_last: _channels_last_recipe, batch_norm_act: norm_recipe}


class Program:
    """What a module computes on inputs of one shape.

    `pack` makes the tape that runs from the parameters as they are then; the first one chooses the engines too.
    """

    def __init__(self, captured: Captured, deadline: Deadline | None, dtype: torch.dtype | None = None) -> None:
        graph = captured.graph
        make_functional(graph)
        simplify(graph)
        mark_constants(graph)
        name_layers(graph)
        fold(graph)
        remove_unread(graph)
        fuse(graph)
        if dtype is not None:
            lower(graph)
        name_squeezes(graph)
        name_means(graph)
        name_shuffles(graph)
        name_pools(graph)
        copy_shared_outputs(graph)
        change_layout(graph)
        self.graph: Graph = graph
        self.out_spec: TreeSpec = captured.out_spec
        self.steps: tuple[Step, ...] = ()
        self._captured_constants = captured.constants
        self._deadline, self._freed = deadline, Freed()
        self._choices: dict[Node, tuple[Work, Choice]] = {}
        self._known: dict[Any, Choice] = {}
        # Chains, with what each of their layers computes; and those of runs alike.
        self._chains: dict[Node, tuple[list[Work], Chained]] = {}
        self._known_chains: dict[Any, list[Chained]] = {}
        self._dead = _last_reads(graph)
        self._writable = _writable(graph)
        self._restrides: dict[Node, Recipe] = {}
        # Why Python runs the steps; None if the native core does.
        self.interpreted: str | None = None

    @property
    def states(self) -> list[str]:
        """The names of the parameters and buffers that the graph reads."""
        names = [node.meta["state"] for node in self.graph.nodes if node.meta.get("state")]
        return [name for name in names if name not in self._captured_constants]

    def pack(self, states: Mapping[str, torch.Tensor], example: Sequence[Any] | None = None) -> Tape | Compiled:
        """Packs the weights. The first call takes the leaves of an example input, on which engines are tried."""
        with torch.no_grad(), torch.inference_mode(False):
            constants = self._evaluate({**self._captured_constants, **states})
            calls = self._calls(constants) if example is None else self._choose(constants, example)
        tape = self._tape(calls, constants)
        try:
            return Compiled(tape, self._shares)
        except NotCompiled as reason:
            self.interpreted = str(reason)
            return tape

    @property
    def _shares(self) -> bool:
        """Whether an output may share memory with an input."""
        roots = memory_of(self.graph)
        return any(
            root.op == "placeholder" for node in self.graph.output_node().all_input_nodes for root in roots[node]
        )

    def _evaluate(self, states: Mapping[str, torch.Tensor]) -> dict[Node, Any]:
        """Computes the constant expressions."""
        values: dict[Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder" and "state" in node.meta:
                values[node] = states[node.meta["state"]].detach()
            elif node.op == "call_function" and node.meta.get("constant"):
                args, kwargs = map_arg((args_of(node), node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        return values

    def _calls(self, constants: dict[Node, Any]) -> dict[Node, tuple[Recipe, list[Node]]]:
        return {node: self._call(node, constants) for node in self._running(constants)}

    def _running(self, constants: Mapping[Node, Any]) -> list[Node]:
        return [node for node in self.graph.nodes if node.op == "call_function" and node not in constants]

    def _call(self, node: Node, constants: dict[Node, Any]) -> tuple[Recipe, list[Node]]:
        """Returns what computes a node, and the nodes that it reads."""
        if is_layer(node):
            work, choice = self._choices[node]
            return choice.engine.make(work, *_packable(node, constants)), _reads(node)
        if node.target is chain:
            works, chained = self._chains[node]
            weights = [_packed_as(value(node).dtype, *pair, constants) for pair in weights_of(node)]
            return chain_recipe(works, chained.kernels, weights), [args_of(node)[0], *args_of(node)[2:]]
        target: Any = node.target
        if node in self._writable and args_of(node)[0] in self._writable[node]:
            target = node.meta.get("in_place", IN_PLACE.get(target, target))
        reads: list[Node] = []

        def keep(read: Node) -> Any:
            if read in constants:
                return constants[read]
            reads.append(read)
            return Slot(len(reads) - 1)

        args, kwargs = _mapped(args_of(node), keep), {name: _mapped(each, keep) for name, each in node.kwargs.items()}
        if "in_place" in node.meta and target is node.meta["in_place"]:
            # It writes to what it reads first.
            kwargs = {"out": args[0]}
        if target in RECIPES:
            return RECIPES[target](len(reads), *args), reads
        return Recipe(len(reads), Operation(target, args, kwargs)), reads

    def _choose(self, constants: dict[Node, Any], example: Sequence[Any]) -> dict[Node, tuple[Recipe, list[Node]]]:
        """Runs the example operator by operator, and chooses an engine for each layer on what it reads."""
        inputs = [node for node in self.graph.nodes if node.op == "placeholder" and "state" not in node.meta]
        # A residual may be overwritten, but never the caller's tensors, nor a constant: they have roots of their own.
        values: dict[Node, Any] = {**constants, **dict(zip(inputs, example, strict=True))}
        found: dict[Node, tuple[Recipe, list[Node]]] = {}
        steps: dict[Node, Step] = {}
        runs = runs_of(self.graph, self._writable) if self._deadline else []
        # What a run reads stays until its last layer is there.
        ends, held = {run[-1]: run for run in runs}, {args_of(run[0])[0] for run in runs}
        chains: list[tuple[list[Node], Chained]] = []
        for node in self._running(constants):
            if is_layer(node):
                self._choose_layer(node, constants, [values[read] for read in _reads(node)])
            recipe, reads = found[node] = self._call(node, constants)
            given = [values[read] for read in reads]
            if node in ends:
                run = ends[node]
                operands = [values[args_of(run[0])[0]], *(values[read] for read in _reads(node)[1:])]
                chains += [(run, each) for each in self._choose_chains(run, found, constants, operands)]
            # What is read first is gone after the call if that writes in place.
            shape = tuple(given[0].shape) if given and isinstance(given[0], torch.Tensor) else ()
            values[node] = recipe(*given)
            steps[node] = self._step(node, shape, values[node])
            for read in self._dead[node]:
                if read not in held:
                    values.pop(read, None)
        linked = {
            run[each.last - 1]: self._link(run[each.first : each.last], each, constants, values, found, steps)
            for run, each in chains
        }
        if linked:
            self._dead, self._writable = _last_reads(self.graph), _writable(self.graph)
            found = {
                node: (found[node][0], [linked.get(read, read) for read in found[node][1]])
                for node in self._running(constants)
            }
        self.steps = tuple(steps[node] for node in found)
        for node in self.graph.output_node().all_input_nodes:
            made, wanted = values.get(node, constants.get(node)), node.meta["val"]
            if isinstance(made, torch.Tensor) and _strides(made) != _strides(wanted):
                self._restrides[node] = _restride(wanted)
        return found

    def _choose_layer(self, node: Node, constants: dict[Node, Any], given: list[torch.Tensor]) -> None:
        weight, bias = _packable(node, constants)
        source = given[0]
        enters = node.meta.get("enters", False)
        work = Work(
            source=tuple(source.shape),
            result=tuple(value(node).shape),
            weight=tuple(weight.shape),
            dtype=value(node).dtype,
            bias=bias is not None,
            geometry=node.meta.get("geometry"),
            epilogue=node.meta["epilogue"],
            overwrite=len(given) > 1 and given[1] is not given[0] and args_of(node)[3] in self._writable.get(node, ()),
            channels_last=enters or (source.dim() == 4 and source.is_contiguous(memory_format=torch.channels_last)),
            enters=enters,
        )
        key = (work, source.stride(), given[-1].stride())
        if key not in self._known:
            found = self._known[key] = choose(work, weight, bias, given, self._deadline)
            # Each engine had a packed weight, and an output.
            self._freed.add(len(found.ms) * sum(each.nbytes for each in (*given, weight, value(node))))
        self._choices[node] = work, self._known[key]

    def _choose_chains(
        self,
        run: Sequence[Node],
        found: Mapping[Node, tuple[Recipe, list[Node]]],
        constants: Mapping[Node, Any],
        given: list[torch.Tensor],
    ) -> list[Chained]:
        if not all(node in self._choices for node in run) or self._deadline is None or self._deadline.is_over:
            return []
        links = [Link(*self._choices[node], *_packable(node, constants), found[node][0]) for node in run]
        key = (tuple((each.work, each.choice.engine.label) for each in links), *(each.stride() for each in given))
        if key not in self._known_chains:
            self._known_chains[key] = choose_chains(links, given, self._deadline)
        return self._known_chains[key]

    def _link(
        self,
        layers: Sequence[Node],
        chained: Chained,
        constants: dict[Node, Any],
        values: dict[Node, Any],
        found: dict[Node, tuple[Recipe, list[Node]]],
        steps: dict[Node, Step],
    ) -> Node:
        """Puts a chain in place of layers, in the graph and in what is known of it."""
        works = [self._choices.pop(layer)[0] for layer in layers]
        made, last = link(self.graph, layers), layers[-1]
        self._chains[made] = works, chained
        found[made], steps[made] = self._call(made, constants), linked_step([steps[layer] for layer in layers], chained)
        if last in values:
            values[made] = values.pop(last)
        return made

    def _step(self, node: Node, shape: tuple[int, ...], made: Any) -> Step:
        output = tuple(made.shape) if isinstance(made, torch.Tensor) else ()
        if not is_layer(node):
            name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
            if node.target is aten._to_copy.default:
                name = f"to_{value(node).dtype}".replace("torch.", "")
            engine = node.meta.get("engine", "groupwise" if node.target is batch_norm_act else "pytorch")
            fused, layers = node.meta.get("fused", ()), node.meta.get("layers", ())
            return Step(module_of(node), name, engine, fused, shape, output, layers=layers)
        work, choice = self._choices[node]
        return Step(
            name=module_of(node),
            kind=str(node.target.__name__) if callable(node.target) else "",
            engine=choice.engine.name,
            fused=node.meta["fused"],
            input_shape=shape,
            output_shape=output,
            groups=None if work.geometry is None else work.geometry.groups,
            reason=choice.reason,
            refused=choice.refused,
            ms=choice.ms,
            kernel=choice.kernel,
        )

    def _tape(self, calls: Mapping[Node, tuple[Recipe, list[Node]]], constants: Mapping[Node, Any]) -> Tape:
        slots = {node: number for number, node in enumerate(self.graph.nodes)}
        inputs = [node for node in self.graph.nodes if node.op == "placeholder" and "state" not in node.meta]
        output = self.graph.output_node()
        steps = [
            (recipe, tuple(slots[read] for read in reads), slots[node], tuple(slots[read] for read in self._dead[node]))
            for node, (recipe, reads) in calls.items()
        ]
        for node, restride in self._restrides.items():
            steps.append((restride, (slots[node],), slots[node], ()))
        read = {node for _, reads in calls.values() for node in reads} | set(output.all_input_nodes)
        return Tape(
            steps=steps,
            inputs=[slots[node] for node in inputs],
            constants={slots[node]: constants[node] for node in read if node in constants},
            slots=len(slots),
            outputs=[slots[leaf] if isinstance(leaf, Node) else (leaf,) for leaf in args_of(output)[0]],
            out_spec=self.out_spec,
        )


def _reads(layer: Node) -> list[Node]:
    return [args_of(layer)[0], *args_of(layer)[3:]]


def _packable(node: Node, constants: Mapping[Node, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns a layer's weight in the dtype of what it reads, and its bias in one that is as exact as its sums."""
    source, weight, bias = args_of(node)[:3]
    return _packed_as(value(source).dtype, weight, bias, constants)


def _packed_as(
    dtype: torch.dtype, weight: Node, bias: Node | None, constants: Mapping[Node, Any]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    return constants[weight].to(dtype), None if bias is None else constants[bias].to(exact)


def _last_reads(graph: Graph) -> dict[Node, list[Node]]:
    """Returns for each node the nodes whose values nothing reads after it."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        for read in node.all_input_nodes:
            last[read] = node
    dead: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for read, node in last.items():
        dead[node].append(read)
    return dead


def _writable(graph: Graph) -> dict[Node, set[Node]]:
    """Returns for each node what it reads and may overwrite: fresh memory that nothing reads later by any name."""
    roots, order = memory_of(graph), {node: number for number, node in enumerate(graph.nodes)}
    readers: dict[Node, list[Node]] = {}
    for node, memory in roots.items():
        for root in memory:
            readers.setdefault(root, []).extend(node.users)
    found: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        reads = node.all_input_nodes
        for read in reads:
            fresh = roots[read] == {read} and read.op == "call_function" and not read.meta.get("constant")
            others = [other for other in reads if other is not read and roots[other] & roots[read]]
            late = any(order[reader] > order[node] for reader in readers.get(read, ()))
            if fresh and not others and not late and is_tensor(node) and is_tensor(read):
                alike = value(node).shape == value(read).shape and value(node).dtype == value(read).dtype
                if alike and list(args_of(node)).count(read) == 1:
                    found.setdefault(node, set()).add(read)
    return found


def _strides(tensor: torch.Tensor) -> list[int]:
    """Returns the strides that matter."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _restride(wanted: torch.Tensor) -> Recipe:
    """Returns what gives a tensor the strides that the model's own output has."""
    empty = Operation(aten.new_empty_strided.default, (Slot(0), list(wanted.shape), list(wanted.stride())))
    return Recipe(1, empty, Operation(aten.copy_.default, (Slot(1), Slot(0))))


def _mapped(argument: Any, keep: Callable[[Node], Any]) -> Any:
    """Returns the argument with what stands for its nodes, in plain lists and tuples."""
    if isinstance(argument, Node):
        return keep(argument)
    if isinstance(argument, list | tuple):
        parts = [_mapped(part, keep) for part in argument]
        return tuple(parts) if isinstance(argument, tuple) else parts
    if isinstance(argument, slice):
        return slice(*(_mapped(part, keep) for part in (argument.start, argument.stop, argument.step)))
    return argument
