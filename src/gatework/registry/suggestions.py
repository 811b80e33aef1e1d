"""What a caller may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def suggestion(name: str, known: Sequence[str]) -> str:
    """Say which of the ``known`` names the caller may have meant, as the end of an error message."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(candidate) for candidate in close) + "?"
    return "; known names are " + ", ".join(known)
