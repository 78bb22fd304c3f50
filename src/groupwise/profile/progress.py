"""How far a measurement is, told on stderr: the same in the command line and in Python."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# What is told how many of how many are done; and which part of the work they belong to.
Progress = Callable[[int, int], None]
PartProgress = Callable[[str, int, int], None]
_SECONDS_BETWEEN_LINES = 5


@contextmanager
def told(what: str, unit: str) -> Iterator[Progress]:
    """Yields a function that shows how many of how many are done: a bar in a terminal, else a line now and then.

    The bar is tqdm's, and needs the extra `groupwise[report]`.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"groupwise: {what}: {done} of {total} {unit}s", file=sys.stderr)

        yield line
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=f" {unit}s", leave=False) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move


@contextmanager
def shown(progress: bool | Progress | None, what: str, unit: str) -> Iterator[Progress]:
    """Yields what a measurement is to tell its progress: a user's function, what `told` shows if True, else nothing."""
    if callable(progress):
        yield progress
    elif progress:
        with told(what, unit) as tell:
            yield tell
    else:
        yield lambda done, total: None


@contextmanager
def shown_parts(progress: bool | PartProgress | None) -> Iterator[PartProgress]:
    """Yields the same for a measurement of several parts, each of which is told by itself."""
    if callable(progress):
        yield progress
        return
    with ExitStack() as stack:
        parts: dict[str, Any] = {}

        def tell(part: str, done: int, total: int) -> None:
            if part not in parts:
                parts[part] = stack.enter_context(shown(bool(progress), part, "step"))
            parts[part](done, total)

        yield tell
