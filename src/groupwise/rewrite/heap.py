"""Gives memory that was freed back to the system, as far as the C library can."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

# So many bytes may be freed before their pages are returned, which the next tensors then fault in again.
MOST_FREED = 256 << 20


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
    if (found := _malloc_trim()) is not None:
        found(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """Returns glibc's function; None for another C library."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
        return found
    except (OSError, AttributeError, TypeError):
        return None
