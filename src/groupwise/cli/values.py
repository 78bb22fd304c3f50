"""The values of options: what the words of a command line mean, and what a wrong one should have been."""

from __future__ import annotations

import argparse
import math

_SCALES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}


def is_integer(word: str) -> bool:
    """Returns whether Python reads the word as an int."""
    try:
        int(word)
    except ValueError:
        return False
    return True


def groups_value(word: str) -> int | str:
    """Returns the number, or else the word: `ConvSpec` refuses that, and names the valid values."""
    return int(word) if is_integer(word) else word


def groups_values(word: str) -> list[int | str]:
    """Reads the groups that a comparison shows: `1,2,32`."""
    return [groups_value(part) for part in word.split(",")]


def counts(word: str) -> tuple[int, ...]:
    """Reads numbers: `1,2,4`."""
    return _integers(word, "numbers such as 1,2,4")


def extent(word: str) -> int | tuple[int, ...]:
    """Reads one number for all dimensions, or one for each: `3`, `3x5` or `3,5`."""
    values = _integers(word, "a number or numbers such as 3, 3x5 or 3,5")
    return values[0] if len(values) == 1 else values


def padding(word: str) -> int | tuple[int, ...] | str:
    """Reads `same`, `valid`, or what `extent` reads."""
    if word in ("same", "valid"):
        return word
    values = _integers(word, "same, valid, a number or numbers such as 1, 1x2 or 1,2")
    return values[0] if len(values) == 1 else values


def shape(word: str) -> tuple[int, ...]:
    """Reads the shape of an input, batch first: `1,3,224,224`."""
    values = _integers(word, "a shape such as 1,3,224,224")
    if min(values) < 1 or len(values) < 2:
        raise argparse.ArgumentTypeError(f"{word!r} is not a shape of positive numbers such as 1,3,224,224")
    return values


def _integers(word: str, wanted: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in word.replace("x", ",").replace("×", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None


def channels(word: str) -> int:
    """Reads a number of channels. A model in its place is a slip that many make."""
    if not is_integer(word):
        raise argparse.ArgumentTypeError(
            f"{word!r} is no number of channels; this command takes one layer, as IN OUT, for example 64 128. "
            "To see a model, write: groupwise report MODEL; one layer of it: groupwise explain MODEL --layer NAME"
        )
    return int(word)


def amount(word: str) -> float:
    """Reads a number above 0, such as `3000000`, `3e6`, `3M` or `2.5G`."""
    text = word.strip()
    unit = text[-1:] if text[-1:] in _SCALES else ""
    wanted = "a number above 0, such as 2500000, 3M or 2.5G (k, M, G, T: thousands, millions, billions, trillions)"
    return _above_zero(text.removesuffix(unit), word, wanted) * _SCALES[unit]


def milliseconds(word: str) -> float:
    """Reads a time above 0 in milliseconds; `30` and `30ms` are the same."""
    wanted = "a time above 0 in milliseconds, such as 30 or 12.5; --macs and --parameters take amounts such as 2.5G"
    return _above_zero(word.strip().removesuffix("ms"), word, wanted)


def _above_zero(number: str, word: str, wanted: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}")
    return value
