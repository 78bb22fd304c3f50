"""The machine that a figure was measured on."""

from __future__ import annotations

import time
from typing import Any

import torch

import groupwise
from groupwise.kernels.processor import processor_name


def machine() -> dict[str, Any]:
    """Returns the processor, the number of threads, the versions of PyTorch and groupwise, and today's date."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "groupwise": groupwise.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def device_name(device: torch.device) -> str:
    """A GPU's own name, or the kind of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
