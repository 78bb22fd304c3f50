"""The cost picture: what each valid `groups` costs, as bars against the dense convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.svg import CAPTION_SIZE, LABEL_SIZE, MARGIN, Picture, colour, path, text_width
from groupwise.spec.arguments import Extent
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, cost

# The widths of published networks have up to 30 valid values (720 does), which take 26 kB. If there are more, the
# picture has the first, those around the current one, and the last.
MOST_VALUES, FIRST, LAST = 30, 8, 4
ROW, THICK, BAR, SPACE = 26, 11, 112, 34


@dataclass(frozen=True)
class _Measure:
    """One column of bars. A row is (fixed, varying): what groups does not change, and what it does."""

    name: str
    rows: Sequence[tuple[int, int]]
    dense: int
    form: Callable[[float], str] = numbers.count

    def texts(self, row: int) -> tuple[str, str]:
        """Returns the row's value, and its percentage of the dense one."""
        value = sum(self.rows[row])
        return self.form(value), numbers.percent(value, self.dense)


def cost_svg(spec: ConvSpec, size: Extent | None = None, batch: int = 1, dtype: str = "float32") -> str:
    """Returns the picture of parameters, MACs and bytes of a forward at every valid `groups`; dense is 100 %.

    `size` is the spatial size of the input, as for `groupwise.cost`. Without it the picture has the parameters only.
    """
    at = None if size is None else cost(spec, size, batch=batch, dtype=dtype)
    values = _shown(spec)
    measures = _measures(spec, at, [value for value in values if value is not None])
    picture = Picture(phrases.title(spec), _subtitle(at))
    _draw(picture, spec, values, measures)
    picture.caption(_facts(spec, at, measures, values))
    return picture.render(_description(spec, at, values, measures))


def _shown(spec: ConvSpec) -> list[int | None]:
    """Returns the values of groups that get a row, with None where some are left out."""
    valid = spec.valid_groups
    if len(valid) <= MOST_VALUES:
        return list(valid)
    here, last = valid.index(spec.groups), len(valid)
    kept = {*range(FIRST), *range(here - 1, here + 2), *range(last - LAST, last)}
    # To leave out a single value would save no room.
    kept |= {index for index in range(last) if index - 1 in kept and index + 1 in kept}
    shown: list[int | None] = []
    for index, value in enumerate(valid):
        if index in kept:
            shown.append(value)
        elif index - 1 in kept:
            shown.append(None)
    return shown


def _measures(spec: ConvSpec, at: Cost | None, values: Sequence[int]) -> list[_Measure]:
    specs = [spec.with_groups(value) for value in values]
    measures = [_Measure("parameters", [(0, one.parameters) for one in specs], spec.dense().parameters)]
    if at:
        costs, dense = [at.with_groups(value) for value in values], at.dense()
        measures.append(_Measure("MACs, forward", [(0, one.macs.forward) for one in costs], dense.macs.forward))
        moved = [(one.traffic.input + one.traffic.output, one.traffic.weight) for one in costs]
        measures.append(_Measure("bytes, forward", moved, dense.bytes, numbers.data))
    return measures


def _subtitle(at: Cost | None) -> str:
    if at is None:
        return "Every valid groups value; 100 % is the dense convolution (groups=1)."
    sizes = f"{numbers.product(at.input_size)} → {numbers.product(at.output_size)}"
    return f"Size {sizes}, batch {at.batch:,}, {at.dtype}; 100 % is the dense convolution (groups=1)."


def _draw(picture: Picture, spec: ConvSpec, values: Sequence[int | None], measures: Sequence[_Measure]) -> None:
    """Draws a row for each value of groups and a column for each measure."""
    names = [f"groups={value}" for value in values if value is not None]
    start = MARGIN + 24 + max(text_width(name, LABEL_SIZE) for name in names) + 16
    top = picture.y + CAPTION_SIZE + LABEL_SIZE + 22
    middles = [top + ROW * (index + 0.5) for index in range(len(values))]
    rows = [y for y, value in zip(middles, values, strict=True) if value is not None]
    end = start
    for measure in measures:
        picture.text(end, picture.y + CAPTION_SIZE, measure.name, size=CAPTION_SIZE)
        second = picture.y + CAPTION_SIZE + 12
        if any(fixed for fixed, _ in measure.rows):
            _draw_legend(picture, end, second)
        else:
            picture.label(end, second, f"100 % is {measure.form(measure.dense)}", ink="soft")
        axis = path("M", end, top, "V", middles[-1] + ROW / 2)
        picture.curve(axis, 'class="gw-wire gw-line"')
        end = _draw_bars(picture, measure, end, rows, names.index(f"groups={spec.groups}")) + SPACE
    for y, name in zip(rows, names, strict=True):
        if name == f"groups={spec.groups}":
            picture.label(MARGIN + 8, y, "▶")
            frame = 'rx="4" fill="none" class="gw-line" stroke-width="1.5"'
            picture.box(MARGIN, y - ROW / 2 + 1, end - SPACE + 8 - MARGIN, ROW - 2, frame)
        picture.label(MARGIN + 24, y, name)
    _label_folds(picture, spec, values, middles)
    picture.y = middles[-1] + ROW / 2


