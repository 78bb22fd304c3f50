"""A layer of which each rank holds a part: its parameters are DTensors, its forward is the layer's own on the part."""

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
from groupwise.parallel import exchange
from groupwise.spec.partition import Share


@dataclass(frozen=True)
class End:
    """The input or the output of a layer.

    - `channels`: in all, 0 where the layer does not know; `share`: how they are spread where a tensor is sharded there
    - `inside`: the layout that the computation takes or gives; `outside`: the one that is given or asked for
    """

    channels: int
    share: Share
    inside: Placement
    outside: Placement


@dataclass(frozen=True)
class Part:
    """What this rank holds of a layer.

    - `style`: the style's name; `what`: what it spreads, in words; `held`: which of `total`
    - `dim`: the dimension of the channels, 1 of (N, C, ...) or -1 of (..., features); `dims`: of the input, where the
      layer knows
    - `tensors`: the parameters and buffers that are spread, each with its dimension and its share
    - `numbers`: the layer's attributes that differ in the part, such as `groups`
    - `compute`: takes the layer of the part and its arguments, gives the output
    - `grad_input`: the layout of the gradient that `compute` leads to, where it is not that of its input
    - `late`: the parameter that is added after the exchange of the outputs: the bias of a sum over ranks
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
    tensors: Mapping[str, tuple[int, Share]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    grad_input: Placement | None = None
    late: str | None = None
    dims: int | None = None

    def __str__(self) -> str:
        if not self.held:
            return f"none of {self.total} {self.what}"
        which = f"{self.held.start}-{self.held.stop - 1}" if len(self.held) > 1 else f"{self.held.start}"
        return f"{self.what} {which} of {self.total}"


class PartLayer(torch.nn.Module):
    """What precedes the class of a layer that is split."""

    _part: Part
    _mesh: DeviceMesh

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's own forward on what this rank holds, between the exchanges that its layouts ask for."""
        part = self._part
        layer, moved = _own(self, PartLayer, part)
        output = part.compute(layer, self._enter(input), *args, **kwargs)
        if self.training:
            for tensor, dim, share, part_of_it in moved:
                exchange.write_part(tensor, dim, share, part_of_it)
        return self._leave(output)

    def extra_repr(self) -> str:
        """The layer's own, and what this rank holds of it."""
        return ", ".join(filter(None, [super().extra_repr(), f"{self._part.style}: {self._part}"]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _distribute_given(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _enter(self, input: torch.Tensor) -> torch.Tensor:
        part = self._part
        if part.dims is not None and input.dim() != part.dims:
            raise GroupwiseError(
                f"input of shape {tuple(input.shape)} has {input.dim()} dimensions; this {part.style} layer takes "
                f"{part.dims}, (N, C, ...); give a single sample as a batch of one, input.unsqueeze(0)"
            )
        if not isinstance(input, DTensor) and part.input.channels:
            self._check(input)
        dim, end = part.dim % input.dim(), part.input
        return exchange.redistribute(
            input, self._mesh, end.outside, end.inside, dim, end.channels, end.share, part.grad_input
        )

    def _check(self, input: torch.Tensor) -> None:
        part, end = self._part, self._part.input
        dim = part.dim % input.dim()
        sharded = exchange.is_shard(end.outside, dim, input.dim())
        expected = end.share.lengths(end.channels)[self._mesh.get_local_rank()] if sharded else end.channels
        if input.shape[dim] != expected:
            here = f"{expected} of {end.channels}" if sharded else f"all {end.channels}"
            raise GroupwiseError(
                f"input of shape {tuple(input.shape)} has {input.shape[dim]} channels; with "
                f"input_layouts={end.outside} this {part.style} layer takes {here} on rank "
                f"{self._mesh.get_local_rank()}; give it those, or the layout that the input has"
            )

    def _leave(self, output: torch.Tensor) -> torch.Tensor:
        part, end = self._part, self._part.output
        dim = part.dim % output.dim()
        local = exchange.redistribute(output, self._mesh, end.inside, end.outside, dim, end.channels, end.share)
        late: Any = getattr(self, part.late) if part.late else None
        if late is not None:
            rows = exchange.part_of(late, 0, end.share) if part.late in part.tensors else late.to_local()
            local = local + rows.to(local.dtype).reshape([-1 if d == dim else 1 for d in range(local.dim())])
        elif local is not output and part.use_local_output:
            # Autograd takes what comes out of an exchange for a view, which an activation in place may not change.
            local = local.clone()
        if part.use_local_output:
            return local
        return exchange.as_dtensor(local, self._mesh, end.outside, dim, end.channels, end.share)


class WholeLayer(torch.nn.Module):
    """What precedes the class of a layer that is whole on each rank."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, on local tensors; what it notes of itself stays, as do its buffers."""
        own = _own(self, WholeLayer)[0]
        before, buffers = dict(vars(own)), dict(own._buffers)
        output = own(*args, **kwargs)
        self.__dict__.update({name: value for name, value in vars(own).items() if before.get(name, own) is not value})
        self._buffers.update({name: value for name, value in own._buffers.items() if buffers.get(name) is not value})
        return output

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _distribute_given(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_part(layer: torch.nn.Module, mesh: DeviceMesh, part: Part) -> None:
    """Turn `layer`, whose tensors are distributed over `mesh`, into one of which this rank holds `part`."""
    layer._part = part  # type: ignore[assignment]
    layer._mesh = mesh  # type: ignore[assignment]
    layer.__class__ = _CLASSES(PartLayer, type(layer))


def make_whole(layer: torch.nn.Module) -> None:
    """Turn `layer`, whose tensors are distributed, into one that is whole on each rank."""
    layer.__class__ = _CLASSES(WholeLayer, type(layer))


def _distribute_given(layer: torch.nn.Module, state: dict[str, Any], prefix: str) -> None:
    """In the state_dict of a plain model, which every rank has whole, put this rank's parts. Nothing is exchanged."""
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
    layer: torch.nn.Module, base: type[torch.nn.Module], part: Part | None = None
) -> tuple[torch.nn.Module, list[tuple[DTensor, int, Share, torch.Tensor]]]:
    """The layer that this rank computes, an ordinary one of local tensors; and the buffers in it that are copies."""
    classes = type(layer).__mro__
    own: torch.nn.Module = object.__new__(classes[classes.index(base) + 1])
    own.__dict__.update(layer.__dict__)
    # Hooks belong to the layer itself, and have run or will.
    own.__dict__.update(torch.nn.Module().__dict__ | {"training": layer.training, "_modules": layer._modules})
    own.__dict__.update(part.numbers if part else {})
    moved = []
    # DDP takes parameters out for its own and puts them back, for the forward, as plain attributes.
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
        elif part and name == part.late:
            tensors[name] = None
        elif part and name in part.tensors:
            tensors[name] = exchange.part_of(tensor, *part.tensors[name])
            if name in layer._buffers and not exchange.in_place(tensor, *part.tensors[name]):
                moved.append((tensor, *part.tensors[name], tensors[name]))
        else:
            tensors[name] = tensor.to_local()
    return own, moved
