"""Convolutions as plain sums of NumPy's long doubles: the oracle of float64, and of the sum of |x||w| of each value."""

from __future__ import annotations

import itertools

import numpy as np

from remembered import Remembered, fingerprint


class Sums:
    """A plain convolution of long doubles: x and y are its input and output, whichever of them a pass computes."""

    def __init__(self, spec, x_size, y_size):
        self.spec, self.x_size, self.y_size = spec, x_size, y_size

    def _padded(self, x):
        """Returns x with zeros round it, as far as the outputs read, and the place of x therein."""
        spec = self.spec
        numbers = zip(self.x_size, self.y_size, spec.kernel_size, spec.stride, spec.padding, spec.dilation, strict=True)
        size = [max(n + p, (out - 1) * s + (k - 1) * d + 1) for n, out, k, s, p, d in numbers]
        padded = np.zeros((*x.shape[:3], *size), np.longdouble)
        inner = (..., *(slice(p, p + n) for n, p in zip(self.x_size, spec.padding, strict=True)))
        padded[inner] = x
        return padded, inner

    def _taps(self, padded):
        """Yields the index of each tap and a view of the positions that the outputs read by it."""
        spec = self.spec
        for tap in itertools.product(*map(range, spec.kernel_size)):
            numbers = zip(tap, self.y_size, spec.stride, spec.dilation, strict=True)
            yield (..., *tap), padded[(..., *(slice(k * d, k * d + (out - 1) * s + 1, s) for k, out, s, d in numbers))]

    def y(self, x, w):
        padded, _ = self._padded(x)
        return sum(np.einsum("ngc...,goc->ngo...", read, w[tap]) for tap, read in self._taps(padded))

    def x(self, y, w):
        padded, inner = self._padded(np.zeros((*y.shape[:2], w.shape[2], *self.x_size)))
        for tap, read in self._taps(padded):
            np.add(read, np.einsum("ngo...,goc->ngc...", y, w[tap]), out=read)
        return padded[inner]

    def w(self, x, y):
        padded, _ = self._padded(x)
        grad = y.reshape(*y.shape[:3], -1)
        made = [np.einsum("ngop,ngcp->goc", grad, read.reshape(*read.shape[:3], -1)) for _, read in self._taps(padded)]
        return np.stack(made, -1).reshape(*made[0].shape, *self.spec.kernel_size)


def longs(t, groups, first=False):
    """The tensor as long doubles with a dimension of groups: (n, g, c, ...), or (g, o, c, ...) of a weight."""
    values = t.detach().contiguous().numpy().astype(np.longdouble)
    if first:
        return values.reshape(groups, -1, *values.shape[1:])
    return values.reshape(values.shape[0], groups, -1, *values.shape[2:])


def flat(values, first=False):
    if first:
        return values.reshape(-1, *values.shape[2:])
    return values.reshape(values.shape[0], -1, *values.shape[3:])


_steps = Remembered()


def exact(spec, source, weight, bias, grad):
    """Output and gradients, and of each the sum of |x||w| and the most products that a value sums.

    Equal numbers give equal results, which kernels, instruction sets, memory formats and threads share.
    """
    key = (spec, *map(fingerprint, (source, weight, bias, grad)))
    return _steps.get(key, lambda: compute_exact(spec, source, weight, bias, grad), bytes_of)


def bytes_of(values):
    return sum(value.nbytes + size.nbytes for value, size, _ in values)


def compute_exact(spec, source, weight, bias, grad):
    size, out = tuple(source.shape[2:]), tuple(grad.shape[2:])
    sums = Sums(spec, out, size) if spec.transposed else Sums(spec, size, out)
    a, g, w = longs(source, spec.groups), longs(grad, spec.groups), longs(weight, spec.groups, True)

    def results(a, g, w, b):
        if spec.transposed:
            found = [sums.x(a, w), sums.y(g, w), sums.w(g, a)]
        else:
            found = [sums.y(a, w), sums.x(g, w), sums.w(a, g)]
        values = [flat(found[0]), flat(found[1]), flat(found[2], True)]
        if b is None:
            return values
        values[0] = values[0] + b.reshape(1, -1, *[1] * spec.dims)
        return [*values, flat(g).sum((0, *range(2, 2 + spec.dims)))]

    b = None if bias is None else bias.detach().numpy().astype(np.longdouble)
    taps = int(np.prod(spec.kernel_size))
    positions = grad[:, 0].numel() + source[:, 0].numel()
    terms = [w.shape[2] * taps, w.shape[1] * taps, positions, positions]
    terms = [w.shape[1] * taps, w.shape[2] * taps, positions, positions] if spec.transposed else terms
    values = results(a, g, w, b)
    sizes = results(abs(a), abs(g), abs(w), None if b is None else abs(b))
    return list(zip(values, sizes, terms, strict=False))
