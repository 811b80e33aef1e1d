"""Figures that others have published, to stand beside ours: facts with a source, kept as data, never in code.

Each is a JSON file in this folder. Its ``source`` says the paper, the place in it, what the numbers are, and
how they were read; ``null`` stands where there is no number. What is ours, such as a shape that we chose for
a published model, stands in the code that uses it.

- ``zoology_recall``: accuracy of mixers on associative recall (arXiv:2312.04927, figure 2).
- ``zoology_language_models``: perplexities of language models (arXiv:2312.04927, tables 1 and 2).
- ``gna_speedups``: speed-ups of generalised neighbourhood attention (arXiv:2504.16922).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


def published_names() -> list[str]:
    """Return the names of all published figures that there are."""
    return sorted(
        path.name.removesuffix(".json") for path in files(__name__).iterdir() if path.name.endswith(".json")
    )


@cache
def read_published(name: str) -> dict[str, Any]:
    """Return published figures by name, with their source; all callers share them, so none may change them.

    Raises:
        ValueError: If there are none of that name.
    """
    if name not in published_names():
        raise ValueError(f"name must be one of {', '.join(published_names())}, got {name!r}")
    found: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return found
