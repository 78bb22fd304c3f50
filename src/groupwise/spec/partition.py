"""Which part of a layer each rank holds, as numbers: `Share`. No tensors, and torch is never imported here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from groupwise.errors import MAX_CHANNELS, GroupwiseError, check_integer, list_some

# Beyond all machines; each rank is told of.
MOST_RANKS = 2**16


@dataclass(frozen=True)
class Share:
    """A dimension of equal `parts`, whole parts to each of `ranks` ranks.

    A part is a group of a grouped convolution, or a single channel. Parts go by the rule of `torch.chunk`, which is
    that of DTensor's `Shard`: ceil(parts / ranks) to each rank until none is left. Where that would leave a rank
    without any although there are enough, the first ranks hold one more than the others instead.

    Raises `GroupwiseError` for parts that are not positive or for no rank.

    Examples:
        >>> [list(Share(5, 2).of(rank)) for rank in range(2)]
        [[0, 1, 2], [3, 4]]
        >>> Share(5, 2).lengths(20)
        [12, 8]
        >>> Share(6, 4).lengths(6)
        [2, 2, 1, 1]
    """

    parts: int
    ranks: int

    def __post_init__(self) -> None:
        check_integer("parts", self.parts, 1, MAX_CHANNELS)
        check_integer("ranks", self.ranks, 1, MOST_RANKS)

    @property
    def even(self) -> bool:
        """Whether each rank holds as many parts as the others."""
        return self.parts % self.ranks == 0

    def of(self, rank: int) -> range:
        """The parts that `rank` holds."""
        least, rest = divmod(self.parts, self.ranks)
        most = least + (rest > 0)
        if least and most * (self.ranks - 1) >= self.parts:
            return range(rank * least + min(rank, rest), (rank + 1) * least + min(rank + 1, rest))
        return range(min(rank * most, self.parts), min((rank + 1) * most, self.parts))

    def span(self, rank: int, size: int) -> range:
        """What `rank` holds of a dimension of `size` elements, which the parts divide."""
        if size % self.parts:
            raise GroupwiseError(f"{self.parts} parts must divide a dimension of {size}")
        held, length = self.of(rank), size // self.parts
        return range(held.start * length, held.stop * length)

    def lengths(self, size: int) -> list[int]:
        """How much of a dimension of `size` elements each rank holds."""
        return [len(self.span(rank, size)) for rank in range(self.ranks)]

    def check_even(self, name: str, otherwise: str = "") -> None:
        """Raise `GroupwiseError` with the numbers of ranks that would do, unless each rank holds as many parts.

        `otherwise` is what `uneven=True` does instead, where that is not to spread them unevenly.
        """
        if not self.even:
            counts = [count for count in range(1, self.parts + 1) if self.parts % count == 0]
            held = ", ".join(str(len(self.of(rank))) for rank in range(self.ranks))
            raise GroupwiseError(
                f"{name}={self.parts} cannot be spread evenly over {self.ranks} ranks; valid numbers of ranks: "
                f"{list_some(counts, self.ranks)}; uneven=True {otherwise or f'spreads them as {held}'}"
            )


def chunks(size: int, ranks: int) -> list[int]:
    """How much of a dimension of `size` elements each rank holds of a DTensor that is sharded there.

    Examples:
        >>> chunks(20, 3), Share(5, 3).lengths(20)
        ([7, 7, 6], [8, 8, 4])
    """
    most = -(-size // ranks)
    return [max(0, min(most, size - rank * most)) for rank in range(ranks)]


def overlaps(lengths: list[int], others: list[int], rank: int) -> list[int]:
    """How much of what `rank` has, of a dimension that ranks hold in `lengths`, each would have of it in `others`."""
    own = _spans(lengths)[rank]
    return [_overlap(own, span) for span in _spans(others)]


def received(have: list[int], want: list[int]) -> list[int]:
    """How much each rank gets from others where lengths `have` become `want`."""
    return [len(wanted) - _overlap(held, wanted) for held, wanted in zip(_spans(have), _spans(want), strict=True)]


def _overlap(a: range, b: range) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _spans(lengths: list[int]) -> list[range]:
    return [range(stop - length, stop) for stop, length in zip(accumulate(lengths), lengths, strict=True)]
