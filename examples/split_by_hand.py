"""Splits a block of ResNeXt over two ranks by a plan written by hand: 8 groups, and 5, of which the ranks hold 3 and 2.

torchrun --nproc-per-node 2 examples/split_by_hand.py
"""

import copy
import os
from collections import Counter

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

from groupwise import parallel
from groupwise.models.resnext import Bottleneck
from groupwise.parallel import ChannelwiseParallel, ColwiseParallel, GroupParallel, KeepWhole, RowwiseParallel

if "LOCAL_WORLD_SIZE" not in os.environ:
    raise SystemExit("torchrun starts the ranks: torchrun --nproc-per-node 2 examples/split_by_hand.py")
device = "cuda" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "cpu"
mesh = init_device_mesh(device, (2,))
torch.set_default_dtype(torch.float64)
for groups in (8, 5):
    torch.manual_seed(0)
    block = Bottleneck(32, 64, width=4 * groups, groups=groups).to(device)
    x = torch.randn(2, 32, 14, 14).to(device)
    alone = copy.deepcopy(block)
    # The ranks' shards of the channels have to end where groups do, so that each style gets the number of units.
    plan = {
        "conv1": ColwiseParallel(output_units=groups),
        "bn1": ChannelwiseParallel(units=groups),
        "conv2": GroupParallel(input_layouts=Shard(1)),
        "bn2": ChannelwiseParallel(units=groups),
        "conv3": RowwiseParallel(input_units=groups),
        **dict.fromkeys(["bn3", "downsample.0", "downsample.1"], KeepWhole()),
    }
    parallelize_module(block, mesh, plan)
    torch.testing.assert_close(block(x), alone(x))
    collectives = Counter(collective.operation for collective in parallel.traffic(block, x))
    block(x).square().sum().backward()
    alone(x).square().sum().backward()
    torch.testing.assert_close(block.conv2.weight.grad.full_tensor(), alone.conv2.weight.grad)
    if distributed.get_rank() == 0:
        held = " and ".join(map(str, parallel.Partition(groups, 2).lengths(groups)))
        print(
            f"{groups} groups: the ranks hold {held}, equal to one process; collectives of a step: {dict(collectives)}"
        )
distributed.destroy_process_group()
