"""One layer over several processes, against the same layer in one, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import layer_of, specs
from groupwise.parallel import ChannelwiseParallel, ColwiseParallel, GroupParallel, Partition, RowwiseParallel
from ranks import ranks

LAYOUTS = ("whole", "split")


def placement(layout, dim=1):
    from torch.distributed.tensor import Replicate, Shard

    return Shard(dim) if layout == "split" else Replicate()


def on_rank(mesh, layer, style, options, layouts, units, x, grad, channels_last=False):
    """Output, gradients and state of a split layer: the tensors' own whole, the others as they lie on this rank."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import parallelize_module

    dim = -1 if isinstance(layer, torch.nn.Linear) else 1
    rank, count = mesh.get_local_rank(), mesh.size()
    before, after = (placement(layout, dim) for layout in layouts)
    parallelize_module(layer, mesh, style(input_layouts=before, output_layouts=after, **options))

    def mine(tensor, layout, units):
        if layout == "whole":
            return tensor
        held = Partition(units or tensor.shape[dim], count).span(rank, tensor.shape[dim])
        return tensor.narrow(dim, held.start, len(held))

    x = mine(x, layouts[0], units[0]).clone().requires_grad_()
    out = layer(x)
    if isinstance(out, DTensor):
        assert out.placements == (after,)
        assert out.shape[dim] == grad.shape[dim]
        whole = out.full_tensor()
        assert torch.equal(mine(whole, layouts[1], None), out.to_local())
        out = mine(whole, layouts[1], units[1])
    out.backward(mine(grad, layouts[1], units[1]))
    state = {
        name: tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
        for name, tensor in layer.state_dict().items()
    }
    gradients = {name: parameter.grad.full_tensor() for name, parameter in layer.named_parameters()}
    return out.detach(), x.grad, gradients, state


def whole(units, layout, dim=1):
    """The tensor that ranks hold: their units side by side, or what each of them has."""
    if layout == "split":
        return torch.cat(units, dim)
    for part in units[1:]:
        torch.testing.assert_close(part, units[0])
    return units[0]


def check(count, layer, style, options, layouts, x, units=(None, None)):
    dim = -1 if isinstance(layer, torch.nn.Linear) else 1
    x = x.requires_grad_()
    split_layer = copy.deepcopy(layer)
    expected = layer(x)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    answers = ranks.run(count, on_rank, split_layer, style, options, layouts, units, x.detach(), grad)
    close = torch.testing.assert_close
    close(whole([answer[0] for answer in answers], layouts[1], dim), expected.detach())
    close(whole([answer[1] for answer in answers], layouts[0], dim), x.grad)
    for _, _, theirs, values in answers:
        close(theirs, gradients)
        close(values, state)


many = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
counts = st.integers(1, 4)
layouts = st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS))


@many
@given(specs(), counts, layouts, st.integers(1, 3))
def test_groups(spec, count, layouts, batch):
    if spec.groups == 1:
        return
    layer = layer_of(spec).double()
    x = torch.randn(batch, spec.in_channels, *[k * d + 3 for k, d in zip(spec.kernel_size, spec.dilation, strict=True)])
    check(count, layer, GroupParallel, {}, layouts, x.double(), (spec.groups, spec.groups))


dense = st.tuples(
    st.sampled_from(["linear", "conv", "transposed"]), st.integers(1, 9), st.integers(1, 9), st.booleans()
)


def dense_of(kind, inputs, outputs, bias):
    if kind == "linear":
        return torch.nn.Linear(inputs, outputs, bias, dtype=torch.float64), torch.randn(3, inputs).double()
    cls = torch.nn.Conv2d if kind == "conv" else torch.nn.ConvTranspose2d
    layer = cls(inputs, outputs, 3, stride=2, padding=1, bias=bias, dtype=torch.float64)
    return layer, torch.randn(2, inputs, 5, 4).double()


def divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]


@pytest.mark.parametrize("style", [ColwiseParallel, RowwiseParallel])
@many
@given(dense, counts, layouts, st.data())
def test_dense_layers(style, facts, count, layouts, data):
    layer, x = dense_of(*facts)
    units = [data.draw(st.sampled_from(divisors(size))) for size in facts[1:3]]
    options = {"input_units": units[0], "output_units": units[1]}
    check(count, layer, style, options, layouts, x, units)


NORMS = {
    "batch": (lambda: torch.nn.BatchNorm2d(12), 12),
    "batch, plain": (lambda: torch.nn.BatchNorm2d(12, affine=False), 12),
    "batch, cumulative": (lambda: torch.nn.BatchNorm2d(12, momentum=None), 6),
    "instance": (lambda: torch.nn.InstanceNorm2d(12, affine=True, track_running_stats=True), 12),
    "group": (lambda: torch.nn.GroupNorm(6, 12), 6),
    "prelu": (lambda: torch.nn.PReLU(12), 4),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("layouts", [("split", "split"), ("whole", "whole")])
def test_normalisations(name, count, layouts):
    make, units = NORMS[name]
    torch.manual_seed(0)
    layer = make().double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    check(
        count, layer, ChannelwiseParallel, {"units": units}, layouts, torch.randn(3, 12, 4, 5).double(), (units, units)
    )
