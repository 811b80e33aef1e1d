"""The kernels as callables: compiled or loaded from the cache on disk when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gatework.ops.cpu.compiled import CompiledFunctions


def _source(name: str) -> tuple[Callable[..., Any], Any]:
    """Return the function of a name, with its signature."""
    from numba import int32, int64, void

    from gatework.ops.attention.kernels import attend, gradients, schedule, sigmoid

    vector, table, long_vector, long_table = int32[::1], int32[:, ::1], int64[::1], int64[:, ::1]
    run = void(int64, int64)
    list_items = int64(
        table, vector, vector, vector, vector, int64, int64, int64, table, long_vector, long_vector
    )  # fmt: skip
    list_parts = int64(table, long_vector, vector, vector, vector, int64, int64, int64, long_table)
    sources: dict[str, tuple[Callable[..., Any], Any]] = {
        "forward": (attend.forward, run),
        "backward": (gradients.backward, run),
        "sigmoid_forward": (sigmoid.sigmoid_forward, run),
        "sigmoid_backward": (sigmoid.sigmoid_backward, run),
        "list_items": (schedule.list_items, list_items),
        "list_parts": (schedule.list_parts, list_parts),
    }
    return sources[name]


#: The compiled function of a name: one of those that ``_source`` lists.
kernel = CompiledFunctions(_source, Path(__file__).parent)
