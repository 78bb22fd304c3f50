"""Write into docs/planner.md which tables are shipped, and how good each is for layers that it was not made from.

python benchmarks/shipped_tables.py
"""

from __future__ import annotations

import argparse
import json
import pathlib

from measuring import ROOT, show_record
from policy import POLICY

from groupwise.kernels.tables import KINDS

PAGE, NAME = ROOT / "docs" / "planner.md", "policy"
COLUMNS = (
    "processor, instruction set",
    "layers",
    "rows measured",
    "groupwise's kernel taken",
    "below 0.95",
    "below two thirds",
    "PyTorch's time / the chosen",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def main() -> None:
    """Writes the list."""
    argparse.ArgumentParser(description="Write which tables are shipped into the docs.").parse_args()
    show_record(PAGE, NAME, told(POLICY))


def told(folder: pathlib.Path) -> str:
    """Returns the list: a row for each file of tables, which counts layers that its trees had not seen."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*-*.json"))}
    lines = []
    for processor, isa in dict.fromkeys((one["class"], one["isa"]) for one in found.values()):
        for kind in KINDS:
            if one := found.get(f"{processor}-{isa}{kind.file_suffix}"):
                counts = (one["held_out"][key] for key in ("rows", "taken", "below_095", "below_067"))
                cells = (f"{processor}, {isa}", kind, *(f"{count:,}" for count in counts))
                lines.append(f"| {' | '.join(map(str, cells))} | {one['held_out']['mean']:.2f} |")
    return "\n".join([HEAD, *lines])


if __name__ == "__main__":
    main()
