"""What all styles have in common: their layouts, their checks, and how a layer becomes one that holds a shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from groupwise import nn
from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.nn.forwards import known_forward
from groupwise.parallel.styles import collectives
from groupwise.parallel.styles.layer import LayerShard, ShardLayer, make_shard
from groupwise.spec.partition import Partition

_KNOWN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear),
    *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
)


class LayerStyle(ParallelStyle):
    """The base of the styles that split a layer: holds the layouts and applies `shard` to a layer."""

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
        uneven: bool = True,
    ) -> None:
        for name, layout in (("input_layouts", input_layouts), ("output_layouts", output_layouts)):
            if layout is not None and not isinstance(layout, Replicate | Shard):
                raise GroupwiseError(
                    f"{name}={layout} is not the layout of a whole tensor; give Replicate() or Shard(dim)"
                )
        self.input_layouts = input_layouts
        self.output_layouts = output_layouts
        self.use_local_output = use_local_output
        self.uneven = uneven

    def shard(self, module: torch.nn.Module, ranks: int, rank: int) -> LayerShard:
        """Returns what `rank` holds of `module`. Raises `GroupwiseError` if the style does not fit the layer."""
        raise NotImplementedError

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        check(module, device_mesh, self)
        if parametrize.is_parametrized(module):
            names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
            raise GroupwiseError(
                f"{type(self).__name__} cannot split a layer whose tensors are computed ({names}); remove the "
                "parametrization first, or leave the layer whole"
            )
        shard = self.shard(module, device_mesh.size(), device_mesh.get_local_rank())
        if not self.uneven:
            for partition in {partition for _, partition in shard.tensors.values()}:
                partition.check_even(shard.what)
        dims = {name: dim for name, (dim, _) in shard.tensors.items()}
        distribute(module, device_mesh, dims, self.src_data_rank)
        make_shard(module, device_mesh, shard)
        return module

    def _make(self, rank: int, partition: Partition, **facts: Any) -> LayerShard:
        return LayerShard(
            style=type(self).__name__,
            held=partition.of(rank),
            total=partition.units,
            use_local_output=self.use_local_output,
            **facts,
        )

    def _outside(self, inputs: Placement, outputs: Placement) -> tuple[Placement, Placement]:
        """Returns the layouts that were asked for, with these as defaults."""
        return (
            inputs if self.input_layouts is None else self.input_layouts,
            outputs if self.output_layouts is None else self.output_layouts,
        )

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if name != "src_data_rank"}
        options = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"{type(self).__name__}({options})"


def check_mesh(mesh: DeviceMesh, name: str) -> None:
    """Refuses what is not a mesh of one dimension; `name` is the function or style that takes the mesh."""
    if not isinstance(mesh, DeviceMesh):
        raise GroupwiseError(
            f"{name} takes a DeviceMesh, not {mesh!r} of {type(mesh).__name__}; make one on each rank with "
            'torch.distributed.device_mesh.init_device_mesh("cpu", (ranks,))'
        )
    if mesh.ndim != 1:
        names = mesh.mesh_dim_names
        first = "" if names else "give its dimensions names (mesh_dim_names) and "
        raise GroupwiseError(
            f"{name} takes a mesh of 1 dimension, and this one has {mesh.ndim}; {first}choose one, as in "
            f"mesh[{names[-1] if names else 'groups'!r}]"
        )


def check(module: torch.nn.Module, mesh: DeviceMesh, style: ParallelStyle) -> None:
    """Refuses a mesh or a layer that no style of this package takes."""
    name = type(style).__name__
    check_mesh(mesh, name)
    if isinstance(module, ShardLayer):
        raise GroupwiseError(f"{name} is for a plain layer, and {type(module).__name__} is split already")


def distribute(module: torch.nn.Module, mesh: DeviceMesh, dims: Mapping[str, int], source: int | None) -> None:
    """Turns a layer's parameters into DTensors, and its buffers named in `dims` too.

    Tensors named in `dims` lie in chunks of that dimension, and all others are whole on each rank. The attributes of a
    parameter stay with it.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        tensor = collectives.distribute(parameter, mesh, dims.get(name), source)
        spread = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        spread.__dict__.update(parameter.__dict__)
        module.register_parameter(name, spread)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name in dims:
            module._buffers[name] = collectives.distribute(buffer, mesh, dims[name], source)
        elif source is not None:
            buffer.copy_(collectives.distribute(buffer, mesh, None, source).to_local())


def partition_of(units: int | None, size: int, name: str, ranks: int) -> Partition:
    """Returns how `size` things go to `ranks` ranks in `units` units (None: as many units as things)."""
    if units is not None and size % check_integer("units", units, 1, size):
        valid = [count for count in range(1, size + 1) if size % count == 0]
        raise GroupwiseError(f"{units} units must divide {size} {name}; valid: {list_some(valid, units)}")
    return Partition(units or size, ranks)


def is_plain(module: torch.nn.Module) -> bool:
    """Says whether this is a convolution or a `Linear` with PyTorch's forward and a weight of its own."""
    return known_forward(module, _KNOWN) and "weight" in module._parameters


def convolution(module: torch.nn.Module, style: LayerStyle) -> _ConvNd:
    """Returns `module` if it is a convolution that `style` can split. Raises `GroupwiseError` otherwise."""
    if not isinstance(module, _ConvNd):
        other = "ColwiseParallel or RowwiseParallel" if isinstance(module, torch.nn.Linear) else "KeepWhole"
        raise GroupwiseError(
            f"{type(style).__name__} is for convolutions, and this is a {type(module).__name__}; "
            f"give it {other}, or a style of its own"
        )
    check_plain(module, style)
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise GroupwiseError(f"{type(module).__name__} does not know its in_channels yet; run it on an input first")
    return module


def check_plain(module: torch.nn.Module, style: LayerStyle) -> None:
    """Refuses a convolution or a `Linear` that computes something of its own."""
    if not is_plain(module):
        what = "has a weight that a hook computes" if "weight" not in module._parameters else "has a forward of its own"
        raise GroupwiseError(
            f"{type(module).__name__} {what}, so that {type(style).__name__} does not know what its shards compute; "
            "leave it whole"
        )


def size_names(module: torch.nn.Module) -> tuple[str, str]:
    """Returns the names of the attributes with a layer's channels in and out."""
    linear = isinstance(module, torch.nn.Linear)
    return ("in_features", "out_features") if linear else ("in_channels", "out_channels")


def sizes_of(module: torch.nn.Module) -> tuple[int, int]:
    """Returns the channels in and out of a convolution, or the features of a `Linear`."""
    inputs, outputs = (getattr(module, name) for name in size_names(module))
    return inputs, outputs


def dimensions(module: torch.nn.Module) -> int | None:
    """Returns how many dimensions a convolution's input has; None for a `Linear`, which takes any number."""
    return len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else None
