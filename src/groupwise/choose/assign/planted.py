"""Blocks that a weight already has: parts of its channels that no entry, or only weak ones, join."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from groupwise.choose.assign.transport import Floats, Labels

# Packing is a search; weights with blocks need hardly more nodes than they have parts.
_MOST_NODES = 20_000


def planted(energy: Floats, groups: int) -> tuple[Labels, Labels] | None:
    """Returns labels of outputs and inputs that keep every entry, or all but the weakest; None where none are found.

    Entries above a threshold join their output and input. The lowest threshold is taken at which every part fits
    into a group; it is 0 where the blocks are exact. Then the parts are packed into groups.
    """
    shape = energy.shape
    room = (shape[0] // groups, shape[1] // groups)
    levels = np.unique(energy)
    low, high = 0, len(levels) - 1
    if levels[0] > 0:
        levels = np.concatenate([[0.0], levels])
        high += 1
    # At the highest level no entry joins anything, so every part fits.
    while low < high:
        middle = (low + high) // 2
        if _fits(_parts(energy > levels[middle]), room):
            high = middle
        else:
            low = middle + 1
    return _packed(*_parts(energy > levels[low]), groups, room)


def _fits(parts: tuple[Labels, Labels], room: tuple[int, int]) -> bool:
    return all(np.bincount(labels).max() <= most for labels, most in zip(parts, room, strict=True))


def _parts(joined: npt.NDArray[np.bool_]) -> tuple[Labels, Labels]:
    """Returns the connected part of each output and of each input; a channel that nothing joins is a part itself."""
    outputs, inputs = (np.full(count, -1, np.int64) for count in joined.shape)
    part = 0
    for first in np.flatnonzero(joined.any(axis=1)):
        if outputs[first] >= 0:
            continue
        rows = np.array([first])
        while len(rows):
            outputs[rows] = part
            columns = np.flatnonzero(joined[rows].any(axis=0) & (inputs < 0))
            inputs[columns] = part
            rows = np.flatnonzero(joined[:, columns].any(axis=1) & (outputs < 0))
        part += 1
    for labels in (outputs, inputs):
        alone = labels < 0
        labels[alone] = part + np.arange(alone.sum())
        part += int(alone.sum())
    return outputs, inputs


def _packed(outputs: Labels, inputs: Labels, groups: int, room: tuple[int, int]) -> tuple[Labels, Labels] | None:
    """Returns the parts packed into groups that `room` outputs and inputs fill exactly, or None."""
    count = max(outputs.max(), inputs.max()) + 1
    sizes = np.stack([np.bincount(labels, minlength=count) for labels in (outputs, inputs)], axis=1)
    # Single channels fill what the others leave.
    order = [int(p) for p in np.argsort(-sizes.sum(axis=1), kind="stable") if sizes[p].sum() > 1]
    free = [list(room) for _ in range(groups)]
    homes = _pack([(int(sizes[p, 0]), int(sizes[p, 1])) for p in order], free)
    if homes is None:
        return None
    home = np.full(count, -1, np.int64)
    home[order] = homes
    found = (home[outputs], home[inputs])
    for side, labels in enumerate(found):
        labels[labels < 0] = np.repeat(np.arange(groups), [left[side] for left in free])
    return found


def _pack(sizes: list[tuple[int, int]], free: list[list[int]]) -> list[int] | None:
    """Returns the group of each part by depth-first search, and takes its room from `free`; None where none fits."""
    homes: list[int] = []
    start, nodes = 0, 0
    while len(homes) < len(sizes):
        nodes += 1
        if nodes > _MOST_NODES:
            return None
        rows, columns = sizes[len(homes)]
        tried: set[tuple[int, int]] = {(left[0], left[1]) for left in free[:start]}
        for t in range(start, len(free)):
            left = (free[t][0], free[t][1])
            # Groups with the same room are alike.
            if left not in tried and left[0] >= rows and left[1] >= columns:
                break
        else:
            if not homes:
                return None
            start = homes.pop()
            free[start][0] += sizes[len(homes)][0]
            free[start][1] += sizes[len(homes)][1]
            start += 1
            continue
        free[t][0] -= rows
        free[t][1] -= columns
        homes.append(t)
        start = 0
    return homes
