"""Write what the explorer's page says of measured times, from the record of `groups.py`.

    python benchmarks/explorer_data.py [--record FILE] [--output FILE]

Of each shape and `groups` the faster memory format counts, for PyTorch and for groupwise.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from measuring import RECORDS, ROOT, payoffs, read_record

from groupwise import ConvSpec, cost

RECORD = RECORDS / "amd-26-2-avx512" / "groups.jsonl"
OUTPUT = ROOT / "src/groupwise/web/page/measured.json"


def main() -> None:
    """Reads the record, and writes the page's file."""
    parser = argparse.ArgumentParser(description="Write the explorer's measured times.")
    parser.add_argument("--record", type=pathlib.Path, default=RECORD)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    options = parser.parse_args()
    options.output.write_text(json.dumps(measured(read_record(options.record)), indent=1) + "\n", encoding="utf-8")


def measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows of the page and a sentence about the machine."""
    sides = {side: payoffs(rows, side) for side in ("pytorch", "groupwise")}
    first = sides["pytorch"][0]
    keys = dict.fromkeys((row["channels"], row["size"], row["kernel"], row["groups"]) for row in sides["pytorch"])
    return {
        "about": (
            f"Measured on an {first['processor']} ({first['isa']}), float32, one image, {first['threads']} threads, "
            f"torch {first['torch']}, {first['date']}"
        ),
        "rows": [
            {
                "layer": f"{channels} channels, {kernel}×{kernel}, on {size}×{size}",
                "groups": groups,
                "bytes": cost(ConvSpec(channels, channels, kernel, padding=kernel // 2, groups=groups), size).bytes,
                **{side: _least(sides[side], (channels, size, kernel, groups)) for side in sides},
            }
            for channels, size, kernel, groups in keys
        ],
    }


def _least(rows: list[dict[str, Any]], key: tuple[int, ...]) -> float:
    return round(
        min(row["ms"] for row in rows if (row["channels"], row["size"], row["kernel"], row["groups"]) == key), 4
    )


if __name__ == "__main__":
    main()
