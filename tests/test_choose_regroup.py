"""Models converted to other groups: exact where that can be, folded, refused by name, the model untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from groupwise import GroupwiseError
from groupwise.choose.convert.regroup import regroup
from groupwise.choose.exact.coarsen import blocks, coarser, finer
from groupwise.models.resnext import Bottleneck

CONVS = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}


@st.composite
def layers(draw):
    """A convolution of any kind, and groups that divide its own."""
    dims, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    fewer, joined = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    groups = fewer * joined
    stride = draw(st.integers(1, 2))
    options = {
        "stride": stride,
        "padding": draw(st.integers(0, 1)),
        "dilation": draw(st.integers(1, 2)),
        "bias": draw(st.booleans()),
        "groups": groups,
    }
    if transposed:
        options["output_padding"] = draw(st.integers(0, stride - 1))
    elif draw(st.booleans()):
        options["padding_mode"] = draw(st.sampled_from(["reflect", "circular", "replicate"]))
    kind = CONVS[dims, transposed]
    layer = kind(groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), draw(st.integers(1, 3)), **options)
    return layer.double(), fewer, dims


@settings(deadline=None, max_examples=80)
@given(layers())
def test_fewer_groups_compute_the_same_and_more_bring_the_weight_back(drawn):
    layer, fewer, dims = drawn
    net = nn.Sequential(layer)
    x = torch.randn(2, layer.in_channels, *[7] * dims, dtype=torch.double)
    for value in (fewer, 1):
        made = regroup(net, {"0": value})
        assert made.model[0].groups == value
        assert made.rows[0].how == "exact"
        torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
        back = regroup(made.model, {"0": layer.groups})
        assert back.rows[0].how == "exact"
        assert torch.equal(back.model[0].weight, layer.weight)
        assert back.model[0].groups == layer.groups


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose3d])
def test_groups_that_are_no_parts_of_the_old_ones_are_exact_where_nothing_is_lost(kind):
    net = nn.Sequential(kind(12, 24, 2, groups=12).double())
    x = torch.randn(2, 12, *[4] * (net[0].weight.dim() - 2), dtype=torch.double)
    six = regroup(net, {"0": 6}).model
    made = regroup(six, {"0": 4})
    assert [(row.before, row.groups, row.how) for row in made.rows] == [(6, 4, "exact")]
    assert made.model[0].weight.shape[1] == 24 // 4 if made.model[0].transposed else 12 // 4
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(regroup(made.model, {"0": 12}).model[0].weight, net[0].weight)
    with pytest.raises(GroupwiseError, match="0: the order of its input channels cannot change"):
        regroup(nn.Sequential(kind(12, 24, 2, groups=6)), {"0": 4})


def test_coarser_is_the_weight_of_the_definition():
    weight = torch.arange(24.0).reshape(6, 2, 2)
    made = coarser(weight, groups=3, new_groups=1)
    for output in range(6):
        for channel in range(6):
            inside = output // 2 == channel // 2
            wanted = weight[output, channel % 2] if inside else torch.zeros(2)
            assert torch.equal(made[output, channel], wanted)
    assert torch.equal(finer(made, 1, 3), weight)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: coarser(w, 4, 3), "new_groups=3 must divide groups=4.*valid: 1, 2, 4"),
        (lambda w: coarser(w, 3, 1), "groups=3 does not fit"),
        (lambda w: finer(w, 1, 3), "new_groups=3 must be a multiple of groups=1.*valid: 1, 2, 4"),
        (lambda w: finer(w, 1, 2), r"would lose 50 % of its square"),
    ],
)
def test_groups_that_do_not_fit_are_refused_with_the_valid_ones(call, said):
    with pytest.raises(GroupwiseError, match=said):
        call(torch.ones(4, 4, 3))


def test_a_tiny_loss_is_no_exact_conversion():
    weight = torch.eye(4).reshape(4, 4, 1)
    assert blocks(weight, 1, 4)[1] == 0
    weight[0, 3] = 1e-30
    assert blocks(weight, 1, 4)[1] > 0


def scrambled(groups: int) -> nn.Module:
    """A bottleneck whose 3x3 layer has groups in a random order of its channels."""
    torch.manual_seed(0)
    net = nn.Sequential(Bottleneck(8, 16, 16, groups=1), nn.Flatten(), nn.Linear(16 * 25, 3)).double()
    with torch.no_grad():
        conv = net[0].conv2
        rows, columns = torch.randperm(16), torch.randperm(16)
        mask = (rows[:, None] * groups // 16) == (columns * groups // 16)
        conv.weight *= mask[:, :, None, None]
        for norm in (net[0].bn1, net[0].bn2, net[0].bn3):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_scrambled_groups_are_found_and_folded_so_that_outputs_stay(groups):
    net = scrambled(groups)
    x = torch.randn(3, 8, 5, 5, dtype=torch.double)
    before = copy.deepcopy(net.state_dict())
    made = regroup(net, {"0.conv2": groups})
    torch.testing.assert_close(made.model(x), net(x), rtol=1e-12, atol=1e-12)
    assert made.model[0].conv2.groups == groups
    assert made.model[0].conv2.weight.shape == (16, 16 // groups, 3, 3)
    (row,) = made.rows
    assert (row.how, row.kept, row.gather_ms) == ("block", 1.0, None)
    assert {name.rpartition(".")[0] for name in row.folded} == {"0.conv1", "0.bn1", "0.bn2", "0.conv3"}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    # The converted model has the modules of the model, and nothing that moves channels.
    assert [type(m) for m in made.model.modules()] == [type(m) for m in net.modules()]


def test_the_best_order_keeps_more_than_the_stored_one_and_this_is_what_is_told():
    net = scrambled(4)
    with torch.no_grad():
        net[0].conv2.weight += 0.02 * torch.randn_like(net[0].conv2.weight)
    rows = {order: regroup(net, {"0.conv2": 4}, order=order).rows[0] for order in ("best", "stored", "random")}
    whole = net[0].conv2.weight.square().sum()
    stored = blocks(net[0].conv2.weight.detach(), 1, 4)[0].square().sum() / whole
    assert rows["stored"].kept == pytest.approx(stored.item())
    assert rows["best"].bound >= rows["best"].kept > 0.9 > rows["random"].kept
    assert rows["best"].kept > rows["stored"].kept


def shared() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 1))
    net[0].register_forward_hook(lambda *_: None)
    return net


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)))


def one_storage() -> nn.Module:
    """Two layers whose biases are other tensors of the same memory."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[2].bias = nn.Parameter(net[0].bias.detach().view(-1))
    assert net[2].bias is not net[0].bias
    return net


