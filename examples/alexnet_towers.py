"""AlexNet with groups=2 is two towers. This carries the weights over and compares the outputs."""

import torch

from groupwise.models import AlexNetTowers, alexnet

torch.manual_seed(0)
grouped = alexnet().eval()
towers = AlexNetTowers.from_grouped(grouped).eval()

x = torch.randn(2, 3, 224, 224)
with torch.no_grad():
    difference = (towers(x) - grouped(x)).abs().max().item()
print(f"{sum(p.numel() for p in grouped.parameters()):,} parameters in both; largest difference {difference:.1e}")
assert difference < 1e-4
