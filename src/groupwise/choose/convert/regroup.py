"""`regroup`: a copy of a model with other groups, exactly where that can be, and as well as can be elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from groupwise.choose.convert.batch_norm import check_estimable, recalibrate
from groupwise.choose.convert.block import BEST, ORDERS, Converted, as_blocks
from groupwise.choose.convert.checks import check_groups_of
from groupwise.choose.convert.data import check_taken, read
from groupwise.choose.convert.factors import as_factored
from groupwise.choose.convert.fit import fit
from groupwise.choose.convert.unchanged import check_unchanged
from groupwise.choose.exact.coarsen import coarser
from groupwise.choose.exact.like import lossless, set_groups
from groupwise.draw.text import regroup as text
from groupwise.draw.text.table import Tabular
from groupwise.errors import GroupwiseError, check_choice
from groupwise.profile.progress import PartProgress, Progress, shown_parts
from groupwise.spec.legible import pre

EXACT, BLOCK = "exact", "block"


@dataclass(frozen=True)
class RegroupRow:
    """One layer that `regroup` converted.

    - `before`, `groups`: its groups before and after
    - `how`: `exact`, or the form: `block` or `factored`
    - `kept`: the fraction of the squared weight that the layer keeps; `bound`: no order that it can have keeps more
    - `error`: the relative squared error of the layer's outputs on the data, before it is fitted; `fitted`: after
    - `folded`: the tensors of other layers that have the order of the groups now
    - `gather_ms`: what the gathers of a layer take whose order could not be folded; None where there is none
    - `fixed`: the end whose channels kept their order, `inputs` or `outputs`, because it cannot change; else empty
    """

    layer: str
    before: int
    groups: int
    how: str
    kept: float = 1.0
    bound: float = 1.0
    error: float | None = None
    fitted: float | None = None
    folded: tuple[str, ...] = ()
    gather_ms: float | None = None
    fixed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return {**asdict(self), "folded": list(self.folded)}


@dataclass(frozen=True, repr=False)
class Regrouped(Tabular):
    """The converted `model`, and `rows`: what became of each layer. `print()` it for the table."""

    model: nn.Module
    rows: tuple[RegroupRow, ...]

    def __str__(self) -> str:
        return text.table([row.to_dict() for row in self.rows])

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return pre(str(self))

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each row."""
        names = list(RegroupRow.__dataclass_fields__)
        return names, [[getattr(row, name) for name in names] for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns the rows as plain JSON types."""
        return {"rows": [row.to_dict() for row in self.rows]}


def regroup(
    model: nn.Module,
    groups: Any,
    *,
    form: str = BLOCK,
    data: Any = None,
    order: str = BEST,
    gather: bool = False,
    seed: int = 0,
    progress: bool | PartProgress | None = None,
) -> Regrouped:
    """Returns a copy of a model whose layers have other groups. The model stays as it is.

    A layer that gets fewer groups, each of whole old ones, computes the same: that is exact and needs no data. So is a
    layer that gets more, if the numbers that it loses are zero. Any other one loses part of its weight:

    - `form="block"`: a plain grouped layer. Its channels are put into the order whose blocks keep most of the weight,
      and the layers around it into the same order, so that nothing moves at run time. Where the channels of one end
      must stay as they are, such as the model's inputs or outputs, those of the other end alone change
    - `form="factored"`: a grouped layer of the same kernel, and a 1x1 convolution that mixes its groups

    - `groups`: {layer's name: groups}, or a `Grouping`, whose layers gather where it was measured so. Where it names no
      layer, as the choice of a front that leaves all as they are, the result is a copy of the model
    - `data`: batches, as a list or a `DataLoader`. A batch is a tensor, the only input of the model; a dict of keyword
      arguments; or a pair (inputs, targets), whose inputs are a tensor, a tuple of positional arguments or a dict. So
      `[((a, b), None)]` is a batch of two inputs; targets are not used. The weights of converted layers are then
      fitted to what the layers computed before, by least squares, in forward order, over all runs of a layer; and
      batch normalisations take their statistics anew. Where every conversion is exact, the first batch shows whether
      the model computes the same, up to rounding
    - `order`: of the channels in blocks: `best`, or for comparisons `stored` or `random`
    - `gather`: lets layers gather their channels at each call where the order cannot be folded into other layers, which
      is refused otherwise
    - `seed`: of the search for the best order
    - `progress`: True shows how far it is, as the command line does; a function is called with what is done,
      `converting` or `fitting`, how many layers of it are done, and how many there are

    Raises `GroupwiseError` before any work for layers that do not exist or cannot have other groups, for groups that do
    not divide the channels, for layers of which code reads the groups or a tensor that would change, for orders that
    cannot be folded, and for data that the model does not take. Where `torch.fx` cannot follow the model nothing tells
    what its code reads; nor where code takes tensors from `parameters()` or `state_dict()`. With data, exact
    conversions that change the model's outputs by more than rounding are refused.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=4), torch.nn.ReLU())
        >>> regroup(net, {"0": 1}).model[0]
        Conv2d(4, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    wanted = getattr(groups, "groups", groups)
    if not isinstance(wanted, Mapping):
        raise GroupwiseError(
            f"groups is a {type(groups).__name__}; give {{layer's name: groups}}, or what choose returns"
        )
    wanted = dict(wanted)
    check_choice("form", form, FORMS)
    check_choice("order", order, ORDERS)
    check_groups_of(model, wanted)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in wanted}
    exact = {name: lossless(layers[name], value) for name, value in wanted.items()}
    lossy = [name for name, weight in exact.items() if weight is None]
    # A choice that was measured with gathers has them in its blocks.
    gathering = tuple(wanted) if gather else getattr(groups, "gather", ()) if form == BLOCK else ()
    batches = None if data is None else list(read(data))
    if batches is not None:
        check = check_estimable if lossy else check_taken
        check(model, batches)
    convert = partial(_convert_exactly, exact=exact, groups=wanted)
    changed = [name for name, value in wanted.items() if layers[name].groups != value]
    if batches is not None and changed and not lossy:
        check_unchanged(model, convert, changed, batches[0])
    twin = copy.deepcopy(model)
    convert(twin, wanted)
    rows = {name: RegroupRow(name, int(layers[name].groups), value, EXACT) for name, value in wanted.items()}
    if lossy:
        asked = {name: wanted[name] for name in lossy}
        with shown_parts(progress) as tell:
            made = FORMS[form](twin, asked, order, gathering, seed, partial(tell, "converting"))
            for name, one in made.items():
                rows[name] = replace(rows[name], **one.facts)
            if batches is not None:
                for name, facts in fit(model, twin, made, batches, partial(tell, "fitting")).items():
                    rows[name] = replace(rows[name], **facts)
                recalibrate(twin, batches)
    return Regrouped(twin, tuple(rows.values()))


def _convert_exactly(
    model: nn.Module, names: Iterable[str], exact: Mapping[str, torch.Tensor | None], groups: Mapping[str, int]
) -> None:
    """Gives layers of a model their groups and exact weights in place; one that has none is dense afterwards."""
    for name in names:
        layer: Any = model.get_submodule(name)
        weight = exact[name]
        # Groups that are no part of the new ones are one dense layer first.
        value = 1 if weight is None else groups[name]
        set_groups(layer, value, coarser(layer.weight, layer.groups, 1) if weight is None else weight)


Form = Callable[[nn.Module, Mapping[str, int], str, Collection[str], int, Progress], dict[str, Converted]]
# How a layer gets groups that lose a part of its weight.
FORMS: dict[str, Form] = {BLOCK: as_blocks, "factored": as_factored}
