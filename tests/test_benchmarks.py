"""The benchmarks' own code: layers that are what they say, no figure from a wrong result, ratios the right way up."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pathlib
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

import groupwise
from groupwise import ConvSpec, cost
from groupwise.kernels import dispatch, native
from kernels import needs_kernels
from scripts import ABOUT, load

shapes, checking, measuring, floor = map(load, ("shapes", "checking", "measuring", "floor"))
layers, networks, engines, worker = map(load, ("layers", "networks", "engines", "engine_worker"))
peak, groups, run = map(load, ("peak", "groups", "run"))
LAYERS = [(which, layer) for which in shapes.FILES for layer in shapes.read(which)]
SMALL = next(layer for _, layer in LAYERS if layer.name == "odd-width6")


@pytest.mark.parametrize(("which", "layer"), LAYERS, ids=[f"{which}-{layer.name}" for which, layer in LAYERS])
def test_a_layer_is_what_pytorch_makes_of_it(which, layer):
    spec, samples = layer.spec, layer.samples(1)
    assert spec.op == layer.op
    assert layer.kind in shapes.KINDS
    assert layer.source
    with torch.device("meta"):
        tensors = shapes.Tensors(
            spec,
            torch.empty(samples, spec.in_channels, *layer.size),
            torch.empty(spec.weight_shape),
            torch.empty(spec.out_channels),
            torch.empty(samples, spec.out_channels, *spec.output_size(layer.size)),
        )
        results = tensors.step()
    sizes = [t.shape for t in (tensors.grad_output, tensors.input, tensors.weight, tensors.bias)]
    assert [t.shape for t in results] == sizes
    assert layer.cost(1).output_size == results[0].shape[2:]


def test_no_layer_is_there_twice():
    assert {which: sum(w == which for w, _ in LAYERS) for which in shapes.FILES} == {"listed": 49, "held_out": 33}
    names = [layer.name for _, layer in LAYERS]
    assert len(set(names)) == len(names)
    assert set(shapes.PAYOFF) <= {layer.name for layer in shapes.read("listed")}
    numbers = [(layer.spec, layer.size) for _, layer in LAYERS]
    assert len(set(numbers)) == len(numbers)


def test_the_values_of_a_layer():
    tensors = SMALL.tensors(8)
    assert tensors.input.shape == (8, 24, 13, 19)
    assert torch.equal(tensors.input, SMALL.tensors(8).input)
    conv = nn.Conv2d(24, 24, 3, padding=1, groups=4)
    conv.weight.data, conv.bias.data = tensors.weight.clone(), tensors.bias.clone()
    given = tensors.input.clone().requires_grad_()
    output = conv(given)
    output.backward(tensors.grad_output)
    results = tensors.in_format("channels_last").step()
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(results, (output, given.grad, conv.weight.grad, conv.bias.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert output.std().item() == pytest.approx(1.4, abs=0.2), "1 of the weights, 1 of the bias"
    assert SMALL.tensors(1, groups=1).weight.shape == (24, 24, 3, 3)


def test_the_floor():
    peaks = floor.Peaks(threads=1, flop=1e9, copied_bytes=1e9, flop_by="hand")
    heavy = cost(ConvSpec(64, 64, 3, padding=1), 10)
    assert peaks.floor_ms(heavy) == pytest.approx(2 * 64 * 64 * 9 * 100 / 1e6)
    light = cost(ConvSpec(64, 64, 1, groups=64), 10)
    assert peaks.floor_ms(light) == pytest.approx(4 * (64 * 100 * 2 + 64) / 1e6)
    assert peaks.floor_ms(light, training=True) == pytest.approx(3 * peaks.floor_ms(light))


@pytest.mark.parametrize(
    ("seconds", "low", "median", "high"),
    [([2.0], 2000, 2000, 2000), ([3.0, 1.0], 1400, 2000, 2600), ([1.0, 3.0, 2.0], 1400, 2000, 2600)],
)
def test_the_quantiles_of_a_few_samples_are_within_them(seconds, low, median, high):
    expected = {"ms": median, "ms_20_percent": low, "ms_80_percent": high, "repeats": len(seconds)}
    assert measuring.figures(seconds) == expected


def test_the_newest_machine():
    def at(processor, date, **more):
        return {"processor": processor, "torch": "2.13.0", "date": date, **more}

    old = at("A", "2026-11-22")
    assert measuring.newest_machine([]) is None
    assert measuring.newest_machine([at("B", "2026-11-23"), old]) == ("B", "2.13.0")
    early, late = at("A", "2026-11-23", time="08:00:00"), at("B", "2026-11-23", time="09:00:00")
    assert measuring.newest_machine([late, early, old]) == ("B", "2.13.0")
    assert measuring.newest_machine([old, at("C", "2026-11-22")]) == ("C", "2.13.0"), "a record is written to its end"
    about = measuring.about()
    assert {"date", "time"} <= set(about)
    assert measuring.newest_machine([about, old]) == (about["processor"], torch.__version__)


def test_the_record_of_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "SHAPES", [(4, 5)])
    monkeypatch.setattr(groups, "_cold_start", lambda: [0.1, 0.3, 0.2])
    words = ["--repeats", "2", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["groups.py", *words, "--output", str(tmp_path / "groups.jsonl")])
    groups.main()
    *rows, cold = measuring.read_record(tmp_path / "groups.jsonl")
    sides = ("pytorch", "groupwise") if native.available() else ("pytorch",)
    assert [(row["groups"], row["memory_format"], row["implementation"]) for row in rows] == [
        (g, f, side) for g in (1, 2, 4) for f in shapes.FORMATS for side in sides
    ]
    dense = [row for row in rows if row["groups"] == 1 and row["implementation"] == "pytorch"]
    assert {row["of_dense"] for row in dense} == {1.0}
    assert {row["repeats"] for row in rows} == {2}
    assert (cold["benchmark"], cold["ms"], cold["repeats"]) == (groups.COLD_START, 200, 3)


def test_errors():
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert checking.largest_error(torch.tensor([1.5, -4.0]), exact) == pytest.approx(0.125)
    assert checking.mean_error(torch.tensor([1.0, -3.0]), exact) == pytest.approx(1 / math.sqrt(17))
    for error in (checking.largest_error, checking.mean_error):
        assert error(torch.tensor([math.nan, -4.0]), exact) == math.inf
        assert error(torch.tensor([1.0]), exact) == math.inf
        assert error(torch.tensor([1.0, -4.0]), exact) == 0
    checking.check_error("it", ours=2e-6, pytorch=1e-6)
    with pytest.raises(checking.WrongResult, match=r"it is 2\.20e-06 from float64, and PyTorch's 1\.00e-06"):
        checking.check_error("it", ours=2.2e-6, pytorch=1e-6)


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for this package's kernels, PyTorch's own with an error, and a floor that costs nothing."""
    state = {"on": False, "output": 0.0, "gradient": 0.0}

    @contextlib.contextmanager
    def switch(on):
        before, state["on"] = state["on"], on
        yield
        state["on"] = before

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            ctx.error = state["gradient"] * state["on"]
            return output + state["output"] * state["on"]

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 + ctx.error)

    real = shapes.Tensors.forward
    monkeypatch.setattr(groupwise, "enabled", lambda: switch(True))
    monkeypatch.setattr(dispatch, "forced", lambda ours=None: switch(bool(ours)))
    monkeypatch.setattr(shapes.Tensors, "forward", lambda self: Kernel.apply(real(self)))
    monkeypatch.setattr(floor, "measure", lambda threads: floor.Peaks(threads, 1e9, 1e9, "hand"))
    return state


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Time one small layer into a record; gives the rows."""
    threads, path = torch.get_num_threads(), tmp_path / "layers.jsonl"

    def measure():
        words = "--held-out --only odd-width6 --repeats 2 --budget 0 --visits 1 --threads 1".split()
        monkeypatch.setattr(sys, "argv", ["layers.py", *words, "--output", str(path)])
        try:
            layers.main()
        finally:
            torch.set_num_threads(threads)
        return measuring.read_record(path)

    measure.path = path
    return measure


def test_right_kernels_are_timed(kernel, measure):
    rows = measure()
    ways = {(who, name) for who in ("pytorch", "groupwise") for name in shapes.FORMATS}
    assert [row["pass"] for row in rows] == ["forward"] * 4 + ["training"] * 4
    assert {(row["implementation"], row["memory_format"]) for row in rows[:4]} == ways
    for row in rows:
        assert row["ms_20_percent"] <= row["ms"] <= row["ms_80_percent"]
        assert row["repeats"] == 2
        assert {"processor", "threads", "torch", "commit", "dtype"} <= set(row)
        assert row["busy"] is None or 0 <= row["busy"] <= 1
    assert measure() != rows
    assert len(measuring.read_record(measure.path)) == len(rows), "a second run replaces the first"


@pytest.mark.parametrize("part", ["output", "gradient"])
def test_wrong_kernels_are_refused(kernel, measure, part):
    other = {"benchmark": "layer", "set": "listed", "layer": "odd-width6"}
    measure()
    measuring.write_record(measure.path, [other], layers.UNIT)
    kernel[part] = 1e-5
    with pytest.raises(SystemExit, match=f"odd-width6: {'output' if part == 'output' else 'grad_input'} is .* from"):
        measure()
    assert measuring.read_record(measure.path) == [other], "what the record had of it is gone, and nothing else"


def test_a_network_whose_one_gradient_is_wrong_is_refused(monkeypatch):
    def build(name):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=32), nn.Flatten(), nn.Linear(196, 1000))

    monkeypatch.setattr(networks, "build", build)
    monkeypatch.setattr(groupwise, "enabled", contextlib.nullcontext)
    monkeypatch.setattr(dispatch, "forced", lambda ours=None: contextlib.nullcontext())
    networks.exact.cache_clear()
    for training in (False, True):
        ours, pytorch = networks.check("small", 2, training)
        assert ours == pytorch < 1e-5
    real, switched = networks.results, []

    def wrong(model, images, labels):
        found = real(model, images, labels)
        found["0.bias"] *= 1.1 if switched else 1
        return found

    @contextlib.contextmanager
    def enabled():
        switched.append(True)
        yield
        switched.clear()

    monkeypatch.setattr(networks, "results", wrong)
    monkeypatch.setattr(groupwise, "enabled", enabled)
    with pytest.raises(checking.WrongResult, match=r"small: 0\.bias is 1\.00e-01 from"):
        networks.check("small", 2, training=True)
    networks.exact.cache_clear()


class Engine:
    """Stands in for an engine's process: PyTorch, off by an error."""

    def __init__(self, error):
        self.error = error

    def ask(self, load=None, threads=None, run=None):
        if run:
            return {"seconds": [1.0, *[0.002] * (run - 1)]}
        layer = worker.Layer.read(load)
        options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        arrays = map(torch.from_numpy, (layer.input, layer.weight, layer.bias))
        output = nn.functional.conv2d(*arrays, **options) + self.error
        assert output.shape == layer.output_shape
        path = pathlib.Path(load).with_name("output.npy")
        np.save(path, output.numpy())
        return {"output": str(path), "variant": "", "version": "1"}


