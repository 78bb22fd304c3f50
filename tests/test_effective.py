"""A layer is explained by the tensors it computes with, and refused where its attributes promise others."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrizations, parametrize, prune

from cases import layer_of, specs
from groupwise import ConvSpec, GroupwiseError, bench, cost, count, explain, plan
from groupwise.parallel import plan_split
from groupwise.spec.effective import dtype_of, effective, unpacked
from kernels import needs_kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|weight_norm).*")


class Masked(torch.nn.Module):
    """A parametrization of a user's own, which counts how often it runs."""

    ran = 0

    def forward(self, weight):
        self.ran += 1
        return weight * torch.ones_like(weight)


class Values(torch.nn.Module):
    """A parametrization that has to see values: it cannot run on shapes alone."""

    def forward(self, weight):
        return weight if weight.sum().item() == 0 else weight * 1


def with_own_code(kind):
    def change(layer):
        parametrize.register_parametrization(layer, "weight", kind())

    return change


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.3)
    if layer.bias is not None:
        prune.random_unstructured(layer, "bias", 0.3)


# What people do to a layer's weight; each keeps its shape. Where the tensor lies afterwards that the user can replace.
KINDS = {
    "plain": (lambda layer: None, lambda layer: (layer, "weight")),
    "meta": (lambda layer: layer.to("meta"), lambda layer: (layer, "weight")),
    "pruned": (pruned, lambda layer: (layer, "weight_orig")),
    "hook weight_norm": (torch.nn.utils.weight_norm, lambda layer: (layer, "weight_v")),
    "hook spectral_norm": (torch.nn.utils.spectral_norm, lambda layer: (layer, "weight_orig")),
    "weight_norm": (parametrizations.weight_norm, lambda layer: (layer.parametrizations.weight, "original1")),
    "spectral_norm": (parametrizations.spectral_norm, lambda layer: (layer.parametrizations.weight, "original")),
    "own code": (with_own_code(Masked), lambda layer: (layer.parametrizations.weight, "original")),
    "own code that needs values": (with_own_code(Values), lambda layer: (layer.parametrizations.weight, "original")),
}


def made(spec, kind):
    layer = layer_of(spec, torch.float32)
    KINDS[kind][0](layer)
    return layer.train()