def _draw_legend(picture: Picture, x: float, y: float) -> None:
    """Draws the legend: a bar is an outline for the activations, then a filled part for the weight."""
    picture.box(x + 0.5, y - 3.5, 7, 7, 'class="gw-bg gw-line"')
    picture.label(x + 13, y, "in + out", ink="soft")
    after = x + 13 + text_width("in + out", LABEL_SIZE) + 12
    picture.box(after, y - 4, 8, 8, 'class="gw-soft"')
    picture.label(after + 13, y, "weight", ink="soft")


def _draw_bars(picture: Picture, measure: _Measure, x: float, middles: Sequence[float], current: int) -> float:
    """Draws the bars of one measure, with value and percentage at their right; returns where these end."""
    texts = [measure.texts(row) for row in range(len(middles))]
    value_end = x + BAR + 12 + max(text_width(value, LABEL_SIZE) for value, _ in texts)
    percent_end = value_end + 12 + max(text_width(percent, LABEL_SIZE) for _, percent in texts)
    for row, (y, parts) in enumerate(zip(middles, measure.rows, strict=True)):
        # A bar above zero is at least a pixel wide.
        fixed, varying = (max(BAR * part / measure.dense, 1) if part else 0 for part in parts)
        if fixed:
            outline = 'class="gw-bg gw-line"' if row != current else f'class="gw-bg" stroke="{colour(0)}"'
            picture.box(x + 0.5, y - THICK / 2 + 0.5, max(fixed - 1, 0.5), THICK - 1, outline)
        fill = f'fill="{colour(0)}"' if row == current else 'class="gw-soft"'
        if varying:
            picture.box(x + fixed, y - THICK / 2, varying, THICK, fill)
        picture.label(value_end, y, texts[row][0], "end")
        picture.label(percent_end, y, texts[row][1], "end")
    return percent_end


def _label_folds(picture: Picture, spec: ConvSpec, values: Sequence[int | None], middles: Sequence[float]) -> None:
    """Draws how many values are left out at each gap."""
    for index, value in enumerate(values):
        if value is None:
            hidden = _hidden(spec, values, index)
            picture.label(MARGIN + 24, middles[index], f"… {hidden} more", ink="soft")


def _hidden(spec: ConvSpec, values: Sequence[int | None], index: int) -> int:
    before, after = values[index - 1], values[index + 1]
    return sum(before < value < after for value in spec.valid_groups) if before and after else 0


def _facts(
    spec: ConvSpec, at: Cost | None, measures: Sequence[_Measure], values: Sequence[int | None]
) -> list[tuple[str, str]]:
    current = [value for value in values if value is not None].index(spec.groups)
    # An empty batch takes no MACs with any groups, and a percentage of nothing says nothing.
    compared = [measure for measure in measures if measure.dense]
    fractions = [f"{measure.texts(current)[1]} of the {measure.name.split(',')[0]}" for measure in compared]
    against = f"{', '.join(fractions)} of the dense convolution" if spec.groups > 1 else "the dense convolution itself"
    facts = [(f"groups={spec.groups}", against)]
    if at is None:
        return [*facts, ("MACs, bytes", "give a size (such as size=56) to see them")]
    moved = at.traffic
    activations = f"input {numbers.data(moved.input)} + output {numbers.data(moved.output)}"
    return [
        *facts,
        ("bytes", f"{activations}, whatever groups is; weight {numbers.data(moved.weight)}"),
        ("counted", "input and weight read once, output written once; 1 MAC is 1 multiplication and 1 addition"),
    ]


def _description(
    spec: ConvSpec, at: Cost | None, values: Sequence[int | None], measures: Sequence[_Measure]
) -> list[str]:
    lines = [f"Bars of the cost at {phrases.plural(len(spec.valid_groups), 'valid groups value')}. {_subtitle(at)}"]
    row = 0
    for index, value in enumerate(values):
        if value is None:
            lines.append(f"{_hidden(spec, values, index)} more values.")
            continue
        costs = ", ".join(f"{measure.name} {' = '.join(measure.texts(row))}" for measure in measures)
        lines.append(f"groups={value}{' (this layer)' if value == spec.groups else ''}: {costs}.")
        row += 1
    return lines
