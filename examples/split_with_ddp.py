"""Splits groups over two ranks and data over two, with DistributedDataParallel, on a mesh of 2 x 2.

torchrun --nproc-per-node 4 examples/split_with_ddp.py

DistributedDataParallel takes the parameters out of a split model at its first forward, and groupwise warns about it. So
this program makes the optimiser before that, and zeroes the gradients by it. To clip gradients or to write checkpoints,
use FSDP2 as in split_with_fsdp.py.
"""

import copy
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from groupwise.parallel import split


def train(model, pictures, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(10):
        loss = F.cross_entropy(model(pictures).mean((2, 3)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


if "LOCAL_WORLD_SIZE" not in os.environ:
    raise SystemExit("torchrun starts the ranks: torchrun --nproc-per-node 4 examples/split_with_ddp.py")
device = "cuda" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "cpu"
mesh = init_device_mesh(device, (2, 2), mesh_dim_names=("data", "groups"))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=8), nn.GroupNorm(8, 32), nn.ReLU()),
    nn.Conv2d(32, 10, 1),
).to(device)
pictures, labels = torch.randn(8, 3, 16, 16).to(device), torch.randint(10, (8,)).to(device)
alone = copy.deepcopy(model)

split(model, mesh["groups"])
parallel = nn.parallel.DistributedDataParallel(model, device_mesh=mesh["data"])
# Each row of the mesh gets half of the pictures, and both ranks of a row get the same half.
row = mesh.get_local_rank("data")
loss = train(parallel, pictures.chunk(2)[row], labels.chunk(2)[row])
distributed.all_reduce(loss, group=mesh.get_group("data"))
expected = train(alone, pictures, labels)
torch.testing.assert_close(loss / 2, expected)
weight = model[2].weight.full_tensor()
torch.testing.assert_close(weight, alone[2].weight)
if distributed.get_rank() == 0:
    held = tuple(model[2].weight.to_local().shape)
    print(f"rank 0 holds {held} of the grouped weight's {tuple(weight.shape)}, and sees 4 of 8 pictures a step")
    print(f"loss of the 10th step {loss.item() / 2:.6f}, in one process {expected.item():.6f}")
distributed.destroy_process_group()