@settings(max_examples=120, deadline=None)
@given(specs(), st.sampled_from(sorted(KINDS)))
def test_a_right_layer_of_every_kind_is_taken(spec, kind):
    layer = made(spec, kind)
    before = copy.deepcopy(layer.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert ConvSpec.from_module(layer) == spec
    assert (tuple(effective(layer, "weight").shape), dtype_of(layer)) == (spec.weight_shape, "float32")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.is_meta or torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    if kind == "own code":
        ran = layer.parametrizations.weight[0].ran
        explain(layer)
        assert layer.parametrizations.weight[0].ran == ran


def other_shape(draw, shape):
    """A shape of as many dimensions that differs in one or more of them."""
    changed = tuple(max(1, length + draw(st.integers(-2, 3))) for length in shape)
    assume(changed != shape)
    return changed


@settings(max_examples=200, deadline=None)
@given(specs(), st.sampled_from(sorted(KINDS)), st.data())
def test_a_weight_that_contradicts_its_layer_is_refused_with_a_fix_that_works(spec, kind, data):
    layer = made(spec, kind)
    shape = other_shape(data.draw, spec.weight_shape)
    holder, name = KINDS[kind][1](layer)
    setattr(holder, name, torch.nn.Parameter(torch.zeros(shape, device="meta" if kind == "meta" else None)))
    if kind == "hook weight_norm":
        layer.weight_g = torch.nn.Parameter(torch.ones(shape[0], *[1] * (len(shape) - 1)))
    if kind == "weight_norm":
        holder.original0 = torch.nn.Parameter(torch.ones(shape[0], *[1] * (len(shape) - 1)))
    if kind == "pruned":
        layer.weight_mask = torch.ones(shape)
    if kind == "spectral_norm":
        # Its vectors are as long as the weight's sides: a new weight alone cannot run, on shapes or on values.
        flat = torch.zeros(shape).transpose(0, int(spec.transposed)).flatten(1)
        holder[0]._u, holder[0]._v = torch.ones(flat.shape[0]), torch.ones(flat.shape[1])
    for door in (ConvSpec.from_module, explain, lambda x: cost(x, 40), lambda x: bench(x, (1, spec.in_channels))):
        with pytest.raises(GroupwiseError) as caught:
            door(layer)
        message = str(caught.value)
        assert f"weight of shape {shape} contradicts groups={spec.groups}, in_channels={spec.in_channels}" in message
        assert f"which need {spec.weight_shape}; " in message
        assert "\n" not in message
    fix = message.partition("; set ")[2].partition(", or ")[0]
    for attribute, value in re.findall(r"(\w+)=(\([\d, ]+\)|\d+)", fix):
        setattr(layer, attribute, eval(value))
    if spec.bias and layer.out_channels != spec.out_channels:
        layer.bias = None
        layer._parameters.pop("bias_orig", None)
    mended = ConvSpec.from_module(layer)
    assert mended.weight_shape == shape
    x = torch.zeros(1, mended.in_channels, *[40] * spec.dims)
    options = (mended.stride, mended.padding, *((mended.output_padding,) if spec.transposed else ()), mended.groups)
    if spec.padding_mode == "zeros" and not (spec.padding == "same" and mended.padding != "same"):
        function = getattr(torch.nn.functional, mended.op)
        if spec.transposed:
            assert function(x, torch.zeros(shape), None, *options, mended.dilation).shape[1] == mended.out_channels
        else:
            plain = (mended.stride, mended.padding, mended.dilation, mended.groups)
            assert function(x, torch.zeros(shape), None, *plain).shape[1] == mended.out_channels


@pytest.mark.parametrize(
    ("attributes", "weight", "fix"),
    [
        (
            (27, 27, 3, 27),
            (30, 1, 3, 3),
            "; set groups=30 and in_channels=30 and out_channels=30, or replace the weight",
        ),
        ((8, 8, 3, 2), (8, 4, 5, 5), "; set kernel_size=(5, 5), or replace the weight"),
        ((8, 8, 3, 2), (6, 4, 3, 3), "; set out_channels=6, or replace the weight"),
        ((8, 8, 3, 2), (8, 3, 3, 3), "; set in_channels=6, or replace the weight"),
        ((8, 8, 3, 4), (8, 4, 3, 3), "; set groups=2, or set in_channels=16, or replace the weight"),
        ((8, 8, 3, 2), (8, 4, 3), "which need (8, 4, 3, 3); replace the weight"),
    ],
)
def test_the_attributes_to_mend_are_the_fewest(attributes, weight, fix):
    n_in, n_out, kernel, groups = attributes
    layer = torch.nn.Conv2d(n_in, n_out, kernel, groups=groups, bias=False)
    layer.weight = torch.nn.Parameter(torch.zeros(weight))
    with pytest.raises(GroupwiseError) as caught:
        ConvSpec.from_module(layer)
    assert str(caught.value).endswith(fix)


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(1, 20), st.booleans())
def test_a_bias_of_another_length_is_refused(spec, length, masked):
    assume(spec.bias and length != spec.out_channels)
    layer = layer_of(spec)
    if masked:
        prune.random_unstructured(layer, "bias", 0.3)
    setattr(layer, "bias_orig" if masked else "bias", torch.nn.Parameter(torch.zeros(length)))
    with pytest.raises(GroupwiseError) as caught:
        explain(layer)
    assert f"bias of shape ({length},) contradicts out_channels={spec.out_channels}" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
)
def test_a_lazy_layer_has_to_run_first(name):
    layer = getattr(torch.nn, f"Lazy{name}")(4, 3, groups=2)
    for door in (explain, lambda x: cost(x, 9)):
        with pytest.raises(GroupwiseError, match=r"does not know its in_channels yet.*; run it once on an input"):
            door(layer)
    layer(torch.zeros(1, 6, *[5] * int(name[-2])))
    assert (explain(layer).spec.in_channels, explain(layer).spec.groups) == (6, 2)


