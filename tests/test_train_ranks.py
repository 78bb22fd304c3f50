"""A network for training whose parameters are sharded over ranks computes the gradients of the model sharded so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import groupwise
from ranks import ranks


def make():
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    second = (nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(nn.Sequential(*first), nn.Sequential(*second), nn.Flatten(), nn.Linear(8 * 16, 4))


def gradients(net, x):
    net(x).square().sum().backward()
    return [parameter.grad.full_tensor() for parameter in net.parameters()]


def sharded(mesh, order):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(1)
    x = torch.randn(4, 3, 8, 8)[2 * mesh.get_local_rank() :][:2]
    model = make()
    if order == "before":
        fully_shard(model, mesh=mesh)
    net = groupwise.optimize(model, x, train=True, tune=False)
    if order == "network":
        fully_shard(net, mesh=mesh)
    if order == "parts":
        for part in (net.model[0], net.model[1], net):
            fully_shard(part, mesh=mesh)
    found, fused = gradients(net, x), len(net.plan.fused)
    return found, gradients(fully_shard(make(), mesh=mesh), x), fused


@pytest.mark.parametrize(("order", "fused"), [("network", 2), ("parts", 0), ("before", 0)])
def test_gradients_under_fully_shard(order, fused):
    for found, expected, count in ranks.run(2, sharded, order):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # A module with hooks, which fully_shard adds, runs its own code.
        assert count == fused
