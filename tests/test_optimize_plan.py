"""The plan of an optimized network as text: it fits a terminal, and loses nothing."""

from __future__ import annotations

from dataclasses import replace

from groupwise.draw.text import lines
from groupwise.rewrite.plan import NO_TIME, Left, Plan, Step

LONG = Step(
    name="features.block_with_a_long_name.0.depthwise_convolution.conv",
    kind="convolution",
    engine="groupwise",
    kernel="channels",
    fused=("batch norm", "relu6", "squeeze and excitation of features.0.block.2", "sum", "hard_swish"),
    input_shape=(16, 1024, 112, 112),
    output_shape=(16, 1024, 112, 112),
    groups=1024,
    reason="1.234 ms, onednn 12.345, pytorch 23.456, matmul 34.567",
    refused={"onednn": "oneDNN's operators cannot read the memory of this input as it lies"},
)
SHORT = Step(name="fc", kind="linear", engine="onednn", output_shape=(16, 1000))


def plan(*steps, left=()):
    return Plan("Net", steps, left, ((16, 3, 224, 224),), 2, 1.0, inputs=("16×3×224×224 float32",))


def test_a_plan_fits_a_hundred_columns():
    text = str(plan(LONG, SHORT))
    _, what, who = text.split("\n\n")
    assert max(len(line) for table in (what, who) for line in table.split("\n")) <= 100
    assert what.split("\n")[0].split() == ["step", "kind", "groups", "output", "fused"]
    assert who.split("\n")[0].split() == ["step", "engine", "why"]
    # Nothing but the middle of the long name is lost.
    shown = " ".join(text.split())
    for part in ("16×1024×112×112", "groupwise channels", LONG.reason):
        assert part in shown
    fused = " ".join(line[what.split("\n")[0].index("fused") :].strip() for line in what.split("\n")[1:])
    assert fused.strip() == " + ".join(LONG.fused)
    why = " ".join(line[who.split("\n")[0].index("why") :].strip() for line in who.split("\n")[1:])
    assert why.strip() == f"{LONG.reason}; not onednn: {LONG.refused['onednn']}"
    assert [table.split("\n")[1].split()[0] for table in (what, who)] == ["features.block_…convolution.conv"] * 2


def test_what_fits_is_not_folded():
    rows = [("a", "b"), ("x" * 74, "y" * 24)]
    assert lines.folded(rows) == [f"a{' ' * 75}{'b':>24}", f"{'x' * 74}  {'y' * 24}"]
    wide = lines.folded([("a", "b"), ("x" * 90, "y " * 20)], left=(0, 1))
    assert [line.strip() for line in wide[1:]] == [f"{'x' * 90}  {'y ' * 11}y", " ".join("y" * 8)]


def test_a_model_with_nothing_to_rewrite_says_so():
    nothing = "The model has no convolution and no linear layer to rewrite."
    assert nothing in str(plan())
    assert nothing in str(plan(Step(name="relu", kind="relu", engine="pytorch")))
    assert nothing not in str(plan(SHORT))
    assert nothing not in str(plan(left=(Left("0", "it has hooks"),)))


def test_one_line_says_how_many_steps_no_time_was_left_for():
    late = replace(LONG, reason=f"the planner takes it; {NO_TIME}")
    assert str(plan(late, SHORT, late)).split("\n")[1] == "No time was left to time 2 steps; tune=True times all."
    assert "No time was left" not in str(plan(LONG, SHORT))