def test_the_power_iteration_of_spectral_norm_does_not_advance():
    layer = parametrizations.spectral_norm(torch.nn.Conv2d(8, 8, 3, groups=2)).train()
    before = [tensor.clone() for tensor in layer.buffers()]
    explain(layer, size=9, plans=False).to_dict()
    cost(layer, 9)
    assert all(map(torch.equal, before, layer.buffers()))
    layer.weight.sum()
    assert not all(map(torch.equal, before, layer.buffers())), "reading the weight no longer advances it"


@needs_kernels
def test_a_plan_does_not_advance_it_either():
    layer = parametrizations.spectral_norm(torch.nn.Conv2d(8, 8, 3, groups=2)).train()
    before = [tensor.clone() for tensor in layer.buffers()]
    made = plan(layer, input_shape=(1, 8, 9, 9))
    explain(layer, size=9).to_dict()
    assert all(map(torch.equal, before, layer.buffers()))
    assert made == plan(ConvSpec.from_module(layer), input_shape=(1, 8, 9, 9))
    assert plan(layer.to(memory_format=torch.channels_last), (1, 8, 9, 9)).memory_format == "channels_last"


@needs_kernels
def test_a_plan_of_a_contradiction_is_refused():
    layer = torch.nn.Conv2d(8, 8, 3, groups=2)
    layer.groups = 4
    with pytest.raises(GroupwiseError, match=r"weight of shape .* contradicts groups=4"):
        plan(layer, input_shape=(1, 8, 9, 9))


@pytest.mark.parametrize("sized", [True, False])
def test_a_split_of_a_contradiction_is_refused(sized):
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=2), torch.nn.Conv2d(8, 8, 3, groups=8))
    model[1].weight = torch.nn.Parameter(torch.zeros(8, 1, 5, 5))
    with pytest.raises(GroupwiseError, match=r"^1: weight of shape .*; set kernel_size=\(5, 5\), or replace"):
        plan_split(model, 2, input_shape=(1, 8, 9, 9) if sized else None)


def test_a_report_counts_what_ran_and_not_what_is_stated():
    layer = torch.nn.Conv2d(8, 8, 3, groups=2, bias=False)
    layer.weight = torch.nn.Parameter(torch.zeros(6, 4, 3, 3))
    (call,) = count(torch.nn.Sequential(layer), torch.zeros(1, 8, 9, 9))
    assert call.cost == cost(ConvSpec(8, 6, 3, groups=2, bias=False), 9)


QUANTIZED = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="no engine that quantizes")
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("bias", [True, False])
def test_quantized_modules(name, bias, monkeypatch):
    import torch.ao.nn.quantized as quantized

    monkeypatch.setattr(torch.backends.quantized, "engine", "fbgemm")
    layer = getattr(quantized, name)(8, 4, 3, groups=2, bias=bias)
    plain = getattr(torch.nn, name)(8, 4, 3, groups=2, bias=bias)
    assert ConvSpec.from_module(layer) == ConvSpec.from_module(plain)
    assert explain(layer, size=9).dtype == "int8"
    layer.out_channels = 8
    with pytest.raises(GroupwiseError, match=r"contradicts .*out_channels=8.*set out_channels=4, or "):
        explain(layer)


@pytest.mark.skipif("qnnpack" not in torch.backends.quantized.supported_engines, reason="no second engine")
def test_a_quantized_module_that_this_engine_cannot_unpack(monkeypatch):
    import torch.ao.nn.quantized as quantized

    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    layer = quantized.Conv3d(8, 4, 3, groups=2)
    assert ConvSpec.from_module(layer).groups == 2


