"""`explain`: one convolution, from anything that describes it, as text, dict, SVG, PNG or HTML."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from groupwise.draw.base.stacking import stack
from groupwise.draw.html import page as html
from groupwise.draw.text import layer as text
from groupwise.draw.views.cost import cost_svg
from groupwise.draw.views.ranks import ranks_svg, ranks_text
from groupwise.draw.views.weight import weight_svg
from groupwise.draw.views.wiring import wiring_svg
from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.spec.arguments import Extent
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, check_dtype, cost, size_and_batch
from groupwise.spec.effective import dtype_of
from groupwise.spec.partition import MOST_RANKS, Partition
from groupwise.spec.wiring import Wiring

if TYPE_CHECKING:
    from groupwise.kernels.plan import Plan

# Views that every explanation has, and the one that needs a number of ranks.
PLAIN_VIEWS = ("wiring", "weight", "cost")
VIEWS = (*PLAIN_VIEWS, "ranks", "all")


@dataclass(frozen=True, repr=False)
class Explanation:
    """What a convolution connects and costs, and which kernels run it. `print()` it; a notebook shows its pictures.

    - `spec`: the convolution
    - `input_size`: the spatial size of the input; without it (None) there are no MACs and bytes
    - `batch`, `dtype`: of the input
    - `name`: the layer's name in its model, or None
    - `ranks`: the number of devices that its groups are split over, or None
    - `with_plans`: whether the text and the dict contain the plans, which need torch
    - `cost`: the `Cost` at `input_size`, or None
    """

    spec: ConvSpec
    input_size: tuple[int, ...] | None = None
    batch: int = 1
    dtype: str = "float32"
    name: str | None = None
    ranks: int | None = None
    with_plans: bool = field(default=False, compare=False)
    cost: Cost | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", check_dtype(self.dtype))
        object.__setattr__(self, "batch", check_integer("batch", self.batch, 0))
        if self.ranks is not None:
            object.__setattr__(self, "ranks", check_integer("ranks", self.ranks, 1, MOST_RANKS))
        at = None if self.input_size is None else cost(self.spec, self.input_size, batch=self.batch, dtype=self.dtype)
        object.__setattr__(self, "cost", at)

    @property
    def wiring(self) -> Wiring:
        """The paths of the convolution."""
        return Wiring(self.spec)

    @property
    def plans(self) -> dict[str, dict[str, Plan]]:
        """The plan of each pass (`forward`, `grad_input`, `grad_weight`) by memory format. It imports torch.

        It is empty without a size, for dtypes other than float32, and where the native kernels cannot run.
        """
        if self.input_size is None or self.dtype != "float32":
            return {}
        from groupwise.kernels import native
        from groupwise.kernels.plan import DIRECTIONS, formats_of, plan

        if native.status().problem:
            return {}
        shape = (self.batch, self.spec.in_channels, *self.input_size)
        return {
            layout: {
                name: plan(self.spec, input_shape=shape, memory_format=layout, direction=name) for name in DIRECTIONS
            }
            for layout in formats_of(self.spec.dims)
        }

    def __str__(self) -> str:
        return self.to_text()

    # A prompt shows the text, as `print` does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.figure(self.to_svg())

    def to_text(self, view: str = "all") -> str:
        """Returns plain Unicode of at most 80 columns; `view` is wiring, weight, cost, ranks or all.

        `"all"` is the first three, the ranks if their number is given, and the plans if `with_plans`.
        """
        views: dict[str, Callable[[], str]] = {
            "ranks": lambda: ranks_text(self.spec, self._ranks, self.cost),
            "wiring": lambda: text.wiring(self.spec),
            "weight": lambda: text.weight(self.spec),
            "cost": lambda: text.cost(self.spec, self.cost),
        }
        chosen = self._chosen(view)
        parts = [text.heading(self.spec, self.name), *(views[name]() for name in chosen)]
        if view == "all" and self.with_plans and (plans := self.plans):
            parts.append(text.plans(plans))
        return "\n\n".join(parts)

    def to_svg(self, view: str = "all") -> str:
        """Returns a picture as SVG; `view` is wiring, weight, cost, ranks or all.

        `"all"` puts the first three one below the other, and the ranks if their number is given. Raises
        `GroupwiseError` for another view, such as the path of a file.
        """
        if str(view).endswith(".svg"):
            raise GroupwiseError(
                "to_svg returns the picture as text and takes no path; "
                f"write pathlib.Path({str(view)!r}).write_text(it.to_svg())"
            )
        views: dict[str, Callable[[], str]] = {
            "ranks": lambda: ranks_svg(self.spec, self._ranks, self.cost),
            "wiring": lambda: wiring_svg(self.spec),
            "weight": lambda: weight_svg(self.spec),
            "cost": lambda: cost_svg(self.spec, self.input_size, self.batch, self.dtype),
        }
        pictures = [views[name]() for name in self._chosen(view)]
        return pictures[0] if len(pictures) == 1 else stack(pictures)

    def to_png(self, path: str | pathlib.Path, view: str = "all", scale: float = 2.0) -> pathlib.Path:
        """Writes the picture as PNG, `scale` (0.1 to 8) pixels to a unit of the SVG, and returns the path.

        Raises `GroupwiseError` for a name that does not end in `.png`, for another scale, and without the extra
        `groupwise[png]`.
        """
        from groupwise.draw.base.png import png_bytes

        target = pathlib.Path(path)
        if target.suffix.lower() != ".png":
            fix = f"name it {str(target.with_suffix('.png') if target.name else 'picture.png')!r}"
            raise GroupwiseError(f"to_png writes PNG, and {str(path)!r} does not end in .png; {fix}")
        target.write_bytes(png_bytes(self.to_svg(view), scale))
        return target

    def to_html(self, path: str | pathlib.Path | None = None, view: str = "all") -> str | pathlib.Path:
        """Returns one self-contained page with pictures and text, or writes it to `path` and returns that."""
        title = text.heading(self.spec, self.name).split("\n")[0]
        pictures = [html.figure(self.to_svg(name)) for name in self._chosen(view)]
        body = "\n".join([html.element("h1", title), *pictures, html.element("pre", self.to_text(view))])
        return html.deliver(html.page(title, body), path)

    def _chosen(self, view: str) -> tuple[str, ...]:
        check_choice("view", view, VIEWS)
        if view == "ranks" and self.ranks is None:
            raise GroupwiseError("view='ranks' needs the number of ranks: ranks=2, or --ranks 2 on the command line")
        every = PLAIN_VIEWS if self.ranks is None else (*PLAIN_VIEWS, "ranks")
        return every if view == "all" else (view,)

    @property
    def _ranks(self) -> int:
        return self.ranks or 1

    def to_dict(self) -> dict[str, Any]:
        """Returns every fact as plain JSON types; sizes, MACs and bytes only if the input size is known.

        - `paths`: every group with half-open channel ranges
        - `bytes`: the least that one pass moves: input and weight read once, output written once; `traffic` is the
          same by tensor
        - `macs_on_padding`: of one pass
        - `dense`: the same figures of the dense equivalent, and their `ratio` to this convolution's
        - `plans`, if `with_plans` and there are any: the plan of each pass by memory format
        - `ranks`, if their number is given: the half-open range of groups that each rank holds; of a dense
          convolution, of output channels
        """
        spec, dense = self.spec, self.spec.dense()
        facts: dict[str, Any] = {} if self.name is None else {"name": self.name}
        facts |= spec.to_dict()
        facts |= {
            "valid_groups": list(spec.valid_groups),
            "paths": [path.to_dict() for path in self.wiring],
            "connected_pairs": self.wiring.connected_pairs,
            "all_pairs": self.wiring.all_pairs,
            "dense": {"weights": dense.weights, "parameters": dense.parameters},
        }
        if self.cost is not None:
            full = self.cost.dense().to_dict()
            facts |= self.cost.to_dict()
            facts["dense"] |= {key: full[key] for key in ("macs", "macs_on_padding", "bytes", "traffic", "intensity")}
            facts["dense"]["ratio"] = self.cost.ratio
        if self.ranks is not None:
            partition = Partition(spec.groups if spec.groups > 1 else spec.out_channels, self.ranks)
            held = [partition.of(rank) for rank in range(self.ranks)]
            facts["ranks"] = [[one.start, one.stop] for one in held]
        if self.with_plans and (plans := self.plans):
            facts["plans"] = {
                layout: {name: plan.to_dict() for name, plan in passes.items()} for layout, passes in plans.items()
            }
        return facts


def explain(
    x: Any = None,
    out_channels: int | None = None,
    kernel_size: Extent | None = None,
    *,
    in_channels: int | None = None,
    size: Extent | None = None,
    input_shape: Any = None,
    batch: int | None = None,
    dtype: Any = None,
    name: str | None = None,
    ranks: int | None = None,
    plans: bool | None = None,
    **options: Any,
) -> Explanation:
    """Explains a convolution: what it connects, the shapes that it stores, what it costs.

    `x` is one of

    - a layer, such as `torch.nn.Conv2d`, or a `ConvSpec`: nothing else is needed
    - a weight (a tensor or a shape) with the keywords of `torch.nn.functional.conv2d`: `groups`, `stride`, `padding`,
      `dilation`, and `bias`, `transposed`, `output_padding`
    - in_channels (here or by that keyword), then `out_channels`, `kernel_size` (3 if left out) and the keywords of
      `ConvSpec`

    The other arguments:

    - `size`: the spatial size of the input, an int for all dimensions or one int a dimension; or
      `input_shape`: (N, in_channels, *size), or a tensor of that shape. Either one adds MACs and bytes
    - `batch`: the N that goes with `size`, 1 if left out
    - `dtype`: the layer's own, else float32, if left out
    - `name`: the layer's name in its model, for the heading
    - `ranks`: a number of devices to split it over, to see who would hold what and what they would send each other
    - `plans`: whether to add the plan of every pass, which needs a size and kernels that can run. The default is True
      for a layer, and False for everything else, so that numbers are explained without torch

    Raises `GroupwiseError` for anything that is not a convolution, and for a layer whose weight contradicts its
    attributes.

    Examples:
        >>> explain(8, 4, 5, groups=4).spec.weight_shape
        (4, 2, 5, 5)
    """
    if x is None:
        x = in_channels
    elif in_channels is not None:
        raise GroupwiseError(
            f"in_channels={in_channels} cannot be given beside {type(x).__name__}, which says it; leave it out"
        )
    spec, own_dtype = _spec_of(x, out_channels, kernel_size, options)
    input_size, batch = size_and_batch(spec, size, input_shape, batch)
    return Explanation(
        spec=spec,
        input_size=input_size,
        batch=batch,
        dtype=own_dtype if dtype is None else dtype,
        name=name,
        ranks=ranks,
        with_plans=_is_layer(x) if plans is None else plans,
    )


def _spec_of(
    x: Any, out_channels: int | None, kernel_size: Extent | None, options: dict[str, Any]
) -> tuple[ConvSpec, Any]:
    if hasattr(x, "__index__") and not getattr(x, "shape", ()):
        if out_channels is None:
            raise GroupwiseError(f"explain({x}) needs out_channels too, as in explain({x}, {x}, groups={x})")
        _check_options(ConvSpec, options)
        return ConvSpec(x, out_channels, 3 if kernel_size is None else kernel_size, **options), "float32"
    given = {"out_channels": out_channels, "kernel_size": kernel_size}
    extra = [key for key, value in given.items() if value is not None]
    if isinstance(x, ConvSpec) or hasattr(x, "in_channels"):
        if extra or options:
            raise GroupwiseError(
                f"{', '.join([*extra, *options])} cannot be given beside a {type(x).__name__}, which has its own"
            )
        if isinstance(x, ConvSpec):
            return x, "float32"
        return ConvSpec.from_module(x), dtype_of(x)
    if hasattr(x, "shape") or isinstance(x, (tuple, list)):
        if extra:
            raise GroupwiseError(
                f"{', '.join(extra)} cannot be given beside a weight, whose shape says it; leave it out"
            )
        _check_options(ConvSpec.from_operator, options)
        return ConvSpec.from_operator(None, x, **options), getattr(x, "dtype", "float32")
    shown = repr(x) if isinstance(x, str | float) else type(x).__name__
    raise GroupwiseError(
        f"{shown} is not a convolution; give a ConvSpec, a torch.nn.Conv layer, a weight with keywords, or "
        "in_channels and out_channels (for a whole model: groupwise.report)"
    )


def _is_layer(x: Any) -> bool:
    return hasattr(x, "in_channels") and not isinstance(x, ConvSpec)


def _check_options(function: Callable[..., Any], options: dict[str, Any]) -> None:
    given_elsewhere = {"in_channels", "out_channels", "kernel_size", "input", "weight"}
    known = [name for name in inspect.signature(function).parameters if name not in given_elsewhere]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise GroupwiseError(f"{', '.join(unknown)} is not an option here; choose from: {', '.join(known)}")
