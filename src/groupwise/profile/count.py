"""`count`: every convolution that a model executes, counted at operator level, forward and backward.

A `TorchDispatchMode` sees the operators themselves, so `F.conv2d`, subclasses, weights computed on the fly and
groups = batch count like any layer. On fake tensors nothing is computed, and a copy of the model is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from groupwise.draw.html import page as html
from groupwise.draw.text import count as count_text
from groupwise.draw.text.table import Tabular
from groupwise.errors import GroupwiseError
from groupwise.profile.record import ConvCall, Run, record, run
from groupwise.profile.workload import Workload

Keywords = Mapping[str, Any] | None


class Count(list[ConvCall], Tabular):
    """A list of `ConvCall`s in order of execution. `print()` it for the table.

    `not_counted` names the operators whose names suggest a convolution, but whose arguments do not tell its shape, with
    the calls of each.
    """

    def __init__(self, ran: Run) -> None:
        super().__init__(ran.calls)
        self.not_counted = ran.not_counted

    def __str__(self) -> str:
        return count_text.table(self.to_dict())

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.element("pre", str(self))

    def to_dict(self) -> dict[str, Any]:
        """Returns `layers`, a dict of plain JSON types for each call, and `not_counted`."""
        return {"layers": [call.to_dict() for call in self], "not_counted": dict(self.not_counted)}

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each call."""
        return count_text.columns(self.to_dict()["layers"])


def count(model: Callable[..., Any], *inputs: Any, kwargs: Keywords = None, backward: bool = False) -> Count:
    """Count the convolutions of `model(*inputs, **kwargs)` in order of execution.

    groupwise copies a module with fake tensors in place of its own, which have shapes and no values: nothing is
    computed, and the model itself is not touched. It runs for real what cannot be traced that way: a callable that is
    not a module, because nobody knows what it holds, and a module that cannot be copied or looks at values. With
    `backward`, the gradients of every parameter and input that requires one are traced too.

    A convolution of another operator than `aten::convolution` (quantized, oneDNN's, an extension's) counts if its
    arguments tell its shapes; `not_counted` names the others.

    Raises `GroupwiseError` for a module with lazy parameters and for a `backward` with nothing to differentiate, and
    whatever the model itself raises.

    Examples:
        >>> import torch
        >>> [call.cost.macs.forward for call in count(torch.nn.Conv2d(4, 4, 3, groups=2), torch.zeros(1, 4, 5, 5))]
        [648]
    """
    workload = Workload(model, inputs, dict(kwargs or {}), backward)
    if not workload.is_traceable or workload.on_meta:
        return Count(run(workload))
    try:
        with workload.fake() as twin:
            return Count(record(twin))
    except GroupwiseError:
        raise
    except Exception:
        # Fake tensors refuse what depends on values (`if x.sum() > 0`, `.item()`), each kernel in its own words,
        # and so do copies. The real run decides: it counts the same, or raises the model's own error.
        return Count(run(workload))