def test_what_only_has_the_attributes_is_taken_by_them():
    class Duck:
        """A convolution by its attributes alone."""

    duck, spec = Duck(), ConvSpec(8, 4, 3, groups=2)
    for name in ConvSpec.__dataclass_fields__:
        setattr(duck, name, getattr(spec, name))
    assert ConvSpec.from_module(duck) == spec


@settings(max_examples=60, deadline=None)
@given(specs(), st.sampled_from(["plain", "pruned", "hook spectral_norm", "own code"]), st.sampled_from([0, 3, 7]))
def test_a_shard_is_not_taken_for_the_weight(spec, kind, length):
    """FSDP with use_orig_params leaves flat shards of weight and bias, of any length; ZeRO-3 leaves nothing."""
    layer = made(spec, kind).bfloat16()
    holder, name = KINDS[kind][1](layer)
    setattr(holder, name, torch.nn.Parameter(torch.zeros(length, dtype=torch.bfloat16)))
    bias = "bias_orig" if hasattr(layer, "bias_orig") else "bias"
    if spec.bias:
        setattr(layer, bias, torch.nn.Parameter(torch.zeros(length + 1000)))
    assert ConvSpec.from_module(layer) == spec
    assert (effective(layer, "weight"), effective(layer, "bias")) == (None, None)
    assert dtype_of(layer) == "bfloat16"
    assert cost(layer, 40) == cost(spec, 40, dtype="bfloat16")


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "own code"])
def test_hooks_of_a_parametrization_are_neither_run_nor_copied(kind):
    spec = ConvSpec(8, 4, 3, groups=2)
    layer = made(spec, kind)

    class Hook:
        """A hook that must be left alone."""

        def __call__(self, *_):
            raise AssertionError("run")

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    step = layer.parametrizations.weight[0]
    step.register_forward_pre_hook(Hook(), with_kwargs=True)
    step.register_forward_hook(Hook(), always_call=True)
    layer.parametrizations.weight.register_forward_hook(Hook())
    assert ConvSpec.from_module(layer) == spec
    assert tuple(effective(layer, "weight").shape) == spec.weight_shape
    assert effective(layer, "weight").is_meta


def test_an_offloaded_bias_beside_a_whole_weight():
    layer = torch.nn.Conv2d(8, 4, 3, groups=2)
    layer.bias = torch.nn.Parameter(torch.zeros(0))
    assert effective(layer, "bias") is None
    assert ConvSpec.from_module(layer) == ConvSpec(8, 4, 3, groups=2)


@needs_kernels
def test_a_plan_of_a_sharded_layer():
    layer = torch.nn.Conv2d(8, 8, 3, groups=2)
    whole = plan(layer, (1, 8, 9, 9))
    layer.weight = torch.nn.Parameter(torch.zeros(5))
    assert plan(layer, (1, 8, 9, 9)) == whole


def takes_more(self, index):
    raise AssertionError("groupwise called a method of the user's")


def takes_nothing(self):
    raise AssertionError("groupwise called a method of the user's")


def raises(self):
    raise RuntimeError("call prepare() first")


@pytest.mark.parametrize(
    "own", [takes_more, takes_nothing, property(raises)], ids=["takes more", "takes nothing", "property"]
)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_the_users_own_methods_are_not_called(own, name):
    class Own(torch.nn.Module):
        """A convolution by its attributes, whose weight or bias is code."""

    spec = ConvSpec(8, 4, 3, groups=2, bias=False)
    for field in ConvSpec.__dataclass_fields__:
        if field != name:
            setattr(Own, field, getattr(spec, field))
    setattr(Own, name, own)
    layer = Own()
    assert explain(layer, size=9).spec == spec
    assert effective(layer, name) is None
    assert unpacked(layer, name) is None


@pytest.mark.parametrize("own", [takes_more, raises], ids=["takes more", "raises"])
def test_a_packed_module_with_methods_of_its_own(own):
    class Packed(torch.nn.Module):
        """A module that holds something packed and whose method cannot give it."""

        weight = own

        def __init__(self):
            super().__init__()
            self._packed_params = object()

    assert unpacked(Packed(), "weight") is None
