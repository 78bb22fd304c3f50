"""The families of random layers that `sweeping.py` draws from: layers that people use, and a tail of odd ones."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

from groupwise import ConvSpec, GroupwiseError

CHANNELS = (8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 120, 128, 144, 160, 192, 240, 256, 288, 320, 384, 512, 576, 768)
SIZES = (7, 8, 10, 13, 14, 16, 20, 27, 28, 32, 40, 56, 64, 80, 112, 160, 224)
LENGTHS = (16, 50, 64, 100, 128, 200, 256, 400, 512, 1000, 2048)
Numbers = tuple[ConvSpec, tuple[int, ...]]


def between(chance: random.Random, least: float, most: float) -> int:
    """Draws an integer whose logarithm is uniform."""
    return round(math.exp(chance.uniform(math.log(least), math.log(most))))


def one_of(chance: random.Random, common: tuple[int, ...], odd: float = 0.2) -> int:
    """Draws one of the common values, or, with the probability `odd`, any between the least and the most of them."""
    return between(chance, min(common), max(common)) if chance.random() < odd else chance.choice(common)


def image(chance: random.Random) -> tuple[int, ...]:
    """Draws a height and a width, mostly equal."""
    height = one_of(chance, SIZES)
    return (height, height if chance.random() < 0.85 else one_of(chance, SIZES))


def depthwise(chance: random.Random, kernels: tuple[int, ...] = (3, 3, 3, 3, 5, 5, 7)) -> Numbers:
    """As in MobileNet, EfficientNet and ConvNeXt, and now and then InceptionNeXt's kernels of one row or column."""
    channels, kernel = one_of(chance, CHANNELS), chance.choice(kernels)
    stride = chance.choice((1, 1, 1, 2))
    dilation = chance.choice((2, 4)) if stride == 1 and chance.random() < 0.08 else 1
    padding = dilation * (kernel // 2) if chance.random() < 0.9 else 0
    if chance.random() < 0.1:
        kernel = chance.choice((7, 9, 11, 15, kernel))
        sides, pads = chance.choice((((1, kernel), (0, kernel // 2)), ((kernel, 1), (kernel // 2, 0))))
        return ConvSpec(channels, channels, sides, 1, pads, 1, channels), image(chance)
    return ConvSpec(channels, channels, kernel, stride, padding, dilation, channels), image(chance)


def grouped(chance: random.Random) -> Numbers:
    """As in ResNeXt, RegNet and ShuffleNet: 3x3 and 1x1, equal channels in and out of a group."""
    width, groups = (
        one_of(chance, (2, 4, 8, 8, 16, 16, 24, 32, 32, 48, 64, 96, 128)),
        one_of(chance, (2, 3, 4, 8, 16, 32, 64)),
    )
    kernel = chance.choice((3, 3, 3, 3, 1, 1, 5))
    stride = chance.choice((1, 1, 1, 2))
    out = width if chance.random() < 0.75 else one_of(chance, (1, 2, 4, 8, 16, 32, 64))
    return ConvSpec(width * groups, out * groups, kernel, stride, kernel // 2, 1, groups), image(chance)


def dense(chance: random.Random) -> Numbers:
    """Without groups, and with few channels on one side: first and last layers."""
    few, many = chance.choice((1, 1, 2, 3, 3, 3, 4, 8, 16)), one_of(chance, (1, 3, 8, 16, 24, 32, 64, 96))
    channels = (few, many) if chance.random() < 0.7 else (many, few)
    kernel = chance.choice((1, 3, 3, 3, 5, 7, 11))
    return ConvSpec(*channels, kernel, chance.choice((1, 1, 2, 4)), kernel // 2), image(chance)


def ordinary(chance: random.Random) -> Numbers:
    """Without groups, with many channels on both sides."""
    kernel = chance.choice((1, 1, 3))
    channels = one_of(chance, CHANNELS), one_of(chance, CHANNELS)
    return ConvSpec(*channels, kernel, chance.choice((1, 1, 1, 2)), kernel // 2), image(chance)


def multiplied(chance: random.Random) -> Numbers:
    """Several outputs for each input channel, as in Xception and in steerable filters."""
    channels, kernel = one_of(chance, CHANNELS[:16]), chance.choice((1, 3, 3, 5, 7))
    times = chance.choice((2, 2, 3, 4, 6, 8, 16))
    return ConvSpec(channels, times * channels, kernel, chance.choice((1, 1, 2)), kernel // 2, 1, channels), image(
        chance
    )


def sequence(chance: random.Random) -> Numbers:
    """1-D: Mamba's 4 taps, a Conformer's 31, wav2vec's 128, and grouped ones."""
    kernel = one_of(chance, (3, 3, 4, 5, 7, 9, 15, 31, 31, 64, 128, 256))
    channels = one_of(chance, CHANNELS)
    groups = (
        channels if chance.random() < 0.6 else chance.choice([d for d in range(1, channels + 1) if channels % d == 0])
    )
    stride = chance.choice((1, 1, 1, 1, 2, 5))
    dilation = chance.choice((1, 1, 1, 1, 2, 8))
    padding = chance.choice((0, dilation * (kernel // 2), dilation * (kernel - 1)))
    return ConvSpec(channels, channels, kernel, stride, padding, dilation, groups, dims=1), (one_of(chance, LENGTHS),)


def long(chance: random.Random) -> Numbers:
    """1-D with hundreds or thousands of taps, as in Hyena, S4 and long filters; stride 1."""
    kernel, channels = between(chance, 64, 4096), one_of(chance, CHANNELS)
    width = chance.choice([d for d in (1, 1, 1, 2, 4, 8, 16, 48) if channels % d == 0])
    padding = chance.choice((0, kernel // 2, kernel - 1))
    spec = ConvSpec(channels, channels, kernel, 1, padding, 1, channels // width, dims=1)
    return spec, (one_of(chance, (256, 512, 1000, 2048, 4096, 8192)),)


def transposed(chance: random.Random) -> Numbers:
    """Upsampling layers, most of them of stride 2."""
    groups, width = one_of(chance, CHANNELS[:14]), chance.choice((1, 1, 1, 2, 4, 8, 16))
    out = width if chance.random() < 0.8 else chance.choice((1, 2, 4, 8))
    kernel, stride, padding = chance.choice(
        ((2, 2, 0), (3, 2, 1), (4, 2, 1), (4, 2, 1), (3, 1, 1), (8, 4, 2), (16, 8, 4))
    )
    if chance.random() < 0.15:
        spec = ConvSpec(width * groups, out * groups, kernel, stride, padding, 1, groups, transposed=True, dims=1)
        return spec, (one_of(chance, LENGTHS),)
    return ConvSpec(width * groups, out * groups, kernel, stride, padding, 1, groups, transposed=True), image(chance)


def whole(chance: random.Random) -> Numbers:
    """A kernel as large as the image, which sees each position once."""
    side = one_of(chance, (4, 5, 7, 8, 14, 16))
    groups, width = one_of(chance, CHANNELS), chance.choice((1, 1, 1, 2, 4))
    return ConvSpec(width * groups, width * groups, side, groups=groups), (side, side)


def few(chance: random.Random) -> Numbers:
    """Outputs of few columns or of one row, as at the end of a network."""
    columns = chance.randint(1, 7)
    rows = columns if chance.random() < 0.7 else chance.choice((1, one_of(chance, SIZES)))
    out = (rows, columns) if rows > 1 or chance.random() < 0.5 else (rows, one_of(chance, SIZES))
    kernel, stride = chance.choice((1, 3, 3, 3, 5, 7)), chance.choice((1, 1, 1, 2))
    padding = kernel // 2 if chance.random() < 0.6 else 0
    size = tuple((n - 1) * stride + kernel - 2 * padding for n in out)
    if min(size) < 1:
        raise GroupwiseError(f"an output of {out} has no input")
    groups = one_of(chance, CHANNELS)
    width = chance.choice((1, 1, 1, 1, 2, 4, 8, 16, 32, 64))
    spread = width if chance.random() < 0.8 else chance.choice((1, 2, 4, 8, 16))
    return ConvSpec(width * groups, spread * groups, kernel, stride, padding, groups=groups), size


def dilated(chance: random.Random) -> Numbers:
    """As in DeepLab's pyramids, dilated stages of residual networks and WaveNet's stacks."""
    channels = one_of(chance, CHANNELS)
    width = chance.choice([d for d in (1, 1, 1, 1, 1, 4, 8, 16, 32, channels) if channels % d == 0])
    if chance.random() < 0.2:
        kernel, dilation = chance.choice((2, 3, 3, 5)), 2 ** chance.randint(1, 9)
        padding = chance.choice((0, dilation * (kernel // 2), dilation * (kernel - 1)))
        spec = ConvSpec(channels, channels, kernel, 1, padding, dilation, channels // width, dims=1)
        return spec, (one_of(chance, LENGTHS),)
    kernel, dilation = chance.choice((3, 3, 3, 3, 5, 7)), one_of(chance, (2, 2, 2, 3, 4, 4, 6, 8, 12, 18, 24, 36))
    padding = dilation * (kernel // 2) if chance.random() < 0.9 else 0
    return ConvSpec(channels, channels, kernel, 1, padding, dilation, channels // width), image(chance)


def pointwise(chance: random.Random) -> Numbers:
    """1x1 layers, which expand and project in mobile networks and bottlenecks, and start their shortcuts."""
    narrow = one_of(chance, CHANNELS)
    wide = narrow * chance.choice((1, 2, 3, 4, 4, 6, 6)) if chance.random() < 0.7 else one_of(chance, CHANNELS)
    channels = (narrow, wide) if chance.random() < 0.5 else (wide, narrow)
    groups = 1 if chance.random() < 0.85 else math.gcd(*channels, chance.choice((2, 3, 4, 8)))
    return ConvSpec(*channels, 1, chance.choice((1, 1, 1, 1, 1, 2)), groups=groups), image(chance)


def steps(chance: random.Random) -> Numbers:
    """Layers as they are trained, with several samples: those of bottlenecks and inverted residuals."""
    which = chance.choice(("depthwise", "depthwise", "grouped", "pointwise", "pointwise", "dense"))
    side, stride = one_of(chance, (7, 7, 14, 14, 14, 28, 28, 56, 56, 112)), chance.choice((1, 1, 1, 2))
    channels = one_of(chance, (*CHANNELS, 672, 960, 1024, 1152, 1536))
    if which == "depthwise":
        kernel = chance.choice((3, 3, 3, 5, 5, 7))
        return ConvSpec(channels, channels, kernel, stride, kernel // 2, 1, channels), (side, side)
    if which == "grouped":
        width = chance.choice((4, 8, 8, 16, 16, 24, 32, 48, 64))
        groups = max(2, channels // width)
        return ConvSpec(width * groups, width * groups, 3, stride, 1, 1, groups), (side, side)
    if which == "dense":
        inputs, kernel = chance.choice((3, 16, 32, 64, channels)), chance.choice((3, 3, 7))
        return ConvSpec(inputs, chance.choice((16, 32, 64, channels)), kernel, stride, kernel // 2), (side, side)
    return pointwise(chance)[0], (side, side)


def products(chance: random.Random) -> Numbers:
    """1x1 and linear layers of many channels as they are trained: those of bottlenecks and of transformers."""
    narrow = one_of(chance, (64, 96, 128, 192, 256, 384, 512, 768, 1024))
    channels = (narrow, min(4096, narrow * chance.choice((1, 2, 2, 4, 4))))
    side = one_of(chance, (7, 7, 14, 14, 28, 56))
    return ConvSpec(*channels[:: chance.choice((1, -1))], 1, chance.choice((1, 1, 1, 1, 2))), (side, side)


def deep(chance: random.Random) -> Numbers:
    """Layers of the last stages of a network that sees one image or a few: many channels, and few positions."""
    inputs, outputs = (one_of(chance, (256, 320, 448, 512, 768, 1024, 1280, 2048)) for _ in range(2))
    side, stride = chance.choice((4, 6, 7, 7, 8, 10, 12, 14, 14, 16)), chance.choice((1, 1, 1, 2))
    if chance.random() < 0.6:
        return ConvSpec(inputs, outputs, 1, stride), (side * stride, side * stride)
    groups = chance.choice((1, 1, 4, 16, 32))
    width = max(8, min(inputs, outputs) // groups)
    return ConvSpec(groups * width, groups * width, 3, stride, 1, 1, groups), (side * stride, side * stride)


def ensemble(chance: random.Random) -> Numbers:
    """Networks side by side, and samples with weights of their own: groups as wide as a layer of a small network."""
    groups, inputs = between(chance, 2, 64), one_of(chance, (1, 3, 3, 8, 16, 32, 64, 128))
    outputs, kernel = one_of(chance, (3, 8, 16, 32, 64, 128)), chance.choice((1, 3, 3, 3, 5))
    return ConvSpec(groups * inputs, groups * outputs, kernel, 1, kernel // 2, 1, groups), image(chance)


def signals(chance: random.Random) -> Numbers:
    """1-D layers of language models (a few taps for each of many channels, padded on both sides) and of vocoders."""
    channels = one_of(chance, (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 5120, 8192))
    if chance.random() < 0.5:
        kernel = chance.choice((2, 3, 4, 4, 4, 5, 7))
        size = one_of(chance, (1, 16, 64, 128, 256, 512, 1024, 2048, 4096))
        return ConvSpec(channels, channels, kernel, 1, kernel - 1, 1, channels, dims=1), (size,)
    channels = min(channels, 1024)
    stride = chance.choice((2, 2, 2, 3, 4, 5, 8))
    kernel = stride * chance.choice((1, 2, 2, 3)) + chance.choice((0, 0, 0, 1))
    groups = channels if chance.random() < 0.75 else math.gcd(channels, chance.choice((1, 4, 16, 64)))
    spec = ConvSpec(channels, channels, kernel, stride, (kernel - stride) // 2, 1, groups, transposed=True, dims=1)
    return spec, (one_of(chance, (8, 16, 32, 32, 50, 64, 100, 200, 256, 400, 1000)),)


def speech(chance: random.Random) -> Numbers:
    """1-D layers of encoders of speech: groups of many channels, and many taps."""
    width, groups = one_of(chance, (8, 16, 24, 32, 48, 64, 96)), one_of(chance, (2, 4, 8, 16, 16, 32))
    kernel = chance.choice((15, 19, 31, 32, 47, 64, 95, 128, 128, 192, 256))
    padding = chance.choice((0, kernel // 2, kernel // 2, kernel - 1))
    size = one_of(chance, (100, 128, 200, 256, 400, 512, 800, 1024, 1500))
    return ConvSpec(groups * width, groups * width, kernel, 1, padding, 1, groups, dims=1), (size,)


def big(chance: random.Random) -> Numbers:
    """Layers of which one takes milliseconds: without them the tables say nothing of what costs users most."""
    which = chance.choice(("rows", "rows", "depthwise", "grouped", "dense", "transposed"))
    side = one_of(chance, (28, 56, 80, 112, 160, 224, 320, 512))
    if which == "rows":
        # As in Mamba, and in encoders of speech.
        channels = one_of(chance, (768, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 8192))
        groups = (
            channels
            if chance.random() < 0.75
            else chance.choice([d for d in (4, 8, 16, 32) if channels % d == 0] or [1])
        )
        kernel = chance.choice((3, 4, 4, 4, 7, 9, 31))
        padding = chance.choice((0, kernel // 2, kernel - 1))
        return ConvSpec(channels, channels, kernel, 1, padding, 1, groups, dims=1), (between(chance, 128, 4096),)
    if which == "depthwise":
        channels, kernel = one_of(chance, CHANNELS), chance.choice((3, 3, 3, 5, 7))
        return ConvSpec(channels, channels, kernel, chance.choice((1, 1, 2)), kernel // 2, 1, channels), (side, side)
    if which == "grouped":
        width, groups = one_of(chance, (4, 8, 16, 32, 64, 128)), one_of(chance, (2, 4, 8, 16, 32, 64))
        return ConvSpec(width * groups, width * groups, 3, chance.choice((1, 1, 2)), 1, 1, groups), (side, side)
    channels = [one_of(chance, (64, 128, 256, 384, 512, 768, 1024)) for _ in range(2)]
    if which == "dense":
        kernel = chance.choice((1, 1, 3, 3, 5))
        return ConvSpec(*channels, kernel, chance.choice((1, 1, 2)), kernel // 2), (side, side)
    groups = math.gcd(*channels, chance.choice((1, 1, 2, 4, 8)))
    kernel, stride, padding = chance.choice(((2, 2, 0), (4, 2, 1), (3, 1, 1)))
    return ConvSpec(*channels, kernel, stride, padding, 1, groups, transposed=True), (side, side)


def odd(chance: random.Random) -> Numbers:
    """Any numbers that PyTorch takes."""
    dims = 1 if chance.random() < 0.25 else 2
    most = 256 if dims == 1 else 31
    groups, inputs, outputs = between(chance, 1, 300), between(chance, 1, 40), between(chance, 1, 40)
    kernel = tuple(between(chance, 1, most) if chance.random() < 0.5 else chance.randint(1, 4) for _ in range(dims))
    stride = tuple(chance.choice((1, 1, 1, 2, 3, 4)) for _ in range(dims))
    dilation = tuple(chance.choice((1, 1, 1, 1, 2, 3, 5)) for _ in range(dims))
    padding = tuple(
        chance.choice((0, k // 2, d * (k // 2), d * (k - 1))) for k, d in zip(kernel, dilation, strict=True)
    )
    size = tuple(between(chance, 1, 2000 if dims == 1 else 224) for _ in range(dims))
    spec = ConvSpec(
        inputs * groups,
        outputs * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        transposed=chance.random() < 0.15,
        dims=dims,
    )
    return spec, size


FAMILIES: dict[str, tuple[float, Callable[[random.Random], Numbers]]] = {
    "depthwise": (0.20, depthwise),
    "grouped": (0.22, grouped),
    "dense": (0.07, dense),
    "ordinary": (0.10, ordinary),
    "multiplied": (0.06, multiplied),
    "sequence": (0.08, sequence),
    "long": (0.02, long),
    "transposed": (0.07, transposed),
    "large": (0.05, functools.partial(depthwise, kernels=(9, 11, 13, 15, 21, 27, 31))),
    "whole": (0.02, whole),
    "big": (0.05, big),
    "odd": (0.06, odd),
    # Drawn only where it is asked for: the seeds of earlier records draw the same layers still.
    "few": (0.0, few),
    "dilated": (0.0, dilated),
    "pointwise": (0.0, pointwise),
    "steps": (0.0, steps),
    "products": (0.0, products),
    "ensemble": (0.0, ensemble),
    "deep": (0.0, deep),
    "signals": (0.0, signals),
    "speech": (0.0, speech),
}
"""The fraction of draws of each kind of layer."""


def volume(chance: random.Random, kind: str) -> Numbers:
    """3-D layers as in X3D, MoViNet, R(2+1)D, 3-D ResNeXts and U-Nets."""
    kernel = chance.choice(
        ((3, 3, 3),) * 5 + ((1, 3, 3), (1, 3, 3), (3, 1, 1), (3, 1, 1), (5, 1, 1), (5, 3, 3), (1, 1, 1))
    )
    kernel = chance.choice(((5, 5, 5), (7, 7, 7), (2, 2, 2), (1, 5, 5))) if chance.random() < 0.1 else kernel
    side = one_of(chance, (7, 7, 10, 14, 14, 20, 28, 28, 40, 56, 80, 112))
    size = (one_of(chance, (1, 2, 4, 4, 8, 8, 13, 16, 16, 32)), side, side)
    stride = chance.choice(((1, 1, 1),) * 4 + ((1, 2, 2), (2, 2, 2), (2, 1, 1)))
    dilation = 2 if chance.random() < 0.05 else 1
    padding = tuple(dilation * (k // 2) for k in kernel) if chance.random() < 0.9 else (0, 0, 0)
    channels = one_of(chance, CHANNELS[:20])
    if kind == "depthwise":
        return ConvSpec(channels, channels, kernel, stride, padding, dilation, channels), size
    if kind == "dense":
        few = one_of(chance, (1, 3, 8, 16, 32, 64))
        return ConvSpec(*((few, channels) if chance.random() < 0.5 else (channels, few)), kernel, stride, padding), size
    width = one_of(chance, (2, 4, 4, 8, 8, 16, 16, 32, 64))
    groups = one_of(chance, (2, 3, 4, 8, 16, 32))
    if kind == "grouped":
        out = width if chance.random() < 0.8 else one_of(chance, (1, 2, 4, 8, 16, 32))
        return ConvSpec(width * groups, out * groups, kernel, stride, padding, dilation, groups), size
    width, groups = chance.choice(((1, channels), (width, groups), (width, 1)))
    kernel, stride, pad = chance.choice(((2, 2, 0), (4, 2, 1), (3, 1, 1), ((1, 4, 4), (1, 2, 2), (0, 1, 1))))
    return ConvSpec(width * groups, width * groups, kernel, stride, pad, 1, groups, transposed=True, dims=3), size


VOLUMES: dict[str, tuple[float, Callable[[random.Random], Numbers]]] = {
    kind: (weight, functools.partial(volume, kind=kind))
    for kind, weight in (("depthwise", 0.4), ("grouped", 0.4), ("dense", 0.1), ("transposed", 0.1))
}
