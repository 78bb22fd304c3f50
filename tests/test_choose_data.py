"""Calibration data as users and data loaders give it: read by one contract, refused before any work."""

from __future__ import annotations

import copy
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.convert import regroup as regrouped
from groupwise.choose.convert.batch_norm import recalibrate
from groupwise.choose.convert.data import read
from groupwise.choose.measure import run
from groupwise.choose.measure.risk import Losses, batches

X, Y = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


class Two(nn.Module):
    """A model of two inputs, of which the second has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.two, self.three = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image, mask=None):
        x = self.norm(self.one(image)).relu()
        x = self.two(x if mask is None else x * mask)
        return self.three(x.relu()).mean((2, 3))


def two() -> Two:
    torch.manual_seed(0)
    return Two().eval()


MASK = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("data", "arguments", "keywords", "targets"),
    [
        (X, (X,), {}, None),
        ([X], (X,), {}, None),
        ([(X,)], (X,), {}, None),
        ([[X]], (X,), {}, None),
        ([(X, Y)], (X,), {}, Y),
        ([[X, Y]], (X,), {}, Y),
        ([(X, None)], (X,), {}, None),
        ([((X, MASK), Y)], (X, MASK), {}, Y),
        ([[[X, MASK], Y]], (X, MASK), {}, Y),
        ([((X, MASK),)], (X, MASK), {}, None),
        ({"image": X, "mask": MASK}, (), {"image": X, "mask": MASK}, None),
        ([UserDict(image=X)], (), {"image": X}, None),
        ([({"image": X}, Y)], (), {"image": X}, Y),
        (DataLoader(TensorDataset(X, Y), batch_size=6), (X,), {}, Y),
        (DataLoader([{"image": one} for one in X], batch_size=6), (), {"image": X}, None),
        (DataLoader([((a, b), c) for a, b, c in zip(X, MASK, Y, strict=True)], batch_size=6), (X, MASK), {}, Y),
        (({"image": one} for one in [X]), (), {"image": X}, None),
    ],
)
def test_what_data_loaders_yield_is_read(data, arguments, keywords, targets):
    (found,) = read(data)
    assert len(found.arguments) == len(arguments)
    assert all(torch.equal(one, other) for one, other in zip(found.arguments, arguments, strict=True))
    assert list(found.keywords) == list(keywords)
    assert all(torch.equal(found.keywords[name], value) for name, value in keywords.items())
    assert (found.targets is None) if targets is None else torch.equal(found.targets, targets)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((X, Y), r"data is a tuple.*\[\(inputs, targets\)\] or \[inputs, more_inputs\]"),
        ([(X, MASK, Y)], r"batch 0 of data is a tuple of 3; give a tensor.*a pair \(inputs, targets\)"),
        ([X, ()], "batch 1 of data is a tuple of 0"),
        ([X, "x"], "batch 1 of data is of type str; give a tensor"),
        ([("x", Y)], "batch 0 of data has inputs of type str"),
        ([{1: X}], "batch 0 of data is of type dict"),
        ([{"image": 1}], "batch 0 of data has inputs without a tensor"),
        ([X, X[:0]], "batch 1 of data has no sample; leave it out"),
        ([((), Y)], "batch 0 of data has inputs of type tuple"),
        ([{"image": X * torch.nan}], "batch 0 of data has values that are not finite"),
        ([X, ((X, MASK * torch.inf), None)], "batch 1 of data has values that are not finite"),
        (3, "data is a int; give a list of batches"),
        ("file.pt", "data is a str; give a list of batches"),
        ([], "data has no batch"),
        (DataLoader(TensorDataset(X[:0])), "data has no batch"),
    ],
)
def test_other_data_is_refused_with_the_contract(data, said):
    for use in (lambda: groupwise.regroup(two(), {"two": 2}, data=data), lambda: batches(data)):
        with pytest.raises(GroupwiseError, match=said):
            use()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"picture": X}], r"shapes picture: \(6, 3, 9, 9\): .*'image'; its forward is Two\(image, mask=None\)"),
        ([{"mask": MASK}], "missing a required argument: 'image'"),
        ([((X, MASK, Y), None)], "too many positional arguments"),
        ([X, X[:, :2]], r"does not take data of shape \(6, 2, 9, 9\)"),
        ([X, ((X, MASK[:, :, :2]), None)], r"does not take data of shapes 0: \(6, 3, 9, 9\), 1: \(6, 1, 2, 9\)"),
    ],
)
def test_data_that_the_model_does_not_take_is_refused_whichever_batch_has_it(data, said, monkeypatch):
    net = two()
    before = copy.deepcopy(net.state_dict())
    monkeypatch.setattr(run, "layer_times", lambda *_: pytest.fail("it measured"))
    with pytest.raises(GroupwiseError, match=said):
        groupwise.regroup(net, {"two": 2}, data=data)
    with pytest.raises(GroupwiseError, match=said):
        run.sweep(net, X, data=data)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([([[X, MASK]], None)], r"data of shapes 0: list of \(6, 3, 9, 9\), \(6, 1, 9, 9\): "),
        ([{"image": X, "mask": "none"}], r"data of shapes image: \(6, 3, 9, 9\), mask: str: "),
        ([torch.ones(2, 3, 7, 7)], r"data of shape \(2, 3, 7, 7\): wrong height"),
        ([torch.ones(2, 3, 9, 7)], r"data of shape \(2, 3, 9, 7\): AssertionError$"),
    ],
)
def test_what_the_model_asserts_and_arguments_that_are_no_tensors_are_told(data, said):
    class Strict(Two):
        def forward(self, image, mask=None):
            torch._assert(image.shape[2] == 9, "wrong height")
            if image.shape[3] != 9:
                raise AssertionError
            return super().forward(image, mask)

    with pytest.raises(GroupwiseError, match=said):
        groupwise.regroup(Strict(), {"two": 2}, data=data)


def test_a_pair_for_a_model_of_two_inputs_is_told_what_pairs_are():
    class Needs(Two):
        def forward(self, image, mask):
            return super().forward(image, mask)

    with pytest.raises(GroupwiseError, match=r"of a pair only the first is an input.*\[\(\(a, b\), None\)\]"):
        groupwise.regroup(Needs(), {"two": 2}, data=[(X, MASK)])


def test_all_forms_of_the_same_inputs_fit_the_same_weights():
    net = two()
    made = [
        groupwise.regroup(net, {"two": 2}, form="factored", data=data).model.state_dict()
        for data in ([((X, MASK), Y)], {"image": X, "mask": MASK}, [({"mask": MASK, "image": X}, None)])
    ]
    for other in made[1:]:
        assert all(torch.equal(value, other[name]) for name, value in made[0].items())
    # The mask was not left out.
    without = groupwise.regroup(net, {"two": 2}, form="factored", data=X).model.state_dict()
    assert not torch.equal(made[0]["two.1.weight"], without["two.1.weight"])


def test_statistics_are_taken_of_all_inputs():
    one, other = two(), two()
    assert recalibrate(one, [((X, MASK), Y)]) == recalibrate(other, {"image": X, "mask": MASK}) == ("norm",)
    assert torch.equal(one.norm.running_mean, other.norm.running_mean)
    torch.testing.assert_close(one.norm.running_mean, one.one(X).mean((0, 2, 3)))


def test_losses_take_several_inputs_and_any_targets_that_the_loss_takes():
    net = two()
    wanted = nn.functional.cross_entropy(net(X, MASK), Y).item()
    assert Losses(net, batches([((X, MASK), Y)])).of(net)[0] == pytest.approx(wanted)
    data = [({"image": X, "mask": MASK}, {"labels": Y})]
    with pytest.raises(GroupwiseError, match="targets of type dict; give a tensor, or a loss"):
        batches(data)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets["labels"])

    assert Losses(net, batches(data, loss), loss).of(net)[0] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (Y.int(), r"batch 1 of data has int32 targets of shape \(6,\); .*give targets\.long\(\)"),
        (Y > 1, r"bool targets of shape \(6,\)"),
        (Y.to(torch.complex64), "complex64 targets"),
        (torch.tensor([0, 1, 2, 3, 9, 0]), "targets of class 9; the model's outputs have classes 0 to 3"),
        (torch.tensor([0, 1, 2, 3, -1, 0]), "targets of class -1;"),
        (torch.zeros(6, 1), r"float32 targets of shape \(6, 1\) for outputs of shape \(6, 4\); the mean square"),
        (torch.zeros(6, 4).long(), r"int64 targets of shape \(6, 4\) .* classes of shape \(6,\)"),
        (Y[:5], r"classes of shape \(6,\)"),
    ],
)
def test_targets_that_the_loss_does_not_take_are_refused_by_value(targets, said, monkeypatch):
    monkeypatch.setattr(run, "layer_times", lambda *_: pytest.fail("it measured"))
    with pytest.raises(GroupwiseError, match=said):
        run.sweep(two(), X, data=[(X, Y), (X, targets)])
    # What a loss of one's own takes is its own affair.
    Losses(two(), batches([(X, targets)], lambda *_: torch.zeros(())), lambda *_: torch.zeros(()))


def test_targets_that_the_loss_takes_are_taken():
    net = two()
    ignored = torch.where(Y == 1, -100, Y)
    for targets in (Y, Y.byte(), ignored):
        wanted = nn.functional.cross_entropy(net(X).double(), targets.long()).item()
        assert Losses(net, batches([(X, targets)])).of(net)[0] == pytest.approx(wanted, rel=1e-5)
    # One class for each pixel, and one sample without a batch dimension.
    pixels, one = torch.nn.Conv2d(3, 5, 1), nn.Linear(3, 4)
    for model, x, y in ((pixels, X, torch.arange(6 * 81).reshape(6, 9, 9) % 5), (one, X[0, :, 0, 0], torch.tensor(2))):
        wanted = nn.functional.cross_entropy(model(x), y).item()
        assert Losses(model, batches([(x, y)])).of(model)[0] == pytest.approx(wanted, rel=1e-5)
    sums = nn.Sequential(pixels, nn.Flatten(0), nn.Softmax(0), nn.Unflatten(0, (-1, 1)), nn.Flatten(0))
    sums.register_forward_hook(lambda _, given, made: made.sum())
    with pytest.raises(GroupwiseError, match="the model returns one number"):
        Losses(sums, batches([(X, Y)]))


class Ends(nn.Module):
    """Ends in a batch normalisation of one value for each sample and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.three = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2)
        self.norm, self.last = nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.norm(self.three(self.two(x)).mean((2, 3))))


