from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import groupwise


def products(layer: nn.Module, x: torch.Tensor) -> int:
    """How many pairs of input and weight a layer without padding multiplies: it sums ones."""
    with torch.no_grad():
        layer.weight.fill_(1)
        return int(layer(torch.ones_like(x, requires_grad=False)).double().sum())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_forward_and_gradients_are_counted(transposed, needs):
    rng = random.Random(0)
    for _ in range(20):
        dims, groups = rng.randint(1, 3), rng.choice((1, 2, 3, 5))
        kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
        n, m = groups * rng.randint(1, 4), groups * rng.randint(1, 4)
        layer = kind(n, m, rng.randint(1, 3), stride=rng.randint(1, 2), groups=groups, bias=False).double()
        x = torch.randn(rng.randint(1, 3), n, *(rng.randint(4, 7) for _ in range(dims)), dtype=torch.float64)
        each = 2 * products(layer, x)
        x.requires_grad_(needs[0])
        layer.weight.requires_grad_(needs[1])
        counter = FlopCounterMode(display=False, custom_mapping=dict(groupwise.flop_formulas))
        with counter:
            layer(x).sum().backward()
        assert counter.get_total_flops() == each * (1 + sum(needs))


def test_pytorch_alone_counts_too_much():
    # If this fails, PyTorch is mended: say so in docs/concepts.md, docs/faq.md and flop_formulas.
    layer, x = nn.Conv2d(8, 8, 3, groups=8, bias=False), torch.randn(1, 8, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    forward = 2 * groupwise.cost(layer, 5).macs.forward
    assert counter.get_total_flops() in (forward * (2 + 8), forward * 3)
