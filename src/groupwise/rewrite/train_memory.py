"""The memory of large tensors, which a training step leaves to the next one."""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch

from groupwise.kernels import native

# `0` lets PyTorch return all memory at once.
VARIABLE = "GROUPWISE_KEEP_MEMORY"


def keep_memory_for(network: Any) -> None:
    """Keeps the memory of large tensors for the next step as long as a network is there.

    Blocks in use and kept ones together are never more than the most that was in use at once.
    """
    if native.status().problem is not None or os.environ.get(VARIABLE) == "0":
        return
    torch.ops.groupwise.keep_memory(True)
    weakref.finalize(network, torch.ops.groupwise.keep_memory, False).atexit = False
