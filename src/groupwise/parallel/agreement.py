"""Before ranks divide a model they compare notes: what differs is told on each, where else they would hang or mix."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from groupwise.errors import GroupwiseError

MESH = "the mesh"
# How long a rank waits for the others to come.
PATIENCE = timedelta(seconds=60)
# How often this process has met the same ranks.
_meetings: Counter[str] = Counter()


def agree(model: torch.nn.Module, mesh: DeviceMesh, patience: timedelta = PATIENCE) -> None:
    """Raise `GroupwiseError` on each rank of `mesh` unless all come with this model, its dtypes, and this mesh.

    The notes go through the process group's store and not by a collective, which would hang where meshes differ.
    """
    store = distributed.distributed_c10d._get_default_store()
    rank, ranks = distributed.get_rank(), mesh.mesh.flatten().tolist()
    meeting = ",".join(map(str, sorted(ranks)))
    where = f"groupwise/{meeting}/{_meetings[meeting]}"
    _meetings[meeting] += 1
    notes = _notes(model, mesh)
    store.set(f"{where}/{rank}", json.dumps(notes))
    store.set(f"groupwise/last/{rank}", json.dumps(notes))
    for other in ranks:
        try:
            store.wait([f"{where}/{other}"], patience)
        except (RuntimeError, ValueError) as error:
            last = f"groupwise/last/{other}"
            instead = f" (it came with {json.loads(store.get(last))[MESH]})" if store.check([last]) else ""
            raise GroupwiseError(
                f"rank {other} has not come within {patience.total_seconds():.0f} s to split a model over "
                f"{notes[MESH]}{instead}; each rank of a mesh has to call split with that mesh"
            ) from error
        theirs = json.loads(store.get(f"{where}/{other}"))
        if theirs != notes:
            raise GroupwiseError(_difference(rank, notes, other, theirs))


def _notes(model: torch.nn.Module, mesh: DeviceMesh) -> dict[str, str]:
    notes = {MESH: f"ranks {mesh.mesh.tolist()} of {mesh.device_type}", "the model": type(model).__name__}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return notes | {name: f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for name, t in tensors}


def _difference(rank: int, mine: dict[str, str], other: int, theirs: dict[str, str]) -> str:
    """The first thing that differs, and how many more do."""
    names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    more = f" ({len(names) - 1} more differ)" if len(names) > 1 else ""
    name = names[0]
    return (
        f"{name} is {mine.get(name, 'missing')} on rank {rank} and {theirs.get(name, 'missing')} on rank {other}"
        f"{more}; ranks that share a model have to make the same one"
    )
