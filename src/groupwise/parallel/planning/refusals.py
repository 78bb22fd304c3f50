"""Refuses the models that a split would silently change, before it does anything to them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from groupwise.errors import GroupwiseError
from groupwise.parallel.planning.flow import Flow
from groupwise.parallel.styles.base import is_plain
from groupwise.parallel.styles.layer import ShardLayer, WholeLayer
from groupwise.spec.convspec import ConvSpec


def check_model(model: nn.Module) -> None:
    """Refuses what is not a network, what is split already, and parameters that DTensors cannot replace."""
    if isinstance(model, _ConvNd | nn.Linear) or not isinstance(model, nn.Module):
        raise GroupwiseError(
            f"{type(model).__name__} is not a network whose layers could be split; give a module with layers in it, or "
            "split a single layer with a style: parallelize_module(layer, mesh, GroupParallel())"
        )
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        _check_module(name or type(model).__name__, module)
        for key, parameter in module.named_parameters(name, recurse=False, remove_duplicate=False):
            _check_parameter(key, parameter)
            if (owner := owners.setdefault(id(parameter), key)) != key:
                raise GroupwiseError(
                    f"{owner} and {key} are one parameter, and would be two once they are split; give each layer its "
                    "own, or split the blocks around them one by one"
                )
        # What computes something of its own stays whole, and its weight may have any shape.
        if isinstance(module, _ConvNd) and is_plain(module):
            _check_layer(name, module)


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, ShardLayer | WholeLayer):
        raise GroupwiseError(f"{name} is split already; split a model once")
    if isinstance(module, nn.MultiheadAttention):
        raise GroupwiseError(
            f"{name} is a MultiheadAttention, which reads the weight of its out_proj beside that layer; split the "
            "blocks around it one by one"
        )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm | WeightNorm):
            kind = "spectral_norm" if isinstance(hook, SpectralNorm) else "weight_norm"
            raise GroupwiseError(
                f"{name} has a hook of torch.nn.utils.{kind}, which takes no DTensor; use "
                f"torch.nn.utils.parametrizations.{kind}"
            )


def _check_layer(name: str, layer: _ConvNd) -> None:
    """Refuses a convolution layer whose weight contradicts its attributes: its shards would have wrong shapes."""
    try:
        ConvSpec.from_module(layer)
    except GroupwiseError as error:
        raise GroupwiseError(f"{name}: {error}") from None


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if is_lazy(parameter):
        raise GroupwiseError(f"{name} does not know its size yet; run the model on an input first")
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise GroupwiseError(f"{name} has hooks, which would not follow it into a DTensor; add them after the split")


def check_reads(model: nn.Module, flow: Flow) -> None:
    """Refuses parameters that code reads outside their own module, where it would find DTensors or shards."""
    owned = {f"{name}.{key}" if name else key: name for name, m in model.named_modules() for key in m._parameters}
    for node in flow.graph.find_nodes(op="get_attr"):
        target, reader = str(node.target), next(reversed(node.meta.get("nn_module_stack") or {"": None}))
        if target in owned and owned[target] != reader:
            raise GroupwiseError(
                f"{target} is read outside its own layer, where code would find a shard of it; let {owned[target]} "
                f"compute with it, or hold it as a parameter of {reader or 'the model'} itself"
            )
