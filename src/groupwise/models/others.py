"""Models of other packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from groupwise.errors import GroupwiseError

# What registers a network of torchvision or timm, and the function that follows: its name, unless another is given.
_REGISTERED = re.compile(r'^@register_model\b(?:\((?:name="(\w+)")?[^)]*\))?.*?^def (\w+)\(', re.MULTILINE | re.DOTALL)


def import_torchvision() -> ModuleType:
    """Returns `torchvision.models`, even where torchvision's compiled operators do not fit this torch.

    Raises `GroupwiseError` where not even its networks can be imported.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # A torchvision built for another torch cannot load its operators, and its import fails where it describes the first
    # one. The networks do not call them. So they are left undescribed, and torchvision says itself what it lacks where
    # one is called.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    with _without_fakes("torchvision::"):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            raise GroupwiseError(
                f"torchvision {importlib.metadata.version('torchvision')} does not fit torch {torch.__version__}: "
                f"{str(error).splitlines()[0]}; install the one made for it{_command_for(torch.__version__)}"
            ) from None


@contextmanager
def _without_fakes(namespace: str) -> Iterator[None]:
    """Within the block `torch.library.register_fake` passes over operators of this namespace."""
    register = torch.library.register_fake

    def passing_over(op: Any, *arguments: Any, **options: Any) -> Any:
        if not (isinstance(op, str) and op.startswith(namespace)):
            return register(op, *arguments, **options)

        def unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
            return function

        return unchanged

    torch.library.register_fake = passing_over
    try:
        yield
    finally:
        torch.library.register_fake = register


def _command_for(torch_version: str) -> str:
    """Returns what installs the torchvision made for a torch, 0.28 for 2.13; nothing for a torch not known yet."""
    major, minor, *_ = torch_version.split(".")
    return f': pip install --no-deps "torchvision==0.{int(minor) + 15}.*"' if major == "2" else ""


def names_in(package: str) -> list[str]:
    """Returns the names of the networks of torchvision or timm, from its source: it runs none of the package's code.

    The list is empty if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    found = []
    for path in sorted((pathlib.Path(spec.origin).parent / "models").rglob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")
        found += [given or function for given, function in _REGISTERED.findall(source)]
    return found


def packages_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Returns the packages, of those known to this module, that the classes of a model come from."""
    sources = {type(part).__module__.partition(".")[0] for part in model.modules()}
    return tuple(sorted(sources & {"timm", "torchvision"}))
