"""`enable`, `disable` and `enabled`: which convolutions take this package's kernels.

The kernels stand behind `aten::convolution` and `aten::convolution_backward`, PyTorch's own operators on the CPU, so
that layers, functions, autograd, vmap and compiled graphs reach them as they are. What no kernel takes goes on to
PyTorch.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from groupwise.errors import GroupwiseError
from groupwise.kernels import native

if TYPE_CHECKING:
    import torch

VARIABLE = "GROUPWISE_ENABLE"


class _Wishes:
    """Who wants the route: `enable()` and the open blocks of `with enabled()`, of all threads."""

    def __init__(self) -> None:
        self._lock = native.ForkedLock()
        self._switch = False
        # Open blocks by thread, because a forked child has none of its parent's other threads to end theirs.
        self._blocks: collections.Counter[int] = collections.Counter()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._keep_own)

    def set(self, switch: bool) -> None:
        with self._lock:
            if self._switch != switch:
                self._switch = switch
                self._apply()

    def add(self, blocks: int) -> None:
        with self._lock:
            mine = threading.get_ident()
            self._blocks[mine] += blocks
            if not self._blocks[mine]:
                del self._blocks[mine]
            self._apply()

    def _keep_own(self) -> None:
        mine = threading.get_ident()
        if any(count for thread, count in self._blocks.items() if thread != mine):
            self._blocks = collections.Counter({mine: self._blocks[mine]})
            self._apply()

    def _apply(self) -> None:
        native.library().groupwise_route(int(self._switch or self._blocks.total() > 0))


_wishes = _Wishes()


def enable() -> None:
    """Route the convolutions of this process, in every thread, to the fastest kernel that its plan finds.

    No model changes: the kernels stand behind PyTorch's operator. What they do not take (other dtypes and devices, 3-D,
    wide groups) PyTorch computes as before. Raises `GroupwiseError` where the kernels cannot run, and says why.
    """
    _register()
    _wishes.set(True)


def disable() -> None:
    """Undo `enable()`. Blocks of `with enabled()` stay routed until they end."""
    _wishes.set(False)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Route the convolutions of this process, in every thread, within a block. Blocks nest, in one thread or several.

    Raises `GroupwiseError` where the kernels cannot run.

    Examples:
        >>> import torch
        >>> conv = torch.nn.Conv2d(8, 8, 3, groups=8)
        >>> with enabled():
        ...     conv(torch.randn(1, 8, 16, 16)).shape
        torch.Size([1, 8, 14, 14])
    """
    _register()
    _wishes.add(1)
    try:
        yield
    finally:
        _wishes.add(-1)


class LayerRoute:
    """The route of one layer's forward, in this thread, and of the backward that its output leads to.

    For the layers of `groupwise.nn`, which take the route without `enable()`. A compiled or exported graph is PyTorch's
    plain operator, and takes the route where the process does.
    """

    def __enter__(self) -> LayerRoute:
        self._route = _thread_route()
        self._before = self._route(1) if self._route else 0
        # What forbids the route within a block forbids it to layers too.
        if self._route and self._before < 0:
            self._route(self._before)
        return self

    def __exit__(self, *_: object) -> None:
        if self._route:
            self._route(self._before)

    def follow(self, output: torch.Tensor) -> None:
        """Route the convolution's node of `output`'s graph."""
        if self._route is None or self._before < 0 or output.grad_fn is None:
            return
        node: Any = output.grad_fn
        # The view that takes the batch dimension off an unbatched output again.
        if node.name().startswith("Squeeze"):
            node = node.next_functions[0][0]
        if node.name().startswith("ConvolutionBackward"):
            node.register_prehook(_route_node)


def _route_node(*_: object) -> None:
    native.library().groupwise_route_node()


@cache
def _thread_route() -> Callable[[int], int] | None:
    """The native switch of this thread's route, or None where there are no kernels."""
    if not native.available():
        return None
    switch: Callable[[int], int] = _register().groupwise_route_thread
    return switch


@contextlib.contextmanager
def forced(route: bool | None = None, kernel: str = "") -> Iterator[None]:
    """Within a block and in this thread alone: take the route (or not), and the one kernel of that name."""
    library = _register()
    route_before = library.groupwise_route_thread({None: 0, True: 1, False: -1}[route])
    kernel_before = library.groupwise_force(kernel.encode())
    try:
        yield
    finally:
        library.groupwise_force(kernel_before)
        library.groupwise_route_thread(route_before)


def enable_from_environment() -> None:
    """`enable()` if GROUPWISE_ENABLE=1; where that cannot be had this warns, as a variable must not stop a program."""
    value = os.environ.get(VARIABLE, "")
    if value in ("", "0"):
        return
    if value != "1":
        warnings.warn(f"{VARIABLE}={value} is not known; use 1 or 0", RuntimeWarning, stacklevel=2)
        return
    try:
        enable()
    except GroupwiseError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def _register() -> ctypes.CDLL:
    library = native.library()
    library.groupwise_register()
    return library
