from __future__ import annotations

import pytest
import torch

from groupwise import ConvSpec, cost
from groupwise.profile.roofline import Roofline, measure_roofline


def test_the_floor_by_hand():
    at = cost(ConvSpec(4, 8, 3, groups=2), (6, 5), batch=2)
    flop, moved = 2 * (2 * 4 * 3 * 8 * 2 * 9), 4 * (2 * 4 * 30 + 8 * 2 * 9 + 2 * 8 * 12)
    assert Roofline(flop * 10.0, 1e30).floor_ms(at) == pytest.approx(100)
    assert Roofline(1e30, moved * 10.0).floor_ms(at) == pytest.approx(100)
    assert Roofline(flop * 10.0, moved * 5.0).floor_ms(at, passes=3) == pytest.approx(3 * 200)


def test_the_peak_is_of_float32():
    assert Roofline(1.0, 1.0).floor_ms(cost(ConvSpec(4, 8, 3), 6, dtype="float64")) is None


def test_it_is_measured_once():
    state = torch.get_rng_state()
    measured = measure_roofline(torch.get_num_threads())
    assert measure_roofline(torch.get_num_threads()) is measured
    assert measured.flops > 1e6 < measured.bandwidth
    assert torch.equal(torch.get_rng_state(), state)
