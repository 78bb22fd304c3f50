"""`GatheredConv`: a grouped convolution between gathers of its channels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


class GatheredConv(nn.Module):
    """A grouped convolution whose channels have another order than those around it.

    It takes and returns channels in the order of the layers around it: it gathers the inputs of each group, computes,
    and puts each output where it was. A gather copies the whole tensor, which often takes as long as groups save.

    - `conv`: the convolution
    - `inputs` (in_channels,): which channel of the input is each of the convolution's
    - `outputs` (out_channels,): which channel of the output each of the convolution's is
    """

    inputs: torch.Tensor
    places: torch.Tensor

    def __init__(self, conv: _ConvNd, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("inputs", inputs.clone())
        self.register_buffer("places", torch.argsort(outputs))

    @property
    def dim(self) -> int:
        """The dimension of the channels, counted from the last."""
        return -1 - len(self.conv.kernel_size)

    def forward(self, input: torch.Tensor, output_size: Sequence[int] | None = None) -> torch.Tensor:
        """Takes (N, in_channels, ...) or (in_channels, ...), and returns what the convolution makes of it.

        Only a transposed convolution takes an `output_size`.
        """
        given = input.index_select(self.dim, self.inputs)
        gathered: torch.Tensor = self.conv(given) if output_size is None else self.conv(given, output_size)
        return gathered.index_select(self.dim, self.places)


class GatherTime(NamedTuple):
    """The median seconds of the two gathers of a layer: forward, and with their gradients if those ran."""

    forward: float
    whole: float


def gather_seconds(layer: GatheredConv, x: torch.Tensor, repeats: int = 7, train: bool = False) -> GatherTime:
    """Returns what the two gathers of a layer take for an input; with `train` their gradients too."""
    with torch.no_grad():
        y = layer.conv(x.index_select(layer.dim, layer.inputs))
    ends = [(one.detach().requires_grad_(train), places) for one, places in ((x, layer.inputs), (y, layer.places))]
    forward, whole = [], []
    with torch.set_grad_enabled(train):
        # The first run does not count.
        for _ in range(1 + repeats):
            start = time.perf_counter()
            gathered = [one.index_select(layer.dim, places) for one, places in ends]
            seconds = time.perf_counter() - start
            forward.append(seconds)
            if train:
                for (one, _), moved in zip(ends, gathered, strict=True):
                    torch.autograd.grad(moved, one, moved.detach())
                seconds = time.perf_counter() - start
            whole.append(seconds)
    return GatherTime(statistics.median(forward[1:]), statistics.median(whole[1:]))
