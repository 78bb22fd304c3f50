"""`explore`: one self-contained page that shows what the groups of a convolution connect and cost, to play with."""

from __future__ import annotations

import html
import json
import pathlib
import urllib.parse
from dataclasses import dataclass
from importlib import resources
from typing import Any

from groupwise.draw.base.svg import COLOURS
from groupwise.draw.html.page import deliver
from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.explanation import Explanation, explain
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost
from groupwise.spec.legible import Printed

SCENES = ("wires", "filter", "payment", "shuffle", "devices", "code")
# The page's script, in this order; each part uses names of those before it.
_PARTS = ("spec", "fold", "dom", "state", "wires", "filter", "payment", "shuffle", "devices", "code", "page")
# The spatial size of an input, if none is given.
_SIZE = 56
# The height of the frame in a notebook, in pixels.
_HEIGHT = 900


@dataclass(frozen=True, repr=False)
class Explorer(Printed):
    """The page, opened at one convolution. A notebook shows it in a frame; `save` writes it, `open` opens a browser.

    - `spec`: the convolution
    - `size`: the spatial size of its input
    - `batch`: the samples of its input
    - `scene`: what the page shows first: wires, filter, payment, shuffle, devices or code
    """

    spec: ConvSpec
    size: tuple[int, ...]
    batch: int
    scene: str

    def __str__(self) -> str:
        """Returns one line: the convolution, the size of its input, and the scene."""
        return f"{self.spec}; on {'×'.join(map(str, self.size))}, scene {self.scene}"

    @property
    def fragment(self) -> str:
        """The part of the page's address that holds all of this: `#in_channels=8&out_channels=4&groups=4&...`."""
        return "#" + urllib.parse.urlencode({name: _extent(value) for name, value in self.to_dict().items()})

    def to_dict(self) -> dict[str, Any]:
        """Returns the page's state by the names of its address; one list entry a dimension."""
        spec = self.spec
        return {
            "in_channels": spec.in_channels,
            "out_channels": spec.out_channels,
            "groups": spec.groups,
            "dims": spec.dims,
            "batch": self.batch,
            "kernel_size": list(spec.kernel_size),
            "stride": list(spec.stride),
            "padding": [before for before, _ in spec.pads],
            "dilation": list(spec.dilation),
            "output_padding": list(spec.output_padding),
            "size": list(self.size),
            "scene": self.scene,
            "transposed": spec.transposed,
            "bias": spec.bias,
        }

    def to_html(self, path: str | pathlib.Path | None = None) -> str | pathlib.Path:
        """Returns the page as HTML, or writes it to `path` and returns that. It fetches nothing."""
        return deliver(page(self.fragment), path)

    def open(self) -> pathlib.Path:
        """Writes the page to a temporary file, opens it in the browser, and returns the file's path.

        Raises `GroupwiseError`, which names the file, where no browser opens.
        """
        import tempfile
        import webbrowser

        target = pathlib.Path(tempfile.mkdtemp(prefix="groupwise-")) / "explorer.html"
        self.to_html(target)
        if not webbrowser.open(target.as_uri()):
            raise GroupwiseError(
                f"no browser was found; the page is written to {target}; to choose the place, write it by "
                "to_html(path), or groupwise explore ... -o FILE"
            )
        return target

    def _repr_html_(self) -> str:
        document = html.escape(page(self.fragment), quote=True)
        return f'<iframe srcdoc="{document}" style="width:100%;height:{_HEIGHT}px;border:0" title="groupwise"></iframe>'


def explore(
    x: Any = 8,
    out_channels: int | None = None,
    kernel_size: Any = None,
    *,
    size: Any = None,
    batch: int | None = None,
    scene: str = "wires",
    **options: Any,
) -> Explorer:
    """Returns an interactive page about a convolution.

    `x`, `out_channels`, `kernel_size` and `options` are those of `groupwise.explain`: a layer, a `ConvSpec`, a weight,
    or channel counts. Without arguments the page shows 8 inputs and 4 outputs in 4 groups.

    - `size`: the spatial size of the input, 56 if left out
    - `batch`: the samples of the input, 1 if left out
    - `scene`: what the page shows first: wires, filter, payment, shuffle, devices or code

    Raises `GroupwiseError` for what `explain` refuses, for an unknown scene, for a size that gives no output, and for
    what the page does not draw: padding that is not zeros, and `padding="same"` that adds more on one side.

    Examples:
        >>> explore(8, 4, 5, groups=4).fragment[:41]
        '#in_channels=8&out_channels=4&groups=4&di'
    """
    if isinstance(x, int) and out_channels is None:
        out_channels, kernel_size, options = 4, 5, {"groups": 4, **options}
    return explorer_of(explain(x, out_channels, kernel_size, size=size, batch=batch, plans=False, **options), scene)


def explorer_of(explanation: Explanation, scene: str = "wires") -> Explorer:
    """Returns the page about what an explanation is about; raises what `explore` raises."""
    spec, size = explanation.spec, explanation.input_size
    check_choice("scene", scene, SCENES)
    if spec.padding_mode != "zeros":
        raise GroupwiseError(f"padding_mode={spec.padding_mode!r}: the page draws zeros as padding; leave it out")
    if any(before != after for before, after in spec.pads):
        raise GroupwiseError(f"padding={spec.padding!r} adds more after than before: {spec.pads}; give it as a number")
    checked = spec.check_size(_SIZE if size is None else size)
    spec.output_size(checked)
    return Explorer(spec, checked, check_integer("batch", explanation.batch, 1), scene)


def fragment_of(at: Cost) -> str | None:
    """Returns what opens the page at a layer and its input, as `Explorer.fragment` does.

    Returns None for a layer that the page does not draw.
    """
    try:
        return explorer_of(explain(at.spec, size=at.input_size, batch=at.batch, plans=False)).fragment
    except GroupwiseError:
        return None


def page(start: str = "") -> str:
    """Returns the whole page, which opens at `start` unless its address says something else."""
    parts = resources.files("groupwise.web").joinpath("page")

    def read(name: str) -> str:
        return parts.joinpath(name).read_text(encoding="utf-8")

    script = "\n".join(
        [
            '"use strict";',
            f"const START = {json.dumps(start)};",
            f"const COLOURS = {json.dumps(COLOURS)};",
            f"const MEASURED = {read('measured.json').strip()};",
            *(read(f"{part}.js") for part in _PARTS),
        ]
    )
    # A closing tag inside of the script would end it.
    script = script.replace("</", "<\\/")
    return read("page.html").replace("/* style */", read("style.css")).replace("/* script */", script)


def _extent(value: Any) -> str:
    if not isinstance(value, list):
        return str(int(value)) if isinstance(value, bool) else str(value)
    return str(value[0]) if len(set(value)) == 1 else "x".join(map(str, value))
