"""`compare`: what it says of a gain, of errors, and of each layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from groupwise.draw.text import faster as text
from groupwise.profile import layers
from groupwise.profile.faster import Comparison, compare
from groupwise.rewrite.timing import step_times
from optimized import Refusing, Residual, check, network, settle, source


def made(optimized_ms, faster_in, **more):
    return Comparison(4.0, 3.0, optimized_ms, 1e-7, 1e-7, 2, 5, 1e-7, faster_in, 1e-6, **more)


def test_a_wrong_network_does_not_agree():
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    x = torch.randn(1, 3, 9, 9)
    assert compare(model, check(model, x), (x,), repeats=1).agrees
    other = groupwise.optimize(settle(nn.Sequential(nn.Conv2d(3, 8, 3))), x)
    found = compare(model, other, (x,), repeats=1)
    assert found.agrees is False
    assert "THE OUTPUTS DIFFER by more than rounding" in " ".join(str(found).split())


def test_the_speedup_is_over_the_better_memory_format():
    found = made(1.5, 5)
    assert found.speedup == 2
    assert "1.50 ms instead of 3.00 ms: 2.00× as fast" in str(found)


@pytest.mark.parametrize(
    ("optimized_ms", "faster_in", "gains"), [(1.5, 4, True), (1.5, 3, False), (3.0, 5, False), (3.5, 0, False)]
)
def test_a_gain_is_told_of_only_if_it_was_measured(optimized_ms, faster_in, gains):
    found = made(optimized_ms, faster_in).to_dict()
    said = [text.first_lines(found)[0], text.tiles(found)[0][2]]
    assert found["gains"] == gains
    assert [("as fast as" in said[0]), ("×" in said[1])] == [gains, gains]
    assert all(("no gain was measured" in one) != gains for one in said)


def test_both_dtypes_are_told_where_they_differ():
    assert text.measured(made(1.0, 5).to_dict()).endswith("threads, float32")
    low = text.measured(made(1.0, 5, dtype="bfloat16").to_dict())
    assert low.endswith("threads, the model in float32, the optimized network in bfloat16")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (((7, 7),), "top-1 label 7, the same;"),
        (((7, 9),), "top-1 label 7, and now 9;"),
        (((1, 1), (2, 3)), "top-1 labels agree in 1 of 2;"),
        ((), "Outputs: largest"),
    ],
)
def test_labels(labels, told):
    assert told in text.outputs(made(1.0, 5, labels=labels).to_dict())


def test_labels_are_those_of_the_outputs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(5, 4)
    found = compare(model, groupwise.optimize(model, x), (x,), repeats=1)
    assert found.labels == tuple((label, label) for label in model(x).argmax(1).tolist())
    assert found.difference < 1e-6


def test_training_compares_gradients():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    x = torch.randn(2, 3, 9, 9)
    found = compare(model, model, (x,), repeats=1, train=True)
    assert (found.train, found.agrees) == (True, True)
    assert found.optimized_error == found.model_error < 1e-5

    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            output = self.model(x)
            return output.detach() + 2 * (output - output.detach())

    wrong = compare(model, Wrong(), (x,), repeats=1, train=True)
    assert wrong.optimized_error == pytest.approx(1, rel=1e-3), "every gradient is twice what it should be"
    assert wrong.agrees is False


def test_a_model_that_draws_random_numbers_is_not_compared():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    found = compare(model, model, (torch.randn(1, 3, 9, 9),), repeats=1, train=True)
    assert (found.agrees, found.model_error) == (None, None)
    assert "not compared: the model draws random numbers" in str(found)


def test_a_model_without_gradients_cannot_train():
    with pytest.raises(GroupwiseError, match="the model's outputs have no gradient"):
        compare(nn.ReLU(), nn.ReLU(), (torch.randn(1, 3),), repeats=1, train=True)
    with pytest.raises(GroupwiseError, match="not timed one by one"):
        compare(nn.ReLU(), nn.ReLU(), (torch.randn(1, 3),), repeats=1, train=True, layers=True)


def test_the_layers_of_a_network():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    rows = compare(model, fast, (x,), repeats=2, layers=True).layers
    convolutions = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    # The two layers of squeeze and excitation are one step, and one row.
    assert [row.name for row in rows] == ["", *convolutions[:-1]]
    assert [row.groups for row in rows] == [None, 4, 1, 1]
    assert (rows[-1].name, rows[-1].kernel) == ("2.reduce", "squeeze_excite")
    steps = {step.layers[0] if step.layers else step.name: step for step in fast.plan.steps}
    assert steps["2.reduce"].layers == ("2.reduce", "2.expand")
    for row in rows[1:]:
        assert (row.engine, row.fused) == (steps[row.name].engine, steps[row.name].fused)
        assert min(row.contiguous_ms, row.channels_last_ms, row.optimized_ms) > 0
        assert row.speedup == min(row.contiguous_ms, row.channels_last_ms) / row.optimized_ms
        assert (row.kernel is not None) == (row.engine == "groupwise")


def test_layers_of_parts_that_were_optimized():
    """A model that is not captured as a whole: its blocks are, and what is between them has no steps."""
    model = settle(nn.Sequential(Refusing(nn.Conv2d(8, 8, 1), Residual(nn.Conv2d(8, 8, 1))), nn.Conv2d(8, 4, 1)))
    x = torch.randn(1, 8, 9, 9)
    fast = groupwise.optimize(model, x)
    assert fast.plan.left
    rows = compare(model, fast, (x,), repeats=1, layers=True).layers
    assert [row.name for row in rows] == ["", "0.blocks.0", "0.blocks.1.block", "1"]
    assert all(row.engine for row in rows[1:])


def test_steps_are_timed_as_they_run():
    model, x = network(), source()
    fast = groupwise.optimize(model, x)
    with torch.inference_mode():
        expected = fast(x)
        times = step_times(fast, (x,), {})
        assert [step for step, _ in times if step is not None] == list(fast.plan.steps)
        assert all(seconds > 0 for _, seconds in times)
        assert torch.equal(fast(x), expected)
        with pytest.raises(RuntimeError):
            step_times(fast, (x[:, :1],), {})
        assert torch.equal(fast(x), expected)


def test_no_time_is_lost_where_layers_differ():
    row = layers._Row
    model = [row(""), row("a", "convolution"), row("b", "convolution"), row("a", "convolution")]
    ours = [row("", seconds=1), row("a", "convolution", seconds=2), row("x", "linear", seconds=4), row("a", seconds=8)]
    placed = layers._placed(model, ours)
    assert [one and one.seconds for one in placed] == [1, 6, None, 8]


def test_times_of_layers_that_are_one_step_are_summed():
    row = layers._Row
    rows = [row("", seconds=1), row("a", seconds=2), row("b", seconds=4), row("c", seconds=8), row("b", seconds=16)]
    assert [(one.name, one.seconds) for one in layers._merged(rows, {"b": "a"})] == [("", 1), ("a", 22), ("c", 8)]


def test_squeeze_and_excitation_in_a_part_has_the_names_of_the_model():
    model = settle(nn.Sequential(Refusing(network())))
    fast = groupwise.optimize(model, source())
    assert [step.layers for step in fast.plan.steps if step.layers] == [("0.blocks.0.2.reduce", "0.blocks.0.2.expand")]


def test_a_report_of_what_cannot_be_optimized():
    model, x = nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 9, 9)
    for target, options, message in (
        (lambda x: x, {}, "needs a torch.nn.Module"),
        (model, {"backward": True}, "leave out backward"),
        (nn.Conv2d(3, 4, 3).train(), {}, "in training mode"),
    ):
        with pytest.raises(GroupwiseError, match=message):
            groupwise.report(target, x, optimize=True, repeats=1, **options)
    with torch.device("meta"), pytest.raises(GroupwiseError, match="nothing is computed on meta tensors"):
        groupwise.report(nn.Conv2d(3, 4, 3), torch.empty(1, 3, 9, 9), optimize=True)
