"""The kernels as callables: compiled or loaded from the cache on disk when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatework.ops.cpu.compiled import CompiledFunctions


def _source(name: str) -> tuple[Callable[..., Any], Any]:
    """Return the function of a name, with its signature."""
    from numba import int64, void

    from gatework.ops.recurrence.kernels import selective, wkv

    sources: dict[str, Callable[..., Any]] = {
        "selective_forward": selective.forward,
        "selective_backward": selective.backward,
        "wkv_forward": wkv.forward,
        "wkv_backward": wkv.backward,
    }
    return sources[name], void(int64, int64)


#: The compiled function of a name: one of those that ``_source`` lists.
kernel = CompiledFunctions(_source, Path(__file__).parent)
