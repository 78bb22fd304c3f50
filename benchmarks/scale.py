"""Tables of what `groupwise.parallel.predict` predicts for many GPUs: groups split, data parallel, and both.

    python benchmarks/scale.py [--markdown]

Nothing is measured here; the assumptions are those of `GPU`, printed with the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch

from groupwise import models
from groupwise.parallel import Link, Machine, Prediction, SplitPlan, plan_split, predict

# This is an NVIDIA A100 of 80 GB in nodes of 8, by its data sheet (312 TFLOPS in bfloat16, 2.0 TB/s, NVLink of 300 GB/s
# each way), with one 200 Gbit/s adapter a GPU between nodes. Sustained are assumed 40 % of its arithmetic, 70 % of its
# memory's rate and 80 % of its links'.
GPU = Machine(
    macs=0.4 * 156e12,
    memory=0.7 * 2.0e12,
    near=Link(10e-6, 0.8 * 300e9, trees=True),
    far=Link(20e-6, 0.8 * 25e9, trees=True),
    node=8,
    launch=5e-6,
    overlap=0.8,
)
ASSUMED = (
    "Assumed: NVIDIA A100, 8 a node; 62 T multiply-accumulates a second (40 % of the data sheet's bfloat16), 1.4 TB/s "
    "of memory, 10 µs and 240 GB/s a link in a node, 20 µs and 20 GB/s between nodes, 5 µs an operation at least, sums "
    "by rings or trees, gradients' during 80 % of the backward, SGD with momentum, all values bfloat16, inputs of "
    "224×224."
)
GPUS = (1, 8, 64, 256, 1024)
BATCHES = (1024, 128)
# Each network, and over how many ranks at most its groups are split.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "AlexNet": (models.alexnet, 2),
    "ResNeXt-50 32x4d": (models.resnext50_32x4d, 32),
    "ResNeXt-101 32x8d": (models.resnext101_32x8d, 32),
}
HEAD = ("network", "samples", "GPUs", "groups split", "data parallel", "both", "groups × data")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Predict training steps on many GPUs.")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    rows = list(table())
    if options.markdown:
        print("\n".join(map(markdown_row, [HEAD, ("---",) * len(HEAD), *rows])))
    else:
        widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
        for row in (HEAD, *rows):
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\n{ASSUMED}")


def markdown_row(cells: tuple[str, ...]) -> str:
    """Returns one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def table(only: str = "", batches: Sequence[int] = BATCHES, counts: Sequence[int] = GPUS) -> Iterator[tuple[str, ...]]:
    """Yields a row for each network, batch and number of GPUs: the ms of a step split, data parallel, and both."""
    for name, (make, most) in NETWORKS.items():
        if only not in name:
            continue
        with torch.device("meta"):
            model = make().bfloat16()
        for batch in batches:
            # One plan serves any number of copies of the model.
            shape = (batch, 3, 224, 224)
            plans = {groups: plan_split(model, groups, input_shape=shape) for groups in _splits(max(counts), most)}
            for gpus in counts:
                steps = {groups: _step(plans[groups], batch, gpus // groups) for groups in _splits(gpus, most)}
                alone, data = steps.get(gpus) if gpus > 1 else None, steps[1]
                both = {groups: step for groups, step in steps.items() if step and 1 < groups < gpus}
                best = min(both, key=lambda groups: both[groups].seconds, default=0)
                named = f"{best} × {gpus // best}" if best else "-"
                yield name, str(batch), str(gpus), _ms(alone), _ms(data), _ms(both.get(best)), named


def _splits(gpus: int, most: int) -> list[int]:
    return [groups for groups in (1, 2, 4, 8, 16, 32) if groups <= min(gpus, most)]


def _step(plan: SplitPlan, batch: int, data: int) -> Prediction | None:
    return None if data > batch else predict(plan, GPU, data=data)


def _ms(way: Prediction | None) -> str:
    return "-" if way is None else f"{way.seconds * 1e3:.3g}"


if __name__ == "__main__":
    main()
