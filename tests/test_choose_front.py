"""The knapsack, and choices of groups as files."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise import GroupwiseError
from groupwise.choose.measure.choice import Chosen, Grouping, read_choice
from groupwise.choose.measure.knapsack import Option, pareto_front

options = st.builds(Option, st.integers(0, 30), st.integers(-5, 30))
items = st.lists(st.lists(options, min_size=1, max_size=4), min_size=0, max_size=5)


def sums(chosen, choice):
    return tuple(sum(rows[place][axis] for rows, place in zip(chosen, choice, strict=True)) for axis in (0, 1))


@settings(deadline=None, max_examples=200)
@given(items)
def test_the_front_is_that_of_all_choices(chosen):
    every = [sums(chosen, choice) for choice in itertools.product(*(range(len(rows)) for rows in chosen))]
    best = {one for one in every if not any(o[0] <= one[0] and o[1] <= one[1] and o != one for o in every)}
    found = [sums(chosen, choice) for choice in pareto_front(chosen)]
    assert found == sorted(best)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(options, min_size=2, max_size=3), min_size=4, max_size=6))
def test_a_thinned_front_keeps_its_ends_and_has_no_choice_that_another_beats(chosen):
    most = 6
    exact = [sums(chosen, choice) for choice in pareto_front(chosen)]
    found = [sums(chosen, choice) for choice in pareto_front(chosen, most=most)]
    assert len(found) <= most
    assert found == sorted(found)
    assert len({risk for _, risk in found}) == len(found)
    # The cheapest choice, and the lowest risk, are never thinned out.
    assert found[0] == exact[0]
    assert found[-1] == exact[-1]


def test_a_front_of_many_layers_is_close_to_the_bound_of_its_relaxation():
    layers = [[Option(10.0 / g * (1 + i % 7), math.log2(g) * (1 + i % 5)) for g in (1, 2, 4, 8, 16)] for i in range(50)]
    front = [sums(layers, choice) for choice in pareto_front(layers)]
    budget = sum(rows[0].cost for rows in layers) / 2
    least = min(risk for cost, risk in front if cost <= budget)
    # Every price of a millisecond gives a bound from below (Lagrange).
    prices = [price / 100 for price in range(1, 200)]
    bound = max(sum(min(o.risk + price * o.cost for o in rows) for rows in layers) - price * budget for price in prices)
    assert bound - 1e-9 <= least <= bound * 1.01


def test_a_choice_comes_back_from_its_file(tmp_path):
    choice = Grouping({"a.b": 4, "c": 2}, 3.5, 1000, 200, 0.25, gather=("c",), facts={"risk": "loss rise"})
    path = choice.save(tmp_path / "choice.json")
    assert read_choice(path) == Chosen({"a.b": 4, "c": 2}, ("c",))
    assert json.loads(path.read_text())["ms"] == 3.5
    assert "2 layers change: 3.5 ms expected" in str(choice)
    assert "a.b" in str(choice)
    assert "2, gathered" in str(choice)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", "is not a choice"),
        ('{"version": 9, "layers": {}}', "is not a choice"),
        ('{"layers": {"a": 0}}', "groups=0 of a"),
        ('{"layers": {"a": true}}', "groups=True of a"),
        ('{"layers": {"a": "2"}}', "groups='2' of a"),
        ('{"layers": {"a": 2}, "gather": ["b"]}', '"gather" must be a list of names of its layers'),
        ('{"layers": {"a": 2}, "gather": "a"}', '"gather" must be a list'),
    ],
)
def test_a_file_that_is_no_choice_is_refused(tmp_path, text, said):
    path = tmp_path / "choice.json"
    path.write_text(text)
    with pytest.raises(GroupwiseError, match=said):
        read_choice(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(GroupwiseError, match="cannot be read"):
        read_choice(tmp_path / "none.json")


def test_one_layer_changes():
    assert str(Grouping({"a.b": 4}, 3.5, 1000, 200, 0.25)).startswith("1 layer changes: ")
