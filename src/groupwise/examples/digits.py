"""Loads the handwritten digits that come with scikit-learn, and defines a ResNeXt for pictures of that size."""

from __future__ import annotations

import torch

from groupwise.errors import GroupwiseError
from groupwise.examples.packaged import packaged_table
from groupwise.models.resnext import Bottleneck, conv

TEST = 360


class DigitsResNeXt(torch.nn.Module):
    """Maps pictures (N, 1, 8, 8) to the logits (N, 10) of their digits: a ResNeXt of three blocks.

    Each block has `groups` groups: of 4 channels in the first block, and of 8 in the other two.
    """

    def __init__(self, groups: int = 8) -> None:
        super().__init__()
        width = 4 * groups
        self.stem = torch.nn.Sequential(conv(1, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.ReLU())
        self.blocks = torch.nn.Sequential(
            Bottleneck(32, 64, width, groups),
            Bottleneck(64, 128, 2 * width, groups, stride=2),
            Bottleneck(128, 128, 2 * width, groups),
        )
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (N, 10) of pictures (N, 1, 8, 8)."""
        out: torch.Tensor = self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))
        return out


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns pictures (N, 1, 8, 8) from 0 to 1 and their digits (N,), to train on (1,437) and to test with (360).

    They are the test set of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, 1998, in the file `digits.csv.gz` of scikit-learn, of which nothing is imported. Raises
    `GroupwiseError` if scikit-learn is not installed.
    """
    table = packaged_table("sklearn", "datasets/data/digits.csv.gz", 65)
    if table is None:
        raise GroupwiseError("the digits come with scikit-learn: pip install 'groupwise[train]'")
    pictures = table[:, :-1].reshape(-1, 1, 8, 8).float().div(16)
    labels = table[:, -1].long()
    # The last pictures come from other writers than most, so that both sets are drawn from all pictures.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pictures, labels = pictures[order], labels[order]
    return pictures[:-TEST], labels[:-TEST], pictures[-TEST:], labels[-TEST:]