@pytest.mark.parametrize("training", [False, True])
def test_a_last_batch_of_one_sample_is_refused_before_any_work(training, monkeypatch):
    net = Ends().train(training)
    before = copy.deepcopy(net.state_dict())
    data = DataLoader(torch.randn(9, 3, 6, 6), batch_size=4)
    monkeypatch.setattr(run, "layer_times", lambda *_: pytest.fail("it measured"))
    monkeypatch.setattr(regrouped, "fit", lambda *_: pytest.fail("it fitted"))
    said = r"data of shape \(1, 3, 6, 6\): norm gets one value a channel, .* drop_last=True$"
    with pytest.raises(GroupwiseError, match=said):
        groupwise.regroup(net, {"two": 3}, data=data)
    with pytest.raises(GroupwiseError, match=said):
        run.sweep(net, X, data=data, groups=[1, 3], layers=["two"], gather=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net.norm._forward_pre_hooks
    assert net.training == training
    # An exact conversion takes no statistics.
    assert groupwise.regroup(net, {"three": 1}, data=data).rows[0].how == "exact"


def test_a_batch_that_gives_no_position_to_fit_on_is_no_error():
    """Of 8,192 positions that are fitted on, a batch of one gets none."""
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1))
    data = [torch.randn(1, 3, 1, 1), torch.randn(9001, 3, 1, 1)]
    (row,) = groupwise.regroup(net, {"1": 2}, data=data).rows
    assert 0 < row.fitted <= row.error