@pytest.mark.parametrize(
    ("make", "groups", "said"),
    [
        (shared, {"0": 2}, "0: it shares its module with 2; give each a copy of its own, or leave it out"),
        (hooked, {"0": 2}, "it has hooks"),
        (parametrized, {"0": 2}, "computed from other parameters"),
        (one_storage, {"2": 2}, "2: it shares a parameter with 0"),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1, device="meta")), {"0": 2}, "0: its weight is on meta"),
        (lambda: torch.compile(nn.Sequential(nn.Conv2d(4, 6, 1))), {"_orig_mod.0": 2}, "give the module that you comp"),
        (lambda: nn.DataParallel(nn.Sequential(nn.Conv2d(4, 6, 1))), {"module.0": 2}, "a DataParallel; give"),
        (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), {"0": 2}, "lazy"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), {"0": 2}, "it is a Linear"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 6, 1)),
            {"0": 3},
            r"groups=3 must divide in_channels=4.*valid groups: 1, 2",
        ),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1)), {"0": True}, "groups=True must divide"),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1)), {"1": 2}, "no such layer; did you mean 0"),
        (lambda: nn.Conv2d(4, 6, 1), {"x": 2}, "no such layer"),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1)), {0: 2}, "names of layers are strings; write '0'"),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1)), {5: 2}, "no such layer; its convolutions: 0"),
        (lambda: nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU()), {"nope": 2}, "no such layer; its convolutions: 0"),
        (lambda: nn.Sequential(*[nn.Conv2d(4, 4, 1)] * 8), {"nope": 2}, "its convolutions: 0, 1, 2, 3, 4, 5, ..."),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_what_cannot_be_converted_is_refused_before_any_work(make, groups, said):
    net = make()
    if said.endswith("mean 0"):
        groups = {"00": 2}
    with pytest.raises(GroupwiseError, match=said):
        regroup(net, groups)


def test_all_that_is_wrong_is_told_at_once():
    net = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1))
    with pytest.raises(GroupwiseError, match=r"0: groups=4 .*; 1: groups=5 .*; x: the model has no such layer"):
        regroup(net, {"0": 4, "1": 5, "x": 2})


def trained() -> nn.Module:
    """A bottleneck network with a bias everywhere, and statistics of its own data."""
    torch.manual_seed(1)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)),
        *(nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4)),
    )
    net.train()
    for _ in range(3):
        net(torch.randn(16, 3, 9, 9))
    return net.double().eval()


