"""Which groups or channels of a layer each rank holds, as numbers: `Partition`. torch is never imported here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from groupwise.errors import MAX_CHANNELS, GroupwiseError, check_integer, list_some

# More ranks than any machine has: a plan lists what each rank holds, so the number needs a limit.
MOST_RANKS = 2**16


@dataclass(frozen=True)
class Partition:
    """Spreads a dimension of equal `units` over `ranks` ranks; a unit is never cut.

    A unit is a group of a grouped convolution, or a single channel. Units go to ranks by the rule of `torch.chunk`,
    which DTensor's `Shard` follows: ceil(units / ranks) to each rank until none is left. Where that would leave a rank
    empty although there are enough units, the first ranks hold one unit more than the others instead.

    Raises `GroupwiseError` if `units` or `ranks` is not positive.

    Examples:
        >>> [list(Partition(5, 2).of(rank)) for rank in range(2)]
        [[0, 1, 2], [3, 4]]
        >>> Partition(5, 2).lengths(20)
        [12, 8]
        >>> Partition(6, 4).lengths(6)
        [2, 2, 1, 1]
    """

    units: int
    ranks: int

    def __post_init__(self) -> None:
        check_integer("units", self.units, 1, MAX_CHANNELS)
        check_integer("ranks", self.ranks, 1, MOST_RANKS)

    @property
    def even(self) -> bool:
        """Whether every rank holds the same number of units."""
        return self.units % self.ranks == 0

    def of(self, rank: int) -> range:
        """Returns the units that `rank` holds."""
        least, rest = divmod(self.units, self.ranks)
        most = least + (rest > 0)
        if least and most * (self.ranks - 1) >= self.units:
            return range(rank * least + min(rank, rest), (rank + 1) * least + min(rank + 1, rest))
        return range(min(rank * most, self.units), min((rank + 1) * most, self.units))

    def span(self, rank: int, size: int) -> range:
        """Returns the indices that `rank` holds of a dimension of `size` elements.

        Raises `GroupwiseError` if the units do not divide `size`.
        """
        if size % self.units:
            raise GroupwiseError(f"{self.units} units must divide a dimension of {size}")
        held, length = self.of(rank), size // self.units
        return range(held.start * length, held.stop * length)

    def lengths(self, size: int) -> list[int]:
        """Returns how many of `size` elements each rank holds."""
        return [len(self.span(rank, size)) for rank in range(self.ranks)]

    def check_even(self, name: str, otherwise: str = "") -> None:
        """Raises `GroupwiseError`, with the numbers of ranks that would do, unless every rank holds as many units.

        `otherwise` says what `uneven=True` does, if that is not an uneven spread.
        """
        if not self.even:
            counts = [count for count in range(1, self.units + 1) if self.units % count == 0]
            held = ", ".join(str(len(self.of(rank))) for rank in range(self.ranks))
            raise GroupwiseError(
                f"{name}={self.units} cannot be spread evenly over {self.ranks} ranks; valid numbers of ranks: "
                f"{list_some(counts, self.ranks)}; uneven=True {otherwise or f'spreads them as {held}'}"
            )


def chunks(size: int, ranks: int) -> list[int]:
    """Returns how many of `size` elements each rank holds of a DTensor that is `Shard` along that dimension.

    Examples:
        >>> chunks(20, 3), Partition(5, 3).lengths(20)
        ([7, 7, 6], [8, 8, 4])
    """
    most = -(-size // ranks)
    return [max(0, min(most, size - rank * most)) for rank in range(ranks)]


def overlaps(lengths: list[int], others: list[int], rank: int) -> list[int]:
    """Returns how much of what `rank` holds under `lengths` each rank would hold under `others`."""
    own = _spans(lengths)[rank]
    return [_overlap(own, span) for span in _spans(others)]


def received(have: list[int], want: list[int]) -> list[int]:
    """Returns how many elements each rank gets from other ranks when lengths `have` become `want`."""
    return [len(wanted) - _overlap(held, wanted) for held, wanted in zip(_spans(have), _spans(want), strict=True)]


def _overlap(a: range, b: range) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _spans(lengths: list[int]) -> list[range]:
    return [range(stop - length, stop) for stop, length in zip(accumulate(lengths), lengths, strict=True)]
