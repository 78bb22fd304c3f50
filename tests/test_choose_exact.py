"""Exact conversions of layers and layouts, against float64 and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from groupwise import GroupwiseError
from groupwise.choose.convert.regroup import regroup
from groupwise.choose.exact.branches import merge, split
from groupwise.choose.exact.coarsen import blocks, finer
from groupwise.choose.exact.keras import from_keras, to_keras

KINDS = [getattr(nn, f"Conv{kind}{dims}d") for kind in ("", "Transpose") for dims in (1, 2, 3)]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_layers_compute_the_same_and_split_again(kind):
    layers = [kind(2, 3, 2, dtype=torch.float64).eval() for _ in range(3)]
    xs = [torch.randn(2, 2, *[4] * int(kind.__name__[-2]), dtype=torch.float64) for _ in layers]
    apart = [layer(x) for layer, x in zip(layers, xs, strict=True)]
    one = merge(layers)
    assert one.groups == 3
    assert not one.training
    torch.testing.assert_close(one(torch.cat(xs, 1)), torch.cat(apart, 1), rtol=1e-12, atol=1e-12)
    for part, layer in zip(split(one), layers, strict=True):
        assert torch.equal(part.weight, layer.weight)
        assert torch.equal(part.bias, layer.bias)
    layers[1] = kind(2, 5, 2, dtype=torch.float64).eval()
    same = torch.cat([layer(xs[0]) for layer in layers], 1)
    torch.testing.assert_close(merge(layers, shared_input=True)(xs[0]), same, rtol=1e-12, atol=1e-12)
    with pytest.raises(GroupwiseError, match="unlike"):
        merge(layers)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_grouped_layers_split_into_as_many_again(kind):
    layers = [kind(4, 6, 2, groups=2, dtype=torch.float64) for _ in range(3)]
    one = merge(layers)
    assert one.groups == 6
    parts = split(one, 3)
    for part, layer in zip(parts, layers, strict=True):
        assert part.groups == 2
        assert torch.equal(part.weight, layer.weight)
        assert torch.equal(part.bias, layer.bias)
    x = torch.randn(2, 12, *[4] * int(kind.__name__[-2]), dtype=torch.float64)
    apart = [part(given) for part, given in zip(parts, x.chunk(3, 1), strict=True)]
    torch.testing.assert_close(one(x), torch.cat(apart, 1), rtol=1e-12, atol=1e-12)
    with pytest.raises(GroupwiseError, match="count=4 must divide groups=6 of the layer; valid: 1, 2, 3, 6"):
        split(one, 4)


def test_a_depthwise_kernel_of_keras_by_loops():
    kernel, x = torch.randn(2, 2, 3, 2).double(), torch.randn(3, 4, 4).double()
    found = nn.functional.conv2d(x[None], from_keras(kernel, "depthwise"), groups=3)[0]
    for i in range(3):
        for m in range(2):
            for y in range(3):
                for z in range(3):
                    want = sum(kernel[a, b, i, m] * x[i, y + a, z + b] for a in range(2) for b in range(2))
                    torch.testing.assert_close(found[i * 2 + m, y, z], want, rtol=1e-12, atol=1e-12)
    assert torch.equal(to_keras(from_keras(kernel, "depthwise"), "depthwise", groups=3), kernel)


def test_a_transposed_kernel_of_keras_by_loops():
    kernel, x = torch.randn(2, 3, 2).double(), torch.randn(2, 4).double()  # (k, out, in), (in, L)
    want = torch.zeros(3, 5).double()
    for p in range(4):
        for a in range(2):
            want[:, p + a] += kernel[a] @ x[:, p]
    found = nn.functional.conv_transpose1d(x[None], from_keras(kernel, "transposed"))[0]
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    for kind in ("conv", "transposed"):
        assert torch.equal(to_keras(from_keras(kernel, kind), kind), kernel)


def test_a_kernel_of_keras_by_loops():
    kernel, x = torch.randn(2, 3, 2, 4).double(), torch.randn(4, 3, 4).double()  # (h, w, in / groups, out)
    found = nn.functional.conv2d(x[None], from_keras(kernel), groups=2)[0]
    for o in range(4):
        for y in range(2):
            for z in range(2):
                own = range(2) if o < 2 else range(2, 4)
                want = sum(
                    kernel[a, b, place, o] * x[i, y + a, z + b]
                    for a in range(2)
                    for b in range(3)
                    for place, i in enumerate(own)
                )
                torch.testing.assert_close(found[o, y, z], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trained", [True, False])
def test_merged_layers_keep_what_they_are(trained):
    layers = [nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False, dtype=torch.float64) for _ in range(2)]
    for layer in layers:
        layer.weight.requires_grad_(trained)
    one = merge(layers)
    assert (one.stride, one.padding, one.bias, one.weight.requires_grad) == ((2, 2), (1, 1), None, trained)
    # Nothing is shared: a change of the merged layer leaves those that it was made of.
    with torch.no_grad():
        one.weight.zero_()
    assert all(layer.weight.abs().sum() > 0 for layer in layers)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: merge([]), "no layers"),
        (lambda: merge(nn.Conv2d(2, 2, 1)), r"a list of layers, and this is one Conv2d; give \[one, other\]"),
        (lambda: merge([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1, bias=False)]), "layer 1 is"),
        (lambda: merge([nn.Conv2d(2, 2, 1, groups=2)] * 2, shared_input=True), "groups=2 cannot read a shared input"),
        (lambda: merge([nn.Linear(2, 2)]), "not a convolution layer"),
        (lambda: split(nn.LazyConv2d(2, 1)), "not a convolution layer|does not know its size"),
        (lambda: from_keras(torch.zeros(3, 3)), "2 dimensions"),
        (lambda: from_keras(torch.zeros(3, 3, 3), "separable"), "kind='separable'"),
        (lambda: to_keras(torch.zeros(6, 1, 3), "depthwise", groups=4), "groups=4"),
    ],
)
def test_what_cannot_be_merged_or_laid_out_is_refused(call, said):
    with pytest.raises(GroupwiseError, match=said):
        call()


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e200, 5e-324])
def test_the_part_that_is_lost_does_not_depend_on_the_scale(scale):
    weight = torch.tensor([[1.0, 2.0], [1.0, 1.0]], dtype=torch.float64) * scale
    _, lost = blocks(weight, 1, 2)
    # Of the squares 1, 4, 1 and 1 the second and the third are lost.
    assert lost == pytest.approx(5 / 7, rel=1e-12)
    with pytest.raises(GroupwiseError, match=r"would lose 71\.4 % of its square"):
        finer(weight, 1, 2)


def test_a_network_of_tiny_weights_is_converted():
    net = nn.Sequential(*(nn.Conv2d(4, 4, 1, dtype=torch.float64) for _ in range(3)))
    wanted = regroup(net, {"1": 2}).rows[0].kept
    with torch.no_grad():
        net[1].weight *= 2.0**-560
    assert regroup(net, {"1": 2}).rows[0].kept == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_told(value):
    weight = torch.full((2, 2), value)
    with pytest.raises(GroupwiseError, match="NaN or infinite values, so that nothing tells how much it would lose"):
        finer(weight, 1, 2)
    # Between the groups there is nothing, so that nothing is lost.
    assert torch.equal(finer(torch.diag(torch.full((2,), torch.inf)), 1, 2), torch.full((2, 1), torch.inf))


@pytest.mark.parametrize(
    "hook",
    [
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    ],
)
def test_a_hook_is_not_dropped(hook):
    layers = [nn.Conv2d(4, 4, 1, groups=2) for _ in range(2)]
    hook(layers[1])
    for call in (lambda: merge(layers), lambda: split(layers[1])):
        with pytest.raises(GroupwiseError, match="has hooks"):
            call()


def test_merge_takes_any_iterable_of_layers():
    layers = [nn.Conv2d(2, 4, 1) for _ in range(2)]
    x = torch.randn(1, 4, 3, 3)
    for given in (iter(layers), (layer for layer in layers), nn.ModuleList(layers), tuple(layers)):
        assert torch.equal(merge(given)(x), merge(layers)(x))
