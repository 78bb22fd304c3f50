"""`lower`: layers compute in bfloat16, and what lies between them does if that loses no more than its rounding.

Sums are float32 everywhere: oneDNN's products, PyTorch's means, pools and norms. What is not listed here reads float32:
softmax, exponentials, long sums. Outputs have the dtypes of the model's.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from groupwise.errors import GroupwiseError
from groupwise.rewrite.simplify import enters, may_change
from groupwise.rewrite.steps import ACTIVATIONS, args_of, is_layer, is_tensor, only_reader, value

aten = torch.ops.aten

# Operators that move values, or round each result once: bfloat16 if what they read is.
_FOLLOW = {
    *(aten.reshape.default, aten.permute.default, aten.transpose.int, aten.flatten.using_ints, aten.unflatten.int),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.expand.default),
    *(aten.slice.Tensor, aten.select.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.unbind.int, aten.cat.default, aten.stack.default, aten.contiguous.default, aten.clone.default),
    *(aten.roll.default, aten.constant_pad_nd.default, aten.pad.default, aten.native_channel_shuffle.default),
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.matmul.default, operator.getitem),
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    *(aten.mean.dim, aten.upsample_nearest2d.vec, aten.scaled_dot_product_attention.default),
    *ACTIVATIONS,
}
# Of these each value is rounded by itself: one that is float32 stays so, as under autocast.
_MEET = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.cat.default, aten.stack.default}
# They read parameters beside the values, and those stay float32.
_NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.batch_norm.default}


@cache
def bfloat16_problem() -> str | None:
    """Says why layers cannot compute in bfloat16 here; None if they can."""
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)
    if torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported() and any(tell() for tell in supported):
        return None
    return "this processor has no bfloat16 products (AVX512-BF16 or AMX)"


def check_dtype(dtype: Any) -> None:
    """Raises `GroupwiseError` for a dtype in which layers cannot compute here."""
    if dtype is not None and dtype is not torch.bfloat16:
        raise GroupwiseError(f"dtype={dtype!r} is not known; choose one of: torch.bfloat16, None")
    if dtype is not None and (reason := bfloat16_problem()):
        raise GroupwiseError(f"dtype={dtype} is not for this machine: {reason}; leave dtype out")


def lower(graph: Graph) -> None:
    """Puts bfloat16 where float32 was, and conversions where the two meet."""
    low: set[Node] = set()
    converted: dict[tuple[Node, torch.dtype], Node] = {}

    def converting(node: Node, dtype: torch.dtype) -> Any:
        def convert(read: Node) -> Node:
            if not is_tensor(read) or not (read in low if dtype is torch.float32 else _is_float32(read)):
                return read
            if (read, dtype) not in converted:
                with graph.inserting_after(read if read.op != "placeholder" else _last_placeholder(graph)):
                    made = graph.call_function(aten._to_copy.default, (read,), {"dtype": dtype})
                made.meta = {"val": value(read).to(dtype), "constant": read.meta.get("constant", False)}
                converted[read, dtype] = made
            return converted[read, dtype]

        return convert

    for node in list(graph.nodes):
        if node.op == "output":
            node.args = map_arg(node.args, converting(node, torch.float32))
        if node.op != "call_function" or node.meta.get("constant"):
            continue
        first = args_of(node)[0] if args_of(node) else None
        if is_layer(node) and value(node).dtype == torch.float32:
            source, weight, bias, *residual = args_of(node)
            convert = converting(node, torch.bfloat16)
            # An engine rounds an image that it alone reads, or what it makes of it.
            whole = enters(source) and may_change(only_reader(source), source)
            node.args = (source if whole else convert(source), weight, bias, *map(convert, residual))
        elif node.target in _NORMS and first in low:
            pass
        elif node.target in _FOLLOW and low.intersection(node.all_input_nodes) and _follows(node, low):
            node.args = map_arg(node.args, converting(node, torch.bfloat16))
        else:
            node.args, node.kwargs = map_arg((node.args, node.kwargs), converting(node, torch.float32))
            continue
        low.add(node)
        node.meta["val"] = tree_map(lambda made: made.to(torch.bfloat16), node.meta["val"])


def _follows(node: Node, low: set[Node]) -> bool:
    """Tells whether a node may compute in bfloat16, some of whose inputs are."""
    meets = node.target in _MEET and not low.issuperset(filter(is_tensor, node.all_input_nodes))
    return _is_float32(node) and not meets


def _is_float32(node: Node) -> bool:
    made = node.meta["val"]
    given = node.kwargs.get("dtype")
    return given is None and all(each.dtype == torch.float32 for each in tree_leaves(made))


def _last_placeholder(graph: Graph) -> Node:
    last: Node = [node for node in graph.nodes if node.op == "placeholder"][-1]
    return last
