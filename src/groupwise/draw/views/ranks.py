"""Which groups of one convolution each rank holds, as a picture and as text."""

from __future__ import annotations

from collections.abc import Sequence

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, colour, path, text_width
from groupwise.draw.text import lines as text
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost
from groupwise.spec.partition import Partition, chunks, received
from groupwise.spec.wiring import MOST_PATHS

# The picture has at most this many columns: all ranks, or the first ones, a count of those left out, and the last.
MOST_DRAWN = 7
# A column is at least COLUMN wide, and as wide as its longest text.
COLUMN, GAP, BOX, WIRE = 132, 22, 64, 22


def ranks_svg(spec: ConvSpec, ranks: int, at: Cost | None = None) -> str:
    """Returns a picture with a column for each rank: its input channels, groups, parameters and output channels."""
    picture = Picture(f"{phrases.title(spec)}, over {phrases.plural(ranks, 'rank')}", _reading(spec, ranks))
    shown = drawn(ranks)
    told = {rank: _facts(spec, ranks, rank) for rank in shown if rank is not None}
    column = max(COLUMN, *(16 + text_width(line, LABEL_SIZE) for facts in told.values() for line in facts))
    top = picture.y + 18
    for index, rank in enumerate(shown):
        left = MARGIN + index * (column + GAP)
        if rank is None:
            left_out = f"… {ranks - len(told):,} more"
            picture.text(left + column / 2, top + WIRE + BOX / 2 + 4, left_out, "middle", "soft")
            continue
        middle, facts = left + column / 2, told[rank]
        picture.text(middle, picture.y + 8, f"rank {rank:,}", "middle")
        more = f'rx="4" fill="{colour(rank)}" fill-opacity="0.16" stroke="{colour(rank)}"'
        picture.box(left, top + WIRE, column, BOX, more)
        for y in (top + WIRE - 10, top + WIRE + BOX) if facts[0] != "nothing" else ():
            data = path("M", middle, y, "v", 10)
            picture.curve(data, f'class="gw-wire" stroke="{colour(rank)}" stroke-width="2"')
        ends = (top + WIRE - 15, top + WIRE + 27, top + WIRE + 45, top + WIRE + BOX + 22)
        for y, line in zip(ends, (facts[1], facts[0], facts[3], facts[2]), strict=True):
            picture.text(middle, y, line, "middle")
    picture.y = top + WIRE + BOX + 30
    needed, borders = _collectives(spec, ranks, at), _between_borders(spec, ranks, at)
    picture.caption([("collectives", " ".join(needed)), *(("borders", line) for line in borders)])
    lines = [f"Rank {rank:,}: {', '.join(filter(None, facts))}." for rank, facts in told.items()]
    return picture.render([_reading(spec, ranks), *lines, *needed, *borders])


def drawn(ranks: int) -> list[int | None]:
    """Returns the ranks to draw; None stands for those left out, which are two or more."""
    return phrases.elide(range(ranks), MOST_DRAWN, MOST_DRAWN - 2, 1)


def ranks_text(spec: ConvSpec, ranks: int, at: Cost | None = None) -> str:
    """Returns a line for each rank (of many, the first ones and the last), and the collectives between them."""
    table = []
    for rank in phrases.elide(range(ranks), MOST_PATHS, MOST_PATHS - 2, 1):
        if rank is None:
            table.append(("…", "", "", "", "", ""))
            continue
        held, inputs, outputs, parameters = _facts(spec, ranks, rank)
        table.append((f"rank {rank:,}", held, inputs, "→" if outputs else "", outputs, parameters))
    lines = text.rows(table, indent=2, left=(0, 1, 2, 4))
    if max(map(len, lines)) > text.WIDTH:
        # With very many channels only the ranges fit.
        lines = text.rows([row[:-1] for row in table], indent=2, left=(0, 1, 2, 4))
    told = [*_collectives(spec, ranks, at), *_between_borders(spec, ranks, at)]
    facts = [line for fact in told for line in text.wrap(fact, indent=9)]
    return "\n".join([*text.wrap(_reading(spec, ranks), "Ranks    ", 9), *lines, *facts])


def _collectives(spec: ConvSpec, ranks: int, at: Cost | None = None) -> list[str]:
    """Returns the collectives of the layer, by how its ends lie, with bytes if the size is known."""
    if ranks == 1:
        return ["No collective: there is one rank."]
    given, made = (_bytes(at.traffic.input), _bytes(at.traffic.output)) if at else ("", "")
    if spec.groups > 1:
        return [
            "No collective runs between layers that are split alike, forward or backward.",
            f"A whole input's gradient is all-gathered backward{given}; "
            f"an output that has to be whole is all-gathered forward{made}.",
        ]
    return [
        f"ColwiseParallel: a split input is all-gathered forward{given} and its gradient reduce-scattered backward; "
        f"a whole input's gradient is all-reduced backward{given}; an output that has to be whole is all-gathered "
        f"forward{made}.",
        "RowwiseParallel splits a split input by its channels instead: the outputs are all-reduced "
        f"forward{made}, and no collective runs backward.",
    ]


