"""Sweeps and choices: made-up times choose, real ones are only told; the model stays as it is."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.measure import run
from groupwise.choose.measure.risk import Losses, batches
from groupwise.choose.measure.times import with_groups
from groupwise.models.resnext import Bottleneck
from sweeps import LAYERS, made_up


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Bottleneck(8, 16, 8, groups=1), Bottleneck(16, 16, 8, groups=2), nn.Flatten(), nn.Linear(400, 3)
    ).eval()


X = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4) % 3


def test_a_choice_is_the_lowest_risk_within_the_budget():
    made = made_up(*LAYERS, measured=lambda choice: replace(choice, measured_ms=choice.ms))
    assert made.choose(budget_ms=100).groups == {}
    assert made.choose(budget_ms=15.5).groups == {"layer0": 2}
    assert made.choose(budget_ms=12.5).groups == {"layer0": 4}
    assert made.choose(budget_ms=9).groups == {"layer0": 4, "layer1": 2}
    assert made.choose(macs=1000).groups == {"layer0": 2, "layer1": 2}
    assert made.choose(params=150).groups == {"layer0": 2}
    front = made.predicted()
    # groups=4 of layer1 is slower and worse than groups=2.
    assert [(one.ms, round(one.risk, 6)) for one in front] == [(9, 0.8), (12, 0.3), (15, 0.1), (19, 0)]


def test_a_choice_that_takes_longer_than_expected_gives_way_to_a_cheaper_one():
    slower = made_up(*LAYERS, measured=lambda choice: replace(choice, measured_ms=choice.ms * 1.2))
    chosen = slower.choose(budget_ms=15.5)
    assert (chosen.groups, chosen.measured_ms) == ({"layer0": 4}, pytest.approx(14.4))
    with pytest.raises(GroupwiseError, match=r"no choice was measured within 10 ms; the cheapest took 10.8 ms"):
        slower.choose(budget_ms=10)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            {"budget_ms": 5},
            "5 ms is below the cheapest choice, which is expected to need 9 ms; the model as it is needs 19 ms",
        ),
        ({"macs": 10}, "a budget of 10 MACs is below the cheapest choice"),
        ({"budget_ms": -1}, "must be a number above 0"),
        ({"budget_ms": float("nan")}, "must be a number above 0"),
        ({}, "one budget"),
        ({"budget_ms": 5, "macs": 5}, "one budget"),
        ({"macs": "3M"}, "a budget of '3M' MACs must be a number above 0"),
        ({"params": True}, "a budget of True parameters must be a number above 0"),
        ({"macs": float("inf")}, "must be a number above 0"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_with_what_is_reachable(budget, said):
    with pytest.raises(GroupwiseError, match=said):
        made_up(*LAYERS).choose(**budget)


def test_a_grouped_layer_can_have_more_groups():
    """What it keeps is a part of its own weight, in which the channels of other groups are zeros."""
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1))
    kept = {row.groups: row.kept for row in groupwise.sweep(model, X, repeats=1, layers=["1"]).rows}
    assert kept[2] == kept[1] == 1
    assert 1 / 8 < kept[8] < kept[4] < 1


def test_the_front_drops_what_another_choice_beats_when_measured():
    # Measured, the second cheapest turns out to be slower than the third.
    times = {9: 9.0, 12: 15.5, 15: 15.0, 19: 19.0}
    made = made_up(*LAYERS, measured=lambda choice: replace(choice, measured_ms=times[round(choice.ms)]))
    assert [one.measured_ms for one in made.front()] == [9.0, 15.0, 19.0]
    assert len(made.front(best=2)) == 2


def test_uniform_groups_are_compared_with_the_front():
    made = made_up(*LAYERS)
    assert [(one.groups, one.ms) for one in made.uniform()] == [
        ({}, 19.0),
        ({"layer0": 2, "layer1": 2}, 12.0),
        ({"layer0": 4, "layer1": 4}, 9.5),
    ]
    said = " ".join(str(made).split())
    time = "At the time of groups=2 in every layer that can have it (12 ms expected)"
    assert f"{time} the front's loss rise is 0.3, and that of uniform groups 0.6." in said
    one = made_up([(1, 4.0, 0.0), (2, 2.0, 0.1)])
    assert "choosing layer by layer gains nothing here" in " ".join(str(one).split())


def test_uniform_groups_are_compared_with_the_whole_front():
    """A page shows 40 choices of it, and the best within the time of uniform groups may be none of these."""
    layers = [[(1, 10.0, 0.0), (2, 7.0 - n / 7, 1.0 + n / 11), (4, 5.0 - n / 7, 2.0 + n / 7)] for n in range(8)]
    made = made_up(*layers)
    facts = made.to_dict()
    assert len(made.predicted()) > len(facts["front"]) == 40
    hidden = 0
    for choice, uniform in zip(made.uniform(), facts["uniform"], strict=True):
        within = [one for one in made.predicted() if one.ms <= choice.ms * (1 + 1e-9)]
        assert uniform["front_risk"] == min(one.risk for one in within)
        hidden += uniform["front_risk"] not in {one["risk"] for one in facts["front"]}
        if choice.groups:
            said = f"loss rise is {uniform['front_risk']:.3g}, and that of uniform groups {choice.risk:.3g}"
            assert said in " ".join(str(made).split())
    assert hidden


def test_a_sweep_is_every_format(tmp_path):
    made = made_up(*LAYERS)
    assert "last: it has hooks" in str(made)
    facts = json.loads(json.dumps(made.to_dict()))
    assert len(facts["front"]) == 4
    assert made.to_csv().startswith("layer,groups,current")
    assert made.to_svg().count("<circle") == 4
    page = made.to_html(tmp_path / "sweep.html").read_text()
    assert "layer0: 4, layer1: 2" in page
    assert "training, ms" not in page + str(made)
    assert "ms expected" in page
    assert "ms measured" not in page, "nothing was measured, and an empty column says nothing"
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_sweep_measures_each_value_and_leaves_the_model(monkeypatch):
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = run.sweep(model, X, groups=[1, 2, 4], repeats=1, data=[(X, Y)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    rows = {(row.layer, row.groups): row for row in made.rows if not row.refused}
    assert {groups for layer, groups in rows if layer == "0.conv2"} == {1, 2, 4}
    assert rows["0.conv2", 4].macs == rows["0.conv2", 1].macs // 4
    assert rows["0.conv2", 1].current
    assert rows["1.conv2", 2].current
    # To coarser groups a layer is exact, and computes the same.
    assert rows["1.conv2", 1].kept == 1
    assert rows["1.conv2", 1].risk == pytest.approx(0, abs=1e-5)
    assert 0 < rows["0.conv2", 4].kept <= rows["0.conv2", 4].bound < 1
    assert all(row.ms > 0 for row in rows.values())
    refused = {row.layer: row.refused for row in made.rows if row.refused}
    assert "0.conv2" not in refused
    assert refused["0.conv1"] == "its output channels have the order of the groups of 0.conv2"
    loss = nn.functional.cross_entropy(model(X), Y).item()
    assert made.loss == pytest.approx(loss)
    converted = groupwise.regroup(model, {"0.conv2": 4}, data=[X]).model
    rise = nn.functional.cross_entropy(converted(X), Y).item() - loss
    assert rows["0.conv2", 4].risk == pytest.approx(rise, abs=1e-6)


def test_a_sweep_of_training_and_of_choices_as_whole_networks():
    made = run.sweep(net(), X, groups=[2], layers=["0.conv2"], repeats=1, train=True)
    assert made.train
    assert all(0 < row.forward_ms < row.ms for row in made.rows)
    assert "forward, ms  training, ms" in str(made)
    page = made.to_html()
    assert page.count(">forward, ms") == page.count(">training, ms") == 1
    assert {row.layer for row in made.rows} == {"0.conv2"}
    chosen = made.choose(params=made.parameters - 1)
    assert chosen.groups == {"0.conv2": 2}
    assert chosen.measured_ms > 0
    assert groupwise.regroup(net(), chosen).model[0].conv2.groups == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["0.conv9"]}, "no such layer; did you mean"),
        ({"layers": "0.conv2"}, "layers='0.conv2' is a str; give a list"),
        ({"layers": 3}, "layers=3 is a int; give a list"),
        ({"groups": [0]}, "groups=0"),
        ({"groups": 3}, r"groups=3 is a int; give a list, such as groups=\[2, 4\]"),
        ({"groups": "24"}, "groups='24' is a str"),
        (
            {"groups": [13, 17]},
            r"groups=\[13, 17\]: none of them divides the channels of a layer; values that divide those of one: [2-9]",
        ),
        ({"budget": 3}, "budget=3 is a int; give a mapping of one of budget_ms, macs, params"),
        ({"budget": {"ms": 3}}, "has 'ms'; a budget is one of budget_ms, macs, params"),
        ({"budget": {3: 3}}, "has 3; a budget is one of"),
        ({"budget": {"macs": "3M"}}, "a budget of '3M' MACs must be a number above 0"),
        ({"repeats": 0}, "repeats=0"),
        ({"data": [(X, Y), X]}, "some batches of data have targets"),
        ({"data": []}, "no batch"),
        ({"loss": nn.functional.l1_loss}, "there is no data; give data as pairs"),
        ({"loss": nn.functional.l1_loss, "data": [X]}, "data has no targets; give data as pairs"),
        ({"data": [torch.randn(4, 3, 5, 5)]}, r"data of shape \(4, 3, 5, 5\)"),
    ],
)
def test_what_a_sweep_cannot_use_is_refused_before_it_measures(options, said, monkeypatch):
    monkeypatch.setattr(run, "layer_times", lambda *_: pytest.fail("it measured"))
    with pytest.raises(GroupwiseError, match=said):
        run.sweep(net(), X, **options)


def test_a_function_has_no_layers_to_replace():
    with pytest.raises(GroupwiseError, match=r"give a torch\.nn\.Module"):
        run.sweep(lambda x: x, X)


def test_the_layers_of_a_wrapped_model_are_not_looked_for():
    with pytest.raises(GroupwiseError, match=r"a DataParallel; give the module that it wraps, `model\.module`"):
        run.sweep(nn.DataParallel(net()), X)


def test_the_loss_is_the_mean_over_all_samples():
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    one = Losses(model, batches([(x[:2], y[:2]), (x[2:], y[2:])]))
    wanted = nn.functional.cross_entropy(model(x), y).item()
    assert one.of(model)[0] == pytest.approx(wanted)
    other = nn.Linear(3, 2)
    square = ((other(x) - model(x)).square().sum() / model(x).square().sum()).item()
    assert Losses(model, batches(x)).of(other) == (pytest.approx(square), pytest.approx(square))
    assert Losses(model, batches([(x, torch.zeros(5, 2))])).of(model)[0] == pytest.approx(
        model(x).square().mean().item()
    )


def test_twins_of_volumes_have_the_memory_format_that_a_conversion_has():
    model = nn.Sequential(nn.Conv3d(8, 8, 2), nn.Conv3d(8, 8, 2)).to(memory_format=torch.channels_last_3d)
    twin = with_groups(model, {"0": 4})
    assert twin[0].weight.shape == (8, 2, 2, 2, 2)
    assert not twin[0].weight.is_contiguous()
    assert twin[0].weight.stride() == groupwise.regroup(model, {"0": 4}, order="stored").model[0].weight.stride()


def test_twins_for_timing_have_the_groups_and_the_memory_format():
    model = net().to(memory_format=torch.channels_last)
    twin = with_groups(model, {"0.conv2": 4, "1.conv2": 1})
    assert (twin[0].conv2.groups, twin[1].conv2.groups) == (4, 1)
    assert twin[0].conv2.weight.shape == (8, 2, 3, 3)
    assert twin[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].conv2.groups == 1
    assert torch.isfinite(twin(X)).all()


class Named(nn.Module):
    """A model of two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, image, scale=1.0):
        return self.conv(image) * scale


