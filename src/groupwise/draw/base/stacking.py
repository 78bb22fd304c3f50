"""Stacks several pictures into one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from groupwise.draw.base.svg import coordinate

_SIZE = re.compile(r'<svg xmlns="\S+" viewBox="0 0 (\S+) (\S+)"')


def stack(pictures: Sequence[str]) -> str:
    """Returns groupwise's SVGs one below the other on one card, left-aligned; the description is that of all."""
    sizes = [tuple(map(float, _size(picture))) for picture in pictures]
    width, height = max(w for w, _ in sizes), sum(h for _, h in sizes)
    nested, y = [], 0.0
    for picture, (_, tall) in zip(pictures, sizes, strict=True):
        nested.append(picture.replace('<svg xmlns="http://www.w3.org/2000/svg"', f'<svg y="{coordinate(y)}"', 1))
        y += tall
    # The card uses the style sheet of the first picture.
    card = f'<rect class="gw-bg" width="{coordinate(width)}" height="{coordinate(height)}" rx="8"/>'
    names = "".join(re.findall(r"<title id=.*?>(.*?)</title>", pictures[0])[:1])
    words = " ".join(text for picture in pictures for text in re.findall(r"<desc[^>]*>(.*?)</desc>", picture, re.S))
    key = f"gw-{zlib.crc32(''.join(pictures).encode()):08x}"
    box = f"0 0 {coordinate(width)} {coordinate(height)}"
    labels = f'role="img" aria-labelledby="{key}-t {key}-d"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{coordinate(width)}" '
        f'height="{coordinate(height)}" {labels}>\n<title id="{key}-t">{names}</title>\n'
        f'<desc id="{key}-d">{words}</desc>\n{card}\n{"".join(nested)}</svg>\n'
    )


def _size(picture: str) -> tuple[str, str]:
    match = _SIZE.match(picture)
    if match is None:
        raise ValueError("not a picture of groupwise: it does not begin with its xmlns and viewBox")
    return match.group(1), match.group(2)
