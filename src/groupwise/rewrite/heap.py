"""Tells the C library which freed memory to keep for the next step, and which to give back to the system."""

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
# Larger blocks are mapped apart, if there may be such: where glibc's own rule ends.
MOST_THRESHOLD = 32 << 20
# Parameters of `mallopt`, and glibc's own value of the last.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MOST_MAPPED = 65536
# What a user may set of these, as variables or as tunables.
SETTINGS = ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD", "MMAP_MAX")

# A network may be collected, and its memory given back, wherever Python allocates.
_lock = threading.RLock()
# How many networks keep freed memory; those of True keep that of the largest blocks too.
_keepers = {False: 0, True: 0}
_mapping = threading.Event()


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

    By default glibc returns freed pages at the end of the heap to the system, and every block of more than 32 MiB. The
    next step waits for new pages, which the system fills with zeros. `largest` keeps the blocks of more than 32 MiB
    too; small objects may then divide their memory. This holds for the whole process, in glibc's main arena. Where the
    user set a threshold, nothing changes.
    """
    if _count(largest, 1):
        weakref.finalize(owner, _give_back, largest).atexit = False


@contextmanager
def kept(largest: bool) -> Iterator[None]:
    """Does what `keep` does within the block, after which memory stays where it is."""
    counted = _count(largest, 1)
    try:
        yield
    finally:
        if counted:
            _count(largest, -1)


def _count(largest: bool, more: int) -> bool:
    with _lock:
        if _function("mallopt") is None or not _is_movable():
            return False
        _keepers[largest] += more
        _apply()
    return True


def _give_back(largest: bool) -> None:
    _count(largest, -1)
    if not any(_keepers.values()):
        trim()


def _apply() -> None:
    """Tells glibc what to keep, and what to map apart."""
    mallopt = _function("mallopt")
    mallopt(MMAP_THRESHOLD, LEAST_MAPPED if _mapping.is_set() else MOST_THRESHOLD)
    mallopt(MMAP_MAX, 0 if _keepers[True] and not _mapping.is_set() else MOST_MAPPED)
    mallopt(TRIM_THRESHOLD, -1 if any(_keepers.values()) else 2 * MOST_THRESHOLD)


@contextmanager
def mapped() -> Iterator[None]:
    """Within the block, each large block of memory is mapped apart, and returns to the system as soon as it is freed.

    In a heap, small objects that live on would come to lie between the large tensors of a step that is tried. When the
    tensors are freed, their memory stays divided by these objects, and later steps need more of it.

    The threshold of the C library is raised to its largest value afterwards, where glibc itself raises it as large
    tensors are freed. Where the user set a threshold, nothing changes.
    """
    # Blocks nest, and other threads may have one: the threshold is the process's.
    outermost = _map(True)
    try:
        yield
    finally:
        if outermost:
            _map(False)


def _map(mapping: bool) -> bool:
    """Begins or ends to map blocks apart; tells whether that changed anything."""
    with _lock:
        if _function("mallopt") is None or _mapping.is_set() == mapping or not _is_movable():
            return False
        if mapping:
            _mapping.set()
        else:
            _mapping.clear()
        _apply()
    return True


@cache
def _is_movable() -> bool:
    """Tells whether the threshold is the largest, or was raised to that by what glibc does when a block is freed."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"MALLOC_{name}_" in os.environ or name.lower() in tunables for name in SETTINGS):
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
