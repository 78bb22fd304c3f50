"""`explain` and `report` with a number of ranks: who would hold what, and what would cross."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cases import specs
from groupwise import ConvSpec, GroupwiseError, explain, report
from groupwise.draw.base.svg import LABEL_SIZE, text_width
from groupwise.parallel import GroupParallel, KeepWhole, plan_split
from groupwise.spec.partition import Partition, chunks

MOST = 2**16


def units(spec):
    """What is shared: groups, or a dense layer's output channels."""
    return spec.groups if spec.groups > 1 else spec.out_channels


def table(shown):
    """The lines of ranks in a text, by rank."""
    lines = re.findall(r"^  rank (\d+) +(.*?) *$", shown, re.M)
    return {int(rank): re.split(r"  +(?:→ +)?", facts) for rank, facts in lines}


def test_text_dict_picture_and_page(tmp_path):
    shown = explain(128, 128, 3, groups=32, ranks=4, size=56, padding=1)
    assert table(shown.to_text("ranks")) == {
        0: ["groups 0-7", "in 0-31", "out 0-31", "1.18 k parameters"],
        1: ["groups 8-15", "in 32-63", "out 32-63", "1.18 k parameters"],
        2: ["groups 16-23", "in 64-95", "out 64-95", "1.18 k parameters"],
        3: ["groups 24-31", "in 96-127", "out 96-127", "1.18 k parameters"],
    }
    text = str(shown)
    places = [text.index(f"\n{head}  ") for head in ("Wiring", "Weight", "Ranks")]
    assert places == sorted(places)
    assert "GroupParallel: whole groups to each rank, 8 groups of 32." in text
    assert "input's gradient is all-gathered backward (1.61 MB)" in " ".join(text.split())
    facts = shown.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["ranks"] == [[0, 8], [8, 16], [16, 24], [24, 32]]
    one, every = shown.to_svg("ranks"), shown.to_svg()
    assert "over 4 ranks" in ET.fromstring(one)[0].text
    plain = explain(128, 128, 3, groups=32, size=56, padding=1)
    parts = [len(ET.fromstring(at).findall("{http://www.w3.org/2000/svg}svg")) for at in (every, plain.to_svg())]
    assert parts == [4, 3]
    page = shown.to_html()
    assert page.count("<svg") == 4
    assert one in page
    assert "rank 3" in page
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    assert shown.to_html(tmp_path / "a.html", "ranks").read_text(encoding="utf-8").count("<svg") == 1
    assert shown._repr_html_().count("<svg") == 5


def test_without_ranks_nothing_is_said_of_them():
    shown = explain(8, 8, 3, groups=4)
    assert "ranks" not in shown.to_dict()
    assert "rank" not in str(shown) + shown.to_svg() + shown.to_html()
    for call in (shown.to_text, shown.to_svg, lambda view: shown.to_html(view=view)):
        with pytest.raises(GroupwiseError) as caught:
            call("ranks")
        assert str(caught.value) == (
            "view='ranks' needs the number of ranks: ranks=2, or --ranks 2 on the command line"
        )
    with pytest.raises(GroupwiseError, match="choose one of: wiring, weight, cost, ranks, all"):
        shown.to_text("rank")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (0, f"ranks=0 is too small; ranks must be an integer from 1 to {MOST}; the nearest is 1"),
        (-1, "ranks=-1 is too small"),
        (1.5, "ranks=1.5 is a float; ranks must be an integer"),
        (2.0, f"ranks=2.0 is a float; ranks must be an integer from 1 to {MOST}; write ranks=2"),
        (True, "ranks=True is a bool"),
        ("2", "ranks='2' is a str"),
    ],
)
def test_bad_ranks(ranks, message):
    for call in (
        lambda: explain(8, 8, 3, groups=4, ranks=ranks),
        lambda: explain(nn.Conv2d(8, 8, 3), ranks=ranks),
        lambda: report(nn.Conv2d(8, 8, 3), torch.zeros(1, 8, 5, 5), repeats=1, ranks=ranks),
    ):
        with pytest.raises(GroupwiseError) as caught:
            call()
        assert message in str(caught.value)