@pytest.mark.parametrize("name", ["odd-width6", "conformer-s-dw31"])
def test_an_engine_is_timed_if_it_is_right(kernel, monkeypatch, name):
    monkeypatch.setattr(engines, "PAUSE", 0)
    layer = next(layer for _, layer in LAYERS if layer.name == name)
    rows = engines.measure(layer, {"right": Engine(1e-5), "wrong": Engine(0.1)}, repeats=2)
    *ours, right, wrong = rows
    assert len(ours) == 2 * len(layer.memory_formats)
    assert all(row["ms"] > 0 for row in ours)
    assert right["ms"] == 2, "the first call of a turn is not counted"
    assert "ms" not in wrong
    assert "by wrong is" in wrong["problem"]


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_an_engine_that_stops_while_it_is_timed(kernel, monkeypatch, answers):
    """In its first turn, which says how many calls make one, or in a later one."""

    class Stops(Engine):
        left = answers

        def ask(self, **question):
            if "run" in question:
                self.left -= 1
                if self.left < 0:
                    return {"problem": "its process ended with status -11"}
            return super().ask(**question)

    monkeypatch.setattr(engines, "PAUSE", 0)
    *ours, stopped, right = engines.measure(SMALL, {"stops": Stops(0.0), "right": Engine(0.0)}, repeats=3)
    assert (stopped["problem"], "ms" in stopped) == ("its process ended with status -11", False)
    assert (right["ms"], right["repeats"]) == (2, 3)
    assert all(row["repeats"] == 3 for row in ours)


