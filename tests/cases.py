"""Convolutions that tests and benchmarks share."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from groupwise import ConvSpec, valid_groups

# in, out, kernel, groups -> weight shape, weights, inputs per filter: the seven ways groups can meet in and out.
SCENARIOS = [
    (3, 3, 5, 1, (3, 3, 5, 5), 225, 3),
    (8, 4, 5, 4, (4, 2, 5, 5), 200, 2),
    (8, 4, 5, 2, (4, 4, 5, 5), 400, 4),
    (4, 8, 5, 4, (8, 1, 5, 5), 200, 1),
    (4, 8, 5, 2, (8, 2, 5, 5), 400, 2),
    (4, 4, 5, 4, (4, 1, 5, 5), 100, 1),
    (4, 4, 5, 2, (4, 2, 5, 5), 200, 2),
]


@st.composite
def specs(draw: st.DrawFn, most_channels: int = 12) -> ConvSpec:
    """Any convolution small enough to run: 1-D to 3-D, plain and transposed, every option."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    common = draw(st.integers(1, 4))
    in_channels = common * draw(st.integers(1, most_channels // common))
    out_channels = common * draw(st.integers(1, most_channels // common))
    groups = draw(st.sampled_from(valid_groups(in_channels, out_channels)))
    transposed = draw(st.booleans())
    stride, dilation = each(1, 3), each(1, 2)
    padding: Any = each(0, 2)
    extra: dict[str, Any] = {}
    if transposed:
        most = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]
        extra["output_padding"] = tuple(draw(st.integers(0, m)) for m in most)
    elif draw(st.integers(0, 4)) == 0:
        padding = draw(st.sampled_from(["same", "valid"]))
        stride = (1,) * dims if padding == "same" else stride
    if not transposed:
        extra["padding_mode"] = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return ConvSpec(
        in_channels,
        out_channels,
        each(1, 4),
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        transposed=transposed,
        **extra,
    )


def layer_of(spec: ConvSpec, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """PyTorch's own layer for a spec."""
    name = f"Conv{'Transpose' if spec.transposed else ''}{spec.dims}d"
    options: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": spec.bias,
        "padding_mode": spec.padding_mode,
        "dtype": dtype,
    }
    if spec.transposed:
        options["output_padding"] = spec.output_padding
    return getattr(torch.nn, name)(spec.in_channels, spec.out_channels, spec.kernel_size, **options)
