"""A process group of this process alone."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Callable

import torch


def in_group_of_one(folder: pathlib.Path, run: Callable[[], None]) -> None:
    """Calls a function in a process group, and ends the group when all that the function made is gone.

    The group's destructor waits for threads that may want Python's lock. Where the last to hold the group is Python,
    that gives the lock up before; where it is DistributedDataParallel's core, the process would wait for ever.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=0, world_size=1)
    try:
        run()
        gc.collect()
    finally:
        torch.distributed.destroy_process_group()