def test_a_worker_answers(tmp_path, monkeypatch):
    """The protocol, with an engine that is PyTorch in two variants."""
    made = engines.save(SMALL, SMALL.tensors(1), SMALL.tensors(1).forward(), tmp_path)

    def engine(layer, threads):
        assert (layer.kernel, layer.padding, layer.groups, threads) == ((3, 3), (1, 1), 4, 2)
        yield "slow", lambda: sum(range(200_000)), lambda: None
        yield "quick", lambda: None, lambda: layer.input + 1

    monkeypatch.setattr(worker, "ENGINES", {"numpy": engine, "none": lambda layer, threads: 1 / 0})
    asked = "".join(f"{json.dumps(q)}\n" for q in ({"load": str(made), "threads": 2}, {"run": 3}))
    answers = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    worker.serve("numpy", answers)
    loaded, ran = map(json.loads, answers.getvalue().splitlines())
    assert (loaded["variant"], loaded["version"]) == ("quick", np.__version__)
    np.testing.assert_array_equal(np.load(loaded["output"]), SMALL.tensors(1).input.numpy() + 1)
    assert len(ran["seconds"]) == 3
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked.split("\n", 1)[0]))
    worker.serve("none", answers := io.StringIO())
    assert json.loads(answers.getvalue()) == {"problem": "ZeroDivisionError: division by zero"}


