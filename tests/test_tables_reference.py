"""The core chooses by shipped tables as `benchmarks/policy.py` says: the same kernels, speedups and spreads."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from groupwise import ConvSpec, enabled, plan
from groupwise.kernels import native, tables
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import DIRECTIONS, KERNELS
from kernels import needs_kernels
from scripts import load

foreseen, policy, sweep = map(load, ("foreseen", "policy", "sweep"))
pytestmark = needs_kernels
KINDS = [tables.Kind(False, "float32"), tables.Kind(True, "float32"), tables.Kind(False, "bfloat16")]


def drawn(chance, dims):
    """A layer of a kind that tables know, an input that it takes, and the settings of a plan."""
    while True:
        groups = chance.choice((1, 1, 1, 2, 4, 8, 32, 64))
        channels = [groups * chance.choice((1, 1, 2, 4, 8, 16, 24)) for _ in range(2)]
        spec = ConvSpec(
            *channels,
            chance.choice((1, 3, 3, 5)),
            stride=chance.choice((1, 1, 2)),
            padding=chance.choice((0, 1)),
            groups=groups,
            transposed=chance.random() < 0.25,
            bias=chance.random() < 0.5,
            dims=dims,
        )
        shape = (chance.choice((1, 2, 8)), channels[0], *(chance.choice((7, 14, 28)) for _ in range(dims)))
        try:
            spec.output_size(shape[2:])
        except ValueError:
            continue
        formats = ("contiguous", "channels_last_3d" if dims == 3 else "channels_last")
        settings = {"memory_format": chance.choice(formats), "direction": chance.choice(DIRECTIONS)}
        return spec, shape, settings | {"threads": chance.choice((1, 2))}


def row_of(spec, shape, settings, told):
    """A row of the sweep's record, with the products of all kernels that can run."""
    products = {"pytorch": sweep.products(told)}
    for kernel in KERNELS:
        with forced(True, kernel):
            found = plan(spec, shape, **settings)
        if found.kernel == kernel != "pytorch":
            products[kernel] = found.products
    biased = spec.transposed and spec.bias and told.direction == "grad_input"
    facts = {"direction": told.direction, "memory_format": told.memory_format, "threads": settings["threads"]}
    return {
        **told.shape,
        **facts,
        "dims": spec.dims,
        "transposed": spec.transposed,
        "biased": biased,
        "products": products,
    }


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_core_chooses_as_the_reference_does(kind):
    path = tables.FOLDER / f"amd-25-17-avx512{kind.file_suffix}.json"
    file = json.loads(path.read_text("utf-8"))
    read = [foreseen.Table.of(table) for table in file["tables"]]
    roofline, isa = foreseen.Roofline(*file["roofline"]), native.status().isa
    chance, taken = random.Random(str(kind)), 0
    try:
        tables.give(native.library(), isa + kind.name_in_core, file)
        with enabled(tune=False):
            for _ in range(120):
                spec, shape, settings = drawn(chance, 3 if kind.volumes else 2)
                settings["dtype"] = getattr(torch, kind.dtype)
                told = plan(spec, shape, **settings)
                row = row_of(spec, shape, settings, told)
                can_run = [name for name in row["products"] if name != "pytorch"]
                values = list(policy.features(row).values())
                expected = foreseen.estimates_of(read, roofline, file["bounded"], row, values, can_run)
                assert bool(expected) == (told.source == "table")
                if not expected or told.hazard:
                    continue
                assert told.kernel == policy.decide(file, row, can_run), (spec, shape, settings)
                if told.kernel == "pytorch":
                    continue
                taken += 1
                mean, spread = expected[told.kernel]
                assert math.log2(told.speedup) == pytest.approx(mean, abs=1e-4)
                assert f"give or take {2**spread:.2f}x" in told.evidence
    finally:
        tables.clear(native.library(), isa)
    assert taken, "no layer tells the speedups apart"
