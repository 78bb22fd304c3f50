"""Splits a grouped convolution over two processes, and compares the result with one process."""

import os

import torch
import torch.multiprocessing as processes
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module

from groupwise.parallel import GroupParallel


def run(rank, ranks, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(8, 4, 5, groups=4), torch.randn(1, 8, 9, 9)
    whole = conv(x)
    mesh = init_device_mesh("cpu", (ranks,))
    shard = parallelize_module(conv, mesh, GroupParallel())(x)
    torch.testing.assert_close(shard, whole[:, 2 * rank : 2 * rank + 2])
    print(f"rank {rank} has {tuple(shard.shape)} of {tuple(whole.shape)}: {conv}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    import tempfile

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(run, (2, folder), nprocs=2)
