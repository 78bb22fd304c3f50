"""Tells the C library which memory that was freed to keep for the next step, and which to give back to the system."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# So many bytes may be freed before their pages are returned, which the next tensors then fault in again.
MOST_FREED = 256 << 20
# Within `mapped`, blocks of so many bytes are mapped apart: glibc's own default.
LEAST_MAPPED = 128 << 10
# The largest threshold that glibc takes: larger blocks are mapped apart, if there may be such.
MOST_THRESHOLD = 32 << 20
# Parameters of `mallopt`, and glibc's own value of the last.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MOST_MAPPED = 65536

_one = threading.Lock()
# A network may be collected, and its memory given back, wherever Python allocates.
_keeping = threading.RLock()
# How many networks keep freed memory, by whether they keep that of the largest blocks too.
_keepers = {False: 0, True: 0}


class Freed:
    """Counts what a search allocates and frees, and returns the pages of much of it at once."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        """Counts bytes that were freed."""
        self._bytes += count
        if self._bytes > MOST_FREED:
            trim()
            self._bytes = 0


def trim() -> None:
    """Returns free pages to the system.

    Engines that were tried leave holes in the heap, which are larger than all that an optimized network needs.
    """
    if (found := _function("malloc_trim")) is not None:
        found(0)


def release() -> None:
    """Frees what only cycles of references hold, such as copies of a model, and returns free pages to the system."""
    gc.collect()
    trim()


def keep(owner: object, largest: bool) -> None:
    """Lets the heap keep what is freed until `owner` is collected, so that each step finds the pages of the last.

    By default glibc returns freed pages at the end of the heap to the system, and all of a block of more than 32 MiB.
    The next step waits for new pages, which the system fills with zeros. `largest` keeps those of the largest blocks
    too, among which small objects may then come to lie. Where the user fixed a threshold, nothing changes.
    """
    mallopt = _function("mallopt")
    if mallopt is None or not _is_movable():
        return
    with _keeping:
        _keepers[largest] += 1
        _apply(mallopt)
    weakref.finalize(owner, _give_back, mallopt, largest).atexit = False


def _give_back(mallopt: Any, largest: bool) -> None:
    with _keeping:
        _keepers[largest] -= 1
        _apply(mallopt)
        if not any(_keepers.values()):
            trim()


def _apply(mallopt: Any, mapping: bool = False) -> None:
    """Tells glibc what to keep; while `mapping`, each large block is mapped apart."""
    mallopt(MMAP_THRESHOLD, LEAST_MAPPED if mapping else MOST_THRESHOLD)
    mallopt(MMAP_MAX, 0 if _keepers[True] and not mapping else MOST_MAPPED)
    mallopt(TRIM_THRESHOLD, -1 if any(_keepers.values()) else 2 * MOST_THRESHOLD)


@contextmanager
def mapped() -> Iterator[None]:
    """Within the block, each large block of memory is mapped apart, and returns to the system as soon as it is freed.

    In a heap, small objects that live on would come to lie between the large tensors of a step that is tried. When the
    tensors are freed, their memory stays divided by these objects, and later steps need more of it.

    The threshold of the C library is raised to its largest value afterwards, where glibc itself raises it as large
    tensors are freed. Where the user fixed another threshold, by MALLOC_MMAP_THRESHOLD_ say, nothing changes.
    """
    mallopt = _function("mallopt")
    # Blocks nest, and other threads may have one: the threshold is the process's.
    if mallopt is None or not _one.acquire(blocking=False):
        yield
        return
    try:
        movable = _is_movable()
        if movable:
            _apply(mallopt, mapping=True)
        try:
            yield
        finally:
            if movable:
                _apply(mallopt)
    finally:
        _one.release()


def _is_movable() -> bool:
    """Tells whether the threshold is the largest, or was raised to that by what glibc does when a block is freed."""
    if "MALLOC_MMAP_MAX_" in os.environ or "mmap_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    allocate, free = _function("malloc"), _function("free")
    if allocate is None or free is None or _maps() is None:
        return False
    allocate.restype, allocate.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    # Nothing writes to these blocks, so that they take no memory.
    free(allocate(MOST_THRESHOLD - (64 << 10)))
    before = _maps()
    block = allocate(MOST_THRESHOLD - (256 << 10))
    after = _maps()
    free(block)
    # The heap would keep the room of the block, and hold the first tensors in it.
    trim()
    return before == after


class _Info(ctypes.Structure):
    """The first fields of what `mallinfo2` returns; the last are of no interest."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", *"abcdef")]


def _maps() -> int | None:
    """Returns the number of blocks that are mapped apart; None for another C library, or glibc before 2.33."""
    found = _function("mallinfo2")
    if found is None:
        return None
    found.restype = _Info
    return int(found().hblks)


@cache
def _function(name: str) -> Any:
    """Returns a function of glibc; None for another C library."""
    try:
        loaded = ctypes.CDLL(None)
        # Another C library may have a function of one of the names.
        return getattr(loaded, name) if hasattr(loaded, "gnu_get_libc_version") else None
    except (OSError, AttributeError, TypeError):
        return None
