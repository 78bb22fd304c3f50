"""The statistics of BatchNorm estimated anew: a converted layer's outputs have other means and variances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from groupwise.choose.convert.data import Batch, check_taken, read
from groupwise.errors import GroupwiseError
from groupwise.spec.legible import legible

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Any) -> tuple[str, ...]:
    """Estimates the running statistics of all BatchNorm layers anew, and returns the names of those layers.

    The new statistics are the averages over `batches`, each batch with equal weight. All other modules run in
    evaluation mode. Modes, momenta and `num_batches_tracked` are as before afterwards. A layer that no batch reaches
    keeps its statistics, and so do all of them where a batch raises an error.

    Args:
        model: changed in place, in these statistics only.
        batches: as the data of `groupwise.regroup`. A batch needs more than one value a channel.

    Raises:
        GroupwiseError: there are no batches, or one that is no inputs of a model.
    """
    norms = _norms(model)
    modes = [(module, module.training) for module in model.modules()]
    momenta = {name: module.momentum for name, module in norms.items()}
    kept = {name: _statistics(module) for name, module in norms.items()}
    reached: set[str] = set()
    try:
        for module, _ in modes:
            module.training = False
        for module in norms.values():
            module.reset_running_stats()
            module.training, module.momentum = True, None
        for batch in read(batches):
            batch.run(model)
        reached = {name for name, module in norms.items() if int(module.num_batches_tracked or 0)}
    finally:
        for module, mode in modes:
            module.training = mode
        for name, module in norms.items():
            module.momentum = momenta[name]
            for key, value in kept[name].items():
                if key == "num_batches_tracked" or name not in reached:
                    getattr(module, key).copy_(value)
    return tuple(name for name in norms if name in reached)


def check_estimable(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Raises `GroupwiseError` for batches that a model does not take, or that `recalibrate` cannot use."""

    def see(module: nn.Module, given: tuple[Tensor, ...], keywords: dict[str, Tensor], name: str) -> None:
        x = given[0] if given else keywords["input"]
        if x.dim() > 1 and x.numel() <= x.shape[1]:
            raise GroupwiseError(
                f"{legible(name)} gets one value a channel, and statistics need several; leave this batch out, as a "
                "DataLoader does with drop_last=True"
            )

    hooks = [
        module.register_forward_pre_hook(partial(see, name=name), with_kwargs=True)
        for name, module in _norms(model).items()
    ]
    try:
        check_taken(model, batches)
    finally:
        for hook in hooks:
            hook.remove()


def _norms(model: nn.Module) -> dict[str, _NormBase]:
    """Returns the layers that `recalibrate` changes, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and not isinstance(module, _InstanceNorm) and module.running_mean is not None
    }


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    return {key: getattr(module, key).clone() for key in _STATISTICS if getattr(module, key) is not None}