def test_every_door_takes_ranks():
    expected = explain(8, 4, 5, groups=4, ranks=2)
    assert explain(nn.Conv2d(8, 4, 5, groups=4), ranks=np.int64(2)) == expected
    assert explain(expected.spec, ranks=2) == explain((4, 2, 5, 5), groups=4, bias=True, ranks=2) == expected
    assert explain(8, 4, 5, groups=4, ranks=3) != expected


@pytest.mark.parametrize(
    ("spec", "ranks", "held", "reading"),
    [
        (ConvSpec(3, 7, 3), 2, [[0, 4], [4, 7]], "a dense layer is split by its output channels (ColwiseParallel)."),
        (ConvSpec(9, 2, 3), 3, [[0, 1], [1, 2], [2, 2]], "a dense layer is split by its output channels"),
        (ConvSpec(8, 8, 3, groups=4), 6, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 4], [4, 4]], "0 to 1 group of 4."),
        (ConvSpec(6, 12, 3, groups=3, transposed=True), 2, [[0, 2], [2, 3]], "1 to 2 groups of 3."),
        (ConvSpec(5, 10, 3, groups=5), 2, [[0, 3], [3, 5]], "2 to 3 groups of 5."),
        (ConvSpec(10, 10, 3, groups=10), 4, [[0, 3], [3, 6], [6, 9], [9, 10]], "1 to 3 groups of 10."),
        (ConvSpec(4, 4, 3, groups=4), 1, [[0, 4]], "4 groups of 4."),
    ],
    ids=["dense", "few filters", "few groups", "transposed", "multiplier", "depthwise", "one rank"],
)
def test_who_holds_what(spec, ranks, held, reading):
    shown = explain(spec, ranks=ranks)
    assert shown.to_dict()["ranks"] == held
    text = shown.to_text("ranks")
    assert reading in " ".join(text.split())
    lines = table(text)
    assert list(lines) == list(range(ranks))
    units = spec.groups if spec.groups > 1 else spec.out_channels
    for rank, (start, stop) in enumerate(held):
        if start == stop:
            assert lines[rank] == ["nothing", "0 parameters"]
            continue
        inputs = (spec.in_channels // units * start, spec.in_channels // units * stop)
        outputs = (spec.out_channels // units * start, spec.out_channels // units * stop)
        said = [lines[rank][i].split(" ")[1].split("-") for i in range(3)]
        ends = [(start, stop), inputs if spec.groups > 1 else (0, spec.in_channels), outputs]
        assert [(int(one[0]), int(one[-1]) + 1) for one in said] == ends
        assert lines[rank][3] == f"{spec.parameters * (stop - start) // units} parameters"


def test_collectives_are_told_by_kind():
    grouped, dense = (" ".join(explain(8, 8, 3, groups=g, ranks=2, size=9).to_text("ranks").split()) for g in (4, 1))
    assert "No collective runs between layers that are split alike, forward or backward." in grouped
    # 8 × 9 × 9 inputs and 8 × 7 × 7 outputs of 4 bytes.
    assert "A whole input's gradient is all-gathered backward (2.59 kB)" in grouped
    assert "an output that has to be whole is all-gathered forward (1.57 kB)" in grouped
    assert "ColwiseParallel: a split input is all-gathered forward (2.59 kB)" in dense
    assert "a whole input's gradient is all-reduced backward (2.59 kB)" in dense
    assert "an output that has to be whole is all-gathered forward (1.57 kB)" in dense
    assert "RowwiseParallel splits a split input by its channels instead: the outputs are all-reduced forward" in dense
    assert "kB" not in explain(8, 8, 3, groups=4, ranks=2).to_text("ranks")


@pytest.mark.parametrize("groups", [1, 4])
def test_one_rank_has_no_collective(groups):
    shown = explain(8, 4, 5, groups=groups, ranks=1, size=9)
    for told in (shown.to_text("ranks"), shown.to_svg("ranks")):
        assert "No collective: there is one rank." in told
        assert not re.search("gathered|reduced|scattered|all-to-all|kB", told)


@pytest.mark.parametrize(
    ("spec", "ranks", "told"),
    [
        (ConvSpec(8, 4, 5, groups=4), 5, "Rank 4 is left without. split() of a network keeps a layer of fewer groups"),
        (ConvSpec(8, 4, 5, groups=4), 7, "Ranks 4 to 6 are left without. split() of a network keeps"),
        (ConvSpec(9, 2, 3), 3, "Rank 2 is left without. split() of a network keeps a layer of fewer channels than"),
        (ConvSpec(2, 9, 3), 3, "(ColwiseParallel). split() of a network keeps a layer of fewer channels than ranks"),
        (ConvSpec(8, 4, 5, groups=4), 4, ""),
        (ConvSpec(3, 9, 3), 3, ""),
    ],
)
def test_a_layer_that_split_would_keep_whole(spec, ranks, told):
    shown = explain(spec, ranks=ranks)
    texts = [" ".join(shown.to_text("ranks").split()), " ".join(ET.fromstring(shown.to_svg("ranks"))[1].text.split())]
    assert all((told or "split()") in text for text in texts) == bool(told)
    conv = nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel_size, groups=spec.groups)
    # Beside a layer that is split a dense one is split too, if there are enough channels.
    after = nn.Conv2d(spec.out_channels, spec.out_channels, 1, groups=spec.out_channels)
    choice = plan_split(nn.Sequential(conv, after, nn.Conv2d(spec.out_channels, 9, 1)), ranks).choices[0]
    assert (type(choice.style) is KeepWhole) == bool(told)


def test_rows_between_the_borders_move():
    text = " ".join(explain(10, 20, 3, groups=5, ranks=2, size=28).to_text("ranks").split())
    assert "2 of 20 rows of the weight and 2 of 20 rows of the bias move to another rank before use" in text
    # 2 rows of 18 weights and a bias, of 4 bytes each.
    assert "and their gradients back (152 B), by one all-to-all a tensor." in text
    assert (
        "Where the input or the output is whole, 1 of 10 channels of the input and 2 of 20 channels of the output move"
        in text
    )
    turned = " ".join(explain(10, 20, 3, groups=5, ranks=2, transposed=True).to_text("ranks").split())
    assert "1 of 10 rows of the weight and 2 of 20 rows of the bias move" in turned
    assert "borders" in explain(10, 20, 3, groups=5, ranks=2).to_svg("ranks")


@settings(max_examples=100, deadline=None)
@given(specs(), st.integers(1, 12))
def test_rows_move_only_where_shards_are_not_chunks(spec, ranks):
    share, text = Partition(units(spec), ranks), " ".join(explain(spec, ranks=ranks).to_text("ranks").split())

    def moved(size):
        ours, theirs = (np.repeat(range(ranks), lengths) for lengths in (share.lengths(size), chunks(size, ranks)))
        return int((ours != theirs).sum())

    rows = spec.in_channels if spec.groups > 1 and spec.transposed else spec.out_channels
    told = {"rows of the weight": rows, "channels of the output": spec.out_channels}
    told |= {"rows of the bias": spec.out_channels} if spec.bias else {}
    told |= {"channels of the input": spec.in_channels} if spec.groups > 1 else {}
    for what, size in told.items():
        count = moved(size)
        assert (f"{count:,} of {size:,} {what}" in text) == (count > 0)
        assert (what in text) == (count > 0)
    assert ("DTensor splits" in text) == any(map(moved, told.values()))


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(1, 40))
def test_each_group_has_one_rank(spec, ranks):
    shown = explain(spec, ranks=ranks)
    held = shown.to_dict()["ranks"]
    assert len(held) == ranks
    units = spec.groups if spec.groups > 1 else spec.out_channels
    assert [part for start, stop in held for part in range(start, stop)] == list(range(units))
    # None has more than it has to, and what the parallel layer itself would hold.
    assert max(stop - start for start, stop in held) == -(-units // ranks)
    text = shown.to_text("ranks")
    assert max(map(len, text.split("\n"))) <= 80
    drawn = range(ranks) if ranks <= 8 else [*range(6), ranks - 1]
    assert list(table(text)) == list(drawn)
    assert ("\n  …" in text) == (ranks > 8)


def test_it_is_what_the_styles_hold():
    layer = nn.Conv2d(20, 30, 3, groups=10)
    for ranks in (1, 2, 3, 4, 7):
        part = [GroupParallel().shard(layer, ranks, rank).held for rank in range(ranks)]
        assert explain(layer, ranks=ranks).to_dict()["ranks"] == [[one.start, one.stop] for one in part]


@pytest.mark.parametrize("groups", [2**14, 2**20])
def test_wide_layers_fit_80_columns(groups):
    text = explain(2**20, 2**20, 3, groups=groups, ranks=3).to_text("ranks")
    assert max(map(len, text.split("\n"))) <= 80


def test_texts_of_wide_layers_stay_in_their_columns():
    picture = explain(2**20, 2**20, 3, groups=2**20, ranks=3).to_svg("ranks")
    boxes = [
        tuple(map(float, found)) for found in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    ]
    texts = re.findall(r'<text x="([\d.]+)"[^>]*anchor="middle"[^>]*>([^<]+)<', picture)
    columns = [box for box in boxes if any(abs(float(x) - box[0] - box[1] / 2) < 1 for x, _ in texts)]
    assert len(columns) == 3
    for x, text in texts:
        left, width = min(columns, key=lambda box: abs(box[0] + box[1] / 2 - float(x)))
        assert left < float(x) - text_width(text, LABEL_SIZE) / 2, text
        assert float(x) + text_width(text, LABEL_SIZE) / 2 < left + width, text


# Whole models.


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 5, 1))


