"""The six layers and their initialisation, against `torch.nn`, plain loops and counting by autograd."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from groupwise import ConvSpec, GroupwiseError, nn
from groupwise.nn import init

NAMES = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
# (in, out, kernel, groups) and the shape of the weight.
SCENARIOS = [
    ((3, 3, 5, 1), (3, 3, 5, 5)),
    ((8, 4, 5, 4), (4, 2, 5, 5)),
    ((8, 4, 5, 2), (4, 4, 5, 5)),
    ((4, 8, 5, 4), (8, 1, 5, 5)),
    ((4, 8, 5, 2), (8, 2, 5, 5)),
    ((4, 4, 5, 4), (4, 1, 5, 5)),
    ((4, 4, 5, 2), (4, 2, 5, 5)),
]


def dims_of(name: str) -> int:
    return int(name[-2])


def image(channels: int, dims: int, size: int = 5, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *[size] * dims, dtype=torch.float64)


def conv2d_by_loops(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    """Stride 1, no padding: every output is a sum over the taps of the channels in its own group."""
    batch, n_in, height, width = x.shape
    n_out, _, kh, kw = weight.shape
    out = np.zeros((batch, n_out, height - kh + 1, width - kw + 1))
    for n, o, row, column in np.ndindex(*out.shape):
        group = o // (n_out // groups)
        total = bias[o]
        for c, i, j in itertools.product(range(n_in // groups), range(kh), range(kw)):
            total += weight[o, c, i, j] * x[n, group * (n_in // groups) + c, row + i, column + j]
        out[n, o, row, column] = total
    return out


@pytest.mark.parametrize(("arguments", "shape"), SCENARIOS)
def test_scenarios_against_loops(arguments, shape):
    n_in, n_out, kernel, groups = arguments
    layer = nn.Conv2d(n_in, n_out, kernel, groups=groups, dtype=torch.float64)
    x = image(n_in, 2, size=7, batch=1)
    assert layer.weight.shape == shape
    assert layer.spec == ConvSpec(n_in, n_out, kernel, groups=groups)
    result = layer(x)
    torch.testing.assert_close(result, F.conv2d(x, layer.weight, layer.bias, groups=groups), rtol=0, atol=0)
    looped = conv2d_by_loops(x.numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy(), groups)
    np.testing.assert_allclose(result.detach().numpy(), looped, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n_in", "n_out", "groups"), [(8, 4, 4), (4, 8, 2), (6, 6, 6), (3, 5, 1)])
def test_one_group_is_its_paths_and_its_weight(name, n_in, n_out, groups):
    """The outputs of a path come from its inputs and weight_of alone, in a convolution of one group."""
    layer = getattr(nn, name)(n_in, n_out, 3, groups=groups, dtype=torch.float64)
    operator = getattr(F, layer.spec.op)
    x = image(n_in, dims_of(name))
    whole = layer(x)
    assert [path.group for path in layer.paths] == list(range(groups))
    assert [i for path in layer.paths for i in path.inputs] == list(range(n_in))
    assert [o for path in layer.paths for o in path.outputs] == list(range(n_out))
    for path in layer.paths:
        weight = layer.weight_of(path.group)
        ends = (n_in // groups, n_out // groups) if "Transpose" in name else (n_out // groups, n_in // groups)
        assert weight.shape == (*ends, *[3] * dims_of(name))
        part = operator(x[:, list(path.inputs)], weight, layer.bias[list(path.outputs)])
        torch.testing.assert_close(whole[:, list(path.outputs)], part, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_weight_of_is_a_view_with_gradients(name):
    layer = getattr(nn, name)(4, 8, 3, groups=4)
    rows = 1 if "Transpose" in name else 2
    weight = layer.weight_of(2)
    weight.square().sum().backward()
    expected = torch.zeros_like(layer.weight)
    expected[2 * rows : 3 * rows] = 2 * layer.weight[2 * rows : 3 * rows].detach()
    assert torch.equal(layer.weight.grad, expected)
    with torch.no_grad():
        layer.weight_of(1).zero_()
    assert not layer.weight[rows : 2 * rows].any()
    assert layer.weight[:rows].all()
    with pytest.raises(GroupwiseError, match="group=4 is too large"):
        layer.weight_of(4)
    with pytest.raises(GroupwiseError, match="group=-1 is too small"):
        layer.weight_of(-1)


@st.composite
def layers(draw):
    """Any layer, and the size of an input that fits it."""
    name = draw(st.sampled_from(NAMES))
    dims, transposed = dims_of(name), "Transpose" in name

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    groups = draw(st.integers(1, 4))
    options = {
        "kernel_size": each(1, 3),
        "stride": each(1, 2),
        "padding": each(0, 2),
        "dilation": each(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "dtype": torch.float64,
    }
    if transposed:
        most = zip(options["stride"], options["dilation"], strict=True)
        options["output_padding"] = tuple(draw(st.integers(0, max(pair) - 1)) for pair in most)
    else:
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    return getattr(nn, name)(*channels, **options), draw(st.tuples(*[st.integers(5, 6)] * dims))


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "strided":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "channels_last" and x.ndim > 3:
        return x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    return x


@settings(max_examples=150, deadline=None)
@given(layers(), st.sampled_from(["contiguous", "channels_last", "strided"]), st.integers(0, 2**31))
def test_dense_is_equal(layer_and_size, layout, seed):
    layer, size = layer_and_size
    torch.manual_seed(seed)
    dense = layer.to_dense()
    spec = layer.spec
    assert type(dense) is type(layer)
    assert dense.spec == spec.dense()

    x = laid_out(torch.randn(2, spec.in_channels, *size, dtype=torch.float64), layout).requires_grad_()
    y = x.detach().clone().requires_grad_()
    upstream, result = layer(x), dense(y)
    torch.testing.assert_close(result, upstream, rtol=0, atol=1e-10)
    weights = torch.randn_like(upstream)
    (upstream * weights).sum().backward()
    (result * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, rtol=0, atol=1e-10)
    if spec.bias:
        torch.testing.assert_close(dense.bias.grad, layer.bias.grad, rtol=0, atol=1e-10)

    def between(weight, output, source):
        return weight[source, output] if spec.transposed else weight[output, source]

    n_in, n_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for output, source in np.ndindex(spec.out_channels, spec.in_channels):
        if output // n_out != source // n_in:
            assert not between(dense.weight, output, source).any()
            continue
        stored = (source, output % n_out) if spec.transposed else (output, source % n_in)
        assert torch.equal(between(dense.weight, output, source), layer.weight[stored])
        torch.testing.assert_close(
            between(dense.weight.grad, output, source), layer.weight.grad[stored], rtol=0, atol=1e-10
        )


def test_dense_keeps_what_the_layer_is():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect", dtype=torch.float16, init="fan_in").eval()
    layer.weight.requires_grad_(False)
    layer.register_forward_hook(lambda *_: pytest.fail("hooks are not copied"))
    state = torch.get_rng_state()
    dense = layer.to_dense()
    assert torch.equal(torch.get_rng_state(), state)
    assert (dense.weight.dtype, dense.bias.dtype) == (torch.float16, torch.float16)
    assert (dense.training, dense.padding_mode, dense.init) == (False, "reflect", "fan_in")
    assert (dense.weight.requires_grad, dense.bias.requires_grad) == (False, True)
    assert not dense._forward_hooks
    with torch.no_grad():
        dense.bias.fill_(7)
    assert not (layer.bias == 7).any()
    assert nn.Conv1d(4, 4, 3, groups=2, device="meta").to_dense().weight.is_meta


def test_dense_of_a_derived_layer():
    class Depthwise(nn.Conv2d):
        def __init__(self, channels):
            super().__init__(channels, channels, 3, groups=channels)

    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3, groups=2))
    for layer in (Depthwise(4), normed):
        dense, x = layer.to_dense(), torch.randn(1, 4, 5, 5)
        assert type(dense) is nn.Conv2d
        torch.testing.assert_close(dense(x), layer(x))


@pytest.mark.parametrize("name", NAMES)
def test_stands_in_for_torch(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs)
    expected = list(inspect.signature(theirs).parameters.items())
    got = list(inspect.signature(ours).parameters.items())
    assert [(key, p.default, p.kind) for key, p in got[:-1]] == [(key, p.default, p.kind) for key, p in expected]
    assert (got[-1][0], got[-1][1].kind) == ("init", inspect.Parameter.KEYWORD_ONLY)

    transposed = "Transpose" in name
    arguments = (4, 8, 3, 2, 1, 1, 2, False, 2) if transposed else (4, 8, 3, 2, 1, 2, 2, False, "reflect")
    torch.manual_seed(0)
    layer = ours(*arguments)
    torch.manual_seed(0)
    plain = theirs(*arguments)
    assert layer.extra_repr() == plain.extra_repr()
    assert torch.equal(layer.weight, plain.weight)
    for target, source in [(ours(*arguments), plain), (theirs(*arguments), layer)]:
        target.load_state_dict(source.state_dict(), strict=True)
        x = image(4, dims_of(name)).float()
        torch.testing.assert_close(target(x), source(x))
    if transposed:
        size = [11] * dims_of(name)  # 12 by output_padding=1
        torch.testing.assert_close(layer(x, output_size=size), plain(x, output_size=size))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [None, "fan_out"])
def test_copies_and_compilers(name, mode):
    layer = getattr(nn, name)(4, 8, 3, padding=1, groups=2, init=mode)
    x = image(4, dims_of(name)).float()
    expected = layer(x)
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(saved, weights_only=False)]
    for twin in copies:
        assert type(twin) is type(layer)
        assert (twin.spec, twin.init) == (layer.spec, mode)
        assert torch.equal(twin(x), expected)
    if "Transpose" not in name:  # whose torch.nn code asks for the number of dimensions, which fx cannot trace
        torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x), expected)
    assert torch.nn.utils.skip_init(type(layer), 4, 8, 3, groups=2).weight.shape == layer.weight.shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripts(name):
    for mode in (None, "fan_out"):
        layer = getattr(nn, name)(4, 8, 3, padding=1, groups=2, init=mode)
        x = image(4, dims_of(name)).float()
        torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "ConvTranspose2d"])
def test_compiles_and_exports(name):
    # Dynamo skips code for good once other tests made it fail there.
    torch._dynamo.reset()
    layer = getattr(nn, name)(4, 8, 3, padding=1, groups=2)
    x = image(4, dims_of(name)).float()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_explain_passes_itself_on(monkeypatch):
    seen = {}
    stub = types.ModuleType("groupwise.explanation")
    stub.explain = lambda layer, **options: seen.update(layer=layer, **options) or "told"
    monkeypatch.setitem(sys.modules, "groupwise.explanation", stub)
    layer = nn.Conv2d(4, 4, 3)
    assert layer.explain(7, batch=2) == "told"
    assert seen == {"layer": layer, "size": 7, "batch": 2}


@pytest.mark.parametrize(
    ("name", "arguments", "options", "message"),
    [
        ("Conv2d", (8, 4, 3), {"groups": 3}, r"must divide in_channels=8 and out_channels=4; valid groups: 1, 2, 4"),
        ("Conv2d", (8, 4, 3), {"groups": 0}, r"groups=0 is too small.*valid groups: 1, 2, 4"),
        ("Conv2d", (8, 4, 3), {"groups": -2}, r"groups=-2 is too small"),
        ("Conv2d", (8, 4, 3), {"groups": 2.0}, r"groups=2.0 is a float.*write groups=2"),
        ("Conv2d", (8, 4, 3), {"groups": "2"}, r"groups='2' is a str"),
        ("Conv2d", (8, 4, 3), {"groups": True}, r"groups=True is a bool"),
        ("ConvTranspose2d", (9, 4, 3), {"groups": 2}, r"to keep groups=2 use in_channels 8 or 10"),
        ("Conv1d", (0, 4, 3), {}, r"in_channels=0 is too small"),
        ("Conv2d", (8, 4.0, 3), {}, r"out_channels=4.0 is a float"),
        ("Conv2d", (8, 4, (3, 3, 3)), {}, r"kernel_size=\(3, 3, 3\) has 3 values; it must have 2"),
        ("Conv3d", (8, 4, 3), {"stride": (1, 2)}, r"stride=\(1, 2\) has 2 values"),
        ("Conv1d", (8, 4, 3), {"padding": -1}, r"padding=-1 is too small"),
        ("Conv2d", (8, 4, 3), {"padding": "full"}, r"padding='full' must be 'same', 'valid'"),
        ("Conv2d", (8, 4, 3), {"padding": "same", "stride": 2}, r"padding='same' needs stride 1"),
        ("Conv2d", (8, 4, 3), {"padding_mode": "mirror"}, r"padding_mode='mirror' is not known"),
        ("Conv2d", (8, 4, 3), {"bias": None}, r"bias=None is a NoneType"),
        ("Conv2d", (8, 4, 3), {"init": "fan"}, r"init='fan' is not known; choose one of: fan_in, fan_out"),
        ("ConvTranspose1d", (8, 4, 3), {"padding": "same"}, r"a transposed convolution takes its padding as numbers"),
        ("ConvTranspose1d", (8, 4, 3), {"output_padding": 1}, r"output_padding=1 must be less than the stride"),
        ("ConvTranspose3d", (8, 4, 3), {"padding_mode": "reflect"}, r"padding_mode='reflect' is for plain"),
    ],
)
def test_refuses(name, arguments, options, message):
    with pytest.raises(GroupwiseError, match=message) as refusal:
        getattr(nn, name)(*arguments, **options)
    assert isinstance(refusal.value, ValueError)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("module", [nn, torch.nn])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n_in", "n_out", "groups"), [(4, 4, 4), (8, 4, 2), (2, 6, 2), (3, 5, 1)])
def test_fans_count_connections(module, name, n_in, n_out, groups):
    """fan_in: the inputs that one output far from the borders depends on; fan_out: the outputs of one such input."""
    layer = getattr(module, name)(n_in, n_out, 3, groups=groups, bias=False)
    torch.nn.init.ones_(layer.weight)
    x = torch.ones(1, n_in, *[7] * dims_of(name), requires_grad=True)
    result = layer(x)
    result[(0, 0, *[size // 2 for size in result.shape[2:]])].backward()
    one = torch.zeros_like(x)
    one[(0, 0, *[3] * dims_of(name))] = 1
    assert init.fans(layer) == (int(x.grad.count_nonzero()), int(layer(one).count_nonzero()))


def test_pytorch_counts_other_fans():
    """The depthwise example of pytorch#23854; when this fails, PyTorch has been repaired."""
    layer = nn.Conv2d(4, 4, 3, groups=4)
    assert init.fans(layer) == (9, 9)
    assert torch.nn.init._calculate_fan_in_and_fan_out(layer.weight) == (9, 36)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 16), ("fan_out", 8)])
