"""`split`: spreads a network over the ranks of a mesh, as `plan_split` decides."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from groupwise.parallel.planning.plan import plan_split
from groupwise.parallel.runtime.agreement import agree
from groupwise.parallel.styles.base import LayerStyle, check_mesh, distribute

Model = TypeVar("Model", bound=nn.Module)


def split(model: Model, mesh: DeviceMesh, *, uneven: bool = True, src_data_rank: int | None = 0) -> Model:
    """Spreads `model` over the ranks of `mesh`, in place, as `plan_split` decides, and returns it.

    Each rank holds whole paths: grouped layers are split by their groups, and the dense layers before and after them by
    their outputs and by their inputs. A block of ResNeXt then needs one all-reduce, its own sum over paths, and the
    towers of AlexNet need collectives only at conv3 and at the fully connected layers. Parameters become DTensors. The
    model's inputs and outputs are whole and equal on each rank. Every rank calls it with the same model, for training
    and for inference alike.

    - `mesh`: a mesh of one dimension; of several choose one, as in `split(model, mesh["groups"])`, and give the others
      to FSDP or DDP
    - `uneven`: False refuses a number of ranks that does not divide the groups of each layer, or the units in which
      other layers are split
    - `src_data_rank`: the rank whose values all ranks get; None keeps each rank's own, which then have to be equal

    Warns if it finds nothing to split. Raises `GroupwiseError` for a model that `torch.fx` cannot follow. If ranks
    differ in the model, its dtypes or the mesh, every rank raises one that says what differs.
    """
    check_mesh(mesh, "split")
    plan = plan_split(model, mesh.size(), uneven=uneven)
    agree(model, mesh, random=plan.random)
    if mesh.size() > 1 and not any(isinstance(style, LayerStyle) for style in plan.styles.values()):
        warnings.warn(
            f"nothing of {type(model).__name__} is split over {mesh.size()} ranks, each of which computes all of it: "
            "no grouped layer has a group for each rank, or to split it would cost more than to compute it",
            stacklevel=2,
        )
    for name, style in plan.styles.items():
        # parallelize_module takes * and ? in a name for patterns, so that it gets the module itself.
        parallelize_module(model.get_submodule(name), mesh, style, src_data_rank=src_data_rank)
    for name, module in model.named_modules():
        if name not in plan.styles:
            distribute(module, mesh, {}, src_data_rank)
    # DDP broadcasts buffers, and cannot broadcast DTensors.
    spread = [name for name, buffer in model.named_buffers() if isinstance(buffer, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, spread)  # type: ignore[no-untyped-call]
    return model