def layer_output(net, layer, x):
    """The output of a layer, and the input that it had."""
    seen = []
    handle = net.get_submodule(layer).register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("form", ["block", "factored"])
def test_fitting_lowers_the_error_of_the_layer_as_told(form):
    net, x = trained(), torch.randn(32, 3, 9, 9, dtype=torch.double)
    before = copy.deepcopy(net.state_dict())
    with_data, without = (regroup(net, {"3": 4}, form=form, data=data) for data in ([x[:20], x[20:]], None))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    _, wanted = layer_output(net, "3", x)
    errors = []
    # Statistics are taken anew after the layer is fitted: until then its input is that of the other one.
    given, _ = layer_output(without.model, "3", x)
    for made in (without, with_data):
        # The order of the outputs is that of the layer behind it, which reads them.
        got = made.model[3](given)
        if form == "block":
            order = [
                int((made.model[6].weight[0] == net[6].weight[0, c]).flatten(1).all(1).nonzero()) for c in range(8)
            ]
            got = got[:, order]
        errors.append(((got - wanted).square().sum() / wanted.square().sum()).item())
    (row,) = with_data.rows
    assert (row.error, row.fitted) == (pytest.approx(errors[0], rel=1e-6), pytest.approx(errors[1], rel=1e-6))
    assert row.fitted < row.error
    assert (without.rows[0].error, without.rows[0].fitted) == (None, None)
    assert row.how == form


def test_batch_norms_take_the_statistics_of_the_converted_network():
    net, x = trained(), torch.randn(32, 3, 9, 9, dtype=torch.double)
    made = regroup(net, {"3": 4}, data=x).model
    _, values = layer_output(made, "3", x)
    # The norm before it used the batch's own variance, which differs from the one that it keeps by n / (n - 1).
    close = {"rtol": 5e-3, "atol": 1e-3}
    torch.testing.assert_close(made[4].running_mean, values.mean((0, 2, 3)), **close)
    torch.testing.assert_close(made[4].running_var, values.var((0, 2, 3), unbiased=True), **close)
    assert not any(module.training for module in made.modules())


def test_the_factored_form_is_two_layers_of_at_most_the_work():
    net = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU())
    made = regroup(net, {"0": 4}, form="factored").model[0]
    first, second = made
    assert (first.groups, first.stride, first.padding_mode, first.bias) == (4, (2, 2), "reflect", None)
    assert second.kernel_size == (1, 1)
    macs = first.weight.numel() + second.weight.numel()
    assert macs <= 16 * 16 * 9 / 4
    assert torch.equal(second.bias, net[0].bias)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"form": "diagonal"}, "form='diagonal'"),
        ({"order": "worst"}, "order='worst'"),
        ({"data": []}, "data has no batch"),
        ({"data": torch.randn(2, 4, 9, 9)}, r"data of shape \(2, 4, 9, 9\)"),
        ({"data": [1]}, "batch 0 of data is of type int"),
        ({"data": torch.full((1, 3, 9, 9), torch.nan)}, "not finite"),
        ({"form": "factored", "gather": True}, 'for form="block"'),
    ],
)
def test_bad_options_are_refused_and_the_model_stays(options, said):
    net = trained()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(GroupwiseError, match=said):
        regroup(net, {"3": 2}, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_layer_that_is_called_by_keyword_is_fitted_too():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.three(self.two(input=self.one(x)))

    row = regroup(Named(), {"two": 2}, form="factored", data=torch.randn(8, 3, 6, 6)).rows[0]
    assert row.fitted < row.error


@pytest.mark.parametrize("groups", [None, ["b"], 4, "0", [("0", 2)], nn.Conv2d(4, 4, 1, groups=2)])
def test_groups_that_are_no_mapping_are_refused_by_value(groups):
    with pytest.raises(GroupwiseError, match=r"^groups is a \w+; give \{layer's name: groups\}, or what choose"):
        regroup(nn.Sequential(nn.Conv2d(4, 4, 1)), groups)


def test_no_layers_give_a_copy():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)).train()
    x = torch.randn(2, 4, 5, 5)
    made = regroup(net, {}, data=x)
    assert str(made) == "no layer has other groups: the model is a copy"
    assert made.rows == ()
    assert made.model is not net
    assert made.model[0].weight.data_ptr() != net[0].weight.data_ptr()
    torch.testing.assert_close(made.model.state_dict(), net.state_dict(), rtol=0, atol=0)
    same = regroup(net, {"0": 2}).model[0]
    assert same.weight.data_ptr() != net[0].weight.data_ptr()
