"""One convolution as plain Unicode text of at most 80 columns: the facts that the pictures show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text.lines import rows, wrap
from groupwise.errors import list_some
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost
from groupwise.spec.legible import legible
from groupwise.spec.wiring import MOST_PATHS, Path, Wiring

if TYPE_CHECKING:
    from groupwise.kernels.plan import Plan

# A cell of the grid takes two columns, so at most 32 inputs fit beside the row labels.
MOST_CELLS = 32
KINDS = {
    "dense": "dense: every input reaches every output",
    "grouped": "grouped: each group joins its own inputs to its own outputs",
    "depthwise": "depthwise: each filter reads one input channel",
}


def heading(spec: ConvSpec, name: str | None = None) -> str:
    """Returns the convolution with the options that differ from their defaults, and a line on its kind."""
    title = phrases.title(spec)
    return "\n".join([*wrap(f"{legible(name)}: {title}" if name else title), KINDS[spec.kind]])


def wiring(spec: ConvSpec) -> str:
    """Returns the paths, one line a group (above 8 groups: the first five and the last)."""
    wires = Wiring(spec)
    shown: list[Path | None] = list(wires) if spec.groups <= MOST_PATHS else [wires.path(g) for g in range(5)]
    if spec.groups > MOST_PATHS:
        shown += [None, wires.path(spec.groups - 1)]
    width = max(len(f"in {numbers.channels(path.inputs)}") for path in shown if path)
    digits = max(1, len(str(spec.groups - 1)))
    lines = [f"Wiring   {phrases.pairs(spec)}"]
    for path in shown:
        if path is None:
            lines.append(f"  …      {' ' * digits} {spec.groups - 6:,} more groups of the same shape")
        else:
            left = f"in {numbers.channels(path.inputs)}"
            lines.append(f"  group {path.group:<{digits}}  {left:<{width}} → out {numbers.channels(path.outputs)}")
    return "\n".join([*lines, *wrap(_reading(spec), indent=9)])


def _reading(spec: ConvSpec) -> str:
    """Returns what the numbers mean, in one sentence."""
    filters = f"{spec.out_channels:,} filter{'s' * (spec.out_channels > 1)}"
    each = "each filter reads" if spec.out_channels > 1 else "it reads"
    inputs = f"{spec.inputs_per_filter:,} of {spec.in_channels:,} input{'s' * (spec.in_channels > 1)}"
    if spec.channel_multiplier and spec.channel_multiplier > 1:
        m = spec.channel_multiplier
        return f"{filters}; {each} {inputs}; channel multiplier {m}: output o reads input o // {m}."
    per_group = f", {spec.outputs_per_group:,} to a group" if spec.groups > 1 else ""
    return f"{filters}{per_group}; {each} {inputs}."


def weight(spec: ConvSpec) -> str:
    """Returns the shapes of weight and bias and, up to 32 channels, which kernels of the dense weight exist."""
    axes = "(in, out/groups, *kernel)" if spec.transposed else "(out, in/groups, *kernel)"
    lines = wrap(f"{spec.weight_shape} = {spec.weights:,} weights, stored as {axes}", "Weight   ", 9)
    if spec.groups > 1:
        block, order = (spec.outputs_per_group, spec.inputs_per_filter), "out × in"
        if spec.transposed:
            block, order = block[::-1], "in × out"
        blocks = f"{spec.groups:,} blocks of {block[0]:,} × {block[1]:,} kernels ({order})"
        lines += wrap(f"dense {spec.dense().weight_shape} = {spec.dense().weights:,} weights; {blocks}", indent=9)
    lines.append(f"Bias     {spec.bias_shape or 'none'}")
    lines += wrap(f"valid: {list_some(list(spec.valid_groups), near=spec.groups)}", "Groups   ", 9)
    if max(spec.in_channels, spec.out_channels) <= MOST_CELLS and spec.groups > 1:
        lines += ["", "         in " + " ".join(_digit(i) for i in range(spec.in_channels))]
        for path in Wiring(spec):
            for out in path.outputs:
                cells = (_digit(path.group) if i in path.inputs else "·" for i in range(spec.in_channels))
                lines.append(f"  out {out:>3}   {' '.join(cells)}")
        lines.append("         (digit: a kernel of that group, modulo 10; ·: no such weight)")
    return "\n".join(lines)


def cost(spec: ConvSpec, at: Cost | None) -> str:
    """Returns the parameters and, with a size, MACs and bytes, each beside the dense equivalent's."""
    dense = spec.dense()
    head = "Cost     give a size for MACs and bytes"
    if at:
        where = f"{numbers.product(at.input_size)} → {numbers.product(at.output_size)}"
        head = f"Cost     {where}, batch {at.batch}, {at.dtype}"
    table: list[tuple[str, ...]] = [("", f"groups={spec.groups}", "dense", "saves")]
    table.append(_versus("parameters", spec.parameters, dense.parameters, f"{spec.parameters:,}"))
    if at:
        full = at.dense()
        macs, traffic = at.macs, at.traffic
        table.append(_versus("MACs, each pass", macs.forward, full.macs.forward))
        if at.macs_on_padding:
            table.append(_versus("  of them on padding", at.macs_on_padding, full.macs_on_padding))
        table.append(_versus("MACs, training step", macs.total, full.macs.total))
        table.append(_versus("bytes, each pass", at.bytes, full.bytes, numbers.data(at.bytes), numbers.data))
        table.append(("FLOP per byte", f"{at.intensity:.3g}", f"{full.intensity:.3g}", ""))
    lines = [head, *rows(table, indent=9)]
    if at:
        moved = f"input {numbers.data(traffic.input)}, weight {numbers.data(traffic.weight)}, "
        lines += wrap(f"(bytes at least: {moved}output {numbers.data(traffic.output)}, each moved once)", indent=9)
    return "\n".join(lines)


