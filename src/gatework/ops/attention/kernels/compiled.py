"""The kernels as callables: compiled or loaded from the cache on disk when they are first needed."""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_lock = threading.RLock()
_kernels: dict[str, Callable[..., Any]] = {}


def kernel(name: str) -> Callable[..., Any]:
    """Return a compiled function: one of those that ``_source`` lists."""
    found = _kernels.get(name)
    if found is None:
        with _lock:  # one compilation is enough, and other threads wait for it
            found = _kernels.get(name)
            if found is None:
                found = _kernels[name] = _compile(*_source(name))
    return found


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


def _compile(function: Callable[..., Any], signature: Any) -> Any:
    """Compile for one signature; a cache that cannot be used costs only the caching."""
    from gatework.ops.attention.kernels.machine import compiler

    function = inspect.unwrap(function)
    name = function.__qualname__
    try:
        # numba looks only at the file of the function itself to tell whether the cache is up to date.
        function.__qualname__ = f"{name}_{_sources_digest()}"
        return compiler(signature, cache=True)(function)
    except (OSError, RuntimeError, EOFError):  # no place for a cache, a full disk, a damaged file
        return compiler(signature)(function)
    finally:
        function.__qualname__ = name


def _sources_digest() -> str:
    """Name the state of all files of this package."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=6).hexdigest()


def _forget_lock() -> None:
    """In a forked child, nobody is compiling."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
