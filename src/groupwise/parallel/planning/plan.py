"""`plan_split`: the style that suits each layer of a network, and what each rank holds and sends then."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.conv import _ConvNd

from groupwise.draw.text import split as text
from groupwise.draw.text.table import Tabular
from groupwise.draw.views.split import split_svg
from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.planning.decision import Decision, Step, style_of
from groupwise.parallel.planning.moves import tensor_moves
from groupwise.parallel.planning.patterns import patterns
from groupwise.parallel.planning.refusals import check_model, check_reads
from groupwise.parallel.planning.work import tasks
from groupwise.parallel.styles.base import LayerStyle
from groupwise.spec.arguments import shape_of
from groupwise.spec.collectives import MOVES, Collective
from groupwise.spec.legible import Printed
from groupwise.spec.partition import MOST_RANKS, Partition


@dataclass(frozen=True)
class Choice(Printed):
    """The style of one layer.

    - `name`, `layer`: its name in the model and its class
    - `style`, `reason`: how it is split, and why so
    - `input`, `output`: the number of units in which its channels are split before and after it, None if they are whole
    - `parameters`: how many it has; `held`: how many of them each rank holds
    - `moves`: whether rows of its parameters move, because its shards are not DTensor's equal chunks
    - `collectives`: its collectives in a step, with bytes, if the plan knows the shape of the model's input
    """

    name: str
    layer: str
    style: ParallelStyle
    reason: str
    input: int | None
    output: int | None
    parameters: int
    held: tuple[int, ...]
    moves: bool = False
    collectives: tuple[Collective, ...] = ()

    @property
    def forward(self) -> str:
        """The collectives of its forward in words, empty for none."""
        if len(self.held) == 1:
            return ""
        needed = patterns(type(self.style), self.input is not None, self.output is not None)
        words = [str(pattern) for pattern in needed if not pattern.backward]
        return ", ".join([*words, MOVES] if self.moves else words)

    def __str__(self) -> str:
        """Returns one line: the layer, its style, what each rank holds, and the collectives of its forward."""
        return text.choice_text(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns the choice as JSON values."""
        keys = ("name", "layer", "reason", "input", "output", "forward", "parameters")
        return {
            "style": type(self.style).__name__,
            **{key: getattr(self, key) for key in keys},
            "held": list(self.held),
            "collectives": [collective.to_dict() for collective in self.collectives],
        }


