"""Before ranks divide a model they compare notes: what differs is told on each, where else they would hang or mix."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.modules.dropout import _DropoutNd

from groupwise.errors import GroupwiseError

MESH = "the mesh"
# How long a rank waits for the others to come.
PATIENCE = timedelta(seconds=60)
# How often this process has met the same ranks.
_meetings: Counter[str] = Counter()


def agree(model: torch.nn.Module, mesh: DeviceMesh, patience: timedelta = PATIENCE) -> None:
    """Raise `GroupwiseError` on each rank of `mesh` unless all come with this model, its dtypes, and this mesh.

    And, where the model drops values, with the same state of random numbers.

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
            # As if this rank had not come, for the next time to be the others' as well.
            store.delete_key(f"{where}/{rank}")
            _meetings[meeting] -= 1
            last = f"groupwise/last/{other}"
            instead = f" (it came with {json.loads(store.get(last))[MESH]})" if store.check([last]) else ""
            raise GroupwiseError(
                f"rank {other} has not come within {patience.total_seconds():.0f} s to split a model over "
                f"{notes[MESH]}{instead}; each rank of a mesh has to call split with that mesh"
            ) from error
        theirs = json.loads(store.get(f"{where}/{other}"))
        if theirs != notes:
            differs = difference(notes, f"on rank {rank}", theirs, f"on rank {other}")
            raise GroupwiseError(f"{differs}; ranks that share a model have to make the same one, seeded alike")


def _notes(model: torch.nn.Module, mesh: DeviceMesh) -> dict[str, str]:
    notes = {MESH: f"ranks {mesh.mesh.tolist()} of {mesh.device_type}", "the model": type(model).__name__}
    if any(isinstance(module, _DropoutNd) and module.p for module in model.modules()):
        # Ranks draw the same masks from the same state: others would drift apart without a word.
        device = torch.get_device_module(mesh.device_type) if mesh.device_type != "cpu" else torch
        notes["the state of random numbers"] = f"{zlib.crc32(device.get_rng_state().numpy().tobytes()):08x}"
    return notes | described([*model.named_parameters(), *model.named_buffers()])


def described(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """The shape and the dtype of each tensor by its name, in words."""
    return {name: f"{tuple(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for name, t in tensors}


def difference(one: dict[str, str], place: str, other: dict[str, str], elsewhere: str) -> str:
    """What differs first in two notes, and how much more does: `x is ... here and ... there (2 more differ)`."""
    names = [name for name in one | other if one.get(name) != other.get(name)]
    more = f" ({len(names) - 1} more differ)" if len(names) > 1 else ""
    name = names[0]
    return f"{name} is {one.get(name, 'missing')} {place} and {other.get(name, 'missing')} {elsewhere}{more}"