def test_init_argument(name, mode, fan):
    taps = 3 ** dims_of(name)
    layer = getattr(nn, name)(512, 256, 3, groups=32, init=mode)
    for _ in range(2):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (fan * taps)), rel=0.04)
        assert abs(layer.weight.mean().item()) < 0.02 * layer.weight.std().item() * math.sqrt(27 / taps)
        assert not layer.bias.any()
        before = layer.weight.detach().clone()
        torch.nn.init.ones_(layer.bias)
        layer.reset_parameters()
        assert not torch.equal(layer.weight, before)
    assert layer.extra_repr().endswith(f"groups=32, init={mode!r}")
    assert nn.Conv2d(4, 4, 3, bias=False, init=mode).bias is None


@pytest.mark.parametrize("layer", [torch.nn.Conv2d(256, 64, 3, groups=16), nn.ConvTranspose2d(256, 64, 3, groups=16)])
def test_kaiming_functions(layer):
    bias = layer.bias.detach().clone()
    fan_in, fan_out = 16 * 9, 4 * 9
    weight = init.kaiming_normal_(layer)
    assert weight is layer.weight
    assert weight.requires_grad
    assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.04)
    init.kaiming_normal_(layer, "fan_in", "linear")
    assert weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.04)
    init.kaiming_uniform_(layer, "fan_in", "tanh")
    bound = 5 / 3 * math.sqrt(3 / fan_in)
    assert 0.99 * bound < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.04)
    assert torch.equal(layer.bias, bias)


@pytest.mark.parametrize("fill", [init.kaiming_normal_, init.kaiming_uniform_])
def test_kaiming_draws(fill):
    """The generator alone decides, in every memory format; a dense layer gets PyTorch's own numbers."""
    layer = nn.Conv2d(8, 6, 3)
    first = fill(layer, generator=torch.Generator().manual_seed(3)).detach().clone()
    layer.to(memory_format=torch.channels_last)
    assert torch.equal(fill(layer, generator=torch.Generator().manual_seed(3)), first)
    theirs = getattr(torch.nn.init, fill.__name__)
    generator = torch.Generator().manual_seed(3)
    expected = theirs(torch.empty(6, 8, 3, 3), mode="fan_out", nonlinearity="relu", generator=generator)
    torch.testing.assert_close(first, expected)
    with pytest.raises(GroupwiseError, match="mode='fan_avg' is not known; choose one of: fan_in, fan_out"):
        fill(layer, "fan_avg")
    with pytest.raises(GroupwiseError, match="nonlinearity='gelu' is not known"):
        fill(layer, nonlinearity="gelu")
    with pytest.raises(GroupwiseError, match="Linear is not a convolution layer"):
        fill(torch.nn.Linear(3, 3))
