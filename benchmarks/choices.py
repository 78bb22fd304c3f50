"""Sweep the 3x3 layers of ResNet-50, measure choices as whole networks, and write them into docs/choose-groups.md.

The weights are random, which changes no time; a choice's risk is then the weight that its layers lose. The front's
choices say how far expected times are off. One choice within a budget is timed in turn with the dense network.

    python benchmarks/choices.py [--threads 2] [--repeats 10] [--speedup 1.25]     # measures, adds to choices.jsonl
    python benchmarks/choices.py --docs                                            # writes the table
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from measuring import (
    RECORDS,
    ROOT,
    Case,
    Effort,
    about,
    busy,
    by_machine,
    figures,
    interleaved,
    read_record,
    show_record,
    write_record,
)
from summary import BUSY, Table, ratio, time

import groupwise
from groupwise.kernels import native

UNIT = ("benchmark", "network", "threads", "processor", "isa")
RECORD, PAGE = "choices.jsonl", ROOT / "docs" / "choose-groups.md"
FRONT, CHOSEN, DENSE = "front", "chosen", "dense"


def main() -> None:
    """Measures, and writes the rows of a run together; or writes the table."""
    parser = argparse.ArgumentParser(description="Choose groups for ResNet-50, and measure the choices.")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/choose-groups.md")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10, help="over how many runs each median is taken")
    parser.add_argument("--speedup", type=float, default=1.25, help="the budget: the dense time divided by this")
    parser.add_argument("--size", type=int, default=224, help="of the square image")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / RECORD)
    options = parser.parse_args()
    if options.docs:
        show_record(PAGE, RECORD, docs_text(read_record(options.output)))
        return
    torch.set_num_threads(options.threads)
    used = busy()
    rows = measure(options.repeats, options.speedup, options.size)
    write_record(options.output, [{**row, "busy": used, **about()} for row in rows], UNIT)
    print(docs_text(read_record(options.output)), file=sys.stderr)


def measure(repeats: int, speedup: float, size: int) -> list[dict[str, Any]]:
    """Returns a row for each choice of the front, one for the chosen network and one for the dense one."""
    torch.manual_seed(0)
    net = groupwise.models.ResNeXt((3, 4, 6, 3), groups=1, width_per_group=64).eval()
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    layers = [name for name, one in net.named_modules() if getattr(one, "kernel_size", None) == (3, 3)]
    layers = [name for name in layers if isinstance(net.get_submodule(name), torch.nn.Conv2d)]
    swept = groupwise.sweep(net, x, layers=layers, repeats=repeats)
    facts = {"benchmark": "choices", "network": "ResNet-50", "size": size, "isa": native.status().isa}
    rows = [_row(facts, FRONT, one, one.measured_ms) for one in swept.front()]
    chosen = swept.choose(budget_ms=swept.model_ms / speedup)
    networks = {DENSE: net, CHOSEN: groupwise.regroup(net, chosen).model}

    def call(network: torch.nn.Module) -> Case:
        return Case(lambda: network(x), ours=True)

    with torch.inference_mode():
        seconds = interleaved(
            {name: call(network) for name, network in networks.items()}, Effort(max(repeats, 15), 10.0, 60)
        )
    rows.append({**_row(facts, CHOSEN, chosen, 0.0), **figures(seconds[CHOSEN])})
    rows.append({**facts, "point": DENSE, "expected_ms": swept.model_ms, "layers": {}, **figures(seconds[DENSE])})
    return rows


def _row(facts: dict[str, Any], point: str, choice: groupwise.Grouping, ms: float | None) -> dict[str, Any]:
    return {
        **facts,
        "point": point,
        "expected_ms": round(choice.ms, 4),
        "ms": ms if ms is None else round(ms, 4),
        "macs": choice.macs,
        "risk": round(choice.risk, 4),
        "layers": dict(choice.groups),
    }


def errors(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Returns how far the expected time of each choice of the front is off, relative to the measured one."""
    return [abs(row["expected_ms"] - row["ms"]) / row["ms"] for row in rows if row["point"] == FRONT]


def docs_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table for each processor and number of threads, as Markdown."""
    machines = by_machine(rows)
    if not machines:
        return "No record is there yet: `python benchmarks/choices.py` makes one."
    return "\n\n".join(_table(key, found).markdown() for key, found in sorted(machines.items()))


def _table(key: tuple[Any, ...], rows: Sequence[dict[str, Any]]) -> Table:
    processor, isa, threads, version = key
    dense = next(row for row in rows if row["point"] == DENSE)
    cells = []
    for row in rows:
        groups = sorted(set(row["layers"].values())) or [1]
        name = "as it is" if row["point"] == DENSE else f"{len(row['layers'])} layers, groups {_listed(groups)}"
        # Those of the front were timed in turn with one another, and not with the dense network.
        gain = ratio(dense["ms"] / row["ms"]) if row["point"] != FRONT else ""
        cells.append([row["point"], name, time(row["expected_ms"]), time(row["ms"]), gain])
    used = max(row["busy"] or 0 for row in rows)
    note = (
        f"ResNet-50 with random weights, one image of {dense['size']}, float32, channels_last, {threads} threads, "
        f"torch {version}, commit {dense['commit']}. The times that the sweep expected of the front are off by "
        f"{statistics.median(errors(rows)):.1%} (median). {_unsummed(rows)}The chosen network and the "
        f"dense one ran in turn. Other programs used {used:.0%} of the processors just before."
    )
    if used > BUSY:
        note += " They disturbed the times, which are no evidence."
    head = ["network", "3x3 layers that changed", "expected, ms", "measured, ms", "times as fast"]
    return Table(f"{processor} ({isa}), {threads} threads", head, cells, note)


def _unsummed(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a sentence about the choice that changes nothing: of its time nothing is summed."""
    front = [row for row in rows if row["point"] == FRONT]
    same = next((row for row in front if not row["layers"]), None)
    others = [row for row in front if row["layers"]]
    if same is None or not others:
        return ""
    # Relative to the network as it is: what slows down all networks alike is no error of a sum.
    off = [abs(row["expected_ms"] / same["expected_ms"] / (row["ms"] / same["ms"]) - 1) for row in others]
    return (
        f"The network as it is, whose time is no sum, is off by {errors([same])[0]:.1%} itself; relative to it the "
        f"others are off by {min(off):.1%} to {max(off):.1%}. "
    )


def _listed(groups: Sequence[int]) -> str:
    return f"{groups[0]}" if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"


if __name__ == "__main__":
    main()
