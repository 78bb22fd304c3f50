"""The six convolution layers of `torch.nn`, with their groups in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.conv import _ConvNd

from groupwise.errors import check_choice
from groupwise.nn.init import MODES, kaiming_normal_
from groupwise.nn.layer import arguments_of
from groupwise.spec.arguments import Extent
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.wiring import Path, Wiring

if TYPE_CHECKING:
    from typing_extensions import Self

    from groupwise.explanation import Explanation

Device = torch.device | str | int | None


class _Grouped(_ConvNd):
    """What the six layers add to `torch.nn`. It precedes the class of `torch.nn` among their bases."""

    __jit_unused_properties__ = ("spec", "paths")
    _dims: int

    def _construct(self, spec: ConvSpec, init: str | None, device: Device, dtype: torch.dtype | None) -> None:
        if init is not None:
            check_choice("init", init, MODES)
        # This comes first, because PyTorch's constructor calls reset_parameters, which reads it.
        self.init: str | None = init
        super().__init__(**arguments_of(spec), device=device, dtype=dtype)

    @property
    def spec(self) -> ConvSpec:
        """This layer as numbers; raises `GroupwiseError` if its weight contradicts its attributes."""
        return ConvSpec.from_module(self)

    @property
    def paths(self) -> tuple[Path, ...]:
        """One `Path` a group: its input channels, its output channels and its slice of the weight."""
        return tuple(Wiring(self.spec))

    def weight_of(self, group: int) -> torch.Tensor:
        """Returns the weight of one group: a view of shape (out/groups, in/groups, *kernel).

        The shape is (in/groups, out/groups, *kernel) for a transposed convolution. To write into the view is to change
        the layer, and gradients flow through it. Raises `GroupwiseError` unless `group` is from 0 to groups - 1.
        """
        rows = Wiring(self.spec).path(group).weight
        return self.weight[rows.start : rows.stop]

    def explain(self, size: int | Sequence[int] | None = None, **options: Any) -> Explanation:
        """Explains this layer, on an input of spatial `size`; `options` are those of `groupwise.explain`."""
        from groupwise.explanation import explain

        return explain(self, size=size, **options)

    def to_dense(self) -> Self:
        """Returns the equal layer with groups=1: this weight in the diagonal blocks, zeros elsewhere, the same bias.

        Its weight has shape (out, in, *kernel), or (in, out, *kernel) if transposed. A subclass returns the layer of
        `groupwise.nn` that it derives from. Both layers are equal on finite inputs: the dense one multiplies every
        input by zeros too, and an infinity times zero is not a number.
        """
        spec = self.spec
        layer = next(cls for cls in type(self).__mro__ if cls.__module__ == __name__)
        # The meta device draws no random numbers for the weight, which is replaced below.
        dense: Self = layer(**arguments_of(spec.dense()), init=self.init, device="meta", dtype=self.weight.dtype)
        with torch.no_grad():
            blocks = self.weight.reshape(spec.groups, -1, *self.weight.shape[1:])
            groups, rows, columns, *kernel = blocks.shape
            weight = blocks.new_zeros(groups, rows, groups, columns, *kernel)
            diagonal = torch.arange(groups, device=weight.device)
            weight[diagonal, :, diagonal] = blocks
            dense.weight = _parameter(weight.flatten(0, 1).flatten(1, 2), self.weight.requires_grad)
            if self.bias is not None:
                dense.bias = _parameter(self.bias.clone(), self.bias.requires_grad)
        return dense.train(self.training)

    def reset_parameters(self) -> None:
        """Draws the parameters again, as `init` says."""
        if self.init is None:
            super().reset_parameters()
            return
        kaiming_normal_(self, mode=self.init)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Returns the text of `torch.nn`, and `init` if there is one."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return text if self.init is None else f"{text}, init={self.init!r}"


class _Plain(_Grouped):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent | str = 0,
        dilation: Extent = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: str | None = None,
    ) -> None:
        spec = ConvSpec(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dims=self._dims,
        )
        self._construct(spec, init, device, dtype)


class _Transposed(_Grouped):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent = 0,
        output_padding: Extent = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Extent = 1,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        init: str | None = None,
    ) -> None:
        spec = ConvSpec(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            transposed=True,
            output_padding=output_padding,
            dims=self._dims,
        )
        self._construct(spec, init, device, dtype)


class Conv1d(_Plain, torch.nn.Conv1d):
    """`torch.nn.Conv1d` with its groups in view: (N, in, L) to (N, out, L').

    It has the same arguments, state_dict and results. One argument is new: `init="fan_in"` or `"fan_out"` draws the
    weight from Kaiming's normal distribution with the true fan of the groups, and sets the bias to 0; None keeps
    PyTorch's initialisation. Raises `GroupwiseError`, a `ValueError`, for bad arguments, with the valid values.
    """

    _dims = 1


class Conv2d(_Plain, torch.nn.Conv2d):
    """`torch.nn.Conv2d` with its groups in view: (N, in, H, W) to (N, out, H', W'). See `Conv1d`.

    Examples:
        >>> layer = Conv2d(8, 4, 5, groups=4)
        >>> layer.weight_of(1).shape
        torch.Size([1, 2, 5, 5])
        >>> layer.paths[1].inputs
        range(2, 4)
    """

    _dims = 2


class Conv3d(_Plain, torch.nn.Conv3d):
    """`torch.nn.Conv3d` with its groups in view: (N, in, D, H, W) to (N, out, D', H', W'). See `Conv1d`."""

    _dims = 3


class ConvTranspose1d(_Transposed, torch.nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with its groups in view: (N, in, L) to (N, out, L'). See `Conv1d`."""

    _dims = 1


class ConvTranspose2d(_Transposed, torch.nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with its groups in view: (N, in, H, W) to (N, out, H', W'). See `Conv1d`."""

    _dims = 2


class ConvTranspose3d(_Transposed, torch.nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with its groups in view: (N, in, D, H, W) to (N, out, D', H', W'). See `Conv1d`."""

    _dims = 3


def _parameter(values: torch.Tensor, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(values, requires_grad=requires_grad)
