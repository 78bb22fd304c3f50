"""Counts and times the convolutions of a model of your own, forward and backward."""

import torch
import torch.nn.functional as F

import groupwise


class Separable(torch.nn.Module):
    """A depthwise layer, a pointwise layer, and a blur that is a function and no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = groupwise.nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.pointwise = groupwise.nn.Conv2d(32, 64, 1)
        self.register_buffer("blur", torch.full((64, 1, 3, 3), 1 / 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, 32, H, W) to (N, 64, H, W)."""
        x = self.pointwise(self.depthwise(x))
        return F.conv2d(x, self.blur, padding=1, groups=64)


report = groupwise.report(Separable(), torch.randn(4, 32, 64, 64), backward=True)
print(report)
for row in report.to_dict()["layers"]:
    print(row["name"], row["passes"])
report.to_html("report.html")
