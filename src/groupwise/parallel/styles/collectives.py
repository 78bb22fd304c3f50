"""The collectives that ranks run, as operations that autograd follows: DTensor's redistribution, and moves of rows.

A local tensor holds whole units (`Partition`), and a DTensor holds PyTorch's chunks of the same dimension. The two are
equal wherever the ranks divide the units; elsewhere one all-to-all moves the rows between the two borders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from groupwise.spec.partition import Partition, chunks, overlaps


def move_rows(tensor: torch.Tensor, dim: int, have: list[int], want: list[int], mesh: DeviceMesh) -> torch.Tensor:
    """Returns this rank's rows of `dim` under lengths `want`, given those under lengths `have`."""
    if have == want:
        return tensor
    rank = mesh.get_local_rank()
    send, receive = overlaps(have, want, rank), overlaps(want, have, rank)
    rows = tensor.movedim(dim, 0).contiguous()
    moved = functional.all_to_all_single_autograd(rows, receive, send, mesh)
    whole: torch.Tensor = functional.wait_tensor(moved)  # type: ignore[no-untyped-call]
    return whole.movedim(0, dim)


def shard_of(tensor: DTensor, dim: int, partition: Partition) -> torch.Tensor:
    """Returns the whole units that this rank holds of a parameter or buffer that is `Shard(dim)`."""
    size, mesh = tensor.shape[dim], tensor.device_mesh
    return move_rows(tensor.to_local(), dim, chunks(size, mesh.size()), partition.lengths(size), mesh)


def in_place(tensor: DTensor, dim: int, partition: Partition) -> bool:
    """Says whether `shard_of` returns the DTensor's own memory."""
    return chunks(tensor.shape[dim], tensor.device_mesh.size()) == partition.lengths(tensor.shape[dim])


def write_shard(tensor: DTensor, dim: int, partition: Partition, local: torch.Tensor) -> None:
    """Writes back a shard that is not the DTensor's own memory."""
    size, mesh = tensor.shape[dim], tensor.device_mesh
    tensor.to_local().copy_(move_rows(local, dim, partition.lengths(size), chunks(size, mesh.size()), mesh))


def redistribute(
    tensor: torch.Tensor,
    mesh: DeviceMesh,
    source: Placement,
    target: Placement,
    dim: int,
    channels: int,
    partition: Partition,
    grad: Placement | None = None,
) -> torch.Tensor:
    """Returns the local tensor of layout `target`, given one of layout `source` or a DTensor, which has its own layout.

    - `dim`, `channels`: the dimension of the channels, and the number of all channels
    - `partition`: how ranks hold the channels of a local tensor that is split along `dim`
    - `grad`: the layout of the local result's gradient, if it is not `target`

    The result can be differentiated once: DTensor's collectives have no second derivative.
    """
    if not isinstance(tensor, DTensor):
        if grad is None and (
            source == target or (is_shard(source, dim, tensor.dim()) and is_shard(target, dim, tensor.dim()))
        ):
            return tensor
        tensor = as_dtensor(tensor, mesh, source, dim, channels, partition)
    local = tensor.redistribute(placements=[target]).to_local(grad_placements=None if grad is None else [grad])
    if is_shard(target, dim, local.dim()):
        local = move_rows(local, dim, chunks(channels, mesh.size()), partition.lengths(channels), mesh)
    once: torch.Tensor = _Once.apply(local)  # type: ignore[no-untyped-call]
    return once


class _Once(torch.autograd.Function):
    """Returns its input, and refuses a second derivative, which would be wrong."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor."""
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        """Returns the gradient."""
        return grads[0]


def as_dtensor(
    local: torch.Tensor, mesh: DeviceMesh, placement: Placement, dim: int, channels: int, partition: Partition
) -> DTensor:
    """Returns a local tensor of layout `placement` as a DTensor; one split along `dim` holds this rank's channels."""
    facts: dict[str, Any] = {}
    if is_shard(placement, dim, local.dim()):
        held = chunks(channels, mesh.size())
        local = move_rows(local, dim, partition.lengths(channels), held, mesh)
        if len(set(held)) > 1:
            shape = torch.Size(channels if d == dim else size for d, size in enumerate(local.shape))
            facts = {"shape": shape, "stride": _strides(local, shape)}
    return DTensor.from_local(local, mesh, [placement], run_check=False, **facts)


def distribute(tensor: torch.Tensor, mesh: DeviceMesh, dim: int | None, source: int | None) -> DTensor:
    """Returns the `tensor` of rank `source` as a DTensor, whole on each rank, or in chunks of `dim` if that is given.

    With `source=None` each rank uses its own values, and no collective runs.
    """
    whole = distribute_tensor(tensor, mesh, [Replicate()], src_data_rank=source)
    return whole if dim is None else whole.redistribute(placements=[Shard(dim)])


def is_shard(placement: Placement, dim: int, dims: int) -> bool:
    """Says whether `placement` splits dimension `dim` of a tensor of `dims` dimensions."""
    return isinstance(placement, Shard) and placement.dim % dims == dim


def _strides(local: torch.Tensor, shape: torch.Size) -> tuple[int, ...]:
    """Returns the strides of a dense tensor of `shape` that has the memory order of `local`."""
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (local.stride(d), -d)):
        strides[dim] = step
        step *= max(1, shape[dim])
    return tuple(strides)
