"""Which groups of one convolution each rank holds, as a picture and as text."""

from __future__ import annotations

from groupwise.costs import Cost
from groupwise.draw import numbers, phrases, text
from groupwise.draw.svg import LABEL_SIZE, MARGIN, Picture, colour, path, text_width
from groupwise.share import Share
from groupwise.spec import ConvSpec

MOST_RANKS = 6
# COLUMN is the least: a column is as wide as its longest text.
COLUMN, GAP, BOX, WIRE = 132, 22, 64, 22


def ranks_svg(spec: ConvSpec, ranks: int, at: Cost | None = None) -> str:
    """A column for each rank: the channels that come in, its groups and parameters, the channels that go out."""
    picture = Picture(f"{phrases.title(spec)}, over {phrases.plural(ranks, 'rank')}", _reading(spec, ranks))
    shown = phrases.elide(range(ranks), MOST_RANKS, MOST_RANKS - 1, 1)
    told = {rank: _facts(spec, ranks, rank) for rank in shown if rank is not None}
    column = max(COLUMN, *(16 + text_width(line, LABEL_SIZE) for facts in told.values() for line in facts))
    top = picture.y + 18
    for index, rank in enumerate(shown):
        left = MARGIN + index * (column + GAP)
        if rank is None:
            picture.text(
                left + column / 2, top + WIRE + BOX / 2 + 4, f"… {ranks - len(shown) + 1} more", "middle", "soft"
            )
            continue
        middle, facts = left + column / 2, told[rank]
        picture.text(middle, picture.y + 8, f"rank {rank}", "middle")
        more = f'rx="4" fill="{colour(rank)}" fill-opacity="0.16" stroke="{colour(rank)}"'
        picture.box(left, top + WIRE, column, BOX, more)
        for y in (top + WIRE - 10, top + WIRE + BOX) if facts[0] != "nothing" else ():
            data = path("M", middle, y, "v", 10)
            picture.curve(data, f'class="gw-wire" stroke="{colour(rank)}" stroke-width="2"')
        ends = (top + WIRE - 15, top + WIRE + 27, top + WIRE + 45, top + WIRE + BOX + 22)
        for y, line in zip(ends, (facts[1], facts[0], facts[3], facts[2]), strict=True):
            picture.text(middle, y, line, "middle")
    picture.y = top + WIRE + BOX + 30
    picture.caption([("crosses", line) for line in crossings(spec, at)])
    lines = [f"Rank {rank}: {', '.join(facts)}." for rank, facts in told.items()]
    return picture.render([_reading(spec, ranks), *lines, *crossings(spec, at)])


def ranks_text(spec: ConvSpec, ranks: int, at: Cost | None = None) -> str:
    """A line for each rank (the first ones and the last of many), and what crosses between them."""
    table = []
    for rank in phrases.elide(range(ranks), text.MOST_PATHS, text.MOST_PATHS - 2, 1):
        if rank is None:
            table.append(("…", "", "", "", "", ""))
            continue
        held, inputs, outputs, parameters = _facts(spec, ranks, rank)
        table.append((f"rank {rank}", held, inputs, "→" if outputs else "", outputs, parameters))
    lines = text.rows(table, indent=2, left=(0, 1, 2, 4))
    if max(map(len, lines)) > text.WIDTH:
        # Of very many channels the ranges alone fit.
        lines = text.rows([row[:-1] for row in table], indent=2, left=(0, 1, 2, 4))
    told = [line for fact in crossings(spec, at) for line in text.wrap(fact, indent=9)]
    return "\n".join([*text.wrap(_reading(spec, ranks), "Ranks    ", 9), *lines, *told])


def crossings(spec: ConvSpec, at: Cost | None = None) -> list[str]:
    """What ranks exchange for the layer, by how its ends lie; with bytes where the size is known."""
    given, made = (
        f" ({numbers.data(size)})" if at else "" for size in ((at.traffic.input, at.traffic.output) if at else (0, 0))
    )
    if spec.groups > 1:
        return [
            "Nothing between layers that are split alike, forward and backward.",
            f"Where the input is whole, its gradient is gathered backward{given}; "
            f"where the output is to be whole, it is gathered forward{made}.",
        ]
    return [
        f"ChannelParallel: a split input is gathered forward{given} and its gradient scattered backward; "
        "a whole input's gradient is summed backward.",
        f"SumParallel, by input channels instead: the outputs are summed forward{made}, and nothing backward.",
    ]


def _reading(spec: ConvSpec, ranks: int) -> str:
    if spec.groups == 1:
        return "No groups to hold whole: a dense layer is split by its output channels (ChannelParallel)."
    held = [len(Share(spec.groups, ranks).of(rank)) for rank in range(ranks)]
    each = (
        phrases.plural(held[0], "group")
        if min(held) == max(held)
        else f"{min(held):,} to {phrases.plural(max(held), 'group')}"
    )
    return f"GroupParallel: whole groups to each rank, {each} of {spec.groups:,}."


def _facts(spec: ConvSpec, ranks: int, rank: int) -> tuple[str, str, str, str]:
    """What a rank holds, the channels in and out, and its parameters."""
    grouped = spec.groups > 1
    share = Share(spec.groups if grouped else spec.out_channels, ranks)
    held = share.of(rank)
    if not held:
        return "nothing", "", "", "0 parameters"
    inputs = share.span(rank, spec.in_channels) if grouped else range(spec.in_channels)
    outputs = share.span(rank, spec.out_channels)
    own = spec.parameters // share.parts * len(held)
    what = f"groups {numbers.channels(held)}" if grouped else f"filters {numbers.channels(held)}"
    if len(held) == 1:
        what = what.replace("s ", " ", 1)
    ends = (f"in {numbers.channels(inputs)}", f"out {numbers.channels(outputs)}")
    return what, *ends, f"{numbers.count(own)} parameters"