@dataclass(frozen=True, repr=False)
class SplitPlan(Tabular):
    """How a network is spread over `ranks` ranks, layer by layer.

    `print()` it, or draw it with `to_svg()`.

    - `choices`: the style of each layer; `styles` is the same as a plan for `parallelize_module`
    - `input_shape`: (N, C, ...), the shape that collectives are counted for, or None
    - `random`: whether the model draws random numbers in training, for which every rank needs the same seed
    - `decision`: the graph of the model, with what was decided of each node
    """

    model: str
    ranks: int
    choices: tuple[Choice, ...]
    decision: Decision = field(compare=False)
    input_shape: tuple[int, ...] | None = None
    random: bool = False

    @property
    def styles(self) -> dict[str, ParallelStyle]:
        """The style of each layer by its name."""
        return {choice.name: choice.style for choice in self.choices}

    @property
    def held(self) -> tuple[int, ...]:
        """The number of parameters that each rank holds."""
        return tuple(sum(choice.held[rank] for choice in self.choices) for rank in range(self.ranks))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        return {
            "model": self.model,
            "ranks": self.ranks,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "held": list(self.held),
            "layers": [choice.to_dict() for choice in self.choices],
        }

    def to_svg(self) -> str:
        """Returns a picture of what each rank holds, and of the collectives between ranks."""
        return split_svg(self.to_dict())

    def columns(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Returns the column names, and the values of each layer."""
        return text.HEAD, list(text.records(self.to_dict()))

    def _repr_html_(self) -> str:
        return f"<figure>{self.to_svg()}</figure>"

    def __str__(self) -> str:
        return text.split_text(self.to_dict())

    __repr__ = __str__


def plan_split(model: nn.Module, ranks: int, *, input_shape: Any = None, uneven: bool = True) -> SplitPlan:
    """Returns how `split` would spread `model` over `ranks` ranks. It needs no process group and changes nothing.

    - `input_shape`: the shape of the model's input, (N, C, ...), or a tensor of that shape; with it the plan counts
      the bytes of the collectives of a training step
    - `uneven`: False refuses a number of ranks that does not divide the groups of each layer, or the units in which
      other layers are split

    Raises `GroupwiseError` for that, for a model that `torch.fx` cannot follow, and for an input that the model does
    not take.

    Examples:
        >>> from groupwise.models import resnext50_32x4d
        >>> plan = plan_split(resnext50_32x4d(), 2)
        >>> {choice.name: choice.forward for choice in plan.choices if choice.name.startswith("layer1.0.conv")}
        {'layer1.0.conv1': '', 'layer1.0.conv2': '', 'layer1.0.conv3': 'all-reduces outputs'}
    """
    ranks = check_integer("ranks", ranks, 1, MOST_RANKS)
    shape = None if input_shape is None else shape_of("input_shape", input_shape)
    check_model(model)
    if not uneven:
        _check_even(model, ranks)
    decision = Decision(model, ranks)
    check_reads(model, decision.flow)
    choices = []
    planned: set[str] = set()
    for name, step, channels in decision.layers():
        module = model.get_submodule(name)
        planned.add(name)
        if step.style is not None or any(True for _ in module.parameters(recurse=False)):
            choices.append(_choice(name, module, step, channels, ranks, uneven))
    for name, module in model.named_modules():
        if name not in planned and any(True for _ in module.parameters(recurse=False)):
            choices.append(_choice(name, module, Step(reason="not a layer that can be split"), 0, ranks, uneven))
    if shape is not None:
        found: dict[str, list[Collective]] = defaultdict(list)
        for task in tasks(decision, shape):
            found[task.name] += task.collectives
        choices = [replace(choice, collectives=tuple(found[choice.name])) for choice in choices]
    return SplitPlan(type(model).__name__, ranks, tuple(choices), decision, shape, decision.flow.random)


def _choice(name: str, module: nn.Module, step: Step, channels: int, ranks: int, uneven: bool) -> Choice:
    inputs, outputs = step.units
    style = style_of(module, step, channels, uneven)
    try:
        for units in filter(None, {inputs, outputs} if not uneven else ()):
            Partition(units, ranks).check_even("units of its channels")
        shards = [_held(style, module, ranks, rank) for rank in range(ranks)]
    except GroupwiseError as error:
        raise GroupwiseError(f"{name}: {error}") from error
    parameters = dict(module.named_parameters(recurse=False))
    held = tuple(sum(shard.get(key, p.numel()) for key, p in parameters.items()) for shard in shards)
    total = sum(parameter.numel() for parameter in parameters.values())
    moves = isinstance(style, LayerStyle) and any(tensor_moves(style.shard(module, ranks, 0), module, ranks))
    return Choice(name, type(module).__name__, style, step.reason, inputs, outputs, total, held, moves)


def _check_even(model: nn.Module, ranks: int) -> None:
    """Refuses groups that the ranks do not divide, even where a layer has too few groups and would stay whole."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and module.groups > 1:
            otherwise = "leaves the layer whole" if module.groups < ranks else ""
            Partition(module.groups, ranks).check_even(f"{name}: groups", otherwise)


def _held(style: ParallelStyle, module: nn.Module, ranks: int, rank: int) -> dict[str, int]:
    """Returns how many values a rank holds of each parameter that is split."""
    if not isinstance(style, LayerStyle):
        return {}
    counts = {}
    for name, (dim, partition) in style.shard(module, ranks, rank).tensors.items():
        tensor = getattr(module, name, None)
        if tensor is not None:
            counts[name] = tensor.numel() // tensor.shape[dim] * len(partition.span(rank, tensor.shape[dim]))
    return counts
