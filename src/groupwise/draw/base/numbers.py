"""Numbers as people read them: `14.5 M`, `3.23 MB`, `3×3`, `1/32`."""

from __future__ import annotations

from collections.abc import Sequence

from groupwise.spec.wiring import channels

__all__ = ["channels", "count", "data", "percent", "product", "times"]


def count(value: float) -> str:
    """Returns a count in three digits, scaled by powers of 1000: `225`, `14.5 M`."""
    return _scaled(value, ("", " k", " M", " G", " T", " P", " E", " Z", " Y", " R", " Q"))


def data(value: float) -> str:
    """Returns bytes in three digits, scaled by powers of 1000: `3.23 MB`."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB", " PB", " EB", " ZB", " YB", " RB", " QB"))


def product(values: Sequence[int]) -> str:
    """Returns `3×5` for (3, 5)."""
    return "×".join(map(str, values))


def times(part: int, whole: int) -> str:
    """Returns `whole / part` as a factor: `32×`, `31.2×`."""
    ratio = whole / part
    return f"{ratio:.0f}×" if ratio >= 100 or ratio == int(ratio) else f"{ratio:.3g}×"


def percent(part: float, whole: float) -> str:
    """Returns `part / whole` as a percentage of at most four characters and the sign: `3.1 %`; `-` of nothing."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if percent >= 99.95:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 or percent == 0 else "<0.1 %"


def _scaled(value: float, units: Sequence[str]) -> str:
    scale = 0
    while abs(value) >= 999.5 and scale < len(units) - 1:
        value /= 1000
        scale += 1
    if scale == 0:
        return f"{value:,.0f}{units[0]}"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{units[scale]}"
