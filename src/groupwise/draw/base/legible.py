"""Names as they can be shown: whoever named a layer may have used any character."""

from __future__ import annotations

import html
import unicodedata

# Control, format (which turn the direction of text), unassigned, surrogate, and line and paragraph separators: XML
# forbids some of them, and a terminal obeys others.
_HIDDEN = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")


def legible(text: str) -> str:
    r"""`text` in one line, with each character that is none to see as Python writes it: `\x1b`, `\ud800`."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def escape(text: str, quote: bool = True) -> str:
    """`text`, of one line or several, for HTML and XML."""
    return html.escape("\n".join(map(legible, text.split("\n"))), quote=quote)
