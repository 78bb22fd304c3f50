"""Upper bounds of the energy that blocks on the diagonal can hold, whatever the order of the channels."""

from __future__ import annotations

import math

import numpy as np

from groupwise.choose.assign.transport import Floats


def upper_bound(energy: Floats, groups: int) -> float:
    """Returns the least of three upper bounds of what `groups` balanced blocks of `energy` (outputs, inputs) hold.

    - An input channel meets M / groups outputs: at most its largest entries. The same holds for the outputs.
    - The blocks are the inner product of `energy` with a matrix of zeros and ones, whose `groups` singular values
      are all sqrt(M N) / groups; von Neumann's trace inequality bounds it by the largest singular values of `energy`.
    """
    outputs, inputs = energy.shape
    # The eigenvalues of the smaller Gram matrix take a fraction of the time of the singular values; what rounding
    # may take from them is added.
    gram = energy @ energy.T if outputs < inputs else energy.T @ energy
    squares = np.linalg.eigvalsh(gram)
    squares = squares[-groups:] + 4 * len(gram) * np.finfo(np.float64).eps * squares[-1]
    spectral = math.sqrt(outputs * inputs) / groups * float(np.sqrt(squares.clip(0)).sum())
    return min(_largest(energy, outputs // groups), _largest(energy.T, inputs // groups), spectral)


def _largest(energy: Floats, count: int) -> float:
    """Returns the sum of the `count` largest entries of every column."""
    return float(np.partition(energy, len(energy) - count, axis=0)[len(energy) - count :].sum())
