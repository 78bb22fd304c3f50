"""The sweep of random layers: layers that PyTorch computes soundly, and rows that say what was timed."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import sys
import time

import pytest
import torch

import groupwise
from groupwise.kernels import tables
from groupwise.kernels.plan import DIRECTIONS, KERNELS
from groupwise.kernels.processor import processor_class
from kernels import needs_kernels
from scripts import ABOUT, load

measuring, sweep, sweeping = map(load, ("measuring", "sweep", "sweeping"))
DRAWS = [sweeping.draw(7, number, (1, 2)) for number in range(300)]
FIRST = next(name for name in KERNELS if name != "pytorch")


def test_the_draws_are_the_same_everywhere_and_of_every_kind():
    assert DRAWS[100:110] == [sweeping.draw(7, number, (1, 2)) for number in range(100, 110)]
    assert sweeping.draw(8, 0, (1, 2)) != DRAWS[0]
    assert {one.family for one in DRAWS} == {name for name, (weight, _) in sweeping.FAMILIES.items() if weight > 0}
    assert {one.direction for one in DRAWS} == set(DIRECTIONS)
    assert {(one.spec.dims, one.memory_format) for one in DRAWS} == {
        (1, "contiguous"),
        (2, "contiguous"),
        (2, "channels_last"),
    }
    assert {one.threads for one in DRAWS} == {1, 2}
    assert sum(weight for weight, _ in sweeping.FAMILIES.values()) == pytest.approx(1)


def test_some_families_alone_are_drawn_where_they_are_named():
    draws = [sweeping.draw(7, number, (1, 2), only=("few", "whole")) for number in range(200)]
    assert {one.family for one in draws} == {"few", "whole"}
    for one in draws:
        rows, columns = one.spec.output_size(one.size)
        assert columns <= 7 or rows == 1


def test_forwards_of_transposed_layers_alone_have_a_bias_now_and_then():
    draws = [sweeping.draw(7, number, (1, 2), only=("transposed", "grouped")) for number in range(200)]
    with_bias = {one.biased for one in draws if one.spec.transposed and one.direction == "forward"}
    assert with_bias == {True, False}
    assert not any(one.biased for one in draws if not one.spec.transposed or one.direction != "forward")
    biased = next(one for one in draws if one.biased)
    pool = torch.randn(sweeping.MOST_NUMBERS)
    without = dataclasses.replace(biased, biased=False)
    added = pool[: biased.spec.out_channels].reshape(-1, *[1] * biased.spec.dims)
    assert torch.allclose(biased.operator(pool)(), without.operator(pool)() + added, atol=1e-3)


def test_dilated_layers_reach_as_far_apart_as_those_of_pyramids_and_stacks():
    draws = [sweeping.draw(7, number, (1, 2), only=("dilated",)) for number in range(200)]
    for dims, far in ((1, 256), (2, 24)):
        dilations = {one.spec.dilation[-1] for one in draws if one.spec.dims == dims}
        assert min(dilations) == 2
        assert max(dilations) >= far
    assert {one.spec.groups == one.spec.in_channels for one in draws} == {True, False}


@pytest.mark.parametrize("one", DRAWS[:80], ids=lambda one: one.family)
def test_a_draw_is_a_layer_whose_outputs_see_the_image(one):
    spec = one.spec
    out = spec.output_size(one.size)
    given, read = (out, one.size) if spec.transposed else (one.size, out)
    for axis in range(spec.dims):
        for o in (0, read[axis] - 1):
            taps = [
                o * spec.stride[axis] + k * spec.dilation[axis] - spec.pads[axis][0]
                for k in range(spec.kernel_size[axis])
            ]
            assert max(taps) >= 0
            assert min(taps) < given[axis]
    images = one.batch * max(spec.in_channels * math.prod(one.size), spec.out_channels * math.prod(out))
    most = sweeping.LIMITS_OF_BIG if one.family == "big" else sweeping.LIMITS
    assert max(images, math.prod(spec.weight_shape)) <= most[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_layers_that_end_their_process_or_never_answer_are_passed_over(monkeypatch, capsys):
    def work(options, first, pipe):
        for number in range(first, options.count):
            if number in (0, 2, 3):
                os._exit(1)
            if number == 5:
                time.sleep(60)
            pipe.send((number, {"draw": number}))

    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(sweep, "work", work)
    monkeypatch.setattr(sweep, "PATIENCE", 3)
    options = argparse.Namespace(count=8, seed=0)
    assert [row["draw"] for row in sweep.drawn(options, math.inf)] == [1, 4, 6, 7]
    said = capsys.readouterr().err
    assert [number for number in range(8) if f"layer {number} of seed 0 ended the process" in said] == [0, 2, 3]
    assert said.count("took more than") == said.count("layer 5 of seed 0 took more than 3 s") == 1


def test_some_draws_are_big_enough_for_the_layers_that_cost_most():
    assert any(one.spec.dims == 1 and one.spec.groups >= 2048 for one in DRAWS), "such as Mamba's, of 5120 channels"
    work = [groupwise.cost(one.spec, one.size, batch=one.batch).macs.forward for one in DRAWS]
    assert any(macs > sweeping.LIMITS[0] for macs in work)


def test_layers_are_refused_whose_outputs_see_padding_alone():
    spec = groupwise.ConvSpec
    assert not sweeping.sound(spec(1, 1, 3, padding=3), (9, 9)), "before the image"
    assert not sweeping.sound(spec(1, 1, 2, stride=3, padding=2), (2, 9)), "behind the image"
    assert not sweeping.sound(spec(1, 1, 3, padding=4, dilation=4), (2, 9)), "between two taps"
    assert sweeping.sound(spec(1, 1, 3, padding=2), (9, 9))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_operator_computes_the_pass(direction, transposed):
    spec = groupwise.ConvSpec(4, 8, 3, 2, 1, groups=2, transposed=transposed)
    one = sweeping.Draw("odd", spec, (5, 6), 2, direction, "channels_last", 1)
    pool = torch.randn(5000)
    found = one.operator(pool)()
    shapes = {
        "forward": (2, 8, *spec.output_size((5, 6))),
        "grad_input": (2, 4, 5, 6),
        "grad_weight": spec.weight_shape,
    }
    results = [found] if direction == "forward" else [each for each in found if each is not None]
    assert [tuple(result.shape) for result in results] == [shapes[direction]]
    x, weight = pool[:240].reshape(2, 4, 5, 6), pool[: math.prod(spec.weight_shape)].reshape(spec.weight_shape)
    grad = pool[: math.prod(shapes["forward"])].reshape(shapes["forward"])
    x, weight, grad = (t.double().requires_grad_() for t in (x, weight, grad))
    function = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    output = function(x, weight, stride=2, padding=1, groups=2)
    exact = dict(zip(DIRECTIONS, (output, *torch.autograd.grad(output, (x, weight), grad)), strict=True))
    torch.testing.assert_close(results[0].double(), exact[direction], rtol=1e-4, atol=1e-4)


def test_a_slow_case_is_settled_by_its_first_times():
    class Stub:
        def __init__(self, seconds):
            self.took, self.calls = seconds, 0

        def seconds(self):
            self.calls += 1
            return self.took

    cases = {"pytorch": Stub(0.02), FIRST: Stub(0.07), "pytorch again": Stub(0.02)}
    found = sweep.times(cases, sweep.Effort(least=5, budget=0, most=9))
    assert {name: len(seconds) for name, seconds in found.items()} == {"pytorch": 5, FIRST: 3, "pytorch again": 5}
    assert cases["pytorch"].calls == 6, "a slow call needs no untimed one before it"
    slow = {"pytorch": Stub(1.0), FIRST: Stub(0.1), "pytorch again": Stub(1.0)}
    found = sweep.times(slow, sweep.Effort(least=5, budget=0, most=9))
    assert {len(seconds) for seconds in found.values()} == {2}
    quick = {"pytorch": Stub(1e-3), "pytorch again": Stub(1e-3)}
    sweep.times(quick, sweep.Effort(least=5, budget=0, most=9))
    assert quick["pytorch"].calls == 11
    assert sweep.steady({"pytorch": [1.0, 9.0, 1.0, 1.0], "pytorch again": [1.05]})
    assert not sweep.steady({"pytorch": [1.0], "pytorch again": [1.2]})
    assert sweep.steady({"pytorch": [1.0], FIRST: [5.0, 8.0, 9.0, 5.1], "pytorch again": [1.0]})
    assert not sweep.steady({"pytorch": [1.0], FIRST: [5.0, 8.0, 5.0, 8.0], "pytorch again": [1.0]})


@needs_kernels
def test_a_row_says_what_was_timed():
    spec = groupwise.ConvSpec(16, 16, (1, 3), 1, (0, 1), groups=16, transposed=True)
    one = sweeping.Draw("odd", spec, (2, 9), 2, "forward", "contiguous", 1)
    threads = torch.get_num_threads()
    try:
        row = sweep.measure(one, torch.randn(5000), sweep.Effort(2, 0, 2))
    finally:
        torch.set_num_threads(threads)
    assert (row["direction"], row["transposed"], row["dims"]) == ("grad_input", True, 2)
    assert (row["batch"], row["in_channels"], row["input_size"], row["kernel_size"]) == (2, 16, [2, 9], [1, 3])
    assert set(row["least_ms"]) - {"pytorch", "pytorch again"} <= set(KERNELS)
    assert FIRST in row["least_ms"]
    assert set(row["products"]) == set(row["least_ms"]) - {"pytorch again"}
    assert row["products"]["pytorch"] == 2 * 16 * 3 * 2 * 9
    assert row["working"] == 1
    assert row["class"] == processor_class()
    assert json.loads(json.dumps(row)) == row


@needs_kernels
@pytest.mark.usefixtures("threads")
def test_the_record_keeps_the_rows_of_others(tmp_path, monkeypatch, capsys):
    path = tmp_path / "sweep.jsonl"
    others = [{**ABOUT, "benchmark": "sweep", "seed": 3, "class": name, "isa": "avx2"} for name in ("vax", "pdp")]
    others.append({**others[0], "class": processor_class(), "isa": "none"})
    measuring.write_record(path, others, sweep.UNIT)
    quick = sweep.Effort(2, 0, 2)
    monkeypatch.setattr(sweep, "Effort", lambda: quick)
    for _ in range(2):
        words = ["--count", "3", "--seed", "3", "--threads", "1", "--output", str(path)]
        monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
        sweep.main()
    rows = measuring.read_record(path)
    assert rows[:3] == others
    assert [row["draw"] for row in rows[3:]] == [0, 1, 2], "a second run replaces the first"
    assert {"processor", "torch", "commit", "dtype", "threads"} <= set(rows[3])
    assert "3 rows" in capsys.readouterr().out


@needs_kernels
def test_rows_are_timed_again_where_a_kernel_takes_another_time(tmp_path, monkeypatch):
    path = tmp_path / "sweep.jsonl"
    quick = sweep.Effort(2, 0, 2)
    monkeypatch.setattr(sweep, "Effort", lambda: quick)
    monkeypatch.setattr(sweep, "drawn", lambda options, end: (sweep.work(options, 0, pipe), pipe.rows)[1])
    threads = torch.get_num_threads()

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "--seed", "3", "--threads", "1", "--output", str(path), *words])
        try:
            sweep.main()
        finally:
            torch.set_num_threads(threads)
        return measuring.read_record(path)

    pipe = Pipe()
    rows = [row for row in run("--count", "12") if "planar" in row["least_ms"]]
    slow, other, same, *_ = rows
    slow["least_ms"]["planar"] *= 1000
    # A layer that this seed no longer draws, and a row of another machine.
    other["in_channels"] += 1
    elsewhere = {**slow, "class": "vax"}
    real = sweep.is_changed
    monkeypatch.setattr(sweep, "is_changed", lambda one, pool, name, row: row != same and real(one, pool, name, row))
    path.write_text("".join(json.dumps(row) + "\n" for row in (elsewhere, slow, other, same)))
    pipe = Pipe()
    found = run("--changed", "planar")
    assert found[:3] == [elsewhere, other, same]
    assert [row["draw"] for row in found[3:]] == [slow["draw"]]
    assert found[3]["least_ms"]["planar"] < slow["least_ms"]["planar"]


@needs_kernels
def test_rows_of_another_dtype_have_a_record_of_their_own(tmp_path, monkeypatch):
    quick = sweep.Effort(2, 0, 2)
    monkeypatch.setattr(sweep, "Effort", lambda: quick)
    monkeypatch.setattr(sweep, "RECORDS", tmp_path)
    pipe, threads = Pipe(), torch.get_num_threads()
    words = ["--count", "2", "--seed", "3", "--threads", "1", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
    monkeypatch.setattr(sweep, "drawn", lambda options, end: (sweep.work(options, 0, pipe), pipe.rows)[1])
    try:
        sweep.main()
    finally:
        torch.set_num_threads(threads)
    rows = measuring.read_record(tmp_path / "sweep-bfloat16.jsonl")
    assert [row["dtype"] for row in rows] == ["bfloat16"] * len(pipe.rows)
    assert rows
    assert all(FIRST in row["least_ms"] for row in rows if row["family"] == "depthwise")
    names = {sweep.record_of(kind) for kind in tables.KINDS}
    assert {"sweep.jsonl", "volumes.jsonl", "sweep-float64.jsonl", "volumes-float16.jsonl"} <= names
    assert len(names) == len(tables.KINDS)


class Pipe:
    """Keeps the rows that a worker sends."""

    def __init__(self):
        self.rows = []

    def send(self, told):
        if told[1]:
            self.rows.append(told[1])


def test_the_report():
    def row(chosen, ours, **facts):
        ms = {"pytorch": 4.0, FIRST: ours, "pytorch again": 4.0}
        shape = {"groups": 2, "in_channels": 8, "out_channels": 4, "input_size": [5, 6], "output_size": [3, 4]}
        shape |= {"kernel_size": [3, 3], "stride": [1, 1], "dilation": [1, 1], "batch": 2, "threads": 2}
        return {
            "chosen": chosen,
            "least_ms": ms,
            "steady": True,
            "direction": "forward",
            "memory_format": "contiguous",
            **shape,
            **facts,
        }

    lines = sweep.report([row(FIRST, 2.0), row(FIRST, 5.0), row("pytorch", 1.0), row(FIRST, 9.0, steady=False)])
    assert lines[0] == "4 rows, 1 disturbed; a kernel of groupwise ran in 2 others."
    assert "0% 0.80" in lines[1]
    assert "100% 2.00" in lines[1]
    assert "0 below 0.67, 1 below 0.95 of 2" in lines[1]
    assert "0 below 0.95 of 3" in lines[2]
    assert lines[3] == "These take 12 ms in PyTorch, 11 as chosen, 7 with the best kernel each."
    told = f"  0.80 (4 | 5 ms) {FIRST} forward contiguous 2 threads: 2 of 8 to 4, groups 2, kernel 3x3, 5x6 to 3x4"
    assert lines[5].startswith(told)


@pytest.mark.parametrize("name", sweeping.STEPS)
def test_the_layers_of_steps_have_several_samples(name):
    draws = [sweeping.draw(3, number, (1, 2), only=(name,)) for number in range(120)]
    assert {one.family for one in draws} == {name}
    assert sum(one.batch >= 4 for one in draws) > 80
    for one in draws:
        assert sweeping.affordable(one.spec, one.size, one.batch, sweeping.LIMITS_OF_BIG)
        if name == "products":
            assert one.spec.kernel_size == (1, 1)
            assert min(one.spec.in_channels, one.spec.out_channels) >= 64


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_case_begins_a_round_and_follows_more_than_one(count):
    rounds = [sweep.in_turn(range(count), number) for number in range(2 * count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    assert {order[0] for order in rounds} == set(range(count))
    pairs = {pair for order in rounds for pair in itertools.pairwise(order)}
    assert {(second, first) for first, second in pairs} == pairs, "each two follow each other both ways"
