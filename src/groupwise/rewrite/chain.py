"""Chains: layers that follow each other, computed band by band of rows where that is measured to be faster."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.choose import CALL, Choice, Deadline, fastest, problem_of, time_calls
from groupwise.rewrite.engines import CONVOLUTION, RESIDUAL, SOURCE, Maybe, Work, kernel_of, native_layer
from groupwise.rewrite.functional import memory_of
from groupwise.rewrite.plan import Step
from groupwise.rewrite.recipe import Call, Method, Operation, Recipe
from groupwise.rewrite.samples import cut, of_samples
from groupwise.rewrite.steps import args_of, chain, convolution, is_layer, only_reader, put, value

# The most layers of a chain: more would compute more rows twice, and keep more in the cache.
MOST_LAYERS = 3


@dataclass(frozen=True)
class Link:
    """A layer that a chain may have: its weight and bias, the engine that was chosen for it, and what that computes."""

    work: Work
    choice: Choice
    weight: torch.Tensor
    bias: Maybe
    recipe: Recipe

    @property
    def kernel(self) -> str:
        """The kernel of groupwise that was the fastest on the whole layer; empty if none can run it."""
        ours = {engine.label: engine for engine in CONVOLUTION if engine.name == "groupwise"}
        measured = {label: ms for label, ms in self.choice.ms.items() if label in ours}
        if not measured:
            return self.choice.kernel
        return kernel_of(ours[min(measured, key=measured.__getitem__)], self.work)


@dataclass(frozen=True)
class Chained:
    """Layers [first, last) of a run, and why they are a chain.

    - `kernels`: that run them
    - `rows`: of the output, in a band
    - `ms`: the shortest time of the chain, and of its layers one by one
    - `samples`: how many samples these had, if fewer than the example
    """

    first: int
    last: int
    kernels: tuple[str, ...]
    rows: int
    ms: Mapping[str, float]
    samples: int | None = None

    @property
    def reason(self) -> str:
        """What a plan says."""
        rows = f"{self.rows} row{'s' * (self.rows != 1)} at a time"
        return f"{rows}, {self.ms['chain']:.3f} ms{of_samples(self.samples)}, one by one {self.ms['one by one']:.3f}"


def runs_of(graph: Graph, writable: Mapping[Node, Collection[Node]]) -> list[list[Node]]:
    """Returns the longest runs of 2-D layers each of which is read by the next one alone."""
    if native.status().operators_problem:
        return []
    found: list[list[Node]] = []
    for node in graph.nodes:
        if not _fits(node):
            continue
        before: Node = args_of(node)[0]
        run = next((run for run in found if run[-1] is before), [])
        if run and only_reader(before) and not before.meta["epilogue"].residual:
            run.append(node)
        else:
            found.append([node])
    roots, nodes = memory_of(graph), list(graph.nodes)

    def intact(run: list[Node]) -> bool:
        """Tells whether nothing overwrites what the run reads before its last layer runs."""
        reads = [args_of(run[0])[0], *args_of(run[-1])[3:]]
        memory = frozenset().union(*(roots[read] for read in reads if read is not None))
        between = nodes[nodes.index(run[0]) : nodes.index(run[-1])]
        return not any(roots[over] & memory for node in between for over in _overwritten(node, writable))

    return [run for run in found if len(run) > 1 and intact(run)]


def _overwritten(node: Node, writable: Mapping[Node, Collection[Node]]) -> list[Node]:
    """Returns what a node may overwrite. Of what it reads, a layer overwrites a residual alone."""
    reads = args_of(node)[3:] if is_layer(node) else node.all_input_nodes
    return [read for read in reads if read in writable.get(node, ())]


def _fits(node: Node) -> bool:
    if not is_layer(node) or node.target is not convolution or value(node).dtype != torch.float32:
        return False
    geometry = node.meta["geometry"]
    return geometry.dims == 2 and not geometry.transposed and value(node).numel() > 0


def choose_chains(links: Sequence[Link], given: Sequence[torch.Tensor], deadline: Deadline) -> list[Chained]:
    """Times parts of a run as chains, and layer by layer, until the deadline; returns those that gain the most.

    `given` has what the first layer reads, and the residual of the last one if that has one. If layers were timed on
    some samples of it, so are the chains.
    """
    samples = _samples(links, given)
    given = given if samples is None else cut(given, len(given[0]), samples)
    sources = [given[0]]
    for link in links[:-1]:
        sources.append(link.recipe(sources[-1]))
    gains: dict[tuple[int, int], tuple[float, Chained]] = {}
    for first in range(len(links)):
        for last in range(min(len(links), first + MOST_LAYERS), first + 1, -1):
            if deadline.is_over:
                continue
            residual = given[1:] if last == len(links) else ()
            if found := _measured(links[first:last], first, (sources[first], *residual)):
                gain, chained = found
                gains[first, last] = gain, replace(chained, samples=samples)
    # What the layers before each place gain at most, and by which chains.
    best: list[tuple[float, list[Chained]]] = [(0.0, [])]
    for last in range(1, len(links) + 1):
        options = [best[last - 1]]
        for (start, end), (gain, chained) in gains.items():
            if end == last:
                options.append((best[start][0] + gain, [*best[start][1], chained]))
        best.append(max(options, key=lambda option: option[0]))
    return best[-1][1]


def _samples(links: Sequence[Link], given: Sequence[torch.Tensor]) -> int | None:
    """Returns how many samples of the first layer's input to time chains on; None for all."""
    whole = len(given[0])
    if all(link.choice.samples is None for link in links):
        return None
    # What the layers take of one sample, as far as they were timed.
    ms = sum(min(link.choice.ms.values(), default=0.0) / (link.choice.samples or whole) for link in links)
    fewest = min(link.choice.samples or whole for link in links)
    samples = max(fewest, math.ceil(CALL * 1e3 / ms)) if ms else fewest
    return samples if samples < whole else None


