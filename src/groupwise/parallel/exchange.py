"""What ranks exchange, as operations that autograd follows: DTensor's redistribution, and rows between neighbours.

A local tensor holds whole parts (`Share`), a DTensor PyTorch's chunks of the same dimension. The two are the same
wherever the ranks divide the parts; elsewhere the rows between the two borders move, in one all-to-all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from groupwise.spec.partition import Share, chunks, overlaps


def move_rows(tensor: torch.Tensor, dim: int, have: list[int], want: list[int], mesh: DeviceMesh) -> torch.Tensor:
    """This rank's rows of `dim`, which ranks hold in lengths `have`, as if they held it in lengths `want`."""
    if have == want:
        return tensor
    rank = mesh.get_local_rank()
    send, receive = overlaps(have, want, rank), overlaps(want, have, rank)
    rows = tensor.movedim(dim, 0).contiguous()
    moved = collectives.all_to_all_single_autograd(rows, receive, send, mesh)
    whole: torch.Tensor = collectives.wait_tensor(moved)  # type: ignore[no-untyped-call]
    return whole.movedim(0, dim)


def part_of(tensor: DTensor, dim: int, share: Share) -> torch.Tensor:
    """The whole parts that this rank holds of a parameter or buffer that is `Shard(dim)`."""
    size, mesh = tensor.shape[dim], tensor.device_mesh
    return move_rows(tensor.to_local(), dim, chunks(size, mesh.size()), share.lengths(size), mesh)


def in_place(tensor: DTensor, dim: int, share: Share) -> bool:
    """Whether `part_of` is the DTensor's own memory."""
    return chunks(tensor.shape[dim], tensor.device_mesh.size()) == share.lengths(tensor.shape[dim])


def write_part(tensor: DTensor, dim: int, share: Share, part: torch.Tensor) -> None:
    """Put back a part that is not the DTensor's own memory."""
    size, mesh = tensor.shape[dim], tensor.device_mesh
    tensor.to_local().copy_(move_rows(part, dim, share.lengths(size), chunks(size, mesh.size()), mesh))


def redistribute(
    tensor: torch.Tensor,
    mesh: DeviceMesh,
    source: Placement,
    target: Placement,
    dim: int,
    channels: int,
    share: Share,
    grad: Placement | None = None,
) -> torch.Tensor:
    """The local tensor of layout `target` from one of layout `source`, or from a DTensor, whose own layout counts.

    `dim` has `channels` elements in all, and a local tensor that is sharded there this rank's `share` of them. `grad`
    is the layout of the local result's gradient where it is not `target`. What was exchanged can be differentiated
    once: DTensor's exchanges have no second derivative.
    """
    if not isinstance(tensor, DTensor):
        if grad is None and (
            source == target or (is_shard(source, dim, tensor.dim()) and is_shard(target, dim, tensor.dim()))
        ):
            return tensor
        tensor = as_dtensor(tensor, mesh, source, dim, channels, share)
    local = tensor.redistribute(placements=[target]).to_local(grad_placements=None if grad is None else [grad])
    if is_shard(target, dim, local.dim()):
        local = move_rows(local, dim, chunks(channels, mesh.size()), share.lengths(channels), mesh)
    once: torch.Tensor = _Once.apply(local)  # type: ignore[no-untyped-call]
    return once


class _Once(torch.autograd.Function):
    """The same values; a second derivative is refused where it would be wrong."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor.view_as(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: torch.Tensor) -> torch.Tensor:
        """The gradient."""
        return grads[0]


def as_dtensor(
    local: torch.Tensor, mesh: DeviceMesh, placement: Placement, dim: int, channels: int, share: Share
) -> DTensor:
    """A local tensor of that layout as DTensor; one that is sharded at `dim` has this rank's `share` of them."""
    facts: dict[str, Any] = {}
    if is_shard(placement, dim, local.dim()):
        held = chunks(channels, mesh.size())
        local = move_rows(local, dim, share.lengths(channels), held, mesh)
        if len(set(held)) > 1:
            shape = torch.Size(channels if d == dim else size for d, size in enumerate(local.shape))
            facts = {"shape": shape, "stride": _strides(local, shape)}
    return DTensor.from_local(local, mesh, [placement], run_check=False, **facts)


def distribute(tensor: torch.Tensor, mesh: DeviceMesh, dim: int | None, source: int | None) -> DTensor:
    """`tensor` of rank `source` of the mesh, whole everywhere or in chunks of `dim`; None: each rank's own values."""
    whole = distribute_tensor(tensor, mesh, [Replicate()], src_data_rank=source)
    return whole if dim is None else whole.redistribute(placements=[Shard(dim)])


def is_shard(placement: Placement, dim: int, dims: int) -> bool:
    """Whether `placement` shards dimension `dim` of a tensor of `dims` dimensions."""
    return isinstance(placement, Shard) and placement.dim % dims == dim


def _strides(local: torch.Tensor, shape: torch.Size) -> tuple[int, ...]:
    """Of a dense tensor of `shape` whose dimensions lie in the order of `local`'s."""
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (local.stride(d), -d)):
        strides[dim] = step
        step *= max(1, shape[dim])
    return tuple(strides)
