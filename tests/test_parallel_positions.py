"""Channels that move to another dimension, and positions that are sliced and padded: equal to one process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

from groupwise.parallel import ChannelwiseParallel, ColwiseParallel, GroupParallel, RowwiseParallel, plan_split, split
from groupwise.parallel.planning.axes import Axis, keeps_channels, reordered
from groupwise.parallel.planning.flow import Flow
from ranks import ranks
from test_parallel_split import whole

WIDTH, TAPS = 12, 4


class Mixer(nn.Module):
    """The token mixer of a Mamba-like block: (N, L, 6) to (N, L', 6), with a depthwise convolution along L."""

    def __init__(self, between, padding=0, norm=False, taken=WIDTH):
        super().__init__()
        self.in_proj = nn.Linear(6, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, TAPS, padding=padding, groups=WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.pad = nn.ConstantPad1d((TAPS - 1, 0), 0.5)
        self.out_proj = nn.Linear(taken, 6)
        self.between = between

    def forward(self, x):
        return self.out_proj(self.between(self, x, self.in_proj(x)))


def padded(self, x, h):
    return F.silu(self.norm(self.conv(F.pad(h.transpose(1, 2), (TAPS - 1, 0))))).transpose(1, 2)


def sliced(self, x, h):
    return F.silu(self.conv(h.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


def sliced_by_own_length(self, x, h):
    length = h.size(1)
    return self.conv(h.permute(0, 2, 1))[:, :, :length].permute(0, 2, 1)


def unpacked(self, x, h):
    _, length, _ = h.shape
    return self.conv(h.transpose(-1, -2))[:, :, 1 : length + 1].transpose(-1, -2)


def narrowed(self, x, h):
    return self.conv(h.movedim(2, 1)).narrow(2, 0, 5).movedim(1, -1)


def in_order_of_positions(self, x, h):
    h = torch.swapaxes(self.pad(torch.swapaxes(h[:, 1:], 1, 2)), -1, -2)
    return self.conv(h.swapdims(2, 1)).moveaxis(-1, 1)


def twice(self, x, h):
    h = self.conv(F.pad(h.transpose(2, 1), (TAPS, -1), mode="constant", value=1.0))
    h = self.conv(F.pad(torch.relu(h), [3, 0], mode="replicate"))
    return h[..., ::2].contiguous().transpose(1, 2)


def pieces(self, x, h):
    first, second = self.conv(self.pad(h.transpose(1, 2))).chunk(2, dim=-1)
    return (first * torch.sigmoid(second)).transpose(1, 2)


def splits(self, x, h):
    first, second = torch.split(self.conv(self.pad(torch.transpose(h, 1, 2))).transpose(1, 2), 4, dim=1)
    return first * second


def matrix_transposed(self, x, h):
    return F.silu(self.conv(self.pad(h.mT)).mH)


def rows_transposed(self, x, h):
    """(N, C) to (C, N) and back, once by each attribute."""
    h = self.conv(self.pad(h.mT)).mean(-1)
    return torch.sigmoid(F.silu(h.T).T.mT).H


def positions_first(self, x, h):
    """(N, L, C) to (L, N, C) and back: the channels stay last."""
    h = h.permute(1, 0, 2)[2:]
    return self.conv(self.pad(h.permute(1, 2, 0))).transpose(1, 2)


MIXERS = {
    "pad": (padded, {}),
    "pad, batch norm": (padded, {"norm": True}),
    "slice": (sliced, {"padding": TAPS - 1}),
    "slice by own length": (sliced_by_own_length, {"padding": TAPS - 1}),
    "unpacked shape": (unpacked, {"padding": TAPS - 1}),
    "narrow": (narrowed, {"padding": TAPS - 1}),
    "pad module": (in_order_of_positions, {}),
    "two convolutions": (twice, {}),
    "chunk": (pieces, {}),
    "split": (splits, {}),
    "positions first": (positions_first, {}),
    "mT, mH": (matrix_transposed, {}),
    "T, H": (rows_transposed, {}),
}


class Mixer2d(nn.Module):
    """The same in two dimensions, with channels last between the convolutions: (N, H, W, 6) to (N, H, W, 6)."""

    def __init__(self, padding):
        super().__init__()
        self.in_proj = nn.Linear(6, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=padding, groups=WIDTH)
        self.out_proj = nn.Linear(WIDTH, 6)
        self.pad = nn.ZeroPad2d((1, 1, 2, 0)) if not padding else nn.Identity()

    def forward(self, x):
        h = F.gelu(self.pad(self.in_proj(x).permute(0, 3, 1, 2)))
        h = self.conv(h)[:, :, : x.size(1), -5:]
        return self.out_proj(torch.movedim(h, 1, 3))


def make(name):
    torch.manual_seed(0)
    if name in MIXERS:
        between, options = MIXERS[name]
        return Mixer(between, **options).double(), torch.randn(2, 8, 6).double()
    return Mixer2d(2 if name == "2-D slice" else 0).double(), torch.randn(2, 7, 5, 6).double()


NAMES = [*MIXERS, "2-D pad", "2-D slice"]


@pytest.mark.parametrize("name", NAMES)
def test_the_block_is_split(name):
    model, x = make(name)
    plan = plan_split(model, 2, input_shape=x.shape)
    styles = {"in_proj": ColwiseParallel, "conv": GroupParallel, "out_proj": RowwiseParallel}
    styles |= {"norm": ChannelwiseParallel} if "norm" in name else {}
    assert {choice.name: type(choice.style) for choice in plan.choices} == styles
    # One all-reduce forward, of the output, and one backward, of the input's gradient, which nobody asks for here.
    forward = [collective for choice in plan.choices for collective in choice.collectives]
    assert [(one.layer, one.operation, one.backward) for one in forward] == [("out_proj", "all_reduce", False)]


def learn(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    out.square().sum().backward()
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    return out.detach(), x.grad, gradients


def on_rank(mesh, name):
    model, x = make(name)
    return learn(split(model, mesh), x)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_equal_one_process(count, name):
    expected = learn(*make(name))
    for found in ranks.run(count, on_rank, name):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def convolved(self, h):
    return self.conv(self.pad(h.transpose(1, 2)))


def sliced_channels(self, x, h):
    return convolved(self, h)[:, :6].transpose(1, 2)


def sliced_last_channels(self, x, h):
    return convolved(self, h).transpose(1, 2)[..., -6:]


def padded_channels(self, x, h):
    return F.pad(convolved(self, h), (0, 0, 4, 2)).transpose(1, 2)


def padded_last_channels(self, x, h):
    return F.pad(convolved(self, h).transpose(1, 2), (2, 4))


def chunked_channels(self, x, h):
    first, second = convolved(self, h).chunk(2, dim=1)
    return (first * second).transpose(1, 2)


def split_channels(self, x, h):
    first, second = torch.split(convolved(self, h).transpose(1, 2), 6, -1)
    return first * second


def narrowed_channels(self, x, h):
    return convolved(self, h).narrow(-2, 3, 6).transpose(1, 2)


def scaled_by_their_number(self, x, h):
    h = convolved(self, h)
    return (h / h.shape[1]).transpose(1, 2)


def scaled_by_their_size(self, x, h):
    h = convolved(self, h)
    return (h / h.size(-2)).transpose(1, 2)


def scaled_by_an_unpacked_size(self, x, h):
    h = convolved(self, h).transpose(1, 2)
    _, _, width = h.size()
    return h * width


def selected(self, x, h):
    return convolved(self, h)[..., 0][:, None, :]


# What is done with the channels, and how many of them come out.
REFUSED = {
    "slice": (sliced_channels, 6),
    "slice, last": (sliced_last_channels, 6),
    "pad": (padded_channels, 18),
    "pad, last": (padded_last_channels, 18),
    "chunk": (chunked_channels, 6),
    "split": (split_channels, 6),
    "narrow": (narrowed_channels, 6),
    "number": (scaled_by_their_number, WIDTH),
    "size": (scaled_by_their_size, WIDTH),
    "unpacked size": (scaled_by_an_unpacked_size, WIDTH),
    "select": (selected, WIDTH),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_channels_finds_all_of_them(count, name):
    expected = learn(*make_refused(name))
    for found in ranks.run(count, on_rank_refused, name):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    plan = plan_split(make_refused(name)[0], count)
    assert {choice.name: choice.output for choice in plan.choices}["conv"] is None


def make_refused(name):
    torch.manual_seed(0)
    between, taken = REFUSED[name]
    return Mixer(between, taken=taken).double(), torch.randn(2, 8, 6).double()


def on_rank_refused(mesh, name):
    model, x = make_refused(name)
    return learn(split(model, mesh), x)


def test_a_convolution_along_channels_stays_whole():
    # The convolution takes the 12 positions of (N, 12, 12) for its channels.
    plan = plan_split(Mixer(lambda self, x, h: F.silu(self.conv(h))), 2)
    assert all(choice.input is None and choice.output is None for choice in plan.choices)


def test_each_mode_is_traced_once(monkeypatch):
    traced, trace = [], fx.Tracer.trace
    monkeypatch.setattr(
        fx.Tracer, "trace", lambda self, *given: traced.append(given[0].training) or trace(self, *given)
    )
    model, x = make("pad")
    plan = plan_split(model, 2, input_shape=x.shape)
    assert sorted(traced) == [False, True]
    from groupwise.parallel import Link, Machine, predict

    link = Link(1e-6, 1e9)
    for data in (1, 2):
        predict(plan, Machine(1e9, 1e9, link, link), data=data)
    assert len(traced) == 2


def test_a_plan_does_not_depend_on_what_becomes_of_its_model():
    from groupwise.parallel import Link, Machine, predict

    model, x = make("slice")
    plan = plan_split(model, 2, input_shape=x.shape)
    link = Link(1e-6, 1e9)
    before = predict(plan, Machine(1e9, 1e9, link, link))
    model.conv = nn.Identity()
    assert predict(plan, Machine(1e9, 1e9, link, link)) == before
    assert all(parameter.is_meta for parameter in plan.decision.flow.root.parameters())


class Call(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def node_of(call):
    graph = fx.Tracer().trace(Call(call))
    return next(node for node in graph.nodes if node.op.startswith("call_"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_permute_takes_channels_where_numpy_would(data):
    dims = data.draw(st.integers(3, 5))
    order = data.draw(st.permutations(range(dims)))
    place = data.draw(st.integers(-dims, -1))
    node = node_of(lambda x: x.permute(*order))
    assert reordered(node, Axis(place, dims)) == Axis(order.index(dims + place) - dims, dims)
    a, b = data.draw(st.integers(-dims, dims - 1)), data.draw(st.integers(-dims, dims - 1))
    moved = torch.movedim(torch.arange(dims).expand(1, dims), 0, 0)[0].tolist()
    moved.insert(b % dims, moved.pop(a % dims))
    found = reordered(node_of(lambda x: torch.movedim(x, a, b)), Axis(place, dims))
    assert found == Axis(moved.index(dims + place) - dims, dims)


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_a_transpose_by_attribute_takes_channels_where_the_method_would(dims):
    swapped = {-1: -2, -2: -1}
    for place in range(-dims, 0):
        axis = Axis(place, dims)
        for name in ("mT", "mH", "T", "H"):
            known = dims == 2 or name in ("mT", "mH")
            expected = Axis(swapped.get(place, place), dims) if known else None
            assert reordered(node_of(lambda x, name=name: getattr(x, name)), axis) == expected


INDEX = st.one_of(
    st.just(slice(None)),
    st.just(Ellipsis),
    st.builds(slice, st.none() | st.integers(0, 2), st.none() | st.integers(-1, 2)),
    st.integers(0, 1),
    st.none(),
)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_slice_is_followed_only_if_it_keeps_all_channels_in_place(data):
    """The oracle: values that name their channel, in a tensor that is sliced."""
    dims = data.draw(st.integers(3, 4))
    place = data.draw(st.integers(-dims, -1))
    index = tuple(data.draw(st.lists(INDEX, min_size=1, max_size=dims)))
    sizes = [3, 4, 5, 6][:dims]
    shape = [-1 if dim == dims + place else 1 for dim in range(dims)]
    named = torch.arange(sizes[place]).reshape(shape).expand(sizes)
    if (
        sum(item is Ellipsis for item in index) > 1
        or sum(item is not None and item is not Ellipsis for item in index) > dims
    ):
        return
    made = named[index]
    keeps = made.dim() == dims and made.shape[place] == sizes[place]
    keeps = keeps and (
        made.numel() == 0 or torch.equal(made, torch.arange(sizes[place]).reshape(shape).expand(made.shape))
    )
    followed = keeps_channels(node_of(lambda x: x[index]), Axis(place, dims))
    # What keeps channels by chance, such as a slice that is as long as they are, may stay whole.
    assert keeps or not followed
    plain = all(item is Ellipsis or isinstance(item, slice) for item in index)
    whole_slices = [item for item in index if isinstance(item, slice) and item != slice(None)]
    assert followed or not plain or whole_slices


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_padding_is_followed_only_if_it_adds_no_channel(data):
    dims = data.draw(st.integers(3, 5))
    place = data.draw(st.integers(-dims, -1))
    padding = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=dims)) * 2
    sizes = torch.empty([2] * dims, device="meta")
    same = F.pad(sizes, padding).shape[place] == 2
    assert keeps_channels(node_of(lambda x: F.pad(x, padding)), Axis(place, dims)) == same


def test_where_nobody_knows_the_dimensions_nothing_is_followed():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.two(self.one(x).transpose(1, 2).transpose(1, 2))

    flow = Flow(Loose())
    assert [flow.axes[node] for node in flow.graph.nodes if node.op == "call_method"] == [None, None]
