"""What `enable()` measures unasked: convolutions that no table knows."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import threading

import pytest
import torch

import groupwise
from groupwise.kernels import native, tuning
from kernels import needs_kernels, planar_is_fast
from tuned import SHAPE, Clock, candidates, layer, lines, requests, run

pytestmark = [needs_kernels, pytest.mark.usefixtures("own_cache")]


@pytest.mark.parametrize(
    ("value", "knows", "measures"), [("1", True, True), ("0", False, False), (None, True, False), (None, False, True)]
)
def test_what_none_does(monkeypatch, caplog, value, knows, measures):
    if value is not None:
        monkeypatch.setenv("GROUPWISE_TUNE", value)
    monkeypatch.setattr(tuning, "table_path", lambda isa: pathlib.Path(f"some-{value}-{knows}.json"))
    before = requests()
    tables_of_all = planar_is_fast("") if knows else contextlib.nullcontext()
    with tables_of_all, caplog.at_level(logging.INFO, "groupwise"), groupwise.enabled(), groupwise.enabled():
        run()
        run(torch.nn.Conv2d(32, 8, 3, groups=4))
    assert requests() == before + 2 * measures
    # A user sees a warning, and only where nothing was measured before.
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    logged = [record.getMessage() for record in caplog.records]
    assert [f"(some-{value}-{knows}): it measures" in message for message in logged] == [True] * (
        not knows and not value
    )


def test_only_what_no_table_knows_is_measured_by_default(caplog):
    before = requests()
    low, source = layer(dtype=torch.bfloat16), torch.ones(SHAPE, dtype=torch.bfloat16)
    with planar_is_fast(""), caplog.at_level(logging.INFO, "groupwise"), groupwise.enabled():
        assert run()[0].source == "table"
        assert not caplog.records
        assert run(low, source)[0].source == "measured"
        assert run()[0].source == "table"
        assert run(torch.nn.Conv3d(8, 8, 3, groups=2), torch.ones(1, 8, 5, 5, 5))[0].source == "measured"
        (record,) = caplog.records
        assert "met a convolution that its tables do not know" in record.getMessage()
        with groupwise.enabled(tune=True):
            assert run()[0].source == "measured"
    assert requests() == before + 3


def test_what_a_table_knows_is_left_as_it_was_measured():
    """Also if the budget of the measurement ended before all kernels had run."""
    if len(candidates(layer(), SHAPE)) < 2:
        pytest.skip("one kernel is never left out")
    Clock(lambda call: 1e-3 if call < 2 else 10.0)
    with planar_is_fast(""):
        with groupwise.enabled(tune=True, calls=1):
            assert run()[0].source == "measured"
        before = requests()
        with groupwise.enabled():
            assert run()[0].source == "measured"
        assert requests() == before
        with groupwise.enabled(tune=True):
            run()
        assert requests() == before + 1


def test_nothing_is_measured_while_algorithms_are_deterministic(caplog):
    before = requests()
    torch.use_deterministic_algorithms(True)
    try:
        with groupwise.enabled():
            assert run()[0].source == "order"
    finally:
        torch.use_deterministic_algorithms(False)
    assert requests() == before
    assert not caplog.records


def test_a_thread_of_its_own_says_what_it_measures(caplog):
    def work():
        with groupwise.enabled():
            run()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(60)
    (record,) = caplog.records
    assert "it measures" in record.getMessage()


def test_tune_measures_with_its_own_budget_after_enable():
    clock = Clock(lambda call: 1e-3)
    groupwise.enable()
    groupwise.tune(layer(), torch.ones(SHAPE), calls=200)
    assert len(clock.taken) > 2 + 20
    (line,) = lines()
    assert set(line["seconds"]) == {"pytorch", *candidates(layer(), SHAPE)}


def test_tables_of_fewer_threads_know_nothing_of_more(threads):
    before = requests()
    with planar_is_fast("", most_threads=2), groupwise.enabled():
        threads(2)
        assert run()[0].source == "table"
        threads(3)
        assert run()[0].source == "measured"
    assert requests() == before + 1


def test_blocks_that_measure_nothing_keep_all_plans(monkeypatch):
    told, changed = [], native.library().groupwise_policy_changed
    with planar_is_fast(""):
        with groupwise.enabled():
            run()
        monkeypatch.setattr(native.library(), "groupwise_policy_changed", lambda: (told.append(1), changed()))
        for _ in range(3):
            with groupwise.enabled():
                run()
        assert not told
