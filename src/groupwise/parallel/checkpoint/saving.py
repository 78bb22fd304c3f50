"""Saves checkpoints: refuses bad input first, names a checkpoint once it is whole, and removes older ones."""

from __future__ import annotations

import json
import pathlib
import shutil
import stat
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.checkpoint.facts import FACTS, orders, read_facts
from groupwise.parallel.checkpoint.files import SUMS, digest, sums_text, write_file
from groupwise.parallel.checkpoint.lock import take
from groupwise.parallel.checkpoint.reading import Reader, check_state
from groupwise.parallel.checkpoint.recovery import PART, parts_in, recover
from groupwise.parallel.checkpoint.state import describe_model, describe_optimizer, states
from groupwise.parallel.checkpoint.together import AlikeError, alike, gather, words


def save(
    folder: str | pathlib.Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
    **facts: Any,
) -> pathlib.Path:
    """Writes the state of `model` and `optimizer` to `folder`/step-<step>, and returns that path.

    Every rank of `group` (None: the default group) calls it. The folder gets its name only once it is whole. `save`
    keeps the checkpoint written before, and removes all others in `folder` except symbolic links: give each run a
    folder of its own. `facts` are JSON values that `load` returns, such as an epoch.

    If one rank cannot write, or if another process writes to the folder (see `checkpoint.claim`), every rank raises a
    `GroupwiseError`. Anything that cannot be removed is a `RuntimeWarning`.
    """
    for name, fact in facts.items():
        try:
            json.loads(json.dumps(fact))
        except (TypeError, ValueError, RecursionError) as error:
            raise GroupwiseError(
                f"{name} of type {type(fact).__name__} is no JSON value ({error}); facts are numbers, words, lists "
                "and dicts, such as tensor.item()"
            ) from error
    target = pathlib.Path(folder) / f"step-{check_integer('step', step, 0):08d}"
    first = distributed.get_rank(group) == 0
    state, optimizer_state = states(model, optimizer)
    content = {
        "step": step,
        "facts": facts,
        "model": describe_model(state),
        "optimizer": describe_optimizer(optimizer, optimizer_state),
    }
    whole = {"model": state, "optimizer": optimizer_state}
    with alike(group):
        check_state(whole)
    name = ""
    left: list[pathlib.Path] = []
    with alike(group):
        if first:
            name, left = _begin(target)
    part = target.with_name(gather(name, group)[0])
    try:
        state_dict_saver.save(whole, checkpoint_id=part, process_group=group)
        written: dict[str, tuple[int, str]] = {}
        with alike(group):
            written = _files(part, f"__{distributed.get_rank(group)}_*")
        files = {name: file for of_rank in gather(written, group) for name, file in of_rank.items()}
        with alike(group):
            if first:
                left += _finish(part, target, content, files)
    except (AlikeError, CheckpointException) as error:
        if first:
            shutil.rmtree(part, ignore_errors=True)
        raise AlikeError(_unwritten(target, error)) from error
    for path in left:
        warnings.warn(
            f"{path} cannot be removed, and no checkpoint needs it; remove it by hand", RuntimeWarning, stacklevel=2
        )
    return target


def _unwritten(target: pathlib.Path, error: BaseException) -> str:
    return f"checkpoint {target} cannot be written: {words(error)}; mend that, or give another folder"


def _begin(target: pathlib.Path) -> tuple[str, list[pathlib.Path]]:
    """Locks the folder for this process, and creates a new one in it.

    Returns its name, and the remains of earlier writers that cannot be removed.
    """
    try:
        alone = take(target.parent)
        _refuse_others(target)
        left: list[pathlib.Path] = []
        if alone:
            recover(target.parent)
            # With the lock held nobody writes these: their writers have been killed.
            left = _discard(parts_in(target.parent))
        # The name is unique, because without locks there may be another writer.
        part = _beside(target)
        part.mkdir()
    except OSError as error:
        raise GroupwiseError(_unwritten(target, error)) from error
    return part.name, left


def _refuse_others(target: pathlib.Path) -> None:
    """Refuses to replace anything that `save` did not write."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        what = "a symbolic link"
    elif not stat.S_ISDIR(mode):
        what = "not a folder"
    elif not (target / FACTS).is_file():
        what = f"a folder without {FACTS}"
    else:
        return
    raise GroupwiseError(
        f"{target} is {what}, and save replaces only checkpoints of groupwise; move it away, or give another folder"
    )


def _files(part: pathlib.Path, pattern: str) -> dict[str, tuple[int, str]]:
    """Returns the size and the SHA-256 of the files that match a pattern."""
    return {path.name: (path.stat().st_size, digest(path)) for path in sorted(part.glob(pattern))}


def _finish(
    part: pathlib.Path, target: pathlib.Path, content: Mapping[str, Any], files: Mapping[str, tuple[int, str]]
) -> list[pathlib.Path]:
    """Writes the facts, names the checkpoint, and removes all older ones but the newest of them.

    Returns those that cannot be removed.
    """
    found = orders(target.parent)
    # The pattern also finds files that belong to no rank, such as the index.
    files = {**_files(part, "*"), **files}
    sizes = {name: size for name, (size, _) in files.items()}
    order = max(found.values(), default=-1) + 1
    write_file(part / FACTS, json.dumps({**content, "order": order, "files": sizes}))
    sums = {name: sha for name, (_, sha) in files.items()} | {FACTS: digest(part / FACTS)}
    write_file(part / SUMS, sums_text(sums))
    # This raises for anything that load would refuse, while the older checkpoints still exist.
    read_facts(part)
    _check_there(part, sizes)
    Reader(part, sizes).check_all()
    replaced = _beside(target) if target.exists() else None
    if replaced:
        target.rename(replaced)
    try:
        part.rename(target)
    except OSError:
        if replaced:
            replaced.rename(target)
        raise
    # A link may lead to any of them, or to a checkpoint of another run.
    own = [path for path in found if path != target and not path.is_symlink()]
    return _discard([replaced, *own[:-1]] if replaced else own[:-1])


def _check_there(part: pathlib.Path, sizes: Mapping[str, int]) -> None:
    """Refuses a new checkpoint if a file that a rank has written is not in the folder that this rank sees."""
    for name, size in sizes.items():
        path = part / name
        if not path.is_file() or path.stat().st_size != size:
            raise GroupwiseError(
                f"rank 0 does not find the {size:,} bytes of {name} in the folder, which another rank has written; "
                "all ranks need one folder, such as one on a disk that their machines share"
            )


def _beside(path: pathlib.Path) -> pathlib.Path:
    """Returns a unique name for a folder that is not yet, or no longer, a checkpoint."""
    return path.with_name(f"{path.name.partition('.')[0]}.{uuid.uuid4().hex[:8]}.part")


def _discard(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Renames folders and removes them, so that half a checkpoint never has its name. Returns those that remain."""
    left = []
    for path in paths:
        place = path
        try:
            if not PART.fullmatch(path.name):
                place = path.rename(_beside(path))
            shutil.rmtree(place)
        except OSError:
            left.append(place)
    return left
