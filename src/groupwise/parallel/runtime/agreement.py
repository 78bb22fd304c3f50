"""Compares the ranks' models before a split: every rank reports what differs, where they would hang or mix models."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from groupwise.errors import GroupwiseError

MESH = "the mesh"
ALL = b"all"
# A rank waits this long for the others.
PATIENCE = timedelta(seconds=60)
# How often this process has compared notes with the same ranks.
_rounds: Counter[str] = Counter()


def agree(model: torch.nn.Module, mesh: DeviceMesh, *, random: bool = False, patience: timedelta = PATIENCE) -> None:
    """Raises `GroupwiseError` on each rank of `mesh` unless all ranks give the same model, dtypes and mesh.

    It compares the layers by their classes, their printed settings (strides, paddings, rates of dropout) and whether
    they train, but not their code. If the model is `random`, it compares the states of random numbers too. A rank waits
    `patience` for the others.

    The notes go through the process group's store: a collective would hang if meshes differ.
    """
    store = distributed.distributed_c10d._get_default_store()
    rank, ranks = distributed.get_rank(), mesh.mesh.flatten().tolist()
    notes = _notes(model, mesh, random)
    where = _leave_note(store, rank, ranks, json.dumps(notes), patience)
    if store.get(f"{where}/outcome") != ALL:
        missing = [other for other in ranks if not store.check([f"{where}/{other}"])]
        who = f"rank {missing[0]} has not" if missing else "not all ranks have"
        instead = _instead(store, missing, notes[MESH])
        raise GroupwiseError(
            f"{who} come within {patience.total_seconds():.0f} s to split a model over {notes[MESH]}{instead}; each "
            "rank of a mesh has to call split with that mesh"
        )
    for other in ranks:
        theirs = json.loads(store.get(f"{where}/{other}"))
        if theirs != notes:
            differs = difference(notes, f"on rank {rank}", theirs, f"on rank {other}")
            raise GroupwiseError(f"{differs}; every rank has to make the same model, and to set the same seed")


def _leave_note(store: Any, rank: int, ranks: list[int], note: str, patience: timedelta) -> str:
    """Leaves a note, waits for all ranks, and returns the key of the notes, with an `outcome` equal on all ranks.

    The last rank to come decides the outcome, or the first rank whose patience ends. A rank that comes later begins the
    next round.
    """
    store.set(f"groupwise/last/{rank}", note)
    who = ",".join(map(str, sorted(ranks)))
    while store.check([f"groupwise/{who}/{_rounds[who]}/outcome"]):
        _rounds[who] += 1
    where = f"groupwise/{who}/{_rounds[who]}"
    _rounds[who] += 1
    store.set(f"{where}/{rank}", note)
    if store.add(f"{where}/come", 1) == len(ranks):
        store.compare_set(f"{where}/outcome", "", ALL.decode())
    try:
        store.wait([f"{where}/outcome"], patience)
    except (RuntimeError, ValueError):
        store.compare_set(f"{where}/outcome", "", "left")
    return where


def _instead(store: Any, missing: list[int], mesh: str) -> str:
    """Says with which other mesh the first missing rank came last; empty if it came with none."""
    last = f"groupwise/last/{missing[0]}" if missing else ""
    other = json.loads(store.get(last))[MESH] if last and store.check([last]) else mesh
    return f" (it last came with {other})" if other != mesh else ""


def _notes(model: torch.nn.Module, mesh: DeviceMesh, random: bool) -> dict[str, str]:
    notes = {MESH: f"ranks {mesh.mesh.tolist()} of {mesh.device_type}"}
    if random:
        # Ranks with equal states draw equal masks; with other states their results would silently differ.
        device = torch.get_device_module(mesh.device_type) if mesh.device_type != "cpu" else torch
        notes["the state of random numbers"] = f"{zlib.crc32(device.get_rng_state().numpy().tobytes()):08x}"
    layers = {name or "the model": _layer(module) for name, module in model.named_modules()}
    tensors = described([*model.named_parameters(), *model.named_buffers()])
    frozen = {name: f"{tensors[name]}, frozen" for name, p in model.named_parameters() if not p.requires_grad}
    return notes | layers | tensors | frozen


def _layer(module: torch.nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()}){'' if module.training else ' in evaluation'}"


def described(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Returns the shape and the dtype of each tensor by its name, in words."""
    return {name: f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for name, t in tensors}


def difference(one: dict[str, str], place: str, other: dict[str, str], elsewhere: str) -> str:
    """Says what differs first in two notes, and how many others do: `x is ... here and ... there (2 more differ)`."""
    names = [name for name in one | other if one.get(name) != other.get(name)]
    more = f" ({len(names) - 1} more differ)" if len(names) > 1 else ""
    name = names[0]
    return f"{name} is {one.get(name, 'missing')} {place} and {other.get(name, 'missing')} {elsewhere}{more}"
