"""`enable`, `disable` and `enabled`: whether groupwise's kernels take convolutions.

The kernels are registered behind `aten::convolution` and `aten::convolution_backward`, PyTorch's own operators on the
CPU, so layers, functions, autograd, vmap and compiled graphs reach them without a change. Unsupported cases fall back
to PyTorch. Two switches turn dispatch on: the process (`enable`, GROUPWISE_ENABLE) and the block (`enabled`). Both say
whether kernels are measured (`tuning`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Iterator

from groupwise.errors import GroupwiseError, check_choice
from groupwise.kernels import freezing, native, tuning
from groupwise.kernels.plan import KERNELS

VARIABLE = "GROUPWISE_ENABLE"
# The state of a thread that dispatches what PyTorch's kernel may harm the process by, and nothing else.
_BY_PYTORCH = -2


class _ForkedLock:
    """A lock that a fork waits for, so that a forked child finds it open whichever thread of the parent held it.

    The thread that holds it may acquire it again, so that it does not wait for itself when it forks. Nothing under it
    may import or take another lock: the forking thread may hold that one.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._lock.release
            )

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Switches:
    """Who wants dispatch, and how tuned: `enable()`, and the open blocks of `with enabled()` of all threads."""

    def __init__(self) -> None:
        self._lock = _ForkedLock()
        self._tuner = tuning.Tuner()
        self._process: tuning.Wish | None = None
        # The wish of each block and the thread that opened it: a forked child has none of its parent's other threads to
        # end theirs.
        self._blocks: dict[object, tuple[tuning.Wish, int]] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._keep_own)

    def register(self, library: ctypes.CDLL) -> None:
        self._tuner.prepare(library)
        with self._lock:
            library.groupwise_register()

    def load(self, library: ctypes.CDLL) -> None:
        """Lets the core know what was measured before, as `enable` would."""
        self._tuner.prepare(library)
        with self._lock:
            self._tuner.apply(library, self._wish())

    def set(self, wish: tuning.Wish | None) -> None:
        with self._lock:
            if wish is not None or self._process is not None:
                self._process = wish
                self._apply()

    def open(self, wish: tuning.Wish) -> object:
        block = object()
        with self._lock:
            self._blocks[block] = (wish, threading.get_ident())
            self._apply()
        return block

    def close(self, block: object) -> None:
        with self._lock:
            self._blocks.pop(block, None)
            self._apply()

    def forget(self, library: ctypes.CDLL) -> None:
        self._tuner.prepare(library)
        with self._lock:
            self._tuner.forget(library)

    def tell(self) -> None:
        """Warns and logs what came up, which may raise: the switches are as they should be."""
        self._tuner.tell()

    @property
    def kept_in(self) -> pathlib.Path | None:
        return self._tuner.kept_in

    @property
    def on(self) -> bool:
        return self._process is not None or bool(self._blocks)

    def _wishes(self) -> list[tuning.Wish]:
        """Returns the wishes of the open blocks, the last first, and then the process's."""
        wishes = [wish for wish, _ in reversed(self._blocks.values())]
        return wishes if self._process is None else [*wishes, self._process]

    def _wish(self) -> tuning.Wish | None:
        """Returns the wish in force: the last block's that decides on measuring, else the process's."""
        wishes = self._wishes()
        decides = (wish for wish in wishes if wish.tune is not None or wish is tuning.ONLY_READS)
        return next(decides, wishes[0] if wishes else None)

    def _fft(self) -> bool:
        """Tells whether the last block that says so, else the process, allows the FFT."""
        return next((wish.fft for wish in self._wishes() if wish.fft is not None), False)

    def _keep_own(self) -> None:
        mine = threading.get_ident()
        if any(thread != mine for _, thread in self._blocks.values()):
            self._blocks = {block: held for block, held in self._blocks.items() if held[1] == mine}
            self._apply()

    def _apply(self) -> None:
        library = native.library()
        library.groupwise_dispatch(int(self.on))
        library.groupwise_fft(int(self._fft()))
        self._tuner.apply(library, self._wish())


_switches = _Switches()
_frozen = freezing.Watch(lambda: _switches.on)


def enable(
    tune: bool | None = None,
    calls: int = tuning.CALLS,
    seconds: float = tuning.SECONDS,
    fft: bool | None = None,
) -> None:
    """Dispatches the convolutions of this process, in all threads, to the fastest kernel that the planner finds.

    No model changes: the kernels are registered behind PyTorch's operators. Unsupported cases (complex dtypes,
    other devices, wide groups) fall back to PyTorch. A later call replaces the arguments of the one before.

    - `tune`: True measures the kernels of each convolution when it is first met, and keeps the result in a file for
      later processes. False neither measures nor reads that file, so that every run chooses the same kernels. None does
      as GROUPWISE_TUNE says, if it is set; else it reads the file, and measures only convolutions that no table of this
      processor knows. Nothing is measured while `torch.use_deterministic_algorithms` is on.
    - `calls`: measuring a convolution takes about as long as so many calls of PyTorch's kernel
    - `seconds`: the process measures for about so long in all, and then logs one line; `math.inf` sets no limit
    - `fft`: True lets the planner choose the FFT for long kernels, where it is the fastest. Its error is relative to
      the norm of a whole row, so small results beside large inputs lose digits. None and False do not.

    Raises `GroupwiseError` where the kernels cannot run; the message says why and how to fix it.
    """
    wish = tuning.check_wish(tune, calls, seconds, fft)
    _register()
    _frozen.begin()
    _switches.set(wish)
    _switches.tell()


