"""Print what the records say: geometric means, the worst layer of each comparison, and every layer that got slower.

    python benchmarks/summary.py [--markdown] [--records DIR]

If the records are of several machines or versions of torch, only the rows of the newest count, and the summary names
the rest. A ratio above 1 favours this package, except for ratios to the roofline floor, which say how many times the
floor a layer takes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from groups import COLD_START
from measuring import RECORDS, machine_of, newest_machine, payoffs, read_record
from shapes import FILES, PASSES, read
from sweep import told, totals, worst

from groupwise.profile.measuring import MOST

Row = dict[str, Any]
# A ratio below this is called slower. Two runs of the same kernels can differ by more; the table's note says by how
# much they did where both sides ran PyTorch's.
SLOWER = 0.97
NAMES = ("layers", "networks", "engines", "peak", "groups", "split", "sweep")
# The summary names a layer if others used more than this fraction of the processors.
BUSY = MOST


@dataclass(frozen=True)
class Table:
    """A table that is printed as text or as Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """Returns columns side by side."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in self]
        return "\n".join([self.title, "=" * len(self.title), *([self.note] if self.note else []), *lines])

    def markdown(self) -> str:
        """Returns a heading and a table."""
        head, *rows = (f"| {' | '.join(row)} |".replace("<", "&lt;") for row in self)
        note = [self.note, ""] if self.note else []
        return "\n".join([f"### {self.title}", "", *note, head, "|---" * len(self.head) + "|", *rows])

    def __iter__(self) -> Iterator[Sequence[str]]:
        return itertools.chain([self.head], self.rows)


@dataclass
class Times:
    """The medians, in ms, of one layer or network in one interleaved run."""

    facts: Row
    ms: dict[tuple[str, str | None], float] = field(default_factory=dict)
    kernels: dict[str | None, Any] = field(default_factory=dict)
    repeats: list[int] = field(default_factory=list)

    def better(self, implementation: str) -> float:
        """Returns the time in the better memory format."""
        return min(ms for (name, _), ms in self.ms.items() if name == implementation)

    def speedup(self, other: str = "pytorch") -> float:
        """Returns how many times as long another takes, each in its better memory format."""
        return self.better(other) / self.better("groupwise")

    def of_floor(self, implementation: str) -> float:
        """Returns how many times the roofline floor it takes."""
        return self.better(implementation) / self.facts["floor_ms"]

    def has(self, *implementations: str) -> bool:
        """Returns whether all of them were timed."""
        return set(implementations) <= {name for name, _ in self.ms}


def collect(rows: Iterable[Row], benchmark: str, key: Sequence[str]) -> list[Times]:
    """Collects the rows of a benchmark that were timed in turn."""
    found: dict[tuple[Any, ...], Times] = {}
    for row in rows:
        if row["benchmark"] == benchmark and "ms" in row:
            times = found.setdefault(tuple(row.get(name) for name in key), Times(row))
            times.ms[row["implementation"], row.get("memory_format")] = row["ms"]
            times.repeats.append(row["repeats"])
            if "kernels" in row:
                times.kernels[row.get("memory_format")] = row["kernels"]
    return [times for times in found.values() if times.has("pytorch", "groupwise")]


def summarise(*records: Sequence[Row]) -> list[Table]:
    """Returns every table that has records. `records` come in the order of `NAMES`; the last may be left out."""
    every = [row for record in records for row in record]
    newest = newest_machine(every)
    kept = [[row for row in record if machine_of(row) == newest] for record in records]
    layers, networks, engines, peak, groups, split, sweep = [*kept, *([] for _ in NAMES)][: len(NAMES)]
    of_layers = collect(layers, "layer", ("set", "layer", "pass", "batch", "threads"))
    payoffs = collect(layers, "payoff", ("layer", "pass", "batch", "threads"))
    of_networks = collect(networks, "network", ("network", "pass", "batch", "threads"))
    of_engines = collect(engines, "engine", ("set", "layer", "threads"))
    tables = [
        where(every),
        missing_table(of_layers, of_engines),
        layer_table(of_layers),
        slower_table(of_layers),
        payoff_table(payoffs),
        peak_table(peak),
        groups_table(groups),
        network_table(of_networks),
        engine_table(of_engines),
        problem_table(engines),
        fallback_table(layers),
        split_table(split),
        *sweep_tables(sweep),
    ]
    return [table for table in tables if table.rows]


def where(rows: list[Row]) -> Table:
    """The machine, versions and commits of the records, which layers were disturbed, and what was left out."""
    newest, notes = newest_machine(rows), []
    here = [row for row in rows if machine_of(row) == newest]
    if others := Counter(machine_of(row) for row in rows if machine_of(row) != newest):
        told = ", ".join(f"{count} of {processor} with torch {torch}" for (processor, torch), count in others.items())
        notes.append(f"Rows that are left out, because they are of another machine or torch: {told}.")
    if disturbed := sorted({row.get("layer") or row["network"] for row in here if (row.get("busy") or 0) > BUSY}):
        notes.append(f"Others used more than {BUSY:.0%} of the processors just before: {', '.join(disturbed)}.")
    names = ("processor", "torch", "groupwise", "commit", "date", "dtype")
    return Table("Measured", names, sorted({tuple(str(row[name]) for name in names) for row in here}), " ".join(notes))


def missing_table(layers: list[Times], engines: list[Times]) -> Table:
    """The layers that the records lack of a set from which they have others."""
    rows = []
    names = {which: [layer.name for layer in read(which)] for which in FILES}
    for record, times, passes in (("layers", layers, PASSES), ("engines", engines, PASSES[:1])):
        for key, some in grouped(times, "set", "threads", "batch"):
            for which in passes:
                there = {one.facts["layer"] for one in some if one.facts.get("pass", "forward") == which}
                missing = [name for name in names[key[0]] if name not in there]
                if missing:
                    rows.append([record, *key, which, str(len(missing)), shortest(names[key[0]], missing)])
    return Table("Not in the records", ["record", *"set threads batch pass layers which".split()], rows)


def shortest(names: Sequence[str], some: Sequence[str]) -> str:
    """Names some layers, or all but the others, whichever is shorter."""
    others = [name for name in names if name not in some]
    if len(some) <= len(others):
        return ", ".join(some)
    return f"all but {', '.join(others)}" if others else "all"


def fewest(repeats: Iterable[int | None]) -> str:
    """Says over how many runs at least the medians of a table are taken."""
    known = [number for number in repeats if number]
    return f"Medians of {min(known)} runs or more." if known else ""


def layer_table(layers: list[Times]) -> Table:
    """Compares all layers: one row for each set, number of threads, batch and pass."""
    rows = []
    for key, some in grouped(layers, "set", "threads", "batch", "pass"):
        worst = min(some, key=Times.speedup)
        farthest = max(some, key=lambda times: times.of_floor("groupwise"))
        rows.append(
            [
                *key,
                str(len(some)),
                ratio(geometric_mean(map(Times.speedup, some))),
                f"{ratio(worst.speedup())} {worst.facts['layer']}",
                ratio(geometric_mean(times.of_floor("pytorch") for times in some)),
                ratio(geometric_mean(times.of_floor("groupwise") for times in some)),
                f"{ratio(farthest.of_floor('groupwise'))} {farthest.facts['layer']}",
            ]
        )
    head = "set threads batch pass layers".split()
    head += ["PyTorch / ours", "worst", "PyTorch / floor", "ours / floor", "farthest"]
    note = "Geometric means, each side in its better memory format; `worst` and `farthest` are single layers."
    return Table("Layers", head, rows, f"{note} {repeats_of(layers)}")


def repeats_of(some: Iterable[Times]) -> str:
    """Says the fewest runs of all of them."""
    return fewest(number for times in some for number in times.repeats)


def slower_table(layers: list[Times]) -> Table:
    """Lists every layer and memory format in which a kernel of groupwise ran and was slower.

    Where none ran, both sides are PyTorch's kernels, and their ratio shows the spread of the machine.
    """
    slower, same = [], []
    for times in layers:
        for memory_format in sorted(name for who, name in times.ms if who == "groupwise"):
            pytorch, ours = (times.ms.get((who, memory_format)) for who in ("pytorch", "groupwise"))
            if not (pytorch and ours):  # a format in which PyTorch's kernel takes too long has no time
                continue
            ran = times.kernels[memory_format]
            if all(kernel.endswith(" pytorch") for kernel in ran):
                same.append(pytorch / ours)
            elif pytorch / ours < SLOWER:
                facts = [str(times.facts[name]) for name in ("layer", "threads", "batch", "pass")]
                cells = [*facts, memory_format, ratio(pytorch / ours), time(pytorch), time(ours), ", ".join(ran)]
                slower.append((pytorch / ours, cells))
    rows = [cells for _, cells in sorted(slower)]
    if layers and not rows:
        rows = [["none", *[""] * 8]]
    head = ["layer", "threads", "batch", "pass", "format", "PyTorch / ours", "PyTorch ms", "ours ms", "kernels"]
    note = f"All below {SLOWER} in which a kernel of groupwise ran."
    if same:
        note += f" In {len(same)} pairs PyTorch's kernels ran on both sides: their ratios, {ratio(min(same))} to "
        note += f"{ratio(max(same))}, are the spread of the machine."
    return Table("Slower than PyTorch in the same memory format", head, rows, f"{note} {repeats_of(layers)}")


def payoff_table(payoffs: list[Times]) -> Table:
    """How much of the promise of groups is kept, with PyTorch and with this package."""
    rows = []
    for times in payoffs:
        if times.has("dense"):
            saved = times.facts["groups"]
            facts = [str(times.facts[name]) for name in ("layer", "threads", "batch", "pass")]
            gained = [times.better("dense") / times.better(name) for name in ("pytorch", "groupwise")]
            rows.append([*facts, str(saved), *map(ratio, gained), *(ratio(gain / saved) for gain in gained)])
    head = ["layer", "threads", "batch", "pass", "MACs saved", "PyTorch faster", "ours faster"]
    head += ["PyTorch's payoff", "our payoff"]
    note = "Than the dense layer in PyTorch's better memory format; a payoff of 1 is the whole promise of groups kept."
    return Table("Payoff", head, rows, f"{note} {repeats_of(payoffs)}")


def peak_table(peak: Sequence[Row]) -> Table:
    """The fraction of peak of each kind of layer and memory format, the kernels side by side."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for row in peak:
        key = (row["kind"], row["direction"], row["memory_format"], f"{row['attainable']:.0%}")
        found[key][row["kernel"]] = row["fraction_of_peak"]
    kernels = list(dict.fromkeys(row["kernel"] for row in peak))
    rows = [[*key, *(f"{one[name]:.0%}" if name in one else "" for name in kernels)] for key, one in found.items()]
    head = ["kind", "direction", "format", "bytes allow"]
    head += ["PyTorch" if name == "pytorch" else name for name in kernels]
    note = (
        "Peak is the rate of multiply-adds on registers at the same moment; the operator counts with padding and call."
    )
    return Table("Fraction of one core's peak", head, rows, f"{note} {fewest(row['repeats'] for row in peak)}")


