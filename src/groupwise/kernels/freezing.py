"""A warning where `torch.compile` freezes a graph, as groupwise's kernels may not see its convolutions.

A frozen graph's weights are constants, and inductor replaces 2-D and 3-D convolutions with such weights by oneDNN's
own operators before they are dispatched. It imports `torch._inductor.freezing` when it freezes the first graph of a
process, and nothing else does, so that this import tells of one. `Watch` sees the import and changes nothing.
"""

from __future__ import annotations

import importlib.abc
import sys
import warnings
from collections.abc import Callable
from typing import Any

MODULE = "torch._inductor.freezing"
MESSAGE = (
    "torch.compile freezes a graph: if inductor replaces convolutions by oneDNN's operators there, those do not reach "
    "groupwise's kernels; groupwise.record_plans() lists what does; compile without freezing to use the kernels for all"
)


class Watch(importlib.abc.MetaPathFinder):
    """Warns once: when a graph is frozen while `wanted()` is true, or at the next `begin`."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted
        self._warned = False

    def begin(self) -> None:
        """Warns if a graph was frozen before, else starts to watch for the first one."""
        if self._warned:
            return
        if MODULE in sys.modules:
            self._warn()
        elif self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Finds no module: leaves every import to the finders after it."""
        if fullname == MODULE and self._wanted():
            self._warn()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(MESSAGE, RuntimeWarning, stacklevel=4)
