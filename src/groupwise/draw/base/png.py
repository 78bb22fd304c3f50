"""Renders SVG as PNG with the bundled font, so that the pixels are the same on every machine."""

from __future__ import annotations

from importlib import resources

from groupwise.errors import GroupwiseError

# The font comes from DejaVu Sans 2.37, by fonttools:
# pyftsubset DejaVuSans.ttf --output-file=DejaVuSans-subset.ttf --layout-features= --no-hinting --name-IDs=*
#   --drop-tables+=GDEF,GPOS,GSUB,MATH,FFTM
#   --unicodes=U+0020-007E,U+00B2,U+00B3,U+00B7,U+00D7,U+2013,U+2026,U+2190-2194,U+22EE,U+25B6,U+25C0,U+2264,U+2265
FONT = "DejaVuSans-subset.ttf"
LEAST_SCALE, MOST_SCALE = 0.1, 8


def png_bytes(svg: str, scale: float = 2.0) -> bytes:
    """Returns one of groupwise's SVGs as PNG in light colours, `scale` (0.1 to 8) pixels to a unit of the SVG.

    Raises `GroupwiseError` for another scale, and without `resvg_py`, which the extra `groupwise[png]` installs.
    """
    # resvg ends the whole process when a huge scale asks for more memory than there is.
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not LEAST_SCALE <= scale <= MOST_SCALE:
        raise GroupwiseError(f"scale={scale!r} must be a number from {LEAST_SCALE} to {MOST_SCALE}; try 2")
    try:
        import resvg_py
    except ImportError:
        raise GroupwiseError('PNG needs resvg_py; install it with: pip install "groupwise[png]"') from None
    with resources.as_file(resources.files("groupwise.draw.base") / FONT) as font:
        # Without a font that matches, resvg silently drops all text.
        png: bytes = resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=scale,
            font_files=[str(font)],
            skip_system_fonts=True,
            font_family="DejaVu Sans",
            sans_serif_family="DejaVu Sans",
        )
    return png
