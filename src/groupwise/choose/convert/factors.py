"""The form `factored`: a dense layer becomes a grouped one of its kernel, and a 1x1 layer that mixes its groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from groupwise.choose.convert.block import BEST, Converted
from groupwise.choose.convert.factored import factored
from groupwise.errors import GroupwiseError
from groupwise.profile.progress import Progress
from groupwise.spec.legible import legible


def as_factored(
    model: nn.Module, wanted: Mapping[str, int], order: str, gather: Collection[str], seed: int, progress: Progress
) -> dict[str, Converted]:
    """Replaces dense layers of a model in place by two layers each. Channels keep their order, so nothing is folded.

    The rank is at least 1, and the largest at which both take no more multiply-accumulates than a layer with these
    groups. `progress` is told of each layer that is done.

    Raises `GroupwiseError` before any work for transposed layers, and for what is said of orders.
    """
    if order != BEST or gather:
        raise GroupwiseError('order and gather are for form="block"; the form "factored" keeps the order of channels')
    if transposed := [name for name in wanted if isinstance(model.get_submodule(name), _ConvTransposeNd)]:
        raise GroupwiseError(
            f'{", ".join(map(legible, transposed))}: a transposed layer has no form "factored"; give form="block"'
        )
    del seed
    found = {}
    for name, groups in wanted.items():
        layer: Any = model.get_submodule(name)
        made = factored(layer.weight.detach(), groups)
        kind, kept = type(layer), 1 - made.error
        ends = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        first = kind(
            layer.in_channels,
            made.first.shape[0],
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=made.groups[0],
            bias=False,
            padding_mode=layer.padding_mode,
            **ends,
        )
        mixed = {"groups": made.groups[1], "bias": layer.bias is not None, **ends}
        second = kind(made.first.shape[0], layer.out_channels, 1, **mixed)
        first.weight.data.copy_(made.first)
        second.weight.data.copy_(made.second)
        if layer.bias is not None:
            second.bias = layer.bias
        for one in (first, second):
            one.weight.requires_grad_(layer.weight.requires_grad)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Sequential(first, second).train(layer.training))
        found[name] = Converted({"how": "factored", "kept": kept, "bound": kept}, fitted="1")
        progress(len(found), len(wanted))
    return found
