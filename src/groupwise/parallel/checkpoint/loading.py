"""Reads checkpoints: all that can be checked is checked before the model or the optimiser is changed."""

from __future__ import annotations

import pathlib
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

from groupwise.errors import GroupwiseError
from groupwise.parallel.agreement import difference
from groupwise.parallel.checkpoint.facts import Facts, read_facts
from groupwise.parallel.checkpoint.files import check_sizes, check_sums
from groupwise.parallel.checkpoint.reading import Planner, Reader
from groupwise.parallel.checkpoint.state import SET, describe_model, describe_optimizer, state_of, states
from groupwise.parallel.checkpoint.together import AlikeError, alike, words


def load(
    path: str | pathlib.Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    group: distributed.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Read a checkpoint of any number of ranks into `model` and `optimizer`; gives its `step` and its facts.

    Every rank of `group` (None: of the default one) calls it. Raises `GroupwiseError` on each, before anything is
    changed, for one that is truncated or damaged, or of another model or optimiser, by its name. It runs no code that
    the files name, and refuses those that name any, except for what `torch.serialization.add_safe_globals` admits.
    """
    path = pathlib.Path(path)
    state, optimizer_state = states(model, optimizer)
    rank, ranks = distributed.get_rank(group), distributed.get_world_size(group)
    with alike(group):
        facts = read_facts(path)
        check_sizes(path, facts.files)
        saved = _same(path, facts, state, describe_optimizer(optimizer, optimizer_state))
        kept = {name: value for name, value in optimizer_state["state"].items() if state_of(name) in saved}
        optimizer_state["state"] = kept
        # Each file is read once more, and the ranks divide that.
        check_sums(path, facts.sums, sorted(facts.files)[rank::ranks])
    whole = {"model": state, "optimizer": optimizer_state}
    planner = Planner()
    # Only of files that are as they were written, so that damage has one name on all ranks.
    with alike(group):
        reader = Reader(path, facts.files)
        reader.check_values(path)
        planner.check(path, whole, reader.metadata)
    try:
        state_dict_loader.load(whole, storage_reader=reader, planner=planner, process_group=group)
    except CheckpointException as error:
        raise AlikeError(
            f"checkpoint {path} cannot be read: {words(error)}; go on from another one, as parts of this one may be "
            "in the model by now"
        ) from error
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state,
        optim_state_dict=optimizer_state,
        options=StateDictOptions(strict=False),
    )
    return {**facts.facts, "step": facts.step}


def _same(path: pathlib.Path, facts: Facts, state: dict[str, Any], optimizer: dict[str, str]) -> dict[str, str]:
    """Refuses a checkpoint of another model or optimiser; returns what the optimiser is to read from it."""
    own = describe_model(state)
    if own != facts.model:
        raise GroupwiseError(
            f"checkpoint {path} is of another model: {difference(facts.model, 'there', own, 'here')}; load it into the "
            "model that it was written from"
        )
    # A schedule may have set more there, and a parameter that no step had reached has no state there.
    saved = {name: what for name, what in facts.optimizer.items() if name in optimizer or what != SET}
    own = {name: what for name, what in optimizer.items() if name in saved or what == SET}
    if own != saved:
        raise GroupwiseError(
            f"checkpoint {path} is of another optimiser: {difference(saved, 'there', own, 'here')}; load it into "
            "one made alike, before its first step"
        )
    return saved
