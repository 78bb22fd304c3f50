"""Text that can be shown anywhere: users name layers with any character.

It is in this room because specs and costs, which import nothing from `draw`, show themselves in notebooks too.
"""

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


def pre(text: str) -> str:
    """Returns text as HTML that keeps its lines and columns."""
    return f"<pre>{escape(text, quote=False)}</pre>"


class Printed:
    """A result that a notebook shows as `print()` does; what derives from it has a `__str__`."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return pre(str(self))