def _versus(
    what: str, part: int, whole: int, shown: str | None = None, form: Callable[[float], str] = numbers.count
) -> tuple[str, ...]:
    factor = numbers.times(part, whole) if part else "-"
    return (what, shown or form(part), form(whole), factor if part != whole else "-")


# Who says how fast a kernel is (`Plan.source`).
BY = {"measured": "measured here", "table": "by records of processors like this one", "model": "by the cost model"}


def plans(by_format: Mapping[str, Mapping[str, Plan]]) -> str:
    """Returns kernel and tile of each pass by memory format, and once each reason why another kernel cannot run."""
    every = [(layout, name, plan) for layout, passes in by_format.items() for name, plan in passes.items()]
    first = every[0][2]
    lines = [f"Plan     kernel and tile of each pass ({first.isa}, {phrases.plural(first.threads, 'thread')})"]
    for layout, passes in by_format.items():
        lines.append(f"         {layout}")
        for name, plan in passes.items():
            start = f"           {name:<11}  {plan.kernel:<8}  "
            gain = f"; {plan.speedup:.2g}x PyTorch's speed ({BY[plan.source]})" if plan.speedup else ""
            lines += wrap((plan.tile or "PyTorch's own") + gain, start, len(start))
    reasons: dict[str, dict[str, list[str]]] = {}
    for layout, name, plan in every:
        for kernel, why in plan.refused.items():
            reasons.setdefault(f"not {kernel}: {why}", {}).setdefault(layout, []).append(name)
    for reason, places in reasons.items():
        where = "; ".join(
            layout if len(names) == len(by_format[layout]) else f"{layout} {', '.join(names)}"
            for layout, names in places.items()
        )
        everywhere = sum(map(len, places.values())) == len(every)
        lines += wrap(reason if everywhere else f"{reason} ({where})", indent=9)
    return "\n".join(lines)


def _digit(value: int) -> str:
    return str(value % 10)
