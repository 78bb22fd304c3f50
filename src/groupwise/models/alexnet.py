"""AlexNet as published, with groups=2, and as the two towers that the groups stand for.

A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NIPS 2012. The network was cut in two because one GPU of 3 GB could not hold it: each GPU had half of every layer's
outputs, and they exchanged them only before conv3 and the fully connected layers. (`torchvision.models.alexnet` is
another network, of the 2014 paper "One weird trick for parallelizing convolutional neural networks".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from groupwise.errors import MAX_CHANNELS, check_integer
from groupwise.models import parts
from groupwise.nn import Conv2d

TOWERS = 2
# The layers that are cut in two. Both halves of a layer's outputs are halves of dim 0 of its weight and bias,
# whether the layer reads half of the channels before it (groups=2) or all.
SPLIT = dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"], 0)


class LocalResponseNorm(torch.nn.Module):
    """Section 3.3 of the paper, on (N, C, H, W): b_i = a_i / (k + α Σ a_j²)^β, over the n channels j around i.

    k=2, n=5, α=1e-4, β=0.75. The channels of each tower are normalised on their own.
    """

    k, n, alpha, beta = 2.0, 5, 1e-4, 0.75

    def __init__(self, towers: int = 1) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        batch, channels, height, width = x.shape
        tower = x.reshape(batch * self.towers, channels // self.towers, height, width)
        # torch takes the mean of the n squares where the paper takes their sum.
        tower = F.local_response_norm(tower, self.n, alpha=self.alpha * self.n, beta=self.beta, k=self.k)
        return tower.reshape(x.shape)

    def extra_repr(self) -> str:
        """The number of towers."""
        return f"towers={self.towers}"


class Tower(torch.nn.Module):
    """Layers conv1 to fc7 in the four stages after which the towers exchange their outputs; fc8 is not part of it.

    `Tower(share=2)` is one of two towers. `Tower(groups=2)` is both in one: its channels are those of the first
    tower, then those of the second.
    """

    def __init__(self, share: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 96 // share, 11, stride=4, padding=2)
        self.conv2 = Conv2d(96 // share, 256 // share, 5, padding=2, groups=groups)
        self.conv3 = Conv2d(256, 384 // share, 3, padding=1)
        self.conv4 = Conv2d(384 // share, 384 // share, 3, padding=1, groups=groups)
        self.conv5 = Conv2d(384 // share, 256 // share, 3, padding=1, groups=groups)
        self.fc6 = torch.nn.Linear(256 * 6 * 6, 4096 // share)
        self.fc7 = torch.nn.Linear(4096, 4096 // share)
        self.norm = LocalResponseNorm(groups)
        self.pool = torch.nn.MaxPool2d(3, stride=2)
        self.dropout = torch.nn.Dropout(0.5)

    def early(self, x: torch.Tensor) -> torch.Tensor:
        """Conv1 and conv2: (N, 3, 224, 224) to (N, 256 / share, 13, 13)."""
        x = self.pool(self.norm(torch.relu(self.conv1(x))))
        out: torch.Tensor = self.pool(self.norm(torch.relu(self.conv2(x))))
        return out

    def late(self, x: torch.Tensor) -> torch.Tensor:
        """Conv3 to conv5: (N, 256, 13, 13) to (N, 256 / share, 6, 6)."""
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        out: torch.Tensor = self.pool(torch.relu(self.conv5(x)))
        return out

    def hidden6(self, x: torch.Tensor) -> torch.Tensor:
        """Fc6: (N, 9216) to (N, 4096 / share)."""
        out: torch.Tensor = self.dropout(torch.relu(self.fc6(x)))
        return out

    def hidden7(self, x: torch.Tensor) -> torch.Tensor:
        """Fc7: (N, 4096) to (N, 4096 / share)."""
        out: torch.Tensor = self.dropout(torch.relu(self.fc7(x)))
        return out


class AlexNet(Tower):
    """Both towers in one, by groups=2 in conv2, conv4 and conv5: (N, 3, 224, 224) to (N, num_classes)."""

    def __init__(self, num_classes: int = 1000) -> None:
        num_classes = check_integer("num_classes", num_classes, 1, MAX_CHANNELS)
        super().__init__(groups=TOWERS)
        self.fc8 = torch.nn.Linear(4096, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) to (N, num_classes), before the softmax."""
        x = self.late(self.early(x)).flatten(1)
        out: torch.Tensor = self.fc8(self.hidden7(self.hidden6(x)))
        return out


class AlexNetTowers(torch.nn.Module):
    """The same network as two towers, each with half of the channels: (N, 3, 224, 224) to (N, num_classes).

    They meet, by concatenation, before conv3 and before each fully connected layer, and nowhere else.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1, MAX_CHANNELS)
        self.towers = torch.nn.ModuleList(Tower(share=TOWERS) for _ in range(TOWERS))
        self.fc8 = torch.nn.Linear(4096, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) to (N, num_classes), before the softmax."""
        x = self._each(Tower.early, x)
        x = self._each(Tower.late, x).flatten(1)
        x = self._each(Tower.hidden6, x)
        x = self._each(Tower.hidden7, x)
        out: torch.Tensor = self.fc8(x)
        return out

    def _each(self, stage: Callable[[Any, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """One stage of every tower on the same input, side by side."""
        return torch.cat([stage(tower, x) for tower in self.towers], 1)

    @classmethod
    def from_grouped(cls, model: AlexNet) -> AlexNetTowers:
        """The towers that `model` stands for, with copies of its parameters."""
        with torch.device("meta"):
            towers = cls(model.fc8.out_features)
        towers.load_state_dict(parts.split(model.state_dict(), SPLIT, TOWERS, "towers"), assign=True)
        return towers.train(model.training)

    def to_grouped(self) -> AlexNet:
        """The same network with groups=2, with copies of the parameters."""
        with torch.device("meta"):
            model = AlexNet(self.fc8.out_features)
        model.load_state_dict(parts.join(self.state_dict(), SPLIT, "towers"), assign=True)
        return model.train(self.training)


def alexnet(num_classes: int = 1000) -> AlexNet:
    """The network of 2012, 60,965,224 parameters: (N, 3, 224, 224) to (N, num_classes)."""
    return AlexNet(num_classes)


def alexnet_towers(num_classes: int = 1000) -> AlexNetTowers:
    """The same network as two explicit towers, 60,965,224 parameters: (N, 3, 224, 224) to (N, num_classes)."""
    return AlexNetTowers(num_classes)


def _initialise(model: torch.nn.Module) -> None:
    """Section 5: weights from N(0, 0.01²), biases 1 where that starts the ReLUs with positive inputs, else 0."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.01)
            positive = name.split(".")[-1] in ("conv2", "conv4", "conv5", "fc6", "fc7")
            torch.nn.init.constant_(layer.bias, float(positive))  # type: ignore[arg-type]  # all have one
