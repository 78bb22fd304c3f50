"""The styles of layers between convolutions: normalisations and dropouts that stay split, and what stays whole."""

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
from groupwise.nn.forwards import known_forward
from groupwise.parallel.styles import compute
from groupwise.parallel.styles.base import LayerStyle, check, distribute, partition_of
from groupwise.parallel.styles.layer import End, LayerShard, make_whole

# The attributes of layers with the number of channels, and with the number of units of channels.
SIZES = ("num_features", "num_channels", "num_parameters")
UNITS = ("num_groups", "towers")
# These have no channels of their own, and run on any of them: they compute each value by itself, or each channel.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Hardshrink, nn.Softshrink),
    *(nn.Tanhshrink, nn.Threshold, nn.Identity),
)
# These pad positions, or channels too where a tensor has fewer dimensions.
PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d),
    *(nn.CircularPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
STATELESS = (
    *ACTIVATIONS,
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample),
    *PADS,
)
# The forward of these is known to compute each unit alone.
_KNOWN = (
    *STATELESS,
    *(_BatchNorm, nn.SyncBatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU, LocalResponseNorm),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def units_of(module: nn.Module) -> int | None:
    """Returns into how many units the channels of `module` can be split that it computes alone.

    0 stands for any number, and None for a module that mixes all channels.
    """
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
    """Gives each rank its shard of the channels of a layer that computes each channel, or each group of them, alone.

    The layer takes and returns (N, C, ...) split along dimension 1, unless the layouts say otherwise. The style is for
    `BatchNorm1d` to `3d`, `SyncBatchNorm` (with the `process_group` of ranks that hold the same channels),
    `InstanceNorm`, `GroupNorm`, `PReLU` with one slope per channel, dropouts, and layers without parameters
    (activations, poolings, paddings). A dropout draws the mask of all channels: ranks with equal seeds drop what one
    process would.

    - `units`: the number of units that are never cut, if the ranks do not divide the channels
    - `channels`: the number of all channels, for a dropout, which does not know it; None if every rank holds as many
    - the other parameters are those of `GroupParallel`

    Applied to a layer that mixes channels, such as `LayerNorm`, it raises `GroupwiseError`.
    """

    def __init__(self, *, units: int | None = None, channels: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.units = units
        self.channels = channels

    def shard(self, module: nn.Module, ranks: int, rank: int) -> LayerShard:
        """Returns what `rank` of `ranks` ranks holds of `module`."""
        own = units_of(module)
        if own is None:
            raise GroupwiseError(
                f"{type(module).__name__} mixes all channels, so that it cannot be split by them; leave it whole, with "
                "output_layouts=Replicate() on the layer before it"
            )
        if isinstance(module, nn.SyncBatchNorm) and module.process_group is None and ranks > 1:
            raise GroupwiseError(
                "SyncBatchNorm without a process_group averages over all ranks, which hold other channels here; give "
                'it the group of those that hold the same, as in mesh["data"].get_group(), or use a plain BatchNorm'
            )
        channels = next((getattr(module, name) for name in SIZES if hasattr(module, name)), self.channels or 0)
        partition = partition_of(self.units, own or channels or self.units or ranks, "channels", ranks)
        names = ("weight", "bias", "running_mean", "running_var")
        numbers = {
            name: partition.lengths(getattr(module, name))[rank] for name in (*SIZES, *UNITS) if hasattr(module, name)
        }
        run = compute.call if partition.of(rank) else compute.no_channels
        if isinstance(module, _DropoutNd):
            run = partial(compute.dropout, channels=channels, partition=partition, rank=rank)
        inputs, outputs = self._outside(Shard(1), Shard(1))
        return self._make(
            rank,
            partition,
            what="channels" if partition.units == channels else "units of the channels",
            dim=1,
            input=End(channels, partition, Shard(1), inputs),
            output=End(channels, partition, Shard(1), outputs),
            compute=run,
            tensors=dict.fromkeys(names, (0, partition)),
            numbers=numbers,
        )

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if type(module) not in STATELESS:
            return super()._apply(module, device_mesh)
        inputs, outputs = self._outside(Shard(1), Shard(1))
        if inputs != outputs or not self.use_local_output:
            raise GroupwiseError(
                f"{type(module).__name__} runs on each rank's shard as it is, and cannot change the layout from "
                f"{inputs} to {outputs}; let the layer before it or after it do that"
            )
        return module


class KeepWhole(ParallelStyle):
    """Keeps the whole layer on each rank: its own parameters become DTensors that are `Replicate()`.

    Use it for the layers of a split network that are not split: an optimiser, a norm of gradients or a checkpoint then
    finds only DTensors. Every rank has to give the layer the same input. Modules inside the layer stay as they are.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        check(module, device_mesh, self)
        distribute(module, device_mesh, {}, self.src_data_rank)
        if module._parameters:
            make_whole(module)
        return module
