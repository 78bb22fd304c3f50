"""Builds the model that a word of the command line names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.models import MODELS
from groupwise.models.others import import_torchvision, names_in
from groupwise.spec.legible import legible

# An error of PyTorch names every tensor that does not fit.
_MOST_REASON = 300
FORMS = "a network of groupwise, torchvision:NAME, timm:NAME, package.module:attribute or file.py:Name"


def load_model(target: str, say: Callable[[str], None] = lambda message: None) -> torch.nn.Module:
    """Returns the model that `target` names, with random weights; it downloads nothing.

    - a network of `groupwise.models`: `alexnet`, `resnext50_32x4d`, ...
    - `torchvision:NAME`, `timm:NAME`
    - `package.module:attribute` or `file.py:Name`: a module, or a class or function that makes one without arguments.
      Both run the code that they name; for a file, `say` gets a message first.

    Raises `GroupwiseError` for a name that does not exist, with the nearest ones, and for one that makes no
    `torch.nn.Module`.
    """
    source, colon, name = target.rpartition(":")
    if colon and (not source or not name or (source.startswith(".") and not source.endswith(".py"))):
        raise GroupwiseError(f"{target!r} is not a TARGET; give {FORMS}")
    if not colon and target.endswith(".py"):
        raise GroupwiseError(f"{target!r} lacks a name; give {target}:NAME, where NAME is a module or makes one")
    if not colon:
        if target not in MODELS:
            found = _elsewhere(target) or _unknown("model", target, list(MODELS))
            raise GroupwiseError(f"{found}; or give {FORMS.split(', ', 1)[1]}")
        return MODELS[target]()
    if source == "torchvision":
        return _from_torchvision(name)
    if source == "timm":
        return _from_timm(name)
    return _from_code(source, name, target, say)


def is_random(target: str) -> bool:
    """Returns whether the weights of a target are random: all are, except perhaps those that a user's code makes."""
    return target.rpartition(":")[0] in ("", "torchvision", "timm")


def read_tensors(option: str, file: str, fix: str) -> Any:
    """Returns what `torch.save` wrote to the file of an option. Raises `GroupwiseError` for one that cannot be read."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files raise errors of zipfile, pickle and torch.
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error).split("\n")[0]
        raise GroupwiseError(f"{option} {legible(file)} cannot be read: {reason}; {fix}") from None


def load_weights(model: torch.nn.Module, file: str) -> None:
    """Gives a model the weights of a file, which has its `state_dict` as `torch.save` writes it.

    Raises `GroupwiseError` for a file that cannot be read, or has the weights of another model.
    """
    fix = "save them with: torch.save(model.state_dict(), FILE)"
    found = read_tensors("--weights", file, fix)
    try:
        model.load_state_dict(found)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _MOST_REASON else f"{reason[:_MOST_REASON]}..."
        raise GroupwiseError(f"--weights {legible(file)} does not fit the model: {reason}; {fix}") from None


def input_shape(model: torch.nn.Module) -> tuple[int, ...]:
    """Returns the shape of a model's input, for a batch of one: as a timm model states it, else (1, 3, 224, 224)."""
    config = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    return (1, *size) if size else (1, 3, 224, 224)


def _from_torchvision(name: str) -> torch.nn.Module:
    _need("torchvision")
    models = import_torchvision()
    if name not in models.list_models():
        raise GroupwiseError(_unknown("torchvision model", name, models.list_models()))
    options: dict[str, Any] = {"weights": None}
    # Some builders download a trained backbone by default.
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    return _checked(models.get_model(name, **options), f"torchvision:{name}")


def _from_timm(name: str) -> torch.nn.Module:
    _need("timm")
    if importlib.util.find_spec("torchvision"):
        import_torchvision()
    timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):
        raise GroupwiseError(_unknown("timm model", name, timm.list_models()))
    return _checked(timm.create_model(name, pretrained=False), f"timm:{name}")


def _from_code(source: str, name: str, target: str, say: Callable[[str], None]) -> torch.nn.Module:
    if source.endswith(".py"):
        module = _run_file(pathlib.Path(source), say)
    else:
        try:
            # `python -m` finds modules in the current folder too.
            with _importing_from(pathlib.Path.cwd()):
                module = importlib.import_module(source)
        except ModuleNotFoundError as error:
            raise GroupwiseError(f"{target!r}: no module named {error.name!r}; TARGET is {FORMS}") from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in vars(found) if not key.startswith("_")]
            raise GroupwiseError(_unknown(f"attribute of {source}", part, known))
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module):
        return found
    if not callable(found):
        raise GroupwiseError(f"{target} is a {type(found).__name__}; it must be a torch.nn.Module or make one")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise GroupwiseError(
            f"{target} cannot be called without arguments ({error}); name a function that can be"
        ) from None
    return _checked(found(), target)


def _run_file(path: pathlib.Path, say: Callable[[str], None]) -> ModuleType:
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise GroupwiseError(f"{path} {what}; give the path of a Python file, as in file.py:Name")
    say(f"running the code in {path}")
    # The name must differ from that of any installed package, whose place the module would take.
    spec = importlib.util.spec_from_file_location(f"groupwise_target_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise GroupwiseError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look up the module of a class by its name, so it has to be registered.
    sys.modules[spec.name] = module
    with _importing_from(path.parent.resolve()):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importing_from(folder: pathlib.Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _checked(made: object, target: str) -> torch.nn.Module:
    if not isinstance(made, torch.nn.Module):
        raise GroupwiseError(f"{target} made a {type(made).__name__}; it must make a torch.nn.Module")
    return made


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        fix = f"install it with: pip install --no-deps {package} (without --no-deps it may replace torch)"
        raise GroupwiseError(f"{package} is not installed; {fix}")


def _elsewhere(name: str) -> str:
    """Returns how to write the name of a network of torchvision or timm; empty if neither has such a network."""

    def plain(word: str) -> str:
        return word.lower().replace("_", "").replace("-", "")

    for package in ("torchvision", "timm"):
        # Importing them takes seconds, and a mistyped name asks for neither.
        found = [f"{package}:{one}" for one in names_in(package) if plain(one) == plain(name)]
        if found:
            return f"no model named {name!r} in groupwise; write {found[0]}"
    return ""


def _unknown(what: str, name: str, known: list[str]) -> str:
    begin = sorted(candidate for candidate in known if name and candidate.startswith(name))
    near = [*begin[:4], *difflib.get_close_matches(name, known, n=4, cutoff=0.4)]
    word = "nearest" if near else "known"
    shown = list(dict.fromkeys(near or sorted(known)))
    return f"no {what} named {name!r}; {word}: {', '.join(shown[:6])}{', ...' * (len(shown) > 6)}"