def groups_table(rows: Sequence[Row]) -> Table:
    """The time of a few groups values in PyTorch alone, relative to dense."""
    found: dict[tuple[str, ...], dict[int, Row]] = defaultdict(dict)
    for row in payoffs(rows):
        key = (str(row["channels"]), f"{row['size']}×{row['size']}", row["memory_format"])
        found[key][row["groups"]] = row
    cells = []
    for key, by_groups in found.items():
        relative = (f"{by_groups[groups]['of_dense']:.0%}" if groups in by_groups else "" for groups in (2, 8, 32))
        cells.append([*key, time(by_groups[1]["ms"]), *relative, f"{by_groups[int(key[0])]['of_dense']:.1%}"])
    notes = ["Forward without groupwise's kernels, relative to the dense layer's time; groups promise 1/groups."]
    notes.append(fewest(row["repeats"] for by_groups in found.values() for row in by_groups.values()))
    notes += [f"A {COLD_START} takes {time(row['ms'])} ms." for row in rows if row["benchmark"] == COLD_START]
    head = ["channels", "size", "format", "dense ms", "groups=2", "groups=8", "groups=32", "depthwise"]
    return Table("What groups save in PyTorch", head, cells, " ".join(notes))


def network_table(networks: list[Times]) -> Table:
    """Compares whole networks."""
    rows = []
    for times in networks:
        facts = [str(times.facts[name]) for name in ("network", "threads", "batch", "pass")]
        names = [(who, name) for who in ("pytorch", "groupwise") for name in ("contiguous", "channels_last")]
        rows.append([*facts, *(time(times.ms[name]) for name in names), ratio(times.speedup())])
    head = ["network", "threads", "batch", "pass", "PyTorch NCHW", "NHWC", "ours NCHW", "NHWC", "PyTorch / ours"]
    note = f"In ms; the ratio compares each side in its better memory format. {repeats_of(networks)}"
    return Table("Networks", head, rows, note)


