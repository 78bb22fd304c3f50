"""What to say of times that were taken while other processes ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from groupwise.draw.text import lines as text

UNTRUSTED = "the times below are not to be trusted"


def is_busy(interference: Mapping[str, Any] | None) -> bool:
    """Whether other processes took too much for the times to be trusted. A file of an older version does not tell."""
    return bool(interference and interference["busy"])


def paragraph(interference: Mapping[str, Any] | None, what: str = UNTRUSTED) -> list[str]:
    """The lines of the warning and an empty one, to stand before a text; none where the machine was not busy."""
    found = warning(interference, what)
    return [*(line for sentence in found for line in text.wrap(sentence)), ""] if found else []


def warning(interference: Mapping[str, Any] | None, what: str = UNTRUSTED) -> list[str]:
    """The sentence that stands before everything else where the machine was busy; none where it was not."""
    if interference is None or not is_busy(interference):
        return []
    taken = f"{100 * interference['fraction']:.0f} %"
    return [
        f"The machine was busy: other processes took {taken} of the processors' time during the measurement; {what}. "
        "Measure again when the machine is idle."
    ]
