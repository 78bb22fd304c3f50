"""Write into docs/floor.md how far each kind of listed layer is from its roofline floor, by each processor's record.

python benchmarks/floor_table.py [--records DIR]
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import shapes
from measuring import RECORDS, ROOT, read_record, show_record
from shapes import PASSES, Layer
from summary import collect

Row = dict[str, Any]
PAGE, RECORD = ROOT / "docs" / "floor.md", "layers.jsonl"
SIDES = ("pytorch", "groupwise")
COLUMNS = ("processor", "kind", "layers", *(f"{name}: {side}" for name in PASSES for side in ("PyTorch", "groupwise")))
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
KINDS = (
    "depthwise 3x3",
    "depthwise 5x5 and larger",
    "groups of up to 8 channels",
    "groups of 9 to 80 channels on 28x28 and less",
    "wider groups, larger images, dense layers",
    "1-D",
    "3-D",
)
# A group's channels in, and an image's side, up to which a layer is of the kinds that name them.
NARROW, WIDE, SMALL = 8, 80, 28


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description="Write how far each kind of layer is from its floor.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    show_record(PAGE, RECORD, told(parser.parse_args().records))


def told(records: pathlib.Path) -> str:
    """Returns the table: a row for each processor, instruction set and kind, of one sample and one thread."""
    lines = []
    for path in sorted(records.glob(f"*/{RECORD}")):
        over = times_over(read_record(path))
        for kind in KINDS:
            some = [times for name, times in over.items() if kind_of(name) == kind]
            if some:
                means = (
                    statistics.geometric_mean(times[key] for times in some) for key in itertools.product(PASSES, SIDES)
                )
                lines.append(
                    f"| {path.parent.name} | {kind} | {len(some)} | {' | '.join(f'{mean:.1f}' for mean in means)} |"
                )
    return "\n".join([HEAD, *lines])


def times_over(rows: Iterable[Row]) -> dict[str, dict[tuple[str, str], float]]:
    """Returns of each listed layer how many times its floor each side took, in its better memory format."""
    some = [row for row in rows if (row.get("set"), row.get("batch"), row.get("threads")) == ("listed", 1, 1)]
    found: dict[str, dict[tuple[str, str], float]] = {}
    for times in collect(some, "layer", ("layer", "pass")):
        over = {(times.facts["pass"], side): times.of_floor(side) for side in SIDES}
        found.setdefault(times.facts["layer"], {}).update(over)
    return found


def kind_of(name: str) -> str:
    """Returns the kind of a listed layer."""
    (layer,) = (layer for layer in shapes.read("listed") if layer.name == name)
    return KINDS[_number(layer)]


def _number(layer: Layer) -> int:
    spec = layer.spec
    width = spec.in_channels // spec.groups
    if spec.dims != 2:
        return KINDS.index(f"{spec.dims}-D")
    if width == 1 and spec.out_channels == spec.groups and spec.groups > 1 and not spec.transposed:
        return 0 if max(spec.kernel_size) <= 3 else 1
    if spec.groups == 1 or max(width, spec.out_channels // spec.groups) > WIDE:
        return 4
    if width <= NARROW:
        return 2
    return 3 if max(layer.size) <= SMALL else 4


if __name__ == "__main__":
    main()