def test_named_inputs_belong_in_kwargs():
    images = torch.randn(1, 8, 9, 9)
    with pytest.raises(GroupwiseError) as error:
        groupwise.sweep(Named(), {"image": images, "scale": 2.0}, groups=(2,), repeats=1)
    said = str(error.value)
    assert said.startswith("Named does not take a dict ('image', 'scale') as its input: ")
    assert said.endswith("; named inputs belong in kwargs, as in sweep(model, kwargs={...})")
    kwargs = {"image": images, "scale": 2.0}
    assert groupwise.sweep(Named(), kwargs=kwargs, groups=(1,), repeats=1).rows[0].layer == "conv"
    # What a model says of other inputs comes through.
    with pytest.raises(RuntimeError, match="channels"):
        groupwise.sweep(Named(), images[:, :3], groups=(1,), repeats=1)


def test_a_model_that_takes_a_dict_gets_it():
    class Takes(Named):
        def forward(self, given):
            return super().forward(given["image"])

    assert groupwise.sweep(Takes(), {"image": torch.randn(1, 8, 9, 9)}, groups=(1,), repeats=1).rows


def test_losses_are_shown_without_a_promise():
    said = " ".join(str(made_up([(1, 4.0, 0.0), (2, 2.0, -0.1)])).split())
    assert "loss rise: by how much its loss on the data rises; where it is negative, the loss falls." in said


