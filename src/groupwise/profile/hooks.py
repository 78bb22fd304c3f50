"""`hooked`: knows within a block which module of a model is running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def hooked(
    modules: Iterable[tuple[str, torch.nn.Module]],
    enter: Callable[[str], Callable[..., None]],
    leave: Callable[..., None],
) -> Iterator[None]:
    """Calls `enter(name)(module, inputs, keywords)` before each module runs within the block, and `leave` after it."""
    handles: list[Any] = []
    for name, module in modules:
        # Scripted modules take no such hooks; what they run is named after the module around them.
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
