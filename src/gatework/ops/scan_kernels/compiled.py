"""The kernels as callables: compiled or loaded from the cache on disk when they are first needed."""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path

Kernel = Callable[[int, int], None]

_lock = threading.RLock()
_kernels: dict[str, Kernel] = {}


def kernel(name: str) -> Kernel:
    """Return a compiled kernel: one of those that ``_source`` lists."""
    found = _kernels.get(name)
    if found is None:
        with _lock:  # one compilation is enough, and other threads wait for it
            found = _kernels.get(name)
            if found is None:
                found = _kernels[name] = _compile(_source(name))
    return found


def _source(name: str) -> Kernel:
    """Return the function of a name."""
    from gatework.ops.scan_kernels import selective, wkv

    sources: dict[str, Kernel] = {
        "selective_forward": selective.forward,
        "selective_backward": selective.backward,
        "wkv_forward": wkv.forward,
        "wkv_backward": wkv.backward,
    }
    return sources[name]


def _compile(function: Kernel) -> Kernel:
    """Compile; a cache that cannot be used costs only the caching."""
    from numba import int64, void

    from gatework.ops.attention.kernels.machine import compiler

    function = inspect.unwrap(function)
    signature = void(int64, int64)
    name = function.__qualname__
    compiled: Kernel
    try:
        # numba looks only at the file of the function itself to tell whether the cache is up to date.
        function.__qualname__ = f"{name}_{_sources_digest()}"
        compiled = compiler(signature, cache=True)(function)
    except (OSError, RuntimeError, EOFError):  # no place for a cache, a full disk, a damaged file
        compiled = compiler(signature)(function)
    finally:
        function.__qualname__ = name
    return compiled


def _sources_digest() -> str:
    """Name the state of all files that kernels are made of."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), here.parent / "attention" / "kernels" / "machine.py"]
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=6).hexdigest()


def _forget_lock() -> None:
    """In a forked child, nobody is compiling."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