def engine_table(layers: list[Times]) -> Table:
    """Compares this package with each engine, the best of them, and PyTorch."""
    rows = []
    for (threads,), some in grouped(layers, "threads"):
        for times in some:
            engines = [ms for (name, _), ms in times.ms.items() if name not in ("pytorch", "groupwise")]
            if engines:
                times.ms["best engine", None] = min(engines)
        names = sorted({name for times in some for name, _ in times.ms} - {"groupwise", "best engine"})
        for name in (*names, "best engine"):
            timed = sorted((times.speedup(name), times.facts["layer"]) for times in some if times.has(name))
            if timed:
                mean = ratio(geometric_mean(speedup for speedup, _ in timed))
                ends = (f"{ratio(speedup)} {layer}" for speedup, layer in (timed[0], timed[-1]))
                rows.append([threads, name, str(len(timed)), mean, *ends])
    head = ["threads", "engine", "layers", "engine / ours", "worst", "best"]
    note = "Forward, batch as listed, each engine in its best variant; the engines rearrange the weights beforehand."
    return Table("Inference engines", head, rows, f"{note} {repeats_of(layers)}")


def problem_table(engines: list[Row]) -> Table:
    """Lists what an engine did not compute, or computed wrongly."""
    reasons = defaultdict(set)
    for row in engines:
        if "problem" in row:
            reasons[row["implementation"], row["problem"]].add(row["layer"])
    rows = [[name, problem, ", ".join(sorted(layers))] for (name, problem), layers in sorted(reasons.items())]
    return Table("Not timed", ["engine", "why", "layers"], rows)