def disable() -> None:
    """Undoes `enable()`. Open blocks of `with enabled()` keep dispatching until they end."""
    _switches.set(None)


@contextlib.contextmanager
def enabled(
    tune: bool | None = None,
    calls: int = tuning.CALLS,
    seconds: float = tuning.SECONDS,
    fft: bool | None = None,
) -> Iterator[None]:
    """Dispatches the convolutions of this process, in all threads, while the block runs. Blocks nest.

    `tune`, `calls`, `seconds` and `fft` are those of `enable`. With None a block keeps what an outer block or
    `enable` set.

    Raises `GroupwiseError` where the kernels cannot run; the message says why and how to fix it.

    Examples:
        >>> import torch
        >>> conv = torch.nn.Conv2d(8, 8, 3, groups=8)
        >>> with enabled():
        ...     conv(torch.randn(1, 8, 16, 16)).shape
        torch.Size([1, 8, 14, 14])
    """
    wish = tuning.check_wish(tune, calls, seconds, fft)
    _register()
    _frozen.begin()
    with _open(wish):
        _switches.tell()
        yield


@contextlib.contextmanager
def measuring(calls: int, seconds: float) -> Iterator[None]:
    """Dispatches and measures for so many seconds from now while the block runs. Tells nobody when they are over."""
    drawn = tuning.measured(_register())["drawn"]
    _frozen.begin()
    with _open(tuning.Wish(tune=True, calls=calls, seconds=drawn + seconds, quiet=True)):
        _switches.tell()
        yield


@contextlib.contextmanager
def measuring_nothing() -> Iterator[None]:
    """Dispatches and measures nothing while the block runs, whatever was asked for; what was measured before counts."""
    _register()
    with _open(tuning.ONLY_READS):
        yield


@contextlib.contextmanager
def _open(wish: tuning.Wish) -> Iterator[None]:
    block = _switches.open(wish)
    try:
        yield
    finally:
        _switches.close(block)


@contextlib.contextmanager
def forced(on: bool | None = None, kernel: str = "", isa: str = "") -> Iterator[None]:
    """Overrides dispatch in this thread while the block runs. For tests and measurements.

    - `on`: True dispatches, False does not, None leaves it to the process
    - `kernel`: the one kernel that may run, by its name in `KERNELS`; `""` leaves the choice to the planner. Where that
      kernel cannot run, PyTorch's does.
    - `isa`: the instruction set, one that this machine has (`doctor` lists them); `""` leaves the one in use

    Raises `GroupwiseError` for a name that is none of `KERNELS`, for an instruction set that this machine lacks, and
    where the kernels cannot run.
    """
    if kernel != "":
        check_choice("kernel", kernel, KERNELS)
    library = _register()
    load_measurements()
    if isa != "":
        check_choice("isa", isa, native.runnable())
        native.prepare(isa)
    isa_before = library.groupwise_forced_isa()
    library.groupwise_force_isa(isa.encode() or isa_before)
    on_before = library.groupwise_dispatch_thread({None: 0, True: 1, False: -1}[on])
    kernel_before = library.groupwise_force(kernel.encode())
    try:
        yield
    finally:
        library.groupwise_force_isa(isa_before)
        library.groupwise_force(kernel_before)
        library.groupwise_dispatch_thread(on_before)


@contextlib.contextmanager
def by_pytorch() -> Iterator[None]:
    """Runs this thread's convolutions by PyTorch's kernels while the block runs, where these cannot harm the process.

    PyTorch's kernel may end the process, or never end itself, in what has a `Plan.hazard`. One of groupwise's computes
    that, whatever is enabled, and `record_plans` records its plan and no other. All that compares groupwise with
    PyTorch runs PyTorch's side in such a block. Where groupwise's kernels cannot run, the block changes nothing.
    """
    if native.status().problem:
        yield
        return
    switch = thread_switch()
    before = switch(_BY_PYTORCH)
    try:
        yield
    finally:
        switch(before)


def forget() -> None:
    """Forgets what was measured: in this process, and in the files of all processes of this user before.

    Raises `GroupwiseError` where a file cannot be deleted, and where the kernels cannot run.
    """
    library = native.library()
    try:
        _switches.forget(library)
        _switches.tell()
    except OSError as error:
        raise GroupwiseError(f"cannot delete {error.filename}: {error.strerror}; delete it yourself") from None


def kept_in() -> pathlib.Path | None:
    """Returns the file to which the core adds what it measures now; None if it keeps nothing."""
    return _switches.kept_in


def load_measurements() -> None:
    """Lets the planner know what was measured in earlier processes, as `enable()` does."""
    _switches.load(native.library())
    _switches.tell()


def enable_from_environment() -> None:
    """Calls `enable()` if GROUPWISE_ENABLE=1. Warns where that fails, as a variable must not stop a program."""
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
    _switches.register(library)
    return library


def thread_switch() -> Callable[[int], int]:
    """Returns the function that overrides dispatch in its caller's thread, for those who do it for every call.

    It takes 1 (dispatch), -1 (do not) or 0 (as the process), and returns what was in force. `forced` is for all others.
    """
    library = _register()
    load_measurements()
    switch: Callable[[int], int] = library.groupwise_dispatch_thread
    return switch


# Python calls the function about a hundred times in a training step.
_thread_switch = functools.cache(thread_switch)


def switched_on() -> int:
    """Turns dispatch on in this thread, unless `forced` turned it off; returns what to give to `switch_back`."""
    switch = _thread_switch()
    before = switch(1)
    if before < 0:
        switch(before)
    return before


def switch_back(before: int) -> None:
    """Undoes `switched_on`."""
    _thread_switch()(before)
