"""A model that fails on its input ends a command with one line, which says what to give instead."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from groupwise.errors import GroupwiseError, RefusedExample

if TYPE_CHECKING:
    import torch

# Words in the messages of PyTorch when memory does not suffice. Nothing is gained by trying that again.
_OF_MEMORY = re.compile(r"memory|overflow", re.IGNORECASE)
# What PyTorch and networks raise for an input that they cannot take.
_OF_INPUT = (RuntimeError, ValueError, IndexError, AssertionError)


@contextmanager
def explaining_failure(
    options: argparse.Namespace,
    target: str,
    model: torch.nn.Module,
    shape: tuple[int, ...],
    make: Callable[[], torch.Tensor],
) -> Iterator[None]:
    """Turns an error of the model about its input, which has this shape and which `make` makes, into one line.

    Any other error, of the model or of groupwise, keeps Python's traceback.
    """
    try:
        try:
            yield
        except RefusedExample as refused:
            raise refused.error from None
    except GroupwiseError:
        raise
    except OSError as error:
        # `main` shows an OSError in one line, as for a file that it cannot write. This one is the model's.
        raise RuntimeError(f"{target} failed on one input of shape {shape}") from error
    except Exception as error:
        if not (_is_of_memory(error) or _takes_other_arguments(error, model) or _is_of_input(error, model, make)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise GroupwiseError(
            f"{target} failed on one input of shape {shape}: {reason}; {_other_input(options)}, or call "
            f"groupwise.{'count' if options.command == 'explain' else options.command} in Python, which takes any "
            "arguments"
        ) from error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OF_MEMORY.search(str(error).split("\n")[0]))
    )


def _is_of_input(error: Exception, model: torch.nn.Module, make: Callable[[], torch.Tensor]) -> bool:
    """Returns whether the model by itself fails on the input too, rather than what groupwise does with it."""
    if not isinstance(error, _OF_INPUT):
        return False
    import torch

    try:
        with torch.no_grad():
            model(make())
    except _OF_INPUT:
        return True
    except Exception:
        return False
    return False


def _takes_other_arguments(error: Exception, model: torch.nn.Module) -> bool:
    """Returns whether the model cannot be called with a single tensor."""
    if not isinstance(error, TypeError):
        return False
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError:
        return True
    return False


def _other_input(options: argparse.Namespace) -> str:
    """Returns how to give an input of another shape, by the option that gave this one."""
    if getattr(options, "image", None) is not None:
        return "give --input-shape in place of --image"
    return f"give {'another' if options.input_shape else 'its'} shape with --input-shape"
