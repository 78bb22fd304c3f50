"""Which input channels reach which output channels, through which slice of the weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from groupwise.errors import check_integer
from groupwise.spec.convspec import ConvSpec


@dataclass(frozen=True)
class Path:
    """One group: the channels it joins, as half-open ranges.

    `weight` is its slice along dim 0 of the stored weight: its outputs, or for a transposed convolution,
    which stores (in, out/groups, *kernel), its inputs.
    """

    group: int
    inputs: range
    outputs: range
    weight: range

    def to_dict(self) -> dict[str, object]:
        """`{"group", "inputs": [start, stop], "outputs": [start, stop]}`, half-open."""
        return {
            "group": self.group,
            "inputs": [self.inputs.start, self.inputs.stop],
            "outputs": [self.outputs.start, self.outputs.stop],
        }


@dataclass(frozen=True)
class Wiring:
    """The paths of a convolution: group j joins inputs [j*in/g, (j+1)*in/g) to outputs [j*out/g, (j+1)*out/g).

    Iterates over its `Path`s; `len()` is the number of groups. Nothing is stored, so a million groups cost nothing.
    """

    spec: ConvSpec

    def __len__(self) -> int:
        return self.spec.groups

    def __iter__(self) -> Iterator[Path]:
        return (self.path(group) for group in range(self.spec.groups))

    def path(self, group: int) -> Path:
        """The path of one group, 0 to groups - 1."""
        group = check_integer("group", group, 0, self.spec.groups - 1)
        n_in, n_out = self.spec.inputs_per_filter, self.spec.outputs_per_group
        inputs = range(group * n_in, (group + 1) * n_in)
        outputs = range(group * n_out, (group + 1) * n_out)
        return Path(group, inputs, outputs, inputs if self.spec.transposed else outputs)

    def inputs_of(self, output: int) -> range:
        """Input channels that reach output channel `output`."""
        output = check_integer("output", output, 0, self.spec.out_channels - 1)
        return self.path(output // self.spec.outputs_per_group).inputs

    def outputs_of(self, input: int) -> range:
        """Output channels that read input channel `input`."""
        input = check_integer("input", input, 0, self.spec.in_channels - 1)
        return self.path(input // self.spec.inputs_per_filter).outputs

    @property
    def connected_pairs(self) -> int:
        """Pairs (input, output) that are joined: in * out / groups."""
        return self.spec.in_channels * self.spec.outputs_per_group

    @property
    def all_pairs(self) -> int:
        """Pairs (input, output) that a dense convolution joins: in * out."""
        return self.spec.in_channels * self.spec.out_channels
