"""`flop_formulas`: what PyTorch's own FLOP counter needs to count grouped convolutions rightly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def _backward(
    grad_output: Sequence[int],
    input: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    """Returns the FLOP of a convolution's backward, from the shapes of its tensors.

    Each gradient multiplies the same pairs as the forward does: a tap of the weight, which is stored once a group, at
    every position.
    """
    positions = (input if transposed else grad_output)[2:]
    forward = 2 * input[0] * math.prod(positions) * math.prod(weight)
    return forward * (bool(output_mask[0]) + bool(output_mask[1]))


flop_formulas: Mapping[Any, Callable[..., int]] = {torch.ops.aten.convolution_backward: _backward}
"""Formulas for `torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)`.

PyTorch counts the forward of a grouped convolution rightly. Its backward comes out (1 + groups) / 2 times too high: it
does not divide the weight's gradient by the groups (2.13, and still in 2.15). These formulas count as groupwise does: a
multiplication and an addition are 2 FLOP, the bias is not counted, and every tap counts at every position.

Examples:
    >>> from torch.utils.flop_counter import FlopCounterMode
    >>> conv = torch.nn.Conv2d(8, 8, 3, groups=4, bias=False)
    >>> with FlopCounterMode(display=False, custom_mapping=dict(flop_formulas)) as counter:
    ...     conv(torch.randn(1, 8, 5, 5)).sum().backward()
    >>> counter.get_total_flops() == 2 * 2 * groupwise.cost(conv, 5).macs.forward
    True
"""
