"""A layer of which each rank holds a shard: DTensors for parameters, and the layer's own forward on the shard."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor

from groupwise.errors import GroupwiseError
from groupwise.parallel.styles import collectives
from groupwise.spec.partition import Partition


@dataclass(frozen=True)
class End:
    """The input or the output of a layer.

    - `channels`: the number of all channels, 0 if the layer does not know it
    - `partition`: how ranks hold the channels where a tensor is split along them
    - `inside`: the layout that the computation takes or returns
    - `outside`: the layout that the caller gives or wants
    """

    channels: int
    partition: Partition
    inside: Placement
    outside: Placement


@dataclass(frozen=True)
class LayerShard:
    """What this rank holds of a layer.

    - `style`: the style's name; `what`: the name of what it spreads; `held`: which of `total` this rank holds
    - `dim`: the dimension of the channels, 1 of (N, C, ...) or -1 of (..., features)
    - `dims`: how many dimensions the input has, None if the layer takes any number
    - `tensors`: the parameters and buffers that are spread, each with its dimension and its partition
    - `numbers`: the layer's attributes that differ in the shard, such as `groups`
    - `compute`: takes the layer of the shard and the arguments, returns the output
    - `grad_input`: the layout of the input's gradient that `compute` leads to, if it is not that of the input
    - `late`: the parameter that is added after the outputs' collective: the bias of a sum over ranks
    """

    style: str
    what: str
    held: range
    total: int
    dim: int
    input: End
    output: End
    use_local_output: bool
    compute: Callable[..., torch.Tensor]
    tensors: Mapping[str, tuple[int, Partition]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    grad_input: Placement | None = None
    late: str | None = None
    dims: int | None = None

    def __str__(self) -> str:
        if not self.held:
            return f"none of {self.total} {self.what}"
        which = f"{self.held.start}-{self.held.stop - 1}" if len(self.held) > 1 else f"{self.held.start}"
        return f"{self.what} {which} of {self.total}"


class ShardLayer(torch.nn.Module):
    """The class that a split layer gets before its own."""

    _shard: LayerShard
    _mesh: DeviceMesh

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs the layer's own forward on this rank's shard, between the collectives that the layouts need."""
        shard = self._shard
        layer, moved = _own(self, ShardLayer, shard)
        output = shard.compute(layer, self._enter(input), *args, **kwargs)
        if self.training:
            for tensor, dim, partition, local in moved:
                collectives.write_shard(tensor, dim, partition, local)
        return self._leave(output)

    def extra_repr(self) -> str:
        """Returns the layer's own text, and what this rank holds of the layer."""
        return ", ".join(filter(None, [super().extra_repr(), f"{self._shard.style}: {self._shard}"]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _distribute_given(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _enter(self, input: torch.Tensor) -> torch.Tensor:
        shard = self._shard
        if shard.dims is not None and input.dim() != shard.dims:
            raise GroupwiseError(
                f"input of shape {tuple(input.shape)} has {input.dim()} dimensions; this {shard.style} layer takes "
                f"{shard.dims}, (N, C, ...); give a single sample as a batch of one, input.unsqueeze(0)"
            )
        if not isinstance(input, DTensor) and shard.input.channels:
            self._check(input)
        dim, end = shard.dim % input.dim(), shard.input
        return collectives.redistribute(
            input, self._mesh, end.outside, end.inside, dim, end.channels, end.partition, shard.grad_input
        )

    def _check(self, input: torch.Tensor) -> None:
        shard, end = self._shard, self._shard.input
        dim = shard.dim % input.dim()
        sharded = collectives.is_shard(end.outside, dim, input.dim())
        expected = end.partition.lengths(end.channels)[self._mesh.get_local_rank()] if sharded else end.channels
        if input.shape[dim] != expected:
            here = f"{expected} of {end.channels}" if sharded else f"all {end.channels}"
            raise GroupwiseError(
                f"input of shape {tuple(input.shape)} has {input.shape[dim]} channels; with "
                f"input_layouts={end.outside} this {shard.style} layer takes {here} on rank "
                f"{self._mesh.get_local_rank()}; give it those, or the layout that the input has"
            )

    def _leave(self, output: torch.Tensor) -> torch.Tensor:
        shard, end = self._shard, self._shard.output
        dim = shard.dim % output.dim()
        local = collectives.redistribute(output, self._mesh, end.inside, end.outside, dim, end.channels, end.partition)
        late: Any = getattr(self, shard.late) if shard.late else None
        if late is not None:
            rows = collectives.shard_of(late, 0, end.partition) if shard.late in shard.tensors else late.to_local()
            local = local + rows.to(local.dtype).reshape([-1 if d == dim else 1 for d in range(local.dim())])
        elif local is not output and shard.use_local_output:
            # Autograd takes what a collective returns for a view, which an activation in place may not change.
            local = local.clone()
        if shard.use_local_output:
            return local
        return collectives.as_dtensor(local, self._mesh, end.outside, dim, end.channels, end.partition)


class WholeLayer(torch.nn.Module):
    """The class that a layer which is whole on each rank gets before its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer's own forward on local tensors, and keeps the attributes and buffers that it changes."""
        own = _own(self, WholeLayer)[0]
        before, buffers = dict(vars(own)), dict(own._buffers)
        output = own(*args, **kwargs)
        self.__dict__.update({name: value for name, value in vars(own).items() if before.get(name, own) is not value})
        self._buffers.update({name: value for name, value in own._buffers.items() if buffers.get(name) is not value})
        return output

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _distribute_given(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_shard(layer: torch.nn.Module, mesh: DeviceMesh, shard: LayerShard) -> None:
    """Turns `layer`, whose tensors are distributed over `mesh`, into one of which this rank holds `shard`."""
    layer._shard = shard  # type: ignore[assignment]
    layer._mesh = mesh  # type: ignore[assignment]
    layer.__class__ = _CLASSES(ShardLayer, type(layer))


def make_whole(layer: torch.nn.Module) -> None:
    """Turns `layer`, whose tensors are distributed, into one that is whole on each rank."""
    layer.__class__ = _CLASSES(WholeLayer, type(layer))


def _distribute_given(layer: torch.nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Puts this rank's shards into the state_dict of a plain model. No collective runs: every rank has it whole."""
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        given = state.get(prefix + name)
        if not isinstance(tensor, DTensor) or not isinstance(given, torch.Tensor) or isinstance(given, DTensor):
            continue
        if given.shape == tensor.shape:
            mesh, placements = tensor.device_mesh, tensor.placements
            state[prefix + name] = distribute_tensor(given.detach(), mesh, placements, src_data_rank=None)


def _class(base: type[torch.nn.Module], layer: type[torch.nn.Module]) -> type[torch.nn.Module]:
    return type(f"{base.__name__.removesuffix('Layer')}{layer.__name__}", (base, layer), {})


_CLASSES: Any = functools.cache(_class)


def _own(
    layer: torch.nn.Module, base: type[torch.nn.Module], shard: LayerShard | None = None
) -> tuple[torch.nn.Module, list[tuple[DTensor, int, Partition, torch.Tensor]]]:
    """Returns an ordinary layer of local tensors, which this rank computes, and the buffers in it that are copies."""
    classes = type(layer).__mro__
    own: torch.nn.Module = object.__new__(classes[classes.index(base) + 1])
    own.__dict__.update(layer.__dict__)
    # Hooks run on the split layer itself, so that this one has none.
    own.__dict__.update(torch.nn.Module().__dict__ | {"training": layer.training, "_modules": layer._modules})
    own.__dict__.update(shard.numbers if shard else {})
    moved = []
    # DDP takes the parameters out and lends them for the forward as plain attributes.
    lent = {name: tensor for name, tensor in layer.__dict__.items() if isinstance(tensor, DTensor)}
    if lent:
        warnings.warn(
            "DistributedDataParallel(device_mesh=...) has taken the parameters out of a split model, so that its "
            "parameters() and state_dict() are empty from now on: zero the gradients by an optimiser that was made "
            "before the first forward; to clip gradients or to write checkpoints, use fully_shard instead",
            stacklevel=2,
        )
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items(), *lent.items()):
        own.__dict__.pop(name, None)
        tensors: dict[str, Any] = own._buffers if name in layer._buffers else own._parameters
        if not isinstance(tensor, DTensor):
            tensors[name] = tensor
        elif shard and name == shard.late:
            tensors[name] = None
        elif shard and name in shard.tensors:
            tensors[name] = collectives.shard_of(tensor, *shard.tensors[name])
            if name in layer._buffers and not collectives.in_place(tensor, *shard.tensors[name]):
                moved.append((tensor, *shard.tensors[name], tensors[name]))
        else:
            tensors[name] = tensor.to_local()
    return own, moved
