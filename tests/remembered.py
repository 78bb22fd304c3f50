"""References that many cases compare with: computed once for the same numbers, whatever their strides."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch

# Of the results that are kept, those used last. The cases of a parametrized test share numbers, so that few are enough.
MOST_BYTES = 2**28


def fingerprint(tensor):
    """What tells tensors of other values apart: dtype, shape and each bit, in the order of the indices."""
    if tensor is None:
        return None
    # A copy of the values one after the other; a view of bytes of a bfloat16, which NumPy does not know.
    values = tensor.detach().reshape(-1).contiguous()
    # One number may have any stride, which a view of bytes does not take.
    values = values.as_strided(values.shape, (1,)).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), hashlib.blake2b(values, digest_size=16).digest()


class Remembered:
    """Results by a key, up to a number of bytes. Who asks changes none of them in place."""

    def __init__(self, most_bytes=MOST_BYTES):
        self.most_bytes, self.bytes, self.results = most_bytes, 0, OrderedDict()

    def get(self, key, compute, size_of):
        """Returns what `compute` made for the key, now or before. `size_of` tells the bytes of a result."""
        if key in self.results:
            self.results.move_to_end(key)
            return self.results[key]
        made = self.results[key] = compute()
        self.bytes += size_of(made)
        while self.bytes > self.most_bytes and len(self.results) > 1:
            self.bytes -= size_of(self.results.popitem(last=False)[1])
        return made
