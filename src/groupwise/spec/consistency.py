"""Whether the tensors of a layer have the shapes that its attributes promise, and which attributes to set if not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from groupwise.errors import GroupwiseError

if TYPE_CHECKING:
    from groupwise.spec.convspec import ConvSpec


def check_stored(spec: ConvSpec, weight: tuple[int, ...] | None, bias: tuple[int, ...] | None) -> None:
    """Raises `GroupwiseError` where a shape is not the one that `spec` promises; None is not checked.

    The message names both shapes and the attributes to set.
    """
    if weight is not None and weight != spec.weight_shape:
        facts = ", ".join(f"{name}={getattr(spec, name)}" for name in _NAMES)
        mends = (" and ".join(f"{name}={value}" for name, value in mend.items()) for mend in _mended(spec, weight))
        fix = ", or ".join([*(f"set {mend}" for mend in mends), "replace the weight"])
        raise GroupwiseError(
            f"weight of shape {weight} contradicts {facts} of this {spec.op}, which need {spec.weight_shape}; {fix}"
        )
    if bias is not None and bias != spec.bias_shape:
        raise GroupwiseError(
            f"bias of shape {bias} contradicts out_channels={spec.out_channels} of this {spec.op}, which needs "
            f"{(spec.out_channels,)}; replace the bias, or the weight together with out_channels"
        )


_NAMES = ("groups", "in_channels", "out_channels", "kernel_size")


def _mended(spec: ConvSpec, weight: tuple[int, ...]) -> list[dict[str, object]]:
    """Returns the smallest sets of attributes, with their values, that make `spec` promise `weight`; [] for none."""
    if len(weight) != len(spec.weight_shape) or not all(weight):
        return []
    now = {name: getattr(spec, name) for name in _NAMES}
    found = []
    for in_channels, out_channels, groups in _candidates(spec, weight):
        there = dict(zip(_NAMES, (groups, in_channels, out_channels, weight[2:]), strict=True))
        mend = {name: value for name, value in there.items() if value != now[name]}
        if mend not in found:
            found.append(mend)
    return [mend for mend in found if len(mend) == min(map(len, found))]


def _candidates(spec: ConvSpec, weight: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """Yields (in_channels, out_channels, groups) that a weight of this shape fits, as near to `spec` as possible.

    Dim 0 of a plain weight is out_channels and dim 1 is in_channels / groups; transposed, the two change places.
    """
    first, second = weight[:2]
    was_first, was_second = spec.out_channels, spec.in_channels
    if spec.transposed:
        was_first, was_second = was_second, was_first
    tried = {spec.groups}  # The layer keeps its groups,
    if was_second % second == 0:
        tried.add(was_second // second)  # or its channels along dim 1, which counts them by the group,
    if first * spec.groups % was_first == 0:
        tried.add(first * spec.groups // was_first)  # or the size of a group along dim 0, as depthwise layers do.
    # A dense layer takes any weight.
    for groups in sorted(groups for groups in tried if groups and first % groups == 0) or [1]:
        yield (first, second * groups, groups) if spec.transposed else (second * groups, first, groups)
