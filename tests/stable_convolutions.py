"""Runs convolutions, gradients and what falls back with the library in use, and prints JSON (tests/test_stable.py)."""

from __future__ import annotations

import itertools
import json
import pathlib

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import groupwise
from groupwise.kernels import native

EPS = 2**-24
# More roundings than any product passes through (docs/kernels.md).
DEPTH = 600


def images(shape, channels_last):
    x, last = torch.randn(shape), {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=last[x.dim()]) if channels_last and x.dim() in last else x


def cases():
    """(name, function, words, tensors): 1-D to 3-D, plain and transposed, both formats, strides and dilations."""
    settings = itertools.product([1, 2], [1, 2], [False, True], [False, True])
    for stride, dilation, transposed, last in settings:
        for name, groups, inputs, outputs, kernel, sizes in [
            ("depthwise", 24, 24, 24, (3, 3), (13, 11)),
            ("grouped", 4, 16, 24, (3, 5), (9, 14)),
            ("row", 2, 8, 6, (7,), (31,)),
            ("volume", 4, 8, 12, (2, 3, 3), (4, 7, 5)),
        ]:
            shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
            x, w = images((2, inputs, *sizes), last), torch.randn(*shape, *kernel)
            padding = tuple(dilation * (k // 2) for k in kernel)
            words = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
            if transposed:
                words["output_padding"] = stride - 1
            dims = len(kernel)
            function = getattr(F, f"conv{'_transpose' if transposed else ''}{dims}d")
            if last and dims == 1:
                x = x.transpose(1, 2).contiguous().transpose(1, 2)
            yield f"{name} {stride} {dilation} {transposed} {last}", function, words, x, w, torch.randn(outputs)


def error(result, exact, bound):
    return float(((result.double() - exact).abs() / (DEPTH * EPS * bound + 1e-30)).max())


def errors():
    found = {}
    for name, function, words, *tensors in cases():
        ours = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        exact = [t.double().requires_grad_() for t in tensors]
        bounds = [t.double().abs().requires_grad_() for t in tensors]
        # The planner may leave volumes to PyTorch.
        with groupwise.kernels.dispatch.forced(kernel="planar" if ours[0].dim() == 5 else ""):
            results = [function(*three, **words) for three in (ours, exact, bounds)]
            grad = torch.randn_like(results[0])
            gradients = [
                torch.autograd.grad(result, three, given)
                for result, three, given in zip(
                    results, (ours, exact, bounds), (grad, grad.double(), grad.double().abs()), strict=True
                )
            ]
        found[f"{name} forward"] = error(*results)
        for which, *three in zip(("grad_input", "grad_weight", "grad_bias"), *gradients, strict=True):
            found[f"{name} {which}"] = error(*three)
    return found


def alike(function, same=torch.equal):
    """Whether a function computes the same with the kernels and without."""
    with groupwise.kernels.dispatch.forced(False):
        expected = function()
    return all(same(a, b) for a, b in zip(function(), expected, strict=True))


def gradients(x, w, bias, **words):
    tensors = [t.clone().requires_grad_() for t in (x, w, bias)]
    y = words.pop("function", F.conv2d)(*tensors, **words)
    return [y, *torch.autograd.grad(y.double().square().sum(), tensors)]


def double_backward(x, w):
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    (first,) = torch.autograd.grad(F.conv2d(x, w, groups=4).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), (x, w))


def bias_alone(x, w, bias):
    bias = bias.double().requires_grad_()
    return torch.autograd.grad(F.conv2d(x.double(), w.double(), bias, groups=4).square().sum(), bias)


def close(a, b):
    """Whether doubles differ by rounding alone: kernels sum in another order."""
    return torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def fallbacks():
    x, w, bias = torch.randn(2, 8, 6, 6), torch.randn(8, 2, 3, 3), torch.randn(8)
    waves = [t.to(torch.complex128) for t in (x, w, bias)]
    deep = torch.randn(1, 8, 4, 4, 4), torch.randn(8, 2, 2, 3, 3), bias
    # On some processors a table gives these to a kernel of ours: here each is handed back to PyTorch.
    with groupwise.kernels.dispatch.forced(True, "pytorch"):
        handed = {
            "complex128": alike(lambda: [F.conv2d(*waves, groups=4)]),
            "float64": alike(lambda: gradients(x.double(), w.double(), bias.double(), groups=4)),
            "bfloat16": alike(lambda: gradients(x.bfloat16(), w.bfloat16(), bias.bfloat16(), groups=4)),
            "3-D": alike(lambda: gradients(*(t.double() for t in deep), groups=4, function=F.conv3d)),
            "double backward": alike(lambda: double_backward(x, w)),
        }
    return handed | {
        "bias alone": alike(lambda: bias_alone(x, w, bias), close),
        "empty": F.conv2d(x[:0], w, bias, groups=4).shape == (0, 8, 4, 4),
        "unbatched": torch.allclose(F.conv2d(x[0], w, bias, groups=4), F.conv2d(x, w, bias, groups=4)[0], atol=1e-5),
        "vmap": torch.allclose(
            torch.vmap(lambda one: F.conv2d(one, w, groups=4))(x[None]), F.conv2d(x, w, groups=4)[None], atol=1e-5
        ),
    }


def message():
    try:
        F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 2, 3, 3))
    except RuntimeError as error:
        return str(error)
    return "no error"


def shown():
    """The names and the shapes of the kernels of a training step without a bias, as a profile shows them."""
    conv, x = torch.nn.Conv2d(8, 8, 3, groups=4, bias=False), torch.randn(1, 8, 9, 9, requires_grad=True)
    with (
        groupwise.kernels.dispatch.forced(True, "planar"),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as made,
    ):
        conv(x).sum().backward()
    return [(event.name, event.input_shapes) for event in made.events() if event.name.startswith("groupwise::")]


def main():
    torch.manual_seed(0)
    facts = {
        "library": pathlib.Path(str(native.status().path)).name,
        "operators_problem": native.status().operators_problem,
        "isa": native.status().isa,
    }
    groupwise.enable(tune=False)
    with groupwise.record_plans() as plans:
        facts["errors"] = errors()
    facts["kernels"] = sorted({plan.kernel for plan in plans})
    facts["directions"] = sorted({plan.direction for plan in plans})
    facts["fallbacks"] = fallbacks()
    facts["message"] = message()
    facts["shown"] = shown()
    conv = torch.nn.Conv2d(8, 8, 3, groups=8)
    graph = torch.jit.trace(conv, torch.randn(1, 8, 9, 9)).graph
    facts["traced"] = [node.kind() for node in graph.nodes() if "conv" in node.kind()]
    network = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 8, 9, 9)
    fast = groupwise.optimize(network, x)
    with torch.no_grad():
        facts["optimized"] = float((fast(x) - network(x)).abs().max())
    facts["plan"] = str(fast.plan)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
