"""The values of options: amounts, milliseconds and numbers of channels."""

from __future__ import annotations

import argparse

import pytest

from groupwise.cli import values


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3000000", 3e6),
        ("3e6", 3e6),
        ("3M", 3e6),
        ("2.5G", 2.5e9),
        ("2.5 G", 2.5e9),
        ("7k", 7e3),
        ("7K", 7e3),
        ("1T", 1e12),
        ("1B", 1e9),
    ],
)
def test_amounts(word, value):
    assert values.amount(word) == value


@pytest.mark.parametrize("word", ["", "M", "3x", "0", "-3M", "nan", "inf", "1e999", "3MM", "3m"])
def test_what_is_no_amount(word):
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number above 0, such as 2500000, 3M or 2\.5G"):
        values.amount(word)


def test_milliseconds():
    assert (values.milliseconds("12.5"), values.milliseconds("30ms")) == (12.5, 30)
    for word in ("0", "-1", "nan", "3M", "fast"):
        with pytest.raises(argparse.ArgumentTypeError, match="a time above 0 in milliseconds, such as 30"):
            values.milliseconds(word)


def test_channels():
    assert values.channels("64") == 64
    with pytest.raises(argparse.ArgumentTypeError, match="'resnet18' is no number of channels"):
        values.channels("resnet18")
