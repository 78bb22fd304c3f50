from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import SCENARIOS, layer_of, specs
from groupwise import ConvSpec, GroupwiseError, valid_groups


@pytest.mark.parametrize(("n_in", "n_out", "kernel", "groups", "shape", "weights", "inputs"), SCENARIOS)
def test_the_seven_scenarios(n_in, n_out, kernel, groups, shape, weights, inputs):
    spec = ConvSpec(n_in, n_out, kernel, groups=groups)
    assert spec.weight_shape == shape == tuple(torch.nn.Conv2d(n_in, n_out, kernel, groups=groups).weight.shape)
    assert (spec.weights, spec.inputs_per_filter, spec.bias_shape) == (weights, inputs, (n_out,))
    assert spec.parameters == weights + n_out


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_transposed_stores_in_first(scenario):
    n_in, n_out, kernel, groups = scenario[:4]
    spec = ConvSpec(n_in, n_out, kernel, groups=groups, transposed=True)
    layer = torch.nn.ConvTranspose2d(n_in, n_out, kernel, groups=groups)
    assert spec.weight_shape == (n_in, n_out // groups, kernel, kernel) == tuple(layer.weight.shape)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((8, 4), (1, 2, 4)),
        ((1, 1), (1,)),
        ((7, 5), (1,)),
        ((36, 36), (1, 2, 3, 4, 6, 9, 12, 18, 36)),
        ((96, 256), None),
    ],
)
def test_valid_groups(channels, expected):
    divides = tuple(g for g in range(1, max(channels) + 1) if channels[0] % g == 0 and channels[1] % g == 0)
    assert valid_groups(*channels) == divides
    assert expected in (None, divides)


def test_kinds():
    assert ConvSpec(8, 8, 3).kind == "dense"
    assert ConvSpec(8, 8, 3, groups=2).kind == "grouped"
    assert ConvSpec(8, 8, 3, groups=8).kind == "depthwise"
    assert ConvSpec(1, 4, 3, groups=1).kind == "dense"
    assert ConvSpec(8, 16, 3, groups=8).channel_multiplier == 2
    assert ConvSpec(8, 4, 3, groups=4).channel_multiplier is None


def test_frozen_hashable_and_equal_by_value():
    spec = ConvSpec(8, 4, 5, padding=2, groups=4)
    assert spec == ConvSpec(8, 4, (5, 5), padding=(2, 2), groups=np.int64(4))
    assert len({spec, ConvSpec(8, 4, (5, 5), padding=[2, 2], groups=4)}) == 1
    with pytest.raises(AttributeError):
        spec.groups = 2  # type: ignore[misc]
    assert type(ConvSpec(8, 4, 5, groups=np.int64(4)).groups) is int


@given(specs())
def test_from_module_is_the_inverse_of_building_one(spec):
    layer = layer_of(spec)
    assert ConvSpec.from_module(layer) == spec
    assert tuple(layer.weight.shape) == spec.weight_shape
    assert sum(p.numel() for p in layer.parameters()) == spec.parameters


