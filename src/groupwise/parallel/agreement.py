"""Before ranks divide a model they compare notes: what differs is told on each, where else they would hang or mix."""

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
# How long a rank waits for the others to come.
PATIENCE = timedelta(seconds=60)
# How often this process has met the same ranks.
_meetings: Counter[str] = Counter()


def agree(model: torch.nn.Module, mesh: DeviceMesh, *, random: bool = False, patience: timedelta = PATIENCE) -> None:
    """Raise `GroupwiseError` on each rank of `mesh` unless all come with this model, its dtypes, and this mesh.

    Its layers are compared by their classes, what these print of themselves (strides, paddings, rates of dropout), and
    whether they train; its code is not. The state of random numbers is compared where the model is `random`.

    The notes go through the process group's store and not by a collective, which would hang where meshes differ.
    """
    store = distributed.distributed_c10d._get_default_store()
    rank, ranks = distributed.get_rank(), mesh.mesh.flatten().tolist()
    notes = _notes(model, mesh, random)
    where = _meet(store, rank, ranks, json.dumps(notes), patience)
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
            raise GroupwiseError(f"{differs}; ranks that share a model have to make the same one, seeded alike")


def _meet(store: Any, rank: int, ranks: list[int], note: str, patience: timedelta) -> str:
    """Leave a note and wait for all ranks: gives where the notes are, with an `outcome` that is the same on each.

    The last rank to come settles it, or the first whose patience ends; one that comes later begins the next meeting.
    """
    store.set(f"groupwise/last/{rank}", note)
    meeting = ",".join(map(str, sorted(ranks)))
    while store.check([f"groupwise/{meeting}/{_meetings[meeting]}/outcome"]):
        _meetings[meeting] += 1
    where = f"groupwise/{meeting}/{_meetings[meeting]}"
    _meetings[meeting] += 1
    store.set(f"{where}/{rank}", note)
    if store.add(f"{where}/come", 1) == len(ranks):
        store.compare_set(f"{where}/outcome", "", ALL.decode())
    try:
        store.wait([f"{where}/outcome"], patience)
    except (RuntimeError, ValueError):
        store.compare_set(f"{where}/outcome", "", "left")
    return where


def _instead(store: Any, missing: list[int], mesh: str) -> str:
    """With which mesh the first of those that are missing came, where it was another."""
    last = f"groupwise/last/{missing[0]}" if missing else ""
    other = json.loads(store.get(last))[MESH] if last and store.check([last]) else mesh
    return f" (it last came with {other})" if other != mesh else ""


def _notes(model: torch.nn.Module, mesh: DeviceMesh, random: bool) -> dict[str, str]:
    notes = {MESH: f"ranks {mesh.mesh.tolist()} of {mesh.device_type}"}
    if random:
        # Ranks draw the same masks from the same state: others would drift apart without a word.
        device = torch.get_device_module(mesh.device_type) if mesh.device_type != "cpu" else torch
        notes["the state of random numbers"] = f"{zlib.crc32(device.get_rng_state().numpy().tobytes()):08x}"
    layers = {name or "the model": _layer(module) for name, module in model.named_modules()}
    tensors = described([*model.named_parameters(), *model.named_buffers()])
    frozen = {name: f"{tensors[name]}, frozen" for name, p in model.named_parameters() if not p.requires_grad}
    return notes | layers | tensors | frozen


def _layer(module: torch.nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()}){'' if module.training else ' in evaluation'}"


def described(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """The shape and the dtype of each tensor by its name, in words."""
    return {name: f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for name, t in tensors}


def difference(one: dict[str, str], place: str, other: dict[str, str], elsewhere: str) -> str:
    """What differs first in two notes, and how much more does: `x is ... here and ... there (2 more differ)`."""
    names = [name for name in one | other if one.get(name) != other.get(name)]
    more = f" ({len(names) - 1} more differ)" if len(names) > 1 else ""
    name = names[0]
    return f"{name} is {one.get(name, 'missing')} {place} and {other.get(name, 'missing')} {elsewhere}{more}"
