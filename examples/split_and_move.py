"""Saves a checkpoint on one number of ranks and loads it on another: run it on 2 ranks, then on as many as you like.

    torchrun --nproc-per-node 2 examples/split_and_move.py
    torchrun --nproc-per-node 3 examples/split_and_move.py

The first run trains 5 steps and writes the folder split-checkpoint. Later runs load it. Each run trains up to 10 steps.
"""

import copy
import os

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from groupwise.parallel import list_checkpoints, load, save, split


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(8, 3, 16, 16, generator=generator).to(device)
    for _ in range(steps):
        loss = F.cross_entropy(model(pictures).mean((2, 3)), torch.arange(8, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


if "LOCAL_WORLD_SIZE" not in os.environ:
    raise SystemExit("torchrun starts the ranks: torchrun --nproc-per-node 2 examples/split_and_move.py")
device = "cuda" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "cpu"
ranks = int(os.environ["WORLD_SIZE"])
mesh = init_device_mesh(device, (ranks,))
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=8), nn.BatchNorm2d(32), nn.ReLU()),
    nn.Conv2d(32, 10, 1),
).to(device)
alone = copy.deepcopy(model)

split(model, mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
found = list_checkpoints("split-checkpoint")
if found:
    facts = load(found[-1], model, optimizer)
    text = f"{found[-1]} of {facts['ranks']} ranks loaded on {ranks}"
else:
    train(model, optimizer, 5)
    path = save("split-checkpoint", 5, model, optimizer, ranks=ranks)
    text = f"{path} written on {ranks} ranks"
loss = train(model, optimizer, 5)
expected = train(alone, torch.optim.AdamW(alone.parameters(), lr=0.01), 10)
torch.testing.assert_close(loss, expected)
if distributed.get_rank() == 0:
    print(f"{text}; loss of the 10th step {loss.item():.6f}, of 10 steps in one process {expected.item():.6f}")
distributed.destroy_process_group()