@given(specs(), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_output_size_is_torchs_or_both_refuse(spec, sizes):
    size = tuple(sizes[: spec.dims])
    layer = layer_of(spec)
    source = torch.zeros(1, spec.in_channels, *size, dtype=torch.float64)
    try:
        expected = tuple(layer(source).shape[2:])
    except RuntimeError:
        with pytest.raises(GroupwiseError):
            spec.output_size(size)
    else:
        assert spec.output_size(size) == expected


def test_from_operator_takes_the_arguments_of_aten_convolution():
    weight = torch.zeros(8, 2, 3, 5)
    source = torch.zeros(2, 8, 16, 16)
    spec = ConvSpec.from_operator(source, weight, torch.zeros(8), [2], [1, 2], [1], False, [0], 4)
    assert spec == ConvSpec(8, 8, (3, 5), stride=2, padding=(1, 2), groups=4)
    assert spec.output_size(16) == tuple(torch.conv2d(source, weight, None, 2, (1, 2), 1, 4).shape[2:])
    back = ConvSpec.from_operator((1, 8, 9), (8, 3, 3), None, 1, 0, 1, True, 0, 2)
    assert (back.op, back.in_channels, back.out_channels, back.bias) == ("conv_transpose1d", 8, 6, False)


GOOD = {"in_channels": 8, "out_channels": 4, "kernel_size": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "groups=3 must divide in_channels=8 and out_channels=4; valid groups: 1, 2, 4"),
        ({"groups": 8}, "valid groups: 1, 2, 4; to keep groups=8 use out_channels 8"),
        ({"groups": 0}, "groups=0 is too small"),
        ({"groups": -2}, "groups=-2 is too small"),
        ({"groups": 2.0}, "groups=2.0 is a float; groups must be an integer from 1 to 16777216; write groups=2"),
        ({"groups": 2.5}, "groups=2.5 is a float"),
        ({"groups": "2"}, "groups='2' is a str"),
        ({"groups": True}, "groups=True is a bool"),
        ({"groups": None}, "groups=None is a NoneType"),
        ({"in_channels": 2**40}, "in_channels=1099511627776 is too large; in_channels must be an integer from 1 to"),
        ({"out_channels": 0}, "out_channels=0 is too small"),
        ({"kernel_size": (5, 5, 5, 5)}, "kernel_size=(5, 5, 5, 5) has 4 values; it must have 1, 2 or 3"),
        ({"kernel_size": 0}, "kernel_size=0 is too small"),
        ({"kernel_size": "5"}, "kernel_size='5' is a str"),
        ({"stride": (1, 2, 3)}, "stride=(1, 2, 3) has 3 values; a 2-D convolution takes one int or 2 of them"),
        ({"stride": 0}, "stride=0 is too small"),
        ({"dilation": -1}, "dilation=-1 is too small"),
        ({"padding": -1}, "padding=-1 is too small"),
        ({"padding": "sane"}, "padding='sane' must be 'same', 'valid', an int or 2 of them"),
        ({"padding": "same", "stride": 2}, "padding='same' needs stride 1, not stride=(2, 2)"),
        ({"padding": "same", "transposed": True}, "a transposed convolution takes its padding as numbers"),
        ({"padding_mode": "zero"}, "choose one of: zeros, reflect, replicate, circular"),
        ({"padding_mode": "reflect", "transposed": True}, "transposed ones take 'zeros'"),
        ({"output_padding": 1}, "output_padding=(1, 1) is for transposed convolutions"),
        ({"output_padding": 1, "transposed": True}, "the largest valid value is 0"),
        ({"bias": 2}, "bias=2 is a int; bias must be True or False"),
        ({"in_channels": 10**5000}, "in_channels=2**16609 is too large"),
        ({"kernel_size": {5}}, "kernel_size={5} is a set"),
        ({"kernel_size": {"a": 5}}, "is a dict"),
        ({"dims": 4}, "dims=4 is too large"),
    ],
)
def test_bad_input_is_refused_with_value_rule_and_fix(change, message):
    with pytest.raises(GroupwiseError) as caught:
        ConvSpec(**(GOOD | change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_many_valid_groups_show_the_nearest():
    with pytest.raises(GroupwiseError) as caught:
        ConvSpec(720720, 720720, 3, groups=1009)
    assert "1001" in str(caught.value)
    assert "240 in all" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("spec", "size", "message"),
    [
        (ConvSpec(1, 1, 5), 3, "the kernel reaches over 5 positions (kernel_size 5, dilation 1), more than the padded"),
        (ConvSpec(1, 1, 5, dims=1), 0, "size=0 is too small"),
        (ConvSpec(1, 1, 3, padding=5, transposed=True), 3, "use padding of at most 2"),
        (ConvSpec(1, 1, 3, padding=3, padding_mode="reflect"), 3, "must be at most 2"),
        (ConvSpec(1, 1, 3), (4, 4, 4), "size=(4, 4, 4) has 3 values"),
    ],
)
def test_a_size_that_gives_no_output(spec, size, message):
    with pytest.raises(GroupwiseError) as caught:
        spec.output_size(size)
    assert message in str(caught.value)


ADVICE = {
    "use size >= ": lambda spec, value: (spec, value),
    ", padding >= ": lambda spec, value: (dataclasses.replace(spec, padding=value), None),
    "use padding of at most ": lambda spec, value: (dataclasses.replace(spec, padding=value), None),
}


def refused(spec, size):
    try:
        spec.output_size(size)
    except GroupwiseError as error:
        return str(error)
    return None


@settings(max_examples=400)
@given(specs(), st.integers(1, 4))
def test_the_advice_of_a_refused_size_works(spec, size):
    """Each value advised is accepted, and the next smaller (or larger) one is not."""
    # One dimension, so that no other one is in the way.
    several = ("kernel_size", "stride", "padding", "dilation", "output_padding")
    first = {name: value[:1] for name in several if not isinstance(value := getattr(spec, name), str)}
    spec = dataclasses.replace(spec, **first)
    message = refused(spec, size) or ""
    for words, apply in ADVICE.items():
        if words in message:
            value = int(re.split(r"[^-\d]", message.split(words)[1])[0])
            changed, new_size = apply(spec, value)
            assert refused(changed, new_size or size) is None, message
            beyond, new_size = apply(spec, value + (1 if "at most" in words else -1))
            assert refused(beyond, size if new_size is None else new_size), message


def test_numbers_of_other_libraries_count():
    assert ConvSpec(8, 4, torch.tensor(3)).kernel_size == (3, 3)
    assert ConvSpec(8, 4, np.array([3, 5]), bias=np.False_).weight_shape == (4, 8, 3, 5)


@pytest.mark.parametrize(
    ("spec", "pads"),
    [
        (ConvSpec(1, 1, (4, 3), padding="same"), ((1, 2), (1, 1))),
        (ConvSpec(1, 1, 4, padding="valid"), ((0, 0), (0, 0))),
        (ConvSpec(1, 1, (2,), dilation=3, padding="same"), ((1, 2),)),
    ],
)
def test_same_padding_has_its_odd_position_after(spec, pads):
    assert spec.pads == pads


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvSpec.from_module(torch.nn.Linear(2, 2)), "Linear is not a convolution layer"),
        (lambda: ConvSpec.from_operator(None, torch.zeros(2, 2)), "has 2 dimensions"),
        (lambda: ConvSpec.from_operator((1, 9, 4, 4), (8, 2, 3, 3), groups=4), "it must be (batch, 8, height, width)"),
        (lambda: ConvSpec.from_operator(None, (8, 2, 3, 3), (4,), groups=4), "must have out_channels=8 values"),
        (lambda: ConvSpec.from_operator(None, 3), "neither a tensor nor a shape"),
        (lambda: ConvSpec.from_operator(None, (8, 2, 3, 3), groups=3), "dim 0 of the weight; valid groups: 1, 2, 4, 8"),
        (lambda: ConvSpec.from_operator(None, (8, 2, 3, 3), groups=True), "valid groups: 1, 2, 4, 8"),
    ],
)
def test_refusals_of_other_doors(call, message):
    with pytest.raises(GroupwiseError) as caught:
        call()
    assert message in str(caught.value)


def test_explaining_numbers_never_imports_torch():
    code = (
        "import sys, groupwise; groupwise.explain(8, 4, 5, groups=4, size=9).to_svg(); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@given(specs())
def test_the_text_of_a_spec_has_what_differs_from_the_defaults(spec):
    text = str(spec)
    assert text.startswith(f"{spec.op} {spec.in_channels} → {spec.out_channels}, kernel ")
    assert text.endswith(f", groups={spec.groups}")
    plain = ConvSpec(spec.in_channels, spec.out_channels, spec.kernel_size, transposed=spec.transposed)
    for name in ("stride", "padding", "dilation", "output_padding"):
        assert (f", {name} " in text) == (getattr(spec, name) != getattr(plain, name))
