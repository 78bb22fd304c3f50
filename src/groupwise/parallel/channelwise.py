"""Styles of the layers between convolutions: normalisations and dropouts that stay split, and what stays whole."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ParallelStyle
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from groupwise.errors import GroupwiseError
from groupwise.models.alexnet import LocalResponseNorm
from groupwise.parallel import compute
from groupwise.parallel.layer import End, Part, make_whole
from groupwise.parallel.styles import LayerStyle, check, distribute, known_forward, share_of

# A layer's numbers of channels, and of parts of them.
SIZES = ("num_features", "num_channels", "num_parameters")
PARTS = ("num_groups", "towers")
# What has no channels of its own runs on any of them as it is: each value by itself, or each channel's map.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink),
    *(nn.Tanhshrink, nn.Threshold, nn.Identity),
)
STATELESS = (
    *ACTIVATIONS,
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d),
)


# Those whose forward is known to compute each part alone.
_KNOWN = (
    *STATELESS,
    *(_BatchNorm, nn.SyncBatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU, LocalResponseNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def parts_of(module: nn.Module) -> int | None:
    """Into how many parts the channels of `module` can go that do not meet in it; 0 for any, None where all meet."""
    if not known_forward(module, _KNOWN):
        return None
    if type(module) in STATELESS or (
        isinstance(module, _DropoutNd) and not isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout)
    ):
        return 0
    if isinstance(module, _BatchNorm | _InstanceNorm) and not isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, LocalResponseNorm) and module.towers > 1:
        return module.towers
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return module.num_parameters
    return None


class ChannelwiseParallel(LayerStyle):
    """Its part of the channels to each rank, of a layer in which channels do not meet, or only those of a group.

    Takes and gives (N, C, ...) split at dimension 1, unless the layouts say otherwise. For `BatchNorm1d` to `3d`,
    `SyncBatchNorm` (with the `process_group` of ranks that hold the same channels), `InstanceNorm`, `GroupNorm`,
    `PReLU` of a slope a channel, dropouts, and what has no parameters (activations, poolings, paddings). A dropout
    draws the mask of all channels, so that the ranks, seeded alike, drop what one process would.

    - `parts`: the parts that stay whole, where the ranks do not divide the channels
    - `channels`: of a dropout, which does not know them; None for as many on each rank
    - the others as in `GroupParallel`

    Applied to a layer in which channels meet, such as `LayerNorm`, it raises `GroupwiseError`.
    """

    def __init__(self, *, parts: int | None = None, channels: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.parts = parts
        self.channels = channels

    def part(self, module: nn.Module, ranks: int, rank: int) -> Part:
        """What `rank` of so many holds of `module`."""
        own = parts_of(module)
        if own is None:
            raise GroupwiseError(
                f"the channels of {type(module).__name__} meet in it, so that it cannot be split by them; leave it "
                "whole, with output_layouts=Replicate() of the layer before it"
            )
        if isinstance(module, nn.SyncBatchNorm) and module.process_group is None and ranks > 1:
            raise GroupwiseError(
                "SyncBatchNorm without a process_group averages over all ranks, which hold other channels here; give "
                'it the group of those that hold the same, as in mesh["data"].get_group(), or use a plain BatchNorm'
            )
        channels = next((getattr(module, name) for name in SIZES if hasattr(module, name)), self.channels or 0)
        share = share_of(self.parts, own or channels or self.parts or ranks, "channels", ranks)
        names = ("weight", "bias", "running_mean", "running_var")
        numbers = {
            name: share.lengths(getattr(module, name))[rank] for name in (*SIZES, *PARTS) if hasattr(module, name)
        }
        run = compute.call if share.of(rank) else compute.no_channels
        if isinstance(module, _DropoutNd):
            run = partial(compute.dropout, channels=channels, share=share, rank=rank)
        inputs, outputs = self._outside(Shard(1), Shard(1))
        return self._make(
            rank,
            share,
            what="channels" if share.parts == channels else "parts of the channels",
            dim=1,
            input=End(channels, share, Shard(1), inputs),
            output=End(channels, share, Shard(1), outputs),
            compute=run,
            tensors=dict.fromkeys(names, (0, share)),
            numbers=numbers,
        )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) not in STATELESS:
            return super()._apply(module, device_mesh)
        inputs, outputs = self._outside(Shard(1), Shard(1))
        if inputs != outputs or not self.use_local_output:
            raise GroupwiseError(
                f"{type(module).__name__} runs on each rank's part as it is and changes no layout, so not from "
                f"{inputs} to {outputs}; let the layer before it or after it do that"
            )
        return module


class KeepWhole(ParallelStyle):
    """The whole layer on each rank: its own parameters become DTensors that are `Replicate()`, and that is all.

    For the layers of a split network that are not split: an optimiser, a norm of gradients or a checkpoint then finds
    DTensors alone. Every rank has to give it the same input. Modules within it are left as they are.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        check(module, device_mesh, self)
        distribute(module, device_mesh, {}, self.src_data_rank)
        if module._parameters:
            make_whole(module)
        return module
