"""Checkpoints of split models, by `torch.distributed.checkpoint`: written on any number of ranks, read on any other."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.agreement import described, difference

_NAME = re.compile(r"step-\d+")
_FACTS = "groupwise.json"
# What is told of a setting of an optimiser: that there is one.
_SET = "set"


class AlikeError(GroupwiseError):
    """One that every rank raises with the same words."""


def save(
    folder: str | pathlib.Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
    **facts: Any,
) -> pathlib.Path:
    """Write the state of `model` and `optimizer` to `folder`/step-<step>, and give that path.

    Every rank of `group` (None: of the default one) calls it. The folder has its name only once it is whole. The
    checkpoint written before it is kept, and all others in `folder` are removed: give each run a folder of its own.
    `facts` are JSON values that `load` gives back, such as an epoch. What one rank cannot write is a `GroupwiseError`
    on each.
    """
    for name, fact in facts.items():
        try:
            json.dumps(fact)
        except (TypeError, ValueError) as error:
            raise GroupwiseError(
                f"{name} of type {type(fact).__name__} is no JSON value ({error}); facts are numbers, words, lists "
                "and dicts, such as tensor.item()"
            ) from error
    target = pathlib.Path(folder) / f"step-{check_integer('step', step, 0):08d}"
    part = target.with_name(f"{target.name}.part")
    first = distributed.get_rank(group) == 0
    state, optimizer_state = _states(model, optimizer)
    content = {
        "step": step,
        "facts": facts,
        "model": _tensors(state),
        "optimizer": _optimizer(optimizer, optimizer_state),
    }
    try:
        with alike(group):
            if first:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
        state_dict_saver.save({"model": state, "optimizer": optimizer_state}, checkpoint_id=part, process_group=group)
        with alike(group):
            if first:
                _finish(part, target, content)
    except (AlikeError, CheckpointException) as error:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        raise AlikeError(
            f"checkpoint {target} cannot be written: {_words(error)}; mend that, or give another folder"
        ) from error
    return target


def list_checkpoints(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in `folder` in the order in which they were written, the newest last."""
    orders = {}
    for path in sorted(pathlib.Path(folder).glob("step-*")):
        # One that is still being written has another name, and what was copied in part may lack its facts.
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(GroupwiseError):
                orders[path] = _facts(path)["order"]
    return sorted(orders, key=orders.__getitem__)


def load(
    path: str | pathlib.Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of any number of ranks into `model` and `optimizer`; gives its `step` and its facts.

    Every rank of `group` (None: of the default one) calls it. Raises `GroupwiseError` on each, before anything is
    changed, for one that is truncated, or of another model or optimiser, by its name.
    """
    path = pathlib.Path(path)
    state, optimizer_state = _states(model, optimizer)
    with alike(group):
        facts = _facts(path)
        _check_files(path, facts["files"])
        own, saved = _tensors(state), facts["model"]
        if own != saved:
            raise GroupwiseError(
                f"checkpoint {path} is of another model: {difference(saved, 'there', own, 'here')}; load it into the "
                "model that it was written from"
            )
        # A schedule may have set more there, and a parameter that no step had reached has no state there.
        own, there = _optimizer(optimizer, optimizer_state), facts["optimizer"]
        saved = {name: what for name, what in there.items() if name in own or what != _SET}
        own = {name: what for name, what in own.items() if name in saved or what == _SET}
        if own != saved:
            raise GroupwiseError(
                f"checkpoint {path} is of another optimiser: {difference(saved, 'there', own, 'here')}; load it into "
                "one made alike, before its first step"
            )
        kept = {name: value for name, value in optimizer_state["state"].items() if _state_of(name) in saved}
        optimizer_state["state"] = kept
    try:
        state_dict_loader.load({"model": state, "optimizer": optimizer_state}, checkpoint_id=path, process_group=group)
    except CheckpointException as error:
        raise AlikeError(
            f"checkpoint {path} cannot be read: {_words(error)}; go on from another one, as parts of this one may be "
            "in the model by now"
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(strict=False),
    )
    return {"step": facts["step"], **facts["facts"]}


@contextlib.contextmanager
def alike(group: distributed.ProcessGroup | None = None) -> Iterator[None]:
    """What the body raises on a rank of `group` is raised on each, as `AlikeError`, so that none waits in vain."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    problems: list[str | None] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(problems, None if problem is None else _words(problem), group)
    for words in problems:
        if words is not None:
            raise AlikeError(words) from problem


def _finish(part: pathlib.Path, target: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Give the checkpoint its facts and its name, and remove those before the one before it."""
    written = list_checkpoints(target.parent)
    order = _facts(written[-1])["order"] + 1 if written else 1
    files = {path.name: path.stat().st_size for path in part.iterdir()}
    (part / _FACTS).write_text(json.dumps({**content, "order": order, "files": files}))
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    for old in [path for path in written if path != target][:-1]:
        shutil.rmtree(old)


def _states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state of both by the names that the plain model has; the optimiser stays as it is."""
    held = set(model.parameters())
    stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    others = stepped - held
    # PyTorch's mark of a part of a DTensor; the DTensors it makes of them for a forward are no parameters.
    if any(hasattr(parameter, "_st_info") for parameter in held | others) or (others and not held):
        raise GroupwiseError(
            "DistributedDataParallel(device_mesh=...) has taken the parameters out of the split model, and without "
            "them there is no checkpoint; use torch.distributed.fsdp.fully_shard instead, which leaves them"
        )
    if others:
        raise GroupwiseError(
            f"{len(others)} of the optimiser's {len(stepped)} parameters are not in the model, such as one of shape "
            f"{tuple(next(iter(others)).shape)}; make the optimiser from the model's parameters() once it is split"
        )
    fresh = not optimizer.state
    state, optimizer_state = get_state_dict(model, optimizer)
    if fresh:
        # What torch has made up: the state after a step without gradients.
        optimizer.state.clear()
    return state, optimizer_state


def _tensors(state: Mapping[str, Any]) -> dict[str, str]:
    return described((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))


def _optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, str]:
    """What an optimiser is and keeps, in words by name."""
    groups = enumerate(state["param_groups"])
    keys = {_state_of(name): ", ".join(sorted(map(str, values))) for name, values in state["state"].items()}
    return {
        "the optimiser": f"{type(optimizer).__name__} (param_groups: {len(state['param_groups'])})",
        "the state of its parameters": "kept" if keys else "none",
        **{f"{key} of param_groups[{number}]": _SET for number, group in groups for key in group},
        **keys,
    }


def _state_of(name: str) -> str:
    return f"the state of {name}"


def _check_files(path: pathlib.Path, files: Mapping[str, int]) -> None:
    for name, size in files.items():
        there = (path / name).stat().st_size if (path / name).exists() else None
        if there != size:
            what = "is missing" if there is None else f"has {there:,} of its {size:,} bytes"
            raise GroupwiseError(f"checkpoint {path} is truncated: {name} {what}; go on from an older one")


def _facts(path: pathlib.Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / _FACTS).read_text())
        return {key: facts[key] for key in ("step", "order", "facts", "model", "optimizer", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GroupwiseError(
            f"{path} is not a checkpoint of groupwise: {_FACTS} in it cannot be read ({error}); give the path that "
            "groupwise.parallel.save gave, or one of list_checkpoints(folder)"
        ) from error


def _words(error: BaseException) -> str:
    """What went wrong, in one line; of several ranks, on the first."""
    if isinstance(error, CheckpointException):
        _, (error, _) = min(error.failures.items(), key=lambda failure: failure[0])
    text = str(error) if isinstance(error, GroupwiseError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0].rstrip(".")
