from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cases import layer_of, specs
from groupwise import ConvSpec, GroupwiseError, cost, explain
from groupwise.spec.cost import DTYPE_BYTES


def loops(spec: ConvSpec, size: tuple[int, ...], batch: int) -> int:
    """Forward MACs that touch real values, one by one."""
    out = spec.output_size(size)
    real = 0
    positions, limit = (size, out) if spec.transposed else (out, size)
    for position in itertools.product(*map(range, positions)):
        for tap in itertools.product(*map(range, spec.kernel_size)):
            at = [
                p * s - pad[0] + t * d
                for p, s, pad, t, d in zip(position, spec.stride, spec.pads, tap, spec.dilation, strict=True)
            ]
            real += all(0 <= a < n for a, n in zip(at, limit, strict=True))
    return real * batch * spec.in_channels * spec.out_channels // spec.groups


@settings(max_examples=80, deadline=None)
@given(specs(), st.lists(st.integers(1, 7), min_size=3, max_size=3), st.integers(1, 3))
def test_macs_against_a_sum_of_ones_and_against_loops(spec, sizes, batch):
    size = tuple(sizes[: spec.dims])
    try:
        counted = cost(spec, size, batch=batch)
    except GroupwiseError:
        assume(False)
    layer = layer_of(spec)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        if spec.bias:
            layer.bias.zero_()
        output = layer(torch.ones(batch, spec.in_channels, *size, dtype=torch.float64))
    # Ones times ones: every multiplication that reads (or, transposed, writes) a real value adds one.
    assert counted.macs.forward - counted.macs_on_padding == round(output.sum().item())
    if spec.padding_mode == "zeros":
        assert counted.macs.forward - counted.macs_on_padding == loops(spec, size, batch)
    positions = math.prod(size if spec.transposed else counted.output_size)
    weights = spec.in_channels * spec.out_channels // spec.groups * math.prod(spec.kernel_size)
    assert counted.macs.forward == counted.macs.grad_input == counted.macs.grad_weight == batch * positions * weights
    assert counted.output_size == tuple(output.shape[2:])
    assert counted.traffic.output == 4 * output.numel()


def test_huge_kernels_are_counted_in_closed_form():
    spec = ConvSpec(1, 1, (2**30,), 7, 2**30 - 1, 1)
    counted = cost(spec, 2**31 - 1)
    # Every other MAC or so: what hangs over on both sides is as long as the kernel.
    assert 0 < counted.macs_on_padding < counted.macs.forward


def test_the_backward_has_the_groups_too():
    """FlopCounterMode counts (1 + g) / 2 times too much here; each pass is 1/g of the dense one."""
    grouped = cost(ConvSpec(128, 128, 3, padding=1, groups=32), 56)
    assert grouped.macs.forward == 56 * 56 * 9 * 4 * 128
    for name in ("forward", "grad_input", "grad_weight"):
        assert getattr(grouped.dense().macs, name) == 32 * getattr(grouped.macs, name)
    assert grouped.macs.total == 3 * grouped.macs.forward


@pytest.mark.parametrize(
    ("channels", "size", "groups", "mmacs", "mbytes", "intensity"),
    [
        (128, 56, 1, 462, 3.80, 243),
        (128, 56, 32, 14.5, 3.23, 8.9),
        (128, 56, 128, 3.6, 3.22, 2.2),
        (1024, 7, 1, 462, 38.2, 24),
        (1024, 7, 32, 14.5, 1.58, 18),
        (1024, 7, 1024, 0.5, 0.44, 2.1),
    ],
)
def test_early_layers_save_macs_late_ones_bytes_too(channels, size, groups, mmacs, mbytes, intensity):
    counted = cost(ConvSpec(channels, channels, 3, padding=1, groups=groups, bias=False), size)
    assert counted.macs.forward / 1e6 == pytest.approx(mmacs, rel=0.15 if mmacs < 1 else 0.02)
    assert counted.bytes / 1e6 == pytest.approx(mbytes, rel=0.02)
    assert counted.intensity == pytest.approx(intensity, rel=0.03)


