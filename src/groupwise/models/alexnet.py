"""AlexNet as published, with groups=2, and as the two towers that these groups mean.

Source: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NIPS 2012. One GPU of 3 GB could not hold the network, so each of two held half of every layer's outputs. They sent them
to each other only before conv3 and the fully connected layers. (`torchvision.models.alexnet` is another network, from
the 2014 paper "One weird trick for parallelizing convolutional neural networks".)
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
# These layers are halved along dim 0 of weight and bias: half of the outputs are half of dim 0, whether the layer
# reads half of the channels before it (groups=2) or all of them.
SPLIT = dict.fromkeys(["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"], 0)


class LocalResponseNorm(torch.nn.Module):
    """Section 3.3 of the paper, on (N, C, H, W): b_i = a_i / (k + α Σ a_j²)^β, summed over the n channels j around i.

    k=2, n=5, α=1e-4, β=0.75. Each tower normalises its own channels.
    """

    k, n, alpha, beta = 2.0, 5, 1e-4, 0.75

    def __init__(self, towers: int = 1) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        tower = x.reshape(batch * self.towers, channels // self.towers, height, width)
        # PyTorch takes the mean of the n squares, and the paper their sum.
        tower = F.local_response_norm(tower, self.n, alpha=self.alpha * self.n, beta=self.beta, k=self.k)
        return tower.reshape(x.shape)

    def extra_repr(self) -> str:
        """Returns the number of towers."""
        return f"towers={self.towers}"


class Tower(torch.nn.Module):
    """The layers conv1 to fc7, in four stages; after each stage the towers send each other their outputs.

    `Tower(towers=2)` is one of two towers. `Tower(groups=2)` is both in one: the channels of the first tower come
    first, then those of the second.
    """

    def __init__(self, towers: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, 96 // towers, 11, stride=4, padding=2)
        self.conv2 = Conv2d(96 // towers, 256 // towers, 5, padding=2, groups=groups)
        self.conv3 = Conv2d(256, 384 // towers, 3, padding=1)
        self.conv4 = Conv2d(384 // towers, 384 // towers, 3, padding=1, groups=groups)
        self.conv5 = Conv2d(384 // towers, 256 // towers, 3, padding=1, groups=groups)
        self.fc6 = torch.nn.Linear(256 * 6 * 6, 4096 // towers)
        self.fc7 = torch.nn.Linear(4096, 4096 // towers)
        self.norm = LocalResponseNorm(groups)
        self.pool = torch.nn.MaxPool2d(3, stride=2)
        self.dropout = torch.nn.Dropout(0.5)

    def early(self, x: torch.Tensor) -> torch.Tensor:
        """Runs conv1 and conv2: (N, 3, 224, 224) to (N, 256 / towers, 13, 13)."""
        x = self.pool(self.norm(torch.relu(self.conv1(x))))
        out: torch.Tensor = self.pool(self.norm(torch.relu(self.conv2(x))))
        return out

    def late(self, x: torch.Tensor) -> torch.Tensor:
        """Runs conv3 to conv5: (N, 256, 13, 13) to (N, 256 / towers, 6, 6)."""
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        out: torch.Tensor = self.pool(torch.relu(self.conv5(x)))
        return out

    def hidden6(self, x: torch.Tensor) -> torch.Tensor:
        """Runs fc6: (N, 9216) to (N, 4096 / towers)."""
        out: torch.Tensor = self.dropout(torch.relu(self.fc6(x)))
        return out

    def hidden7(self, x: torch.Tensor) -> torch.Tensor:
        """Runs fc7: (N, 4096) to (N, 4096 / towers)."""
        out: torch.Tensor = self.dropout(torch.relu(self.fc7(x)))
        return out


class AlexNet(Tower):
    """Both towers in one network, with groups=2 in conv2, conv4 and conv5: (N, 3, 224, 224) to (N, num_classes)."""

    def __init__(self, num_classes: int = 1000) -> None:
        num_classes = check_integer("num_classes", num_classes, 1, MAX_CHANNELS)
        super().__init__(groups=TOWERS)
        self.fc8 = torch.nn.Linear(4096, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, 224, 224) to (N, num_classes), before the softmax."""
        x = self.late(self.early(x)).flatten(1)
        out: torch.Tensor = self.fc8(self.hidden7(self.hidden6(x)))
        return out


class AlexNetTowers(torch.nn.Module):
    """The same network as two towers, each with half of the channels: (N, 3, 224, 224) to (N, num_classes).

    Their outputs are concatenated before conv3 and before each fully connected layer, and nowhere else.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        num_classes = check_integer("num_classes", num_classes, 1, MAX_CHANNELS)
        self.towers = torch.nn.ModuleList(Tower(towers=TOWERS) for _ in range(TOWERS))
        self.fc8 = torch.nn.Linear(4096, num_classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, 224, 224) to (N, num_classes), before the softmax."""
        x = self._each(Tower.early, x)
        x = self._each(Tower.late, x).flatten(1)
        x = self._each(Tower.hidden6, x)
        x = self._each(Tower.hidden7, x)
        out: torch.Tensor = self.fc8(x)
        return out

    def _each(self, stage: Callable[[Any, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Runs one stage of every tower on the same input, and concatenates the outputs along the channels."""
        return torch.cat([stage(tower, x) for tower in self.towers], 1)

    @classmethod
    def from_grouped(cls, model: AlexNet) -> AlexNetTowers:
        """Returns the towers that equal `model`, with copies of its parameters."""
        with torch.device("meta"):
            towers = cls(model.fc8.out_features)
        towers.load_state_dict(parts.split(model.state_dict(), SPLIT, TOWERS, "towers"), assign=True)
        return towers.train(model.training)

    def to_grouped(self) -> AlexNet:
        """Returns the same network with groups=2, with copies of the parameters."""
        with torch.device("meta"):
            model = AlexNet(self.fc8.out_features)
        model.load_state_dict(parts.join(self.state_dict(), SPLIT, "towers"), assign=True)
        return model.train(self.training)


def alexnet(num_classes: int = 1000) -> AlexNet:
    """Returns the network of 2012, of 60,965,224 parameters: (N, 3, 224, 224) to (N, num_classes)."""
    return AlexNet(num_classes)


def alexnet_towers(num_classes: int = 1000) -> AlexNetTowers:
    """Returns that network as two explicit towers, of 60,965,224 parameters: (N, 3, 224, 224) to (N, num_classes)."""
    return AlexNetTowers(num_classes)


def _initialise(model: torch.nn.Module) -> None:
    """Draws the weights from N(0, 0.01²) and sets biases to 1 or 0, as section 5 of the paper says.

    Biases are 1 in conv2, conv4, conv5, fc6 and fc7, where they start the ReLUs with positive inputs.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.01)
            positive = name.split(".")[-1] in ("conv2", "conv4", "conv5", "fc6", "fc7")
            torch.nn.init.constant_(layer.bias, float(positive))  # type: ignore[arg-type]  # every layer has a bias
