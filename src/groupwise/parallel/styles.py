"""Styles for `torch.distributed.tensor.parallel.parallelize_module`: how the ranks of a mesh share one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from groupwise import nn
from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.parallel import compute, exchange
from groupwise.parallel.layer import End, Part, PartLayer, make_part
from groupwise.spec.arguments import valid_groups
from groupwise.spec.partition import Share

_KNOWN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear),
    *(torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d),
)


class LayerStyle(ParallelStyle):
    """What the styles share: their layouts, and how a layer becomes one of which each rank holds a part."""

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

    def part(self, module: torch.nn.Module, ranks: int, rank: int) -> Part:
        """What `rank` of so many holds of `module`. Raises `GroupwiseError` for a layer that the style is not for."""
        raise NotImplementedError

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        check(module, device_mesh, self)
        if parametrize.is_parametrized(module):
            names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
            raise GroupwiseError(
                f"{type(self).__name__} cannot split a layer whose tensors are computed ({names}); remove the "
                "parametrization first, or leave it whole"
            )
        part = self.part(module, device_mesh.size(), device_mesh.get_local_rank())
        if not self.uneven:
            for share in {share for _, share in part.tensors.values()}:
                share.check_even(part.what)
        dims = {name: dim for name, (dim, _) in part.tensors.items()}
        distribute(module, device_mesh, dims, self.src_data_rank)
        make_part(module, device_mesh, part)
        return module

    def _make(self, rank: int, share: Share, **facts: Any) -> Part:
        return Part(
            style=type(self).__name__,
            held=share.of(rank),
            total=share.parts,
            use_local_output=self.use_local_output,
            **facts,
        )

    def _outside(self, inputs: Placement, outputs: Placement) -> tuple[Placement, Placement]:
        """The layouts asked for, or else these."""
        return (
            inputs if self.input_layouts is None else self.input_layouts,
            outputs if self.output_layouts is None else self.output_layouts,
        )

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if name != "src_data_rank"}
        options = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"{type(self).__name__}({options})"


class GroupParallel(LayerStyle):
    """Whole groups to each rank: a grouped or depthwise convolution, plain or transposed, 1-D to 3-D.

    Takes (N, in_channels, ...) whole, or the channels of each rank's groups with `input_layouts=Shard(1)`; gives each
    rank its part of (N, out_channels, ...), or the whole with `output_layouts=Replicate()`. Between ends that are split
    nothing is exchanged, neither forward nor backward: so were the two GPUs of AlexNet used (A. Krizhevsky et al.,
    NIPS 2012).

    - `input_layouts` (default `Replicate()`), `output_layouts` (default `Shard(1)`): how a local input lies and the
      output shall; a DTensor that comes in says itself how it lies
    - `use_local_output`: whether the output is a local tensor or a DTensor
    - `uneven`: whether ranks may hold more groups than others where their number does not divide them
    - `parts`: the number of parts that stay whole where that is less than `groups`

    Applied to a layer it raises `GroupwiseError` for one without groups, and with `uneven=False` for a number of ranks
    that does not divide them, with those that do.
    """

    def __init__(self, *, parts: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.parts = parts

    def part(self, module: torch.nn.Module, ranks: int, rank: int) -> Part:
        """What `rank` of so many holds of `module`."""
        layer = _convolution(module, self)
        if layer.groups == 1:
            raise GroupwiseError(
                "GroupParallel splits groups, and this layer has groups=1; use ChannelParallel() or SumParallel(), or "
                f"give it groups: {list_some(list(valid_groups(layer.in_channels, layer.out_channels)))}"
            )
        share = share_of(self.parts, layer.groups, "groups", ranks)
        held = share.lengths(layer.groups)[rank]
        inputs, outputs = self._outside(Replicate(), Shard(1))
        return self._make(
            rank,
            share,
            what="groups" if share.parts == layer.groups else f"sets of {layer.groups // share.parts} groups",
            dim=1,
            dims=_dimensions(layer),
            input=End(layer.in_channels, share, Shard(1), inputs),
            output=End(layer.out_channels, share, Shard(1), outputs),
            compute=compute.call if held else compute.no_outputs,
            tensors={"weight": (0, share), "bias": (0, share)},
            numbers={
                "groups": held,
                "in_channels": share.lengths(layer.in_channels)[rank],
                "out_channels": share.lengths(layer.out_channels)[rank],
            },
        )


class _Dense(LayerStyle):
    """Of a dense convolution or a `Linear`."""

    def __init__(self, *, input_parts: int | None = None, output_parts: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.input_parts = input_parts
        self.output_parts = output_parts

    def _shares(self, module: torch.nn.Module, ranks: int) -> tuple[Share, Share]:
        if isinstance(module, torch.nn.Linear):
            _check_plain(module, self)
        groups = 1 if isinstance(module, torch.nn.Linear) else _convolution(module, self).groups
        if groups != 1:
            raise GroupwiseError(
                f"{type(self).__name__} is for dense layers, not for groups={groups}; use GroupParallel()"
            )
        inputs, outputs = sizes_of(module)
        return (
            share_of(self.input_parts, inputs, "input channels", ranks),
            share_of(self.output_parts, outputs, "output channels", ranks),
        )


class ChannelParallel(_Dense):
    """Its part of the output channels to each rank: a dense convolution, or a `Linear`.

    Takes (N, in_channels, ...) whole, or gathers what `input_layouts=Shard(1)` says is split; gives each rank its part
    of (N, out_channels, ...), or the whole with `output_layouts=Replicate()`. Backward, the gradients by the input are
    summed over the ranks. The channels of a `Linear` are the last dimension.

    - `input_parts`, `output_parts`: the parts that stay whole, where the ranks do not divide the channels: the groups
      of the split layers before and after
    - the others as in `GroupParallel`
    """

    def part(self, module: torch.nn.Module, ranks: int, rank: int) -> Part:
        """What `rank` of so many holds of `module`."""
        before, share = self._shares(module, ranks)
        (in_channels, out_channels), (_, rows), dim = sizes_of(module), *_dims(module)
        held = share.lengths(out_channels)[rank]
        inputs, outputs = self._outside(Replicate(), Shard(dim))
        return self._make(
            rank,
            share,
            what="output channels" if self.output_parts is None else "parts of the output channels",
            dim=dim,
            dims=_dimensions(module),
            input=End(in_channels, before, Replicate(), inputs),
            output=End(out_channels, share, Shard(dim), outputs),
            compute=compute.call if held else compute.no_outputs,
            tensors={"weight": (rows, share), "bias": (0, share)},
            numbers={_names(module)[1]: held},
            grad_input=Partial(),
        )


class SumParallel(_Dense):
    """Its part of the input channels to each rank, and the sum over the ranks: a dense convolution, or a `Linear`.

    Takes each rank's part of (N, in_channels, ...), or the whole with `input_layouts=Replicate()`; gives
    (N, out_channels, ...) whole, by one all-reduce, or split with `output_layouts=Shard(1)`, by one reduce-scatter.
    Backward nothing is exchanged where the input is split and the output whole. The channels of a `Linear` are the last
    dimension.

    - `input_parts`, `output_parts`: the parts that stay whole, where the ranks do not divide the channels: the groups
      of the split layers before and after
    - the others as in `GroupParallel`
    """

    def part(self, module: torch.nn.Module, ranks: int, rank: int) -> Part:
        """What `rank` of so many holds of `module`."""
        share, after = self._shares(module, ranks)
        (in_channels, out_channels), (columns, _), dim = sizes_of(module), *_dims(module)
        held = share.lengths(in_channels)[rank]
        inputs, outputs = self._outside(Shard(dim), Replicate())
        tensors = {"weight": (columns, share)}
        if isinstance(outputs, Shard):
            tensors["bias"] = (0, after)
        return self._make(
            rank,
            share,
            what="input channels" if self.input_parts is None else "parts of the input channels",
            dim=dim,
            dims=_dimensions(module),
            input=End(in_channels, share, Shard(dim), inputs),
            output=End(out_channels, after, Partial(), outputs),
            compute=compute.call if held else compute.no_inputs,
            tensors=tensors,
            numbers={_names(module)[0]: held},
            late="bias",
        )


def check_mesh(mesh: DeviceMesh, name: str) -> None:
    """Refuse what is no mesh, or one of several dimensions, to what is called `name`."""
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
    """Refuse a mesh or a layer that no style of this package takes."""
    name = type(style).__name__
    check_mesh(mesh, name)
    if isinstance(module, PartLayer):
        raise GroupwiseError(f"{name} is for a plain layer, and {type(module).__name__} is split already")


def distribute(module: torch.nn.Module, mesh: DeviceMesh, dims: Mapping[str, int], source: int | None) -> None:
    """A layer's parameters become DTensors: in chunks of the dimension in `dims`, else whole. Its buffers there too.

    The attributes of a parameter stay with it.
    """
    for name, parameter in list(module.named_parameters(recurse=False)):
        tensor = exchange.distribute(parameter, mesh, dims.get(name), source)
        spread = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        spread.__dict__.update(parameter.__dict__)
        module.register_parameter(name, spread)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name in dims:
            module._buffers[name] = exchange.distribute(buffer, mesh, dims[name], source)
        elif source is not None:
            buffer.copy_(exchange.distribute(buffer, mesh, None, source).to_local())


def share_of(parts: int | None, size: int, name: str, ranks: int) -> Share:
    """How `size` things go to so many ranks, in that many parts that stay whole."""
    if parts is not None and size % check_integer("parts", parts, 1, size):
        valid = [count for count in range(1, size + 1) if size % count == 0]
        raise GroupwiseError(f"{parts} parts must divide {size} {name}; valid: {list_some(valid, parts)}")
    return Share(parts or size, ranks)


def known_forward(module: torch.nn.Module, kinds: Iterable[type[torch.nn.Module]]) -> bool:
    """Whether the module computes what one of these classes does: no forward of its own, on its class or on itself."""
    own = [name for name in ("forward", "_conv_forward") if name in vars(module)]
    return not own and any(_forwards(type(module)) == _forwards(kind) for kind in kinds)


def _forwards(kind: type[torch.nn.Module]) -> tuple[Any, ...]:
    """What a class computes: PyTorch's convolutions call their `_conv_forward`."""
    return kind.forward, getattr(kind, "_conv_forward", None)


