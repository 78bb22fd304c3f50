"""Which input channels reach which output channels, and through which slice of the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from groupwise.errors import check_integer
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.legible import Printed
from groupwise.spec.tables import html_table

MOST_PATHS = 8


@dataclass(frozen=True)
class Path(Printed):
    """One group: the channels that it connects, as half-open ranges.

    - `group`: its number, from 0
    - `inputs`, `outputs`: its channels
    - `weight`: its slice along dim 0 of the stored weight. That is its outputs; a transposed convolution stores
      (in, out/groups, *kernel), so there it is its inputs
    """

    group: int
    inputs: range
    outputs: range
    weight: range

    def __str__(self) -> str:
        return f"group {self.group}: in {channels(self.inputs)} → out {channels(self.outputs)}"

    def to_dict(self) -> dict[str, object]:
        """Returns `{"group", "inputs": [start, stop], "outputs": [start, stop]}`, half-open."""
        return {
            "group": self.group,
            "inputs": [self.inputs.start, self.inputs.stop],
            "outputs": [self.outputs.start, self.outputs.stop],
        }


@dataclass(frozen=True)
class Wiring:
    """The paths of a convolution: group j connects inputs [j*in/g, (j+1)*in/g) to outputs [j*out/g, (j+1)*out/g).

    It iterates over its `Path`s, and `len()` is the number of groups. It stores no path, so a million groups cost
    no memory. `print()` it for the paths.

    Examples:
        >>> print(Wiring(ConvSpec(8, 4, 5, groups=2)))
        16 of 32 channel pairs
        group 0: in 0-3 → out 0-1
        group 1: in 4-7 → out 2-3
    """

    spec: ConvSpec

    def __len__(self) -> int:
        return self.spec.groups

    def __str__(self) -> str:
        """Returns the connected pairs and a line for each path (above 8 paths: the first five and the last)."""
        shown = [self.path(group) for group in _shown(len(self))]
        lines = [f"{self.connected_pairs:,} of {self.all_pairs:,} channel pairs", *map(str, shown)]
        if len(shown) < len(self):
            lines.insert(-1, f"… {len(self) - len(shown):,} more groups of the same shape")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (path.group, channels(path.inputs), channels(path.outputs)) for path in map(self.path, _shown(len(self)))
        ]
        if len(rows) < len(self):
            rows.insert(-1, (f"… {len(self) - len(rows):,} more", "…", "…"))
        pairs = f"{self.spec}; {self.connected_pairs:,} of {self.all_pairs:,} channel pairs"
        return html_table(pairs, ("group", "in", "out"), rows)

    def to_dict(self) -> dict[str, object]:
        """Returns every path with half-open channel ranges, and how many channel pairs are connected."""
        return {
            "paths": [path.to_dict() for path in self],
            "connected_pairs": self.connected_pairs,
            "all_pairs": self.all_pairs,
        }

    def __iter__(self) -> Iterator[Path]:
        return (self.path(group) for group in range(self.spec.groups))

    def path(self, group: int) -> Path:
        """Returns the path of one group, from 0 to groups - 1; raises `GroupwiseError` outside of that."""
        group = check_integer("group", group, 0, self.spec.groups - 1)
        n_in, n_out = self.spec.inputs_per_filter, self.spec.outputs_per_group
        inputs = range(group * n_in, (group + 1) * n_in)
        outputs = range(group * n_out, (group + 1) * n_out)
        return Path(group, inputs, outputs, inputs if self.spec.transposed else outputs)

    def inputs_of(self, output: int) -> range:
        """Returns the input channels that reach output channel `output`."""
        output = check_integer("output", output, 0, self.spec.out_channels - 1)
        return self.path(output // self.spec.outputs_per_group).inputs

    def outputs_of(self, input: int) -> range:
        """Returns the output channels that read input channel `input`."""
        input = check_integer("input", input, 0, self.spec.in_channels - 1)
        return self.path(input // self.spec.inputs_per_filter).outputs

    @property
    def connected_pairs(self) -> int:
        """The number of pairs (input, output) that are connected: in * out / groups."""
        return self.spec.in_channels * self.spec.outputs_per_group

    @property
    def all_pairs(self) -> int:
        """The number of pairs (input, output) that a dense convolution connects: in * out."""
        return self.spec.in_channels * self.spec.out_channels


def channels(span: range) -> str:
    """Returns a range of channels as people say it, with its last one: `0-31`, or `7` for a single one."""
    return f"{span.start}-{span.stop - 1}" if len(span) > 1 else str(span.start)


def _shown(groups: int) -> list[int]:
    """Returns the groups that a text lists: all, or of more than 8 the first five and the last."""
    return list(range(groups)) if groups <= MOST_PATHS else [*range(5), groups - 1]
