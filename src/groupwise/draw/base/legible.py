"""Names that can be shown: users name layers with any character."""

from __future__ import annotations

import html
import unicodedata

# These are control characters, formats (which turn the direction of text), unassigned ones, surrogates, and line and
# paragraph separators. XML forbids some of them, and a terminal obeys others.
_HIDDEN = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")


def legible(text: str) -> str:
    r"""Returns `text` in one line; an invisible character becomes its Python escape: `\x1b`, `\ud800`."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _HIDDEN else character
        for character in text
    )


def escape(text: str, quote: bool = True) -> str:
    """Returns `text`, of one line or several, escaped for HTML and XML."""
    return html.escape("\n".join(map(legible, text.split("\n"))), quote=quote)
