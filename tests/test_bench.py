from __future__ import annotations

import json

import pytest
import torch

from groupwise import ConvSpec, GroupwiseError, bench, cost, plan
from groupwise.profile import bench as benching
from groupwise.profile.roofline import Roofline
from kernels import needs_kernels, stand_in, without_kernels

WORKS = ["forward", "training step"]


def test_without_the_kernels_pytorchs_are_timed(monkeypatch):
    without_kernels(monkeypatch)
    made = bench(ConvSpec(8, 8, 3, groups=8), (2, 8, 9, 7), repeats=1)
    facts = made.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert [(row["work"], row["library"], row["memory_format"]) for row in facts["timings"]] == [
        (work, "pytorch", name) for work in WORKS for name in ("contiguous", "channels_last")
    ]
    assert all(row["ms"] > 0 and row["speedup"] == 1 and row["roofline"] > 0 for row in facts["timings"])
    assert facts["not_measured"] == "there is none; `groupwise doctor` says how to have them"
    assert facts["macs"] == cost(ConvSpec(8, 8, 3, groups=8), (9, 7), batch=2).macs.to_dict()
    assert "groupwise's kernels were not measured: there is none" in " ".join(str(made).split())


@pytest.mark.parametrize(("rate", "said"), [(1e30, False), (1.0, True)])
def test_times_that_beat_the_roofline_are_not_to_be_trusted(monkeypatch, rate, said):
    without_kernels(monkeypatch)
    monkeypatch.setattr(benching, "measure_roofline", lambda threads: Roofline(rate, rate))
    text = " ".join(str(bench(ConvSpec(8, 8, 3, groups=8), (2, 8, 9, 7), repeats=1)).split())
    assert ("Do not trust these fractions" in text) is said


def test_speedup_and_roofline_by_hand(monkeypatch):
    stand_in(monkeypatch)
    seconds = {"contiguous": (0.016, 0.004), "channels_last": (0.006, 0.003)}

    def canned(calls, repeats):
        return {
            (work, ours, name): [0.0, seconds[name][ours] * (3 if work == "training step" else 1), 99.0]
            for work, ours, name in calls
        }

    monkeypatch.setattr(benching, "_interleave", canned)
    monkeypatch.setattr(benching, "measure_roofline", lambda threads: Roofline(1e9, 1e30))
    spec = ConvSpec(8, 8, 3, groups=2, padding=1)
    made = bench(torch.nn.Conv2d(8, 8, 3, groups=2, padding=1), (1, 8, 20, 20), repeats=3)
    won = "Each in its better memory format: forward 2.00×, training step 2.00×."
    assert won in " ".join(str(made).split())
    floor_ms = 2 * cost(spec, 20).macs.forward / 1e9 * 1e3
    expected = []
    for work, factor in zip(WORKS, (1, 3), strict=True):
        for ours, library in enumerate(("pytorch", "groupwise")):
            for name, both in seconds.items():
                ms = both[ours] * factor * 1e3
                expected.append((work, library, name, ms, both[0] / both[ours], floor_ms * factor / ms))
    got = [(t.work, t.library, t.memory_format, t.ms, t.speedup, t.roofline) for t in made.timings]
    assert [row[:3] for row in got] == [row[:3] for row in expected]
    assert [row[3:] for row in got] == [pytest.approx(row[3:]) for row in expected]
    assert made.cost == cost(spec, 20)
    # Between 0, the median and 99 seconds, half way each.
    assert [(t.q1_ms, t.q3_ms) for t in made.timings] == [
        pytest.approx((t.ms / 2, (t.ms + 99e3) / 2)) for t in made.timings
    ]


def test_the_table(monkeypatch):
    stand_in(monkeypatch)
    lines = str(bench(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9), repeats=1)).split("\n")
    assert lines[0] == "conv2d 8 → 8, kernel 3×3, groups=8; 9×9, batch 1, float32"
    assert lines[2].split() == "kernels of memory format kernel ms quartiles speedup roofline".split()
    assert [line[:13].strip() for line in lines[4:12]] == ["forward"] * 4 + ["training step"] * 4
    assert max(map(len, lines)) <= 100


