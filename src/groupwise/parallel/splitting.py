"""`plan_split` and `split`: a network over the ranks of a mesh, each layer by the style that suits it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel

from groupwise.draw.text.split import MOVES
from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.agreement import agree
from groupwise.parallel.crossing import Crossing, meetings
from groupwise.parallel.moves import tensor_moves
from groupwise.parallel.network import Decision, Step, style_of
from groupwise.parallel.refusal import check_model, check_reads
from groupwise.parallel.styles import LayerStyle, check_mesh, distribute
from groupwise.parallel.work import tasks
from groupwise.spec.partition import MOST_RANKS, Share

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Choice:
    """The style of one layer.

    - `name`, `layer`: its name in the model and its class
    - `style`, `reason`: how it is split, and why so
    - `input`, `output`: in how many parts its channels lie on the ranks before and after it; None where they are whole
    - `parameters`: its own, and of them each rank's in `held`
    - `moves`: whether rows of its parameters move, as its parts are other than DTensor's equal chunks
    - `crossings`: what is exchanged for it in a step, with bytes, where the plan knows the shape of the model's input
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
    crossings: tuple[Crossing, ...] = ()

    @property
    def exchange(self) -> str:
        """What the ranks exchange in its forward, in words; empty for nothing."""
        if len(self.held) == 1:
            return ""
        met = meetings(type(self.style), self.input is not None, self.output is not None)
        words = [str(meeting) for meeting in met if not meeting.backward]
        return ", ".join([*words, MOVES] if self.moves else words)


@dataclass(frozen=True)
class SplitPlan:
    """How a network is spread over `ranks` ranks, layer by layer.

    `print()` it, or draw it with `to_svg()`; `styles` is a plan for `parallelize_module`. `random` tells whether the
    model draws random numbers in training, for which the ranks have to be seeded alike.
    """

    model: str
    ranks: int
    choices: tuple[Choice, ...]
    input_shape: tuple[int, ...] | None = None
    random: bool = False

    @property
    def styles(self) -> dict[str, ParallelStyle]:
        """Each layer's style, by its name."""
        return {choice.name: choice.style for choice in self.choices}

    @property
    def held(self) -> tuple[int, ...]:
        """The parameters that each rank holds."""
        return tuple(sum(choice.held[rank] for choice in self.choices) for rank in range(self.ranks))

    def to_dict(self) -> dict[str, Any]:
        """The plan as numbers and words, for JSON."""
        keys = ("name", "layer", "reason", "input", "output", "exchange", "parameters")
        return {
            "model": self.model,
            "ranks": self.ranks,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "held": list(self.held),
            "layers": [
                {
                    "style": type(choice.style).__name__,
                    **{key: getattr(choice, key) for key in keys},
                    "held": list(choice.held),
                    "crossings": [asdict(crossing) for crossing in choice.crossings],
                }
                for choice in self.choices
            ],
        }

    def to_svg(self) -> str:
        """A picture of who holds what, and of what crosses between ranks where."""
        from groupwise.draw.views.split import split_svg

        return split_svg(self.to_dict())

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __str__(self) -> str:
        from groupwise.draw.text.split import split_text

        return split_text(self.to_dict())

    __repr__ = __str__


def plan_split(
    model: nn.Module, ranks: int, *, input_shape: Sequence[int] | None = None, uneven: bool = True
) -> SplitPlan:
    """How `split` would spread `model` over so many ranks: no process group is needed, and nothing is changed.

    With the shape of its input, (N, C, ...), the plan also tells the bytes that cross in a training step.

    `uneven=False` refuses a number of ranks that does not divide the groups of each layer, or the parts in which others
    are split. Raises `GroupwiseError` for that, and for a model that `torch.fx` cannot follow.

    Examples:
        >>> from groupwise.models import resnext50_32x4d
        >>> plan = plan_split(resnext50_32x4d(), 2)
        >>> {choice.name: choice.exchange for choice in plan.choices if choice.name.startswith("layer1.0.conv")}
        {'layer1.0.conv1': '', 'layer1.0.conv2': '', 'layer1.0.conv3': 'sums outputs'}
    """
    ranks = check_integer("ranks", ranks, 1, MOST_RANKS)
    check_model(model)
    if not uneven:
        _check_even(model, ranks)
    choices = []
    planned: set[str] = set()
    crossings: dict[str, list[Crossing]] = defaultdict(list)
    for task in tasks(model, input_shape, ranks) if input_shape is not None else ():
        crossings[task.name] += task.crossings
    decision = Decision(model, ranks)
    for name, step, channels in decision.layers():
        module = model.get_submodule(name)
        planned.add(name)
        if step.style is not None or any(True for _ in module.parameters(recurse=False)):
            choices.append(_choice(name, module, step, channels, ranks, uneven))
    check_reads(model, decision.flow)
    for name, module in model.named_modules():
        if name not in planned and any(True for _ in module.parameters(recurse=False)):
            choices.append(_choice(name, module, Step(reason="not a layer that can be split"), 0, ranks, uneven))
    choices = [replace(choice, crossings=tuple(crossings[choice.name])) for choice in choices]
    shape = None if input_shape is None else tuple(input_shape)
    return SplitPlan(type(model).__name__, ranks, tuple(choices), shape, decision.flow.random)