def _between_borders(spec: ConvSpec, ranks: int, at: Cost | None) -> list[str]:
    """Returns which rows move because the ranks' shards are not DTensor's chunks; nothing where they are."""
    partition, grouped = _partition(spec, ranks), spec.groups > 1
    inputs = _moved(partition, spec.in_channels) if grouped else 0
    outputs = _moved(partition, spec.out_channels)
    # The first dimension of a transposed weight is the input channels; a dense one is split along the second.
    rows, size = (inputs, spec.in_channels) if grouped and spec.transposed else (outputs, spec.out_channels)
    biases = outputs if spec.bias else 0
    item = at.traffic.weight // spec.weights if at else 0
    told = []
    if rows or biases:
        tensors = (("weight", rows, size), ("bias", biases, spec.out_channels))
        moved = item * (rows * (spec.weights // size) + biases)
        told.append(
            f"{_some('row', tensors)} move to another rank before use, and their gradients "
            f"back{_bytes(moved if at else None)}, by one all-to-all a tensor."
        )
    if inputs or outputs:
        ends = (("input", inputs, spec.in_channels), ("output", outputs, spec.out_channels))
        told.append(f"Where the input or the output is whole, {_some('channel', ends)} move too.")
    lead = "DTensor splits a tensor into equal chunks, and the shards of these ranks end elsewhere."
    return [" ".join([lead, *told])] if told else []


def _some(noun: str, counts: Sequence[tuple[str, int, int]]) -> str:
    """Returns `2 of 20 rows of the weight and 1 of 10 rows of the bias`, without counts of zero."""
    return " and ".join(f"{count:,} of {size:,} {noun}s of the {name}" for name, count, size in counts if count)


def _moved(partition: Partition, size: int) -> int:
    """Returns how many elements of a dimension DTensor's equal chunks put on another rank than the partition does."""
    return sum(received(chunks(size, partition.ranks), partition.lengths(size)))


def _bytes(size: int | None) -> str:
    return "" if size is None else f" ({numbers.data(size)})"


def _reading(spec: ConvSpec, ranks: int) -> str:
    held = [len(_partition(spec, ranks).of(rank)) for rank in range(ranks)]
    if spec.groups == 1:
        reading = "No groups to hold whole: a dense layer is split by its output channels (ColwiseParallel)."
    else:
        each = (
            phrases.plural(held[0], "group")
            if min(held) == max(held)
            else f"{min(held):,} to {phrases.plural(max(held), 'group')}"
        )
        reading = f"GroupParallel: whole groups to each rank, {each} of {spec.groups:,}."
    if (spec.groups if spec.groups > 1 else min(spec.in_channels, spec.out_channels)) >= ranks:
        return reading
    if 0 in held:
        first = held.index(0)
        rest = f"Rank {first:,} is" if first == ranks - 1 else f"Ranks {first:,} to {ranks - 1:,} are"
        reading += f" {rest} left without."
    few = "groups" if spec.groups > 1 else "channels"
    return f"{reading} split() of a network keeps a layer of fewer {few} than ranks whole on each rank (KeepWhole)."


def _facts(spec: ConvSpec, ranks: int, rank: int) -> tuple[str, str, str, str]:
    """Returns what a rank holds, its channels in and out, and its parameters."""
    grouped, partition = spec.groups > 1, _partition(spec, ranks)
    held = partition.of(rank)
    if not held:
        return "nothing", "", "", "0 parameters"
    inputs = partition.span(rank, spec.in_channels) if grouped else range(spec.in_channels)
    outputs = partition.span(rank, spec.out_channels)
    own = spec.parameters // partition.units * len(held)
    what = f"groups {numbers.channels(held)}" if grouped else f"filters {numbers.channels(held)}"
    if len(held) == 1:
        what = what.replace("s ", " ", 1)
    ends = (f"in {numbers.channels(inputs)}", f"out {numbers.channels(outputs)}")
    return what, *ends, f"{numbers.count(own)} parameters"


def _partition(spec: ConvSpec, ranks: int) -> Partition:
    """Returns the partition of the groups, or of a dense layer's output channels."""
    return Partition(spec.groups if spec.groups > 1 else spec.out_channels, ranks)