def _measured(links: Sequence[Link], first: int, given: Sequence[torch.Tensor]) -> tuple[float, Chained] | None:
    """Returns the gain of a chain in seconds, if it is faster than its layers one by one."""
    kernels = tuple(link.kernel for link in links)
    if not all(kernels):
        return None
    recipe = chain_recipe([link.work for link in links], kernels, [(link.weight, link.bias) for link in links])
    made = _owner(recipe)
    if made.refuses(given[0]):
        return None
    steps = _one_by_one(links, given)
    exact = steps(*given[:1], *(residual.clone() for residual in given[1:]))
    # A chain writes channels_last. What reads it may have been planned for another format.
    problem, _ = problem_of(recipe.call, given, exact)
    if problem or made.empty(given[0]).stride() != exact.stride():
        return None
    calls = {"one by one": steps, "chain": recipe.again(recipe(*given))}
    seconds = time_calls(calls, given)
    if fastest(seconds) != "chain":
        return None
    least = {name: min(found) for name, found in seconds.items()}
    ms = {name: round(found * 1e3, 4) for name, found in least.items()}
    chained = Chained(first, first + len(links), kernels, made.rows(given[0]), ms)
    return least["one by one"] - least["chain"], chained


def _one_by_one(links: Sequence[Link], given: Sequence[torch.Tensor]) -> Call:
    """Returns what runs the layers as they were chosen, in memory that is there already."""
    calls: list[Call] = []
    source, residual = given[0], tuple(each.clone() for each in given[1:])
    for number, link in enumerate(links):
        operands = (source, *residual) if number + 1 == len(links) else (source,)
        source = link.recipe(*operands)
        calls.append(link.recipe.again(source))

    def run(source: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        for call in calls[:-1]:
            source = call(source)
        made: torch.Tensor = calls[-1](source, *residual)
        return made

    return run


def chain_recipe(
    works: Sequence[Work], kernels: Sequence[str], weights: Sequence[tuple[torch.Tensor, Maybe]]
) -> Recipe:
    """Returns what computes a chain of its source, and of its residual if the last layer has one."""
    layers = tuple(
        native_layer(work, weight, bias, kernel)
        for work, kernel, (weight, bias) in zip(works, kernels, weights, strict=True)
    )
    owner = torch.classes.groupwise.Chain(layers, 0)
    residual = works[-1].epilogue.residual
    return Recipe(1 + residual, Operation(Method(owner, "run"), (SOURCE, RESIDUAL if residual else None)))


def _owner(recipe: Recipe) -> Any:
    target = recipe.operations[0].target
    assert isinstance(target, Method)
    return target.owner


def link(graph: Graph, layers: Sequence[Node]) -> Node:
    """Puts a chain in place of layers."""
    weights = tuple(given for layer in layers for given in args_of(layer)[1:3])
    args = (args_of(layers[0])[0], weights, *args_of(layers[-1])[3:])
    return put(graph, layers[::-1], chain, args, {})


def weights_of(node: Node) -> Iterator[tuple[Node, Node | None]]:
    """Returns the nodes of weight and bias of each layer of a chain."""
    flat = args_of(node)[1]
    yield from zip(flat[::2], flat[1::2], strict=True)


def linked_step(steps: Sequence[Step], chained: Chained) -> Step:
    """Returns what a plan says of a chain, of the steps of its layers."""
    words: list[str] = [*steps[0].fused]
    for step in steps[1:]:
        words += [step.name, *step.fused]
    return Step(
        name=steps[0].name,
        kind="chain",
        engine="groupwise",
        fused=tuple(words),
        input_shape=steps[0].input_shape,
        output_shape=steps[-1].output_shape,
        reason=chained.reason,
        ms=chained.ms,
        kernel=" + ".join(chained.kernels),
        layers=tuple(step.name for step in steps),
    )
