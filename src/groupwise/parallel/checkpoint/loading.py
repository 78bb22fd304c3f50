"""Loads checkpoints, and checks all that can be checked before it changes the model or the optimiser."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.facts import METADATA, Facts, read_facts
from groupwise.parallel.checkpoint.files import check_sizes, check_sums, place_of
from groupwise.parallel.checkpoint.reading import Planner, Reader
from groupwise.parallel.checkpoint.state import SET, describe_model, describe_optimizer, state_of, states
from groupwise.parallel.checkpoint.together import AlikeError, alike, gather, words
from groupwise.parallel.runtime.agreement import difference


def load(
    path: str | pathlib.Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Loads a checkpoint of any number of ranks into `model` and `optimizer`; returns its `step` and its facts.

    Every rank of `group` (None: the default group) calls it. If a checkpoint is truncated, damaged, or of another model
    or optimiser, every rank raises a `GroupwiseError` that names the reason, before anything is changed. It makes plain
    values and tensors, and no objects of other classes, except of those outside PyTorch that
    `torch.serialization.add_safe_globals` admits.
    """
    path = pathlib.Path(path)
    state, optimizer_state = states(model, optimizer)
    planner = Planner()
    needed: set[str] = set()
    with alike(group):
        facts = read_facts(path)
        check_sizes(path, facts.files)
        saved = _same(path, facts, state, describe_optimizer(optimizer, optimizer_state))
        kept = {name: value for name, value in optimizer_state["state"].items() if state_of(name) in saved}
        optimizer_state["state"] = kept
        whole = {"model": state, "optimizer": optimizer_state}
        # Each rank reads the index, so that each checks its copy of it.
        check_sums(path, facts.sums, [METADATA])
        reader = Reader(path, facts.files)
        plan = planner.check(path, whole, reader.metadata)
        needed = reader.files_of(plan)
        where = place_of(path)
    seen = gather((where, facts.sums, needed), group)
    with alike(group):
        check_sums(path, facts.sums, _to_check(path, seen, distributed.get_rank(group)))
    # This comes after the sums, so that damage gets the same message on all ranks.
    with alike(group):
        reader.check_plan(plan, planner.state_dict)
    try:
        state_dict_loader.load(whole, storage_reader=reader, planner=planner, process_group=group)
    except CheckpointException as error:
        raise AlikeError(
            f"checkpoint {path} cannot be read: {words(error)}; resume from another one, because some tensors of "
            "this one may be in the model by now"
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(strict=False),
    )
    return {**facts.facts, "step": facts.step}


def _to_check(path: pathlib.Path, seen: list[tuple[str, dict[str, str], set[str]]], rank: int) -> list[str]:
    """Returns the files whose sums this rank checks: ranks that see the same folder divide what they need of it.

    `seen` holds for each rank which folder it sees, the sums in it, and the files that it needs.
    """
    for other, (_, sums, _) in enumerate(seen):
        if sums != seen[0][1]:
            raise GroupwiseError(
                f"ranks 0 and {other} see different checkpoints at {path}; copy the same one to each machine"
            )
    beside = [other for other, (where, *_) in enumerate(seen) if where == seen[rank][0]]
    needed = sorted(set[str]().union(*(seen[other][2] for other in beside)))
    return needed[beside.index(rank) :: len(beside)]


def _same(path: pathlib.Path, facts: Facts, state: dict[str, Any], optimizer: dict[str, str]) -> dict[str, str]:
    """Refuses a checkpoint of another model or optimiser; returns what the optimiser is to read from it."""
    own = describe_model(state)
    if own != facts.model:
        raise GroupwiseError(
            f"checkpoint {path} is of another model: {difference(facts.model, 'there', own, 'here')}; load it into the "
            "model that it was written from"
        )
    # The saved optimiser may have settings from a schedule, and no state for parameters that no step reached.
    saved = {name: what for name, what in facts.optimizer.items() if name in optimizer or what != SET}
    own = {name: what for name, what in optimizer.items() if name in saved or what == SET}
    if own != saved:
        raise GroupwiseError(
            f"checkpoint {path} is of another optimiser: {difference(saved, 'there', own, 'here')}; load it into "
            "one made alike, before its first step"
        )
    return saved
