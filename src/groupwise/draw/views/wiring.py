"""The wiring picture: which input channels reach which output channels."""

from __future__ import annotations

from collections.abc import Sequence

from groupwise.draw.base import phrases
from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, MIN_WIDTH, Picture, colour, path
from groupwise.draw.views.pairs import MOST_CHANNELS, draw_pairs, spread
from groupwise.draw.views.ribbons import draw_ribbons
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.wiring import Path, Wiring

# The description names so many groups one by one.
MOST_NAMED = 6


def wiring_svg(spec: ConvSpec) -> str:
    """Returns the picture of which inputs reach which outputs.

    Up to 24 channels a side every pair is a curve. Above that every group is a ribbon and the first one is drawn in
    full beside them; of more than 24 groups the picture has the first and the last ones.
    """
    picture = Picture(phrases.title(spec), _subtitle(spec))
    if max(spec.in_channels, spec.out_channels) <= MOST_CHANNELS:
        _draw_channels(picture, spec)
    else:
        draw_ribbons(picture, spec)
    facts = [("connected", phrases.pairs(spec)), ("weight shape", str(spec.weight_shape))]
    picture.caption([*facts, ("valid groups", phrases.valid(spec))])
    return picture.render(_description(spec))


def _subtitle(spec: ConvSpec) -> str:
    if spec.kind == "dense":
        return "Dense: every input channel reaches every output channel."
    fan_out = phrases.plural(spec.outputs_per_group, "output channel")
    if spec.kind == "depthwise":
        return f"Depthwise: each input channel reaches {fan_out} of its own."
    return f"Grouped: each group joins {phrases.plural(spec.inputs_per_filter, 'input channel')} to {fan_out}."


def _description(spec: ConvSpec) -> list[str]:
    wires = Wiring(spec)
    named = phrases.elide(range(len(wires)), MOST_NAMED, MOST_NAMED - 2, 1)
    lines = [
        f"Wiring of {phrases.plural(spec.in_channels, 'input channel')} to "
        f"{phrases.plural(spec.out_channels, 'output channel')} in {phrases.plural(spec.groups, 'group')}.",
        _subtitle(spec),
    ]
    for group in named:
        if group is None:
            lines.append(f"{phrases.plural(len(wires) - len(named) + 1, 'more group')} of the same shape.")
        else:
            lines.append(f"Group {group}: {phrases.joins(wires.path(group))}.")
    if spec.groups > 1:
        lines.append("No input reaches an output of another group.")
    return [*lines, f"Connected: {phrases.pairs(spec)}."]


def _draw_channels(picture: Picture, spec: ConvSpec) -> None:
    """Draws every channel and every pair. A group is as high on both sides, so its curves stay in its band."""
    n_in, n_out = spec.inputs_per_filter, spec.outputs_per_group
    pitch = 26 if max(spec.in_channels, spec.out_channels) <= 12 else 20
    band = pitch * max(n_in, n_out)
    space = 12 if max(n_in, n_out) > 1 else 0
    left, right = MARGIN, MARGIN + MIN_WIDTH
    picture.text(left, picture.y + LABEL_SIZE, phrases.plural(spec.in_channels, "input channel"), ink="soft")
    outputs = phrases.plural(spec.out_channels, "output channel")
    picture.text(right, picture.y + LABEL_SIZE, outputs, "end", ink="soft")
    picture.y += LABEL_SIZE + 14
    for group in Wiring(spec):
        ends = (spread(picture.y, band, n_in), spread(picture.y, band, n_out))
        picture.group(colour(group.group), f"group {group.group}: {phrases.joins(group)}")
        draw_pairs(picture, left + 104, right - 104, *ends)
        for x, rows in ((left + 66, ends[0]), (right - 66, ends[1])):
            picture.curve(path("M", x, rows[0] - 7, "V", rows[-1] + 7), 'stroke-width="2"')
        picture.end_group()
        _label_group(picture, group, ends)
        picture.y += band + space
    picture.y -= space


def _label_group(picture: Picture, group: Path, ends: Sequence[Sequence[float]]) -> None:
    """Draws the channels' numbers beside the nodes, and the group's number outside of them on both sides."""
    left, right = MARGIN, MARGIN + MIN_WIDTH
    for channel, y in zip(group.inputs, ends[0], strict=True):
        picture.label(left + 92, y, str(channel), "end")
    for channel, y in zip(group.outputs, ends[1], strict=True):
        picture.label(right - 92, y, str(channel))
    middle = (ends[0][0] + ends[0][-1]) / 2
    picture.label(left + 58, middle, f"group {group.group}", "end")
    picture.label(right - 58, middle, f"group {group.group}")
