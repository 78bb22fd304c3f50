"""A `Bench` beside one that was saved before: what changed, and whether by more than the samples scatter."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groupwise.draw.html import page as html
from groupwise.draw.text import bench as bench_text
from groupwise.draw.text.busy import is_busy
from groupwise.draw.text.table import Tabular
from groupwise.errors import GroupwiseError
from groupwise.spec.cost import Cost

_KEY = ("work", "library", "memory_format")
_TIMES = ("ms", "q1_ms", "q3_ms")
# What has to be the same in both runs. Another torch or groupwise is what one may want to compare.
_SAME = (
    *"op in_channels out_channels kernel_size stride padding dilation output_padding groups padding_mode".split(),
    *"bias_shape input_size batch dtype threads processor".split(),
)


@dataclass(frozen=True, repr=False)
class BenchChange(Tabular):
    """Two runs of `bench` of one layer, on one processor with as many threads. `print()` it for the table.

    - `cost`: the layer, its size and what it costs
    - `before`, `after`: the runs, as `Bench.to_dict` gives them
    """

    cost: Cost
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a dict for each timing that both runs have.

        `ratio` is the time before over the time after: above 1 is faster. `changed` says whether the middle halves of
        the samples lie apart; they tell nothing where the machine was busy in one of the runs.
        """
        earlier = {_key(row): row for row in self.before["timings"]}
        quiet = not any(is_busy(run.get("interference")) for run in (self.before, self.after))
        return [_changed(earlier[_key(row)], row, quiet) for row in self.after["timings"] if _key(row) in earlier]

    def __str__(self) -> str:
        return bench_text.change(self.to_dict(), self.cost)

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.element("pre", str(self))

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each timing that both runs have."""
        return bench_text.change_columns(self.rows())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types: `rows`, and how and where both were measured."""
        about = ("repeats", "machine", "not_measured", "interference")
        return {
            **self.cost.spec.to_dict(),
            **self.cost.to_dict(),
            "rows": self.rows(),
            # A run of an older version says nothing of interference.
            "before": {key: self.before.get(key) for key in about},
            "after": {key: self.after.get(key) for key in about},
        }


def read_bench(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns what `Bench.save` wrote, as `Bench.to_dict` gives it.

    Raises `GroupwiseError` for a file that is missing, and for one that holds something else.
    """
    fix = "make one with: groupwise bench ... --save FILE"
    try:
        facts: dict[str, Any] = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GroupwiseError(f"{path} does not exist; {fix}") from None
    except ValueError:
        raise GroupwiseError(f"{path} is no JSON, and so no saved run of bench; {fix}") from None
    if not _is_bench(facts):
        raise GroupwiseError(f"{path} is no saved run of bench; {fix}")
    return facts


def check_comparable(before: Mapping[str, Any], at: Cost, threads: int, processor: str) -> None:
    """Raises `GroupwiseError` if a run is of another layer, processor or number of threads, and says what differs."""
    # As a file has them: JSON knows no tuples.
    here = json.loads(json.dumps({**at.spec.to_dict(), **at.to_dict(), "threads": threads, "processor": processor}))
    there = {**before, **{key: before["machine"].get(key) for key in ("threads", "processor")}}
    if differing := [key for key in _SAME if there.get(key) != here[key]]:
        what = "; ".join(f"{key} {_shown(there.get(key))} instead of {_shown(here[key])}" for key in differing)
        raise GroupwiseError(f"the saved run had {what}; compare runs of one layer on one machine")


def _is_bench(facts: Any) -> bool:
    """Tells whether facts have all that a comparison reads."""
    try:
        return (
            {"repeats", "not_measured"} <= facts.keys()
            and {"processor", "torch", "groupwise", "date"} <= facts["machine"].keys()
            and bool(facts["machine"]["threads"])
            and all(
                all(isinstance(row[key], (int, float)) and row[key] > 0 for key in _TIMES)
                and all(isinstance(row[key], str) for key in _KEY)
                and isinstance(row["kernels"], dict)
                for row in facts["timings"]
            )
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEY)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], quiet: bool) -> dict[str, Any]:
    apart = before["q1_ms"] > after["q3_ms"] or after["q1_ms"] > before["q3_ms"]
    return {
        **{key: after[key] for key in (*_KEY, "kernels")},
        "kernels_before": before["kernels"],
        **{f"{key}_before": before[key] for key in _TIMES},
        **{key: after[key] for key in _TIMES},
        "ratio": before["ms"] / after["ms"],
        "changed": quiet and apart,
    }


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else repr(value)