@pytest.mark.parametrize(("dtype", "item"), [("float64", 8), ("bfloat16", 2), (torch.float16, 2), (torch.int8, 1)])
def test_bytes_by_dtype(dtype, item):
    counted = cost(ConvSpec(8, 4, 3, groups=2), (6, 5), batch=3, dtype=dtype)
    assert counted.bytes == item * (3 * 8 * 6 * 5 + 4 * 4 * 9 + 3 * 4 * 4 * 3)


def test_every_dtype_has_the_bytes_torch_gives_it():
    for name, item in DTYPE_BYTES.items():
        assert getattr(torch, name).itemsize == item


def test_every_way_to_give_a_size_counts_the_same():
    spec, layer = ConvSpec(8, 4, (3, 5), groups=2), torch.nn.Conv2d(8, 4, (3, 5), groups=2, dtype=torch.float64)
    expected = cost(spec, (9, 7), batch=3, dtype="float64")
    assert cost(spec, input_shape=(3, 8, 9, 7), dtype=torch.float64) == expected
    assert cost(layer, size=(9, 7), batch=3) == cost(layer, input_shape=torch.empty(3, 8, 9, 7)) == expected
    shown = (explain(layer, size=(9, 7), batch=3), explain(layer, input_shape=[3, 8, 9, 7]))
    assert [one.cost for one in shown] == [expected] * 2
    assert cost(spec, 9) == cost(spec, input_shape=(1, 8, 9, 9))


@pytest.mark.parametrize("of", [cost, explain])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9, "input_shape": (1, 8, 9, 9)}, "size=9 cannot be given beside input_shape=(1, 8, 9, 9)"),
        ({"batch": 2, "input_shape": (1, 8, 9, 9)}, "batch=2 cannot be given beside input_shape=(1, 8, 9, 9)"),
        ({"input_shape": (1, 4, 9, 9)}, "input of shape (1, 4, 9, 9) does not fit conv2d with in_channels=8"),
        ({"input_shape": 9}, "input 9 does not fit conv2d"),
        ({"input_shape": (8, 9, 9)}, "it must be (batch, 8, height, width)"),
    ],
)
def test_a_size_given_twice_or_wrongly(of, options, message):
    with pytest.raises(GroupwiseError) as caught:
        of(ConvSpec(8, 4, 3), **options)
    assert message in str(caught.value)


def test_a_cost_needs_a_size():
    with pytest.raises(GroupwiseError, match=r"cost needs a size: size=56, or input_shape=\(1, 8, 56\)"):
        cost(ConvSpec(8, 4, 3, dims=1))
    with pytest.raises(GroupwiseError, match="ReLU is not a convolution layer"):
        cost(torch.nn.ReLU(), 5)


def test_batch_of_none():
    assert cost(ConvSpec(8, 4, 3), 5, batch=0).macs.total == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5, "dtype": "float23"}, "dtype='float23' is not known; choose one of: float64, float32"),
        ({"size": 5, "batch": -1}, "batch=-1 is too small"),
        ({"size": "5"}, "size='5' is a str"),
        ({"size": 2}, "gives no output"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(GroupwiseError) as caught:
        cost(ConvSpec(8, 4, 3), **options)
    assert message in str(caught.value)


def test_the_texts_of_a_cost_have_its_figures_beside_the_dense_ones():
    counted = cost(ConvSpec(128, 128, 3, padding=1, groups=32), input_shape=(2, 128, 56, 48), dtype="float16")
    text, dense = str(counted), counted.dense()
    first, _, parameters, macs, padding, moved, _ = text.split("\n")
    assert first == "conv2d 128 → 128, kernel 3×3, padding 1×1, groups=32; 56×48 → 56×48, batch 2, float16"
    assert parameters.split() == ["parameters", "4,736", "147,584"]
    assert macs.split()[-2:] == [f"{counted.macs.forward:,}", f"{dense.macs.forward:,}"]
    assert padding.split()[-2:] == [f"{counted.macs_on_padding:,}", f"{dense.macs_on_padding:,}"]
    assert moved.split()[-2:] == [f"{counted.bytes:,}", f"{dense.bytes:,}"]
    for cell in re.split(r"\s{2,}|\n", text)[1:]:
        assert cell in counted._repr_html_()
