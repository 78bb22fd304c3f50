"""Raises an error of one rank on all ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

from torch import distributed
from torch.distributed.checkpoint.api import CheckpointException

from groupwise.errors import GroupwiseError
from groupwise.spec.legible import legible

T = TypeVar("T")


class AlikeError(GroupwiseError):
    """An error that every rank raises with the same words."""


@contextlib.contextmanager
def alike(group: distributed.ProcessGroup | None = None) -> Iterator[None]:
    """Raises an `AlikeError` on every rank of `group` if the body raises on one, so that no rank waits in vain."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    for text in gather(None if problem is None else words(problem), group):
        if text is not None:
            raise AlikeError(text) from problem


def gather(value: T, group: distributed.ProcessGroup | None) -> list[T]:
    """Returns the `value` of each rank of `group`. Every rank calls it."""
    values: list[T] = [value] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group)
    return values


def words(error: BaseException) -> str:
    """Says in one line what went wrong, on the first rank if several report."""
    if isinstance(error, CheckpointException):
        _, (error, _) = min(error.failures.items(), key=lambda failure: failure[0])
    # A stranger's checkpoint may hold characters that a terminal obeys. Other errors may have more lines, with advice.
    text = str(error) if isinstance(error, GroupwiseError) else f"{type(error).__name__}: {error}".splitlines()[0]
    return legible(text).rstrip(".")