def is_plain(module: torch.nn.Module) -> bool:
    """Whether this is a convolution or a `Linear` that computes what PyTorch's does, of tensors that are its own."""
    return known_forward(module, _KNOWN) and "weight" in module._parameters


def _convolution(module: torch.nn.Module, style: LayerStyle) -> _ConvNd:
    if not isinstance(module, _ConvNd):
        other = "ChannelParallel or SumParallel" if isinstance(module, torch.nn.Linear) else "KeepWhole"
        raise GroupwiseError(
            f"{type(style).__name__} is for convolutions, and this is a {type(module).__name__}; "
            f"give it {other}, or a style of its own"
        )
    _check_plain(module, style)
    if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise GroupwiseError(f"{type(module).__name__} does not know its in_channels yet; run it on an input first")
    return module


def _check_plain(module: torch.nn.Module, style: LayerStyle) -> None:
    if not is_plain(module):
        what = "has a weight that a hook computes" if "weight" not in module._parameters else "has a forward of its own"
        raise GroupwiseError(
            f"{type(module).__name__} {what}, so that {type(style).__name__} does not know what its parts compute; "
            "leave it whole"
        )


def _names(module: torch.nn.Module) -> tuple[str, str]:
    linear = isinstance(module, torch.nn.Linear)
    return ("in_features", "out_features") if linear else ("in_channels", "out_channels")


def sizes_of(module: torch.nn.Module) -> tuple[int, int]:
    """The channels in and out of a convolution, the features of a `Linear`."""
    inputs, outputs = (getattr(module, name) for name in _names(module))
    return inputs, outputs


def _dimensions(module: torch.nn.Module) -> int | None:
    """Of the input of a convolution; a `Linear` takes any."""
    return len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else None


def _dims(module: torch.nn.Module) -> tuple[tuple[int, int], int]:
    """Where the channels in and out are in a dense layer's weight, and where in its tensors."""
    if isinstance(module, torch.nn.Linear):
        return (1, 0), -1
    return (0, 1) if getattr(module, "transposed", False) else (1, 0), 1
