"""Run a model with groupwise's kernels, and see what ran and that the answer is the same."""

import torch

import groupwise


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(64, 128, 3, padding=1, groups=32),
        torch.nn.ReLU(),
        torch.nn.Conv2d(128, 128, 7, padding=3, groups=128),
    )
    image = torch.randn(1, 64, 56, 56)
    expected = model(image)
    with groupwise.enabled(), groupwise.record_plans() as plans:
        output = model(image)
    for plan in plans:
        print(plan)
    difference = (output - expected).abs().max().item()
    print(f"largest difference to PyTorch: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