def test_all_are_timed_in_turn_by_their_kernels(monkeypatch):
    asked = stand_in(monkeypatch)
    order = []
    calls = {("forward", ours, name): lambda o=ours, n=name: order.append((o, n)) for ours in (0, 1) for name in "ab"}
    monkeypatch.setattr(benching, "_MOST_CALLS", 2)
    times = benching._interleave(calls, repeats=3)
    assert {len(of) for of in times.values()} == {3}
    # What takes no time is called as often as may be, from the third round on.
    round_ = [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert order == round_ * 2 + [key for key in round_ for _ in range(2)] * 3
    assert asked == [0, 0, 1, 1] * 5


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ConvSpec(4, 8, 3, groups=2, dims=1, bias=False), (2, 4, 9)),
        (ConvSpec(4, 8, 3, groups=2, dims=3, padding="same", padding_mode="circular"), (1, 4, 5, 5, 5)),
        (ConvSpec(4, 8, (3, 2), (2, 1), groups=4, transposed=True, output_padding=(1, 0)), (1, 4, 5, 6)),
    ],
)
def test_every_kind_of_layer(monkeypatch, spec, shape):
    stand_in(monkeypatch)
    made = bench(spec, shape, dtype=torch.float64, repeats=1)
    assert made.cost == cost(spec, input_shape=shape, dtype="float64")
    assert len(made.timings) == (8 if spec.dims == 2 else 4)
    assert {timing.roofline for timing in made.timings} == {None}


def test_it_leaves_things_as_they_were(monkeypatch):
    stand_in(monkeypatch)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        made = bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), threads=threads + 1, repeats=1)
    assert made.machine["threads"] == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
def test_the_kernels_are_those_of_the_plans(transposed):
    spec = ConvSpec(16, 16, 3, padding=1, groups=16, transposed=transposed)
    for timing in bench(spec, (1, 16, 9, 9), repeats=1).timings:
        planned = {
            name: plan(spec, (1, 16, 9, 9), memory_format=timing.memory_format, direction=name).kernel
            for name in (("forward",) if timing.work == "forward" else ("forward", "grad_input", "grad_weight"))
        }
        assert dict(timing.kernels) == (planned if timing.library == "groupwise" else dict.fromkeys(planned, "pytorch"))


def test_the_dtype_is_the_layers_own():
    layer, source = torch.nn.Conv2d(8, 8, 3, groups=8), torch.randn(1, 8, 9, 9)
    assert bench(layer.double(), source, repeats=1).cost.dtype == "float64"
    assert bench(layer, source, "float32", repeats=1).cost.dtype == "float32"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bench(torch.nn.ReLU(), (1, 4, 9, 9)), "ReLU is not a convolution layer"),
        (lambda: bench(ConvSpec(4, 4, 3), (1, 8, 9, 9)), "does not fit conv2d with in_channels=4"),
        (lambda: bench(ConvSpec(4, 4, 3), (0, 4, 9, 9)), "batch=0 is too small"),
        (
            lambda: bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), dtype="int8"),
            "dtype='int8' is not known; choose one of: float",
        ),
        (lambda: bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), repeats=0), "repeats=0 is too small"),
        (lambda: bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), threads=0), "threads=0 is too small"),
        (lambda: bench(ConvSpec(4, 4, 3), (1, 4, 2, 2)), "size=2 gives no output"),
        (lambda: bench(ConvSpec(4, 4, 3), 56), "input 56 does not fit conv2d with in_channels=4"),
        (lambda: bench(ConvSpec(4, 4, 3), (2**20, 4, 2**16, 2**16)), "do not fit the memory"),
        (lambda: bench(ConvSpec(4, 4, 3), (2**30, 4, 2**30, 2**30)), "do not fit the memory"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(GroupwiseError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("where", ["_calls", "_kernels", "_interleave"])
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("std::bad_alloc")]
)
def test_memory_that_runs_out_on_the_way(monkeypatch, where, error):
    def fail(*_):
        raise error

    stand_in(monkeypatch)
    monkeypatch.setattr(benching, where, fail)
    with pytest.raises(GroupwiseError, match=r"an input of shape \(1, 4, 9, 9\) and the tensors .* do not fit"):
        bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), repeats=1)


def test_an_error_that_is_not_of_memory_comes_through(monkeypatch):
    def fail(*_):
        raise RuntimeError("unsupported memory format option")

    monkeypatch.setattr(benching, "_calls", fail)
    with pytest.raises(RuntimeError, match="unsupported memory format"):
        bench(ConvSpec(4, 4, 3), (1, 4, 9, 9), repeats=1)
