"""ResNeXt: residual networks whose bottlenecks are grouped convolutions.

Source: S. Xie, R. Girshick, P. Dollár, Z. Tu, K. He, "Aggregated Residual Transformations for Deep Neural Networks",
CVPR 2017. The names of parameters and buffers are torchvision's, so that each loads the other's state_dict.
"""

from __future__ import annotations

import torch

from groupwise.errors import MAX_CHANNELS, check_integer
from groupwise.nn import Conv2d


class Bottleneck(torch.nn.Module):
    """Form (c) of figure 3: a 1×1 convolution to `width` channels, a grouped 3×3 one, and a 1×1 one to `out_channels`.

    It maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up. The shortcut adds the
    input, or a 1×1 convolution of it where the shape changes. A batch norm follows every convolution, and a ReLU the
    first two batch norms and the sum.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, groups: int = 32, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = torch.nn.BatchNorm2d(out_channels)
        self.relu = torch.nn.ReLU(inplace=True)
        self.downsample = shortcut_of(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        path = self.relu(self.bn1(self.conv1(x)))
        path = self.relu(self.bn2(self.conv2(path)))
        path = self.bn3(self.conv3(path))
        shortcut = x if self.downsample is None else self.downsample(x)
        out: torch.Tensor = self.relu(path + shortcut)
        return out


class ResNeXt(torch.nn.Module):
    """ResNeXt of four stages of `Bottleneck`s: (N, 3, H, W) to (N, num_classes).

    - `layers`: the number of blocks of each stage
    - `groups`: the cardinality
    - `width_per_group`: the channels of a group in the first stage; they double with every stage
    """

    def __init__(
        self, layers: tuple[int, int, int, int], groups: int, width_per_group: int, num_classes: int = 1000
    ) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1, MAX_CHANNELS)
        self.conv1 = conv(3, 64, 7, stride=2)
        self.bn1 = torch.nn.BatchNorm2d(64)
        self.relu = torch.nn.ReLU(inplace=True)
        self.maxpool = torch.nn.MaxPool2d(3, stride=2, padding=1)
        width = groups * width_per_group
        self.layer1 = _stage(layers[0], 64, 256, width, groups, stride=1)
        self.layer2 = _stage(layers[1], 256, 512, 2 * width, groups, stride=2)
        self.layer3 = _stage(layers[2], 512, 1024, 4 * width, groups, stride=2)
        self.layer4 = _stage(layers[3], 1024, 2048, 8 * width, groups, stride=2)
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(2048, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, H, W) to (N, num_classes), before the softmax."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


def resnext50_32x4d(num_classes: int = 1000) -> ResNeXt:
    """Returns ResNeXt-50 with 32 groups of 4 channels, of 25,028,904 parameters: (N, 3, H, W) to (N, num_classes)."""
    return ResNeXt((3, 4, 6, 3), 32, 4, num_classes)


def resnext101_32x8d(num_classes: int = 1000) -> ResNeXt:
    """Returns ResNeXt-101 with 32 groups of 8 channels, of 88,791,336 parameters: (N, 3, H, W) to (N, num_classes)."""
    return ResNeXt((3, 4, 23, 3), 32, 8, num_classes)


def resnext101_64x4d(num_classes: int = 1000) -> ResNeXt:
    """Returns ResNeXt-101 with 64 groups of 4 channels, of 83,455,272 parameters: (N, 3, H, W) to (N, num_classes)."""
    return ResNeXt((3, 4, 23, 3), 64, 4, num_classes)


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> Conv2d:
    """Returns a convolution of these networks: padded to keep the size, without bias, Kaiming by the true fan_out."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
        init="fan_out",
    )


def shortcut_of(in_channels: int, out_channels: int, stride: int) -> torch.nn.Sequential | None:
    """Returns the shortcut of a block that changes the shape, (N, in, H, W) to (N, out, H / stride, W / stride).

    Returns None for a block that keeps it.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    return torch.nn.Sequential(conv(in_channels, out_channels, 1, stride), torch.nn.BatchNorm2d(out_channels))


def _stage(
    blocks: int, in_channels: int, out_channels: int, width: int, groups: int, stride: int
) -> torch.nn.Sequential:
    first = Bottleneck(in_channels, out_channels, width, groups, stride)
    return torch.nn.Sequential(
        first, *(Bottleneck(out_channels, out_channels, width, groups) for _ in range(blocks - 1))
    )
