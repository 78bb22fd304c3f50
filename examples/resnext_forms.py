"""The three forms of a ResNeXt block are equal: summed branches, joined branches, one grouped convolution."""

import torch

from groupwise.models import BranchBottleneck, ConcatBottleneck, resnext50_32x4d

torch.manual_seed(0)
block = resnext50_32x4d().layer1[0].double()
x = torch.randn(2, 64, 14, 14, dtype=torch.float64)
expected = block(x)
for form in (BranchBottleneck, ConcatBottleneck):
    same = form.from_grouped(block)
    print(f"{form.__name__:16} largest difference {(same(x) - expected).abs().max().item():.1e}")
    torch.testing.assert_close(same(x), expected)