def fallback_table(layers: list[Row]) -> Table:
    """The time of a convolution that falls back: without this package, with it off, and with it enabled."""
    found = [row for row in layers if row["benchmark"] == "fallback"]
    rows = [
        [str(row["threads"]), *(f"{row[f'{state}_us']:.2f}" for state in ("without", "registered", "enabled"))]
        for row in found
    ]
    head = ["threads", "without groupwise", "groupwise off", "enabled"]
    note = fewest(row.get("repeats") for row in found)
    return Table("A convolution of one pixel that falls back, µs", head, rows, note)


def split_table(split: list[Row]) -> Table:
    """Steps of split networks and of data parallel ones, beside their predictions."""
    rows = []
    for row in sorted(split, key=lambda row: row["ranks"]):
        told = [cell for way in ("split", "data") for cell in _predicted(row[f"{way}_ms"], row[f"{way}_predicted_ms"])]
        given = "×".join(map(str, row["input"]))
        rows.append([row["network"], str(row["ranks"]), given, f"{row['whole_ms']:.4g}", *told])
    head = ["network", "ranks", "input", "whole", "groups split", "predicted", "", "data parallel", "predicted", ""]
    note = "Milliseconds of a training step, one thread a rank; whole is the network on every rank at once. "
    return Table("Split over ranks", head, rows, note + fewest(row["repeats"] for row in split))


def _predicted(measured: float, predicted: float) -> list[str]:
    return [f"{measured:.4g}", f"{predicted:.4g}", f"{predicted / measured - 1:+.0%}"]


def sweep_tables(rows: list[Row]) -> list[Table]:
    """The random layers: how the chosen kernels compare with PyTorch, and the layers that lose most time."""
    head = ["isa", "rows", "ours ran", "PyTorch / ours", "below 2/3", "below 0.95", "PyTorch itself below 2/3", "0.95"]
    note = (
        "The mean is geometric, over the rows in which a kernel of groupwise ran; every time is the least of a series."
    )
    lost = [[line] for line in map(told, worst(rows))]
    return [
        Table("Random layers", head, totals(rows), note),
        Table("Random layers that lose most time", ["PyTorch / ours (PyTorch | ours)"], lost),
    ]


def grouped(some: Iterable[Times], *names: str) -> list[tuple[list[str], list[Times]]]:
    """Groups times by these facts, in their order, with the listed layers first."""
    found = defaultdict(list)
    for times in some:
        found[tuple(str(times.facts[name]) for name in names)].append(times)
    return [(list(key), found[key]) for key in sorted(found, key=lambda key: (key[0] != "listed", key))]


def geometric_mean(values: Iterable[float]) -> float:
    """The mean for which the mean of ratios equals the ratio of means."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def ratio(value: float) -> str:
    """Writes a ratio with the three digits that such times justify."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def time(ms: float) -> str:
    """Writes a time in ms with three digits."""
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def main() -> None:
    """Reads the records and prints the tables."""
    parser = argparse.ArgumentParser(description="Summarise the records.")
    parser.add_argument("--markdown", action="store_true", help="for the docs")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    options = parser.parse_args()
    tables = summarise(*(read_record(options.records / f"{name}.jsonl") for name in NAMES))
    if not tables:
        raise SystemExit(f"no {', '.join(f'{name}.jsonl' for name in NAMES)} in {options.records}; measure first")
    print("\n\n".join(table.markdown() if options.markdown else table.text() for table in tables))


if __name__ == "__main__":
    main()