@needs_kernels
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("direction", peak.DIRECTIONS)
def test_the_fraction_of_peak_of_a_kind(direction):
    kind = peak.Kind("small", 16, 4, 9, 3)
    peaks = floor.Peaks(1, 1e9, 1e9, "made up")
    rows = peak.measure(kind, direction, "channels_last", measuring.Effort(2, 0, 2), peaks)
    assert [one["kernel"] for one in rows] == ["pytorch", "planar", "narrow"]
    # 2 FLOP a MAC of 4 channels by 9 taps, against 16 channels read and written and the weight, 4 bytes each.
    at_peak, copied = 2 * 16 * 81 * 36, 4 * (2 * 16 * 81 + 16 * 36)
    assert all(one["fraction_of_peak"] > 0 and one["attainable"] == round(min(1, at_peak / copied), 4) for one in rows)
    told = load("summary").peak_table([{**ABOUT, **one} for one in rows])
    assert told.rows[0][-1] == f"{rows[2]['fraction_of_peak']:.0%}"


def test_what_run_takes(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(run, "run", lambda words: done.append(words) or words[0] == "networks.py")
    monkeypatch.setattr(sys, "argv", ["run.py", "--threads", "1", "2"])
    with pytest.raises(SystemExit, match="failed, as said above: networks"):
        run.main()
    assert done[0] == ["groups.py", "--threads", "2"]
    assert done[2] == ["layers.py", "--held-out", "--threads", "1", "2"]
    assert [words[0] for words in done] == (
        "groups.py layers.py layers.py peak.py errors.py networks.py chart.py whole_chart.py whole_tables.py "
        "step_tables.py layer_tables.py summary.py"
    ).split()
    done.clear()
    monkeypatch.setattr(sys, "argv", ["run.py", "held-out", "--threads", "1", "--peers", "--envs", "made"])
    run.main()
    assert done[1] == "engines.py --dtype float32 bfloat16 float16 float64 --threads 1 --envs made".split()
    monkeypatch.setattr(sys, "argv", ["run.py", "--peers"])
    with pytest.raises(SystemExit):
        run.main()
    assert "--peers needs --envs DIR" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run.py", "speed"])
    with pytest.raises(SystemExit):
        run.main()
    assert (
        "speed is no benchmark; valid: groups, layers, held-out, dtypes, peak, errors, networks, engines, peers, "
        "whole, steps" in capsys.readouterr().err
    )
