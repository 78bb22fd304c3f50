"""Splits groups over two ranks, and data and parameters over two, with FSDP2, on a mesh of 2 x 2.

torchrun --nproc-per-node 4 examples/split_with_fsdp.py
"""

import copy
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from groupwise.parallel import split


def block(channels):
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=8), nn.GroupNorm(8, 32)),
        *(nn.ReLU(), nn.Conv2d(32, 10, 1)),
    )


def train(model, pictures, labels):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(10):
        loss = F.cross_entropy(model(pictures).mean((2, 3)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


if "LOCAL_WORLD_SIZE" not in os.environ:
    raise SystemExit("torchrun starts the ranks: torchrun --nproc-per-node 4 examples/split_with_fsdp.py")
device = "cuda" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "cpu"
mesh = init_device_mesh(device, (2, 2), mesh_dim_names=("data", "groups"))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model = nn.Sequential(block(3), block(10)).to(device)
pictures, labels = torch.randn(8, 3, 16, 16).to(device), torch.randint(10, (8,)).to(device)
alone = copy.deepcopy(model)

# Split the groups first. FSDP then shards what each rank holds, and gathers it for a block while that block runs.
split(model, mesh["groups"])
for layers in model:
    fully_shard(layers, mesh=mesh["data"])
fully_shard(model, mesh=mesh["data"])
row = mesh.get_local_rank("data")
loss = train(model, pictures.chunk(2)[row], labels.chunk(2)[row])
distributed.all_reduce(loss, group=mesh.get_group("data"))
expected = train(alone, pictures, labels)
torch.testing.assert_close(loss / 2, expected)
if distributed.get_rank() == 0:
    weight = model[0][2].weight
    held = tuple(weight.to_local().shape)
    print(f"rank 0 holds {held} of the grouped weight's {tuple(weight.shape)}, and sees 4 of 8 pictures a step")
    print(f"loss of the 10th step {loss.item() / 2:.6f}, in one process {expected.item():.6f}")
distributed.destroy_process_group()