def test_a_report_has_the_plan():
    model, x = small().eval(), torch.randn(2, 3, 6, 6)
    plan = plan_split(model, 2, input_shape=x.shape)
    made = report(model, x, repeats=1, ranks=2)
    assert made.split.to_dict() == plan.to_dict()
    facts = made.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["split"] == plan.to_dict()
    assert facts["split"]["input_shape"] == [2, 3, 6, 6]
    assert str(plan) in str(made)
    assert "all-reduces outputs" in str(made)
    page = made.to_html()
    assert "<h2>Split over 2 ranks</h2>" in page
    assert plan.to_svg() in page
    assert page.count("<svg") == 1 + 1 + 3
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    assert type(model[2]) is nn.Conv2d, "the model itself is not split"
    plain = report(model, x, repeats=1)
    assert plain.split is None
    assert "split" not in plain.to_dict()
    assert "over 2 ranks" not in str(plain) + plain.to_html()


def test_a_report_on_meta_tensors_has_the_plan():
    with torch.device("meta"):
        made = report(small(), torch.empty(2, 3, 6, 6), ranks=2)
    assert (made.split.ranks, made.model_ms) == (2, None)
    assert made.not_measured == "nothing is computed on meta tensors"
    assert str(made.split) in str(made)


def test_a_report_folds_the_plan_where_it_repeats():
    with torch.device("meta"):
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.Conv2d(8, 8, 1)) for _ in range(4)]
        made = report(nn.Sequential(*blocks), torch.empty(2, 8, 6, 6), ranks=2)
    assert "the same 2 times more, to 3.0" in str(made)
    assert made.to_html().count("the same 2 times more, to 3.0") == 2, "the picture and the table"
    assert "the same" not in str(made.split)
    assert made.to_dict()["split"] == made.split.to_dict()


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    "call",
    [
        lambda: report(lambda x: x, torch.zeros(1, 3, 6, 6), ranks=2),
        lambda: report(Two(), torch.zeros(1), torch.zeros(1), ranks=2),
        lambda: report(Two(), torch.zeros(1), kwargs={"y": torch.zeros(1)}, ranks=2),
        lambda: report(small(), [torch.zeros(1, 3, 6, 6)], ranks=2),
    ],
    ids=["a function", "two inputs", "keywords", "a list"],
)
def test_what_a_report_cannot_plan(call):
    message = "ranks needs a torch.nn.Module that takes one tensor; leave it out for another model"
    with pytest.raises(GroupwiseError, match=re.escape(message)):
        call()


class Stubborn(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_followed_is_refused_for_ranks_alone():
    with pytest.raises(GroupwiseError, match=r"torch.fx cannot follow Stubborn"):
        report(Stubborn(), torch.ones(1), repeats=1, ranks=2)
    assert report(Stubborn(), torch.ones(1), repeats=1).rows == ()
