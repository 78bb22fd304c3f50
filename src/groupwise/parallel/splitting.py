"""`plan_split` and `split`: a network over the ranks of a mesh, each layer by the style that suits it."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel

from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.agreement import agree
from groupwise.parallel.channelwise import ChannelwiseParallel, KeepWhole
from groupwise.parallel.crossing import Crossing, meetings
from groupwise.parallel.layer import PartLayer, WholeLayer
from groupwise.parallel.network import Decision, Step
from groupwise.parallel.styles import GroupParallel, LayerStyle, check_mesh, distribute
from groupwise.parallel.work import tasks
from groupwise.share import MOST_RANKS, Share

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Choice:
    """The style of one layer.

    - `name`, `layer`: its name in the model and its class
    - `style`, `reason`: how it is split, and why so
    - `input`, `output`: in how many parts its channels lie on the ranks before and after it; None where they are whole
    - `parameters`: its own, and of them each rank's in `held`
    - `crossings`: what is exchanged for it in a step, with bytes, where the plan knows the shape of the model's input;
      the rows that uneven parts move come on top (`traffic` counts them)
    """

    name: str
    layer: str
    style: ParallelStyle
    reason: str
    input: int | None
    output: int | None
    parameters: int
    held: tuple[int, ...]
    crossings: tuple[Crossing, ...] = ()

    @property
    def exchange(self) -> str:
        """What the ranks exchange in its forward, in words; empty for nothing."""
        if len(self.held) == 1:
            return ""
        met = meetings(type(self.style), self.input is not None, self.output is not None)
        return ", ".join(str(meeting) for meeting in met if not meeting.backward)


@dataclass(frozen=True)
class SplitPlan:
    """How a network is spread over `ranks` ranks, layer by layer.

    `print()` it, or draw it with `to_svg()`; `styles` is a plan for `parallelize_module`.
    """

    model: str
    ranks: int
    choices: tuple[Choice, ...]
    input_shape: tuple[int, ...] | None = None

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
        from groupwise.draw.split import split_svg

        return split_svg(self.to_dict())

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def __str__(self) -> str:
        from groupwise.draw.split_text import split_text

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
    done = [name for name, module in model.named_modules() if isinstance(module, PartLayer | WholeLayer)]
    if done:
        raise GroupwiseError(f"{type(model).__name__} is split already, as {done[0]} shows; split a model once")
    _check_owned(model)
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
    for node in decision.flow.graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        if owner in planned and isinstance(operator.attrgetter(str(node.target))(model), nn.Parameter):
            raise GroupwiseError(
                f"{node.target} is read beside its own layer, which would find a part of it; call {owner} instead"
            )
    for name, module in model.named_modules():
        if name not in planned and any(True for _ in module.parameters(recurse=False)):
            choices.append(_choice(name, module, Step(reason="not a layer that can be split"), 0, ranks, uneven))
    choices = [replace(choice, crossings=tuple(crossings[choice.name])) for choice in choices]
    return SplitPlan(type(model).__name__, ranks, tuple(choices), None if input_shape is None else tuple(input_shape))


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

    Raises `GroupwiseError` for a model that `torch.fx` cannot follow, and where ranks disagree on the model, its dtypes
    or the mesh, on each rank with what differs.
    """
    check_mesh(mesh, "split")
    plan = plan_split(model, mesh.size(), uneven=uneven)
    agree(model, mesh)
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


def _check_owned(model: nn.Module) -> None:
    """Refuse parameters that would be several once they are split, and layers that read those of others."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            raise GroupwiseError(
                f"{name} is a MultiheadAttention, which reads the weight of its out_proj beside that layer; split the "
                "blocks around it one by one"
            )
        for key, parameter in module._parameters.items():
            full = f"{name}.{key}" if name else key
            if parameter is not None and owners.setdefault(id(parameter), full) != full:
                raise GroupwiseError(
                    f"{owners[id(parameter)]} and {full} are one parameter, and would be two once they are split; give "
                    "each layer its own, or split the blocks around them one by one"
                )


def _choice(name: str, module: nn.Module, step: Step, channels: int, ranks: int, uneven: bool) -> Choice:
    inputs, outputs = (None if joint is None else joint.root().parts for joint in (step.input, step.value))
    style = _style(module, step.style, inputs, outputs, channels, uneven)
    if not uneven:
        # Also of a layer that would stay whole, as there are not enough groups.
        if (groups := getattr(module, "groups", 1)) > 1:
            Share(groups, ranks).check_even("groups", "leaves the layer whole" if groups < ranks else "")
        for parts in {inputs, outputs} - {None}:
            Share(parts, ranks).check_even("parts")  # type: ignore[arg-type]
    parameters = dict(module.named_parameters(recurse=False))
    shares = [_held(style, module, ranks, rank) for rank in range(ranks)]
    held = tuple(sum(share.get(key, p.numel()) for key, p in parameters.items()) for share in shares)
    total = sum(parameter.numel() for parameter in parameters.values())
    return Choice(name, type(module).__name__, style, step.reason, inputs, outputs, total, held)


def _style(
    module: nn.Module,
    kind: type[ParallelStyle] | None,
    inputs: int | None,
    outputs: int | None,
    channels: int,
    uneven: bool,
) -> ParallelStyle:
    if kind is None:
        return KeepWhole()
    dim = -1 if isinstance(module, nn.Linear) else 1
    before, after = (Replicate() if parts is None else Shard(dim) for parts in (inputs, outputs))
    layouts: dict[str, Any] = {"input_layouts": before, "output_layouts": after, "uneven": uneven}
    if kind is ChannelwiseParallel:
        dropped = channels if isinstance(module, _DropoutNd) else None
        return ChannelwiseParallel(parts=inputs, channels=dropped, **layouts)
    if kind is GroupParallel:
        return GroupParallel(parts=inputs or outputs, **layouts)
    return kind(input_parts=inputs, output_parts=outputs, **layouts)  # type: ignore[call-arg]


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
