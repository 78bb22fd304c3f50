"""Checkpoints of split models, by `torch.distributed.checkpoint`: written on any number of ranks, read on any other."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.agreement import described, difference

_NAME = re.compile(r"step-(\d+)")
_FACTS = "groupwise.json"


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

    Every rank of `group` (None: of the default one) calls it. The folder has its name only once it is whole, and the
    one written before it is kept. `facts` are JSON values that `load` gives back, such as an epoch.
    """
    target = pathlib.Path(folder) / f"step-{check_integer('step', step, 0):08d}"
    part = target.with_name(f"{target.name}.part")
    first = distributed.get_rank(group) == 0
    if first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    distributed.barrier(group)
    state, optimizer_state = get_state_dict(model, optimizer)
    state_dict_saver.save({"model": state, "optimizer": optimizer_state}, checkpoint_id=part, process_group=group)
    if first:
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        (part / _FACTS).write_text(
            json.dumps({"step": step, "facts": facts, "model": described(model.state_dict().items()), "files": sizes})
        )
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        # By when they were written: a run that begins anew may write earlier steps than are there.
        others = [path for path in list_checkpoints(folder) if path != target]
        for old in sorted(others, key=lambda path: (path / _FACTS).stat().st_mtime_ns)[:-1]:
            shutil.rmtree(old)
    distributed.barrier(group)
    return target


def list_checkpoints(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints in `folder`, the newest last."""
    found = [path for path in pathlib.Path(folder).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(_NAME.fullmatch(path.name)[1]))  # type: ignore[index]


def load(
    path: str | pathlib.Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of any number of ranks into `model` and `optimizer`; gives its `step` and its facts.

    Every rank of `group` (None: of the default one) calls it. Raises `GroupwiseError`, before anything is changed, for
    one that is truncated or of another model, by its name.
    """
    path = pathlib.Path(path)
    facts = _facts(path)
    for name, size in facts["files"].items():
        there = (path / name).stat().st_size if (path / name).exists() else None
        if there != size:
            what = "is missing" if there is None else f"has {there:,} of its {size:,} bytes"
            raise GroupwiseError(f"checkpoint {path} is truncated: {name} {what}; go on from an older one")
    own, saved = described(model.state_dict().items()), facts["model"]
    if own != saved:
        raise GroupwiseError(
            f"checkpoint {path} is of another model: {difference(saved, 'there', own, 'here')}; load it into the model "
            "that it was written from"
        )
    state, optimizer_state = get_state_dict(model, optimizer)
    state_dict_loader.load({"model": state, "optimizer": optimizer_state}, checkpoint_id=path, process_group=group)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=optimizer_state)
    return {"step": facts["step"], **facts["facts"]}


def _facts(path: pathlib.Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / _FACTS).read_text())
        return {key: facts[key] for key in ("step", "facts", "model", "files")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GroupwiseError(
            f"{path} is not a checkpoint of groupwise: {_FACTS} in it cannot be read ({error}); give a folder that "
            "groupwise.parallel.save wrote"
        ) from error