def test_choices_are_printed_as_a_table():
    made = made_up(
        *LAYERS, measured=lambda choice: replace(choice, measured_ms=choice.ms + 1, measured_risk=choice.risk)
    )
    front = made.front(best=2)
    head, _, first, *_, last = str(front).split("\n\n")[0].split("\n")
    assert head.split("  ")[0] == "choice"
    assert "ms measured" in head
    assert "loss rise measured" in head
    assert first.split() == ["0", "2", "2", "to", "4", "9.00", "10.0", "750", "75", "0.8", "0.8"]
    assert "as it is" in last
    assert isinstance(front, tuple)
    assert repr(front) == str(front)
    assert front._repr_html_().startswith("<pre>")
    assert front.to_csv().startswith("layers,ms,macs,parameters,risk,measured_ms,measured_risk\nlayer0=4 layer1=2,9.0,")
    assert [one["layers"] for one in front.to_dict()["choices"]] == [{"layer0": 4, "layer1": 2}, {}]
    assert "measured" not in str(made.predicted()).split("\n")[0]
    assert "as it is" in str(made.uniform())
    assert str(type(front)()) == "no choice: no layer can have other groups"


def test_a_layer_whose_conversion_changes_the_model_is_refused_in_its_rows():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3, groups=4)

        def forward(self, x):
            return self.other(self.conv(x)) + next(self.parameters()).mean()

    x = torch.randn(2, 8, 9, 9)
    made = groupwise.sweep(Reads(), x, groups=(1, 4), data=x, repeats=1)
    rows = {(row.layer, row.groups): row for row in made.rows}
    assert rows["conv", 1].refused.startswith("conv: the conversion is exact, and yet")
    assert not rows["other", 1].refused
    assert all("conv" not in choice.groups for choice in made.predicted())