def split(model: Model, mesh: DeviceMesh, *, uneven: bool = True, src_data_rank: int | None = 0) -> Model:
    """Spread `model` over the ranks of `mesh`, in place, as `plan_split` says: each rank holds whole paths.

    Grouped layers are split by their groups, and the dense layers before and after them by their outputs and their
    inputs, so that a block of ResNeXt costs one all-reduce, its own sum over paths, and AlexNet's towers meet at conv3
    and at the fully connected layers only. Parameters become DTensors; inputs and outputs of the model are whole and
    the same on each rank. Every rank calls it, with the same model; it is for training and inference alike.

    - `mesh`: of one dimension; of several choose one, as in `split(model, mesh["groups"])`, and give the others to
      FSDP or DDP
    - `uneven`: False refuses a number of ranks that does not divide the groups of each layer, or the parts in which
      others are split
    - `src_data_rank`: whose values all ranks get; None lets each keep its own, which then have to be equal

    Warns where there is nothing to split. Raises `GroupwiseError` for a model that `torch.fx` cannot follow, and where
    ranks disagree on the model, its dtypes or the mesh, on each rank with what differs.
    """
    check_mesh(mesh, "split")
    plan = plan_split(model, mesh.size(), uneven=uneven)
    agree(model, mesh, random=plan.random)
    if mesh.size() > 1 and not any(isinstance(style, LayerStyle) for style in plan.styles.values()):
        warnings.warn(
            f"nothing of {type(model).__name__} is split over {mesh.size()} ranks, each of which computes all of it: "
            "no grouped layer has a group for each rank, or to split it would cost more than to compute it",
            stacklevel=2,
        )
    for name, style in plan.styles.items():
        # By the module and not by its name, in which parallelize_module takes * and ? for patterns.
        parallelize_module(model.get_submodule(name), mesh, style, src_data_rank=src_data_rank)
    for name, module in model.named_modules():
        if name not in plan.styles:
            distribute(module, mesh, {}, src_data_rank)
    # DDP broadcasts buffers, which DTensors cannot be.
    spread = [name for name, buffer in model.named_buffers() if isinstance(buffer, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, spread)  # type: ignore[no-untyped-call]
    return model


def _choice(name: str, module: nn.Module, step: Step, channels: int, ranks: int, uneven: bool) -> Choice:
    inputs, outputs = step.parts
    style = style_of(module, step, channels, uneven)
    try:
        for parts in filter(None, {inputs, outputs} if not uneven else ()):
            Share(parts, ranks).check_even("parts of its channels")
        shares = [_held(style, module, ranks, rank) for rank in range(ranks)]
    except GroupwiseError as error:
        raise GroupwiseError(f"{name}: {error}") from error
    parameters = dict(module.named_parameters(recurse=False))
    held = tuple(sum(share.get(key, p.numel()) for key, p in parameters.items()) for share in shares)
    total = sum(parameter.numel() for parameter in parameters.values())
    moves = isinstance(style, LayerStyle) and any(tensor_moves(style.part(module, ranks, 0), module, ranks))
    return Choice(name, type(module).__name__, style, step.reason, inputs, outputs, total, held, moves)


def _check_even(model: nn.Module, ranks: int) -> None:
    """Refuse groups that the ranks do not divide, also of a layer that would stay whole as there are not enough."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and module.groups > 1:
            otherwise = "leaves the layer whole" if module.groups < ranks else ""
            Share(module.groups, ranks).check_even(f"{name}: groups", otherwise)


def _held(style: ParallelStyle, module: nn.Module, ranks: int, rank: int) -> dict[str, int]:
    """The values that a rank holds of each parameter that is split."""
    if not isinstance(style, LayerStyle):
        return {}
    counts = {}
    for name, (dim, share) in style.part(module, ranks, rank).tensors.items():
        tensor = getattr(module, name, None)
        if tensor is not None:
            counts[name] = tensor.numel() // tensor.shape[dim] * len(share.span(rank, tensor.shape[dim]))
    return counts
