"""The rule that chooses how per-sample convolutions are computed: fitted to the record, which the docs show."""

from __future__ import annotations

import json
import pathlib
import random

from groupwise.nn import per_sample_products as products
from scripts import load

ROOT = pathlib.Path(__file__).parent.parent
measuring, script = map(load, ("measuring", "per_sample"))


def row(pixels, grouped, bmm, direction="forward", kernel=3, batch=1):
    shape = {"batch": batch, "out_channels": 64, "groups": 1, "size": [pixels, 1], "kernel_size": [kernel, kernel]}
    facts = {"class": "some-1", "isa": "avx2", "threads": 1, "direction": direction}
    return {**facts, **shape, "least_ms": {"grouped": grouped, "pytorch": grouped, "bmm": bmm}}


def all_directions(*args, **kwargs):
    return [row(*args, direction=direction, **kwargs) for direction in ("forward", "grad_input", "grad_weight")]


def test_the_bound_is_where_products_stop_being_faster():
    rows = all_directions(16, 2.0, 1.0) + all_directions(64, 1.5, 1.0) + all_directions(128, 1.0, 1.5)
    rule = {"unfolded": {"forward": 1.0, "grad_input": 1.0, "grad_weight": 1.0}}
    rules = script.fit_all(rows)
    assert rules == {"some-1, avx2": rule, "others": rule}
    assert script.told(rows, rules).splitlines()[2] == "| some-1, avx2 | 1 | 9 | 1.00 | 1.00 | 0 | 0 |"


def test_a_processor_has_the_rule_of_its_class(monkeypatch):
    slow, fast = all_directions(16, 1.0, 2.0), [{**one, "isa": "avx512"} for one in all_directions(16, 2.0, 1.0)]
    rules = script.fit_all(slow + fast)
    monkeypatch.setattr(products, "rules", lambda: rules)
    monkeypatch.setattr(products, "processor_class", lambda: "some-1")
    products.rule.cache_clear()
    try:
        assert products.rule("avx2") == rules["some-1, avx2"] != products.rule("avx512") == rules["some-1, avx512"]
        assert products.rule("neon") == rules["others"]
    finally:
        products.rule.cache_clear()


def test_kinds_have_bounds_of_their_own():
    rows = all_directions(1024, 2.0, 1.0, kernel=1) + all_directions(1024, 1.0, 2.0, kernel=1, batch=4)
    rule = script.fit(rows)
    assert rule["in place"]["forward"] == max(script.BOUNDS)
    assert rule["transposed"]["forward"] < 1024 * 4 / 64


def test_a_drawn_layer_is_one_that_runs():
    for number in range(40):
        shape = script.drawn(random.Random(number))
        assert shape["in_channels"] % shape["groups"] == shape["out_channels"] % shape["groups"] == 0
        assert len(shape["size"]) == len(shape["kernel_size"])


def test_the_rule_and_the_docs_are_those_of_the_record():
    rows = measuring.read_record(measuring.RECORDS / script.RECORD)
    rules = script.fit_all(rows)
    assert json.loads(products.RULE.read_text("utf-8")) == rules, "run: python benchmarks/per_sample.py --fit"
    page = (ROOT / "docs" / "per-sample.md").read_text("utf-8")
    assert measuring.with_block(page, script.RECORD, script.told(rows, rules)) == page
