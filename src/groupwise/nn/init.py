"""Kaiming initialisation by the true fans of a grouped convolution.

`torch.nn.init` computes the fans from the shape of the weight, which does not contain the groups. It counts the filters
of all groups as fan_out, and takes the dimensions of a transposed convolution's weight in the wrong order
(https://github.com/pytorch/pytorch/issues/23854). The functions here take the layer instead of its weight.
"""

from __future__ import annotations

import math

import torch
from torch.nn.modules.conv import _ConvNd

from groupwise.errors import check_choice
from groupwise.spec.convspec import ConvSpec

MODES = ("fan_in", "fan_out")
NONLINEARITIES = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")


def fans(conv: _ConvNd) -> tuple[int, int]:
    """Returns (fan_in, fan_out) of any convolution layer of `torch.nn`, plain or transposed.

    fan_in = in/groups · prod(kernel) is how many products make one output; fan_out = out/groups · prod(kernel) is how
    many use one input, at stride 1. Raises `GroupwiseError` for anything that is not a convolution layer.

    Examples:
        >>> fans(torch.nn.Conv2d(4, 4, 3, groups=4))
        (9, 9)
    """
    spec = ConvSpec.from_module(conv)
    taps = math.prod(spec.kernel_size)
    return spec.inputs_per_filter * taps, spec.outputs_per_group * taps


def kaiming_normal_(
    conv: _ConvNd, mode: str = "fan_out", nonlinearity: str = "relu", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Fills `conv.weight` from N(0, gain² / fan) and returns it; `mode` selects the fan, fan_in or fan_out.

    The bias stays as it is. Raises `GroupwiseError` for an unknown mode or nonlinearity. Source: He et al., "Delving
    Deep into Rectifiers", ICCV 2015.
    """
    std = _std(conv, mode, nonlinearity)
    with torch.no_grad():
        return conv.weight.copy_(_contiguous(conv).normal_(0, std, generator=generator))


def kaiming_uniform_(
    conv: _ConvNd, mode: str = "fan_out", nonlinearity: str = "relu", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Fills `conv.weight` from U(-b, b) with b = gain · sqrt(3 / fan), and returns it.

    The variance is that of `kaiming_normal_`.
    """
    bound = math.sqrt(3) * _std(conv, mode, nonlinearity)
    with torch.no_grad():
        return conv.weight.copy_(_contiguous(conv).uniform_(-bound, bound, generator=generator))


def _std(conv: _ConvNd, mode: str, nonlinearity: str) -> float:
    fan = fans(conv)[MODES.index(check_choice("mode", mode, MODES))]
    gain = torch.nn.init.calculate_gain(check_choice("nonlinearity", nonlinearity, NONLINEARITIES))  # type: ignore[arg-type]
    return float(gain) / math.sqrt(fan)


def _contiguous(conv: _ConvNd) -> torch.Tensor:
    """Returns an empty contiguous tensor of the weight's shape: a seed then gives one weight in any memory format."""
    return torch.empty_like(conv.weight, memory_format=torch.contiguous_format)
