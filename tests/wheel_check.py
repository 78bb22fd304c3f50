"""Tries an installed wheel: explains, reports, and holds the kernels and an optimized network to float64. Prints JSON.

Run it by the Python of an environment that has the wheel, torch and numpy, and nothing else (`make wheel-test`).
"""

from __future__ import annotations

import copy
import json
import pathlib

import torch
from torch import nn

import groupwise
from groupwise.kernels import native


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 5, stride=2, padding=2, groups=16),
        nn.Conv2d(16, 8, 1),
    )


def error(model: nn.Module, exact: nn.Module, x: torch.Tensor) -> float:
    """The largest error of outputs and gradients against float64, over the largest value."""
    found = 0.0
    for given, true in zip(results(model, x), results(exact, x.double()), strict=True):
        found = max(found, float((given.detach().double() - true.detach()).abs().max() / true.detach().abs().max()))
    return found


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def names_of_the_builder(package: pathlib.Path) -> list[str]:
    """The files of an installed package that hold the folder of the sources, as a message of an error may."""
    sources = str(pathlib.Path(__file__).parent.parent).encode()
    made = [path for path in package.rglob("*") if path.suffix in (".so", ".json")]
    return [path.name for path in made if sources in path.read_bytes()]


def main() -> None:
    status = native.status()
    assert "site-packages" in str(pathlib.Path(groupwise.__file__)), groupwise.__file__
    assert status.problem is None, status.problem
    assert names_of_the_builder(pathlib.Path(groupwise.__file__).parent) == []
    assert "8 → 4" in str(groupwise.explain(8, 4, groups=4))
    model, x = network().eval(), torch.randn(4, 8, 17, 19)
    exact = copy.deepcopy(model).double()
    errors = {}
    with groupwise.enabled(tune=False), groupwise.record_plans() as plans:
        errors["kernels"] = error(model, exact, x)
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        errors["optimize"] = float((fast(x).double() - exact(x.double())).abs().max() / exact(x.double()).abs().max())
    assert max(errors.values()) < 1e-5, errors
    kernels = sorted({plan.kernel for plan in plans})
    assert set(kernels) - {"pytorch"}, kernels
    report = groupwise.report(model, x)
    assert len(report.rows) == 3, report
    print(
        json.dumps(
            {
                "groupwise": groupwise.__version__,
                "torch": torch.__version__,
                "library": pathlib.Path(str(status.path)).name,
                "operators": status.operators_problem is None,
                "isa": status.isa,
                "kernels": kernels,
                "errors": errors,
            }
        )
    )


if __name__ == "__main__":
    main()
