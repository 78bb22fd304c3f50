"""The two other forms of ResNeXt's bottleneck (figure 3 of Xie et al., CVPR 2017), equal to its grouped one.

A grouped convolution is a set of independent branches, so each can be a module of its own. Form (a) sums the branches
after their last convolution; form (b) concatenates them before it. Both agree, because the 1×1 convolution of a
concatenation is the sum of 1×1 convolutions of its pieces. Batch norm treats each channel by itself; that of the last
convolution follows the sum.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from groupwise.errors import GroupwiseError
from groupwise.models import parts
from groupwise.models.resnext import Bottleneck, conv, shortcut_of
from groupwise.spec.arguments import check_groups

if TYPE_CHECKING:
    from typing_extensions import Self

# These layers are cut into branches, along this dimension.
CUT = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0}


class Branch(torch.nn.Module):
    """One path of `width` channels: a 1×1 and a 3×3 convolution, and the last 1×1 one if `out_channels` is given."""

    def __init__(self, in_channels: int, width: int, stride: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv3 = torch.nn.Identity() if out_channels is None else conv(width, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in_channels, H, W) to (N, width or out_channels, H / stride, W / stride)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: torch.Tensor = self.conv3(x)
        return out


class _Form(torch.nn.Module):
    """The base of both forms: the branches, the last batch norm and the shortcut."""

    cut = CUT

    def __init__(self, in_channels: int, out_channels: int, width: int, groups: int = 32, stride: int = 1) -> None:
        super().__init__()
        groups = check_groups(width, width, groups)
        ends = out_channels if "conv3" in self.cut else None
        self.branches = torch.nn.ModuleList(Branch(in_channels, width // groups, stride, ends) for _ in range(groups))
        self.conv3 = torch.nn.Identity() if ends else conv(width, out_channels, 1)
        self.bn3 = torch.nn.BatchNorm2d(out_channels)
        self.relu = torch.nn.ReLU(inplace=True)
        self.downsample = shortcut_of(in_channels, out_channels, stride)

    def merge(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns the outputs of the branches as one tensor."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        merged = self.merge([branch(x) for branch in self.branches])
        shortcut = x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(self.bn3(self.conv3(merged)) + shortcut)
        return out

    @classmethod
    def from_grouped(cls, block: Bottleneck) -> Self:
        """Returns `block` in this form, with copies of its parameters and of its batch norms' statistics."""
        spec = block.conv2.spec
        with torch.device("meta"):
            form = cls(
                block.conv1.in_channels, block.conv3.out_channels, spec.out_channels, spec.groups, spec.stride[0]
            )
        form.load_state_dict(parts.split(block.state_dict(), cls.cut, spec.groups, "branches"), assign=True)
        for name, layer in form.named_modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                source = block.get_submodule(parts.grouped_name(name, "branches"))
                layer.eps, layer.momentum = source.eps, source.momentum  # type: ignore[assignment]
        return form.train(block.training)

    def to_grouped_state_dict(self) -> dict[str, torch.Tensor]:
        """Returns parameters and statistics as a state_dict of `Bottleneck`."""
        return parts.join(self.state_dict(), self.cut, "branches")

    def to_grouped_gradients(self) -> dict[str, torch.Tensor]:
        """Returns the gradients as those of a `Bottleneck`: {name of its parameter: gradient}.

        Raises `GroupwiseError` for a parameter without a gradient.
        """
        gradients = {}
        for name, parameter in self.named_parameters():
            if parameter.grad is None:
                raise GroupwiseError(f"{name} has no gradient; call backward() on a result of this block first")
            gradients[name] = parameter.grad
        return parts.join(gradients, self.cut, "branches")


class BranchBottleneck(_Form):
    """Form (a): branches of three convolutions each, summed. It has the arguments and shapes of `Bottleneck`."""

    cut = CUT | {"conv3": 1}

    def merge(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns the sum of the outputs, each of shape (N, out_channels, H', W')."""
        return functools.reduce(torch.add, outputs)


class ConcatBottleneck(_Form):
    """Form (b): branches of two convolutions, concatenated for the third.

    It has the arguments and shapes of `Bottleneck`.
    """

    def merge(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns the concatenation, of shape (N, width, H', W')."""
        return torch.cat(outputs, 1)
