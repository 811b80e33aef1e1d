"""Functions that numba compiles when they are first needed, or loads from its cache on disk."""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Seconds to wait for another process that compiles the same function, which takes a few.
_LONGEST_WAIT = 120.0


class CompiledFunctions:
    """Callables by name, each compiled once per process.

    Args:
        source: Gives the Python function of a name, and the numba signature to compile it for.
        folder: Where the Python functions are. A change of its files, or of those beside this one, of which
            all compiled functions are made, makes the cache of earlier states worthless.
    """

    def __init__(self, source: Callable[[str], tuple[Callable[..., Any], Any]], folder: Path) -> None:
        self._source, self._folders = source, (folder, Path(__file__).parent)
        self._functions: dict[str, Callable[..., Any]] = {}
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget_lock)

    def __call__(self, name: str) -> Callable[..., Any]:
        """Return the compiled function of a name."""
        found = self._functions.get(name)
        if found is None:
            with self._lock:  # one compilation is enough, and other threads wait for it
                found = self._functions.get(name)
                if found is None:
                    found = self._functions[name] = self._compile(*self._source(name))
        return found

    def _compile(self, function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
        """Compile for one signature; a cache that cannot be used costs only the caching."""
        from gatework.ops.cpu.machine import compiler

        function = inspect.unwrap(function)
        name, digest = function.__qualname__, self._digest()
        compiled: Callable[..., Any]
        try:
            # numba looks only at the file of the function itself to tell whether the cache is up to date.
            function.__qualname__ = f"{name}_{digest}"
            with _one_process_at_a_time(function.__qualname__):
                compiled = compiler(signature, cache=True)(function)
        except (OSError, RuntimeError, EOFError):  # no place for a cache, a full disk, a damaged file
            compiled = compiler(signature)(function)
        finally:
            function.__qualname__ = name
        return compiled

    def _digest(self) -> str:
        """Name the state of all files that the functions are made of."""
        sources = [path for folder in self._folders for path in sorted(folder.glob("*.py"))]
        return hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=6).hexdigest()

    def _forget_lock(self) -> None:
        """In a forked child, nobody is compiling."""
        self._lock = threading.RLock()


@contextmanager
def _one_process_at_a_time(name: str) -> Iterator[None]:
    """Let the first of several processes compile, and the others load what it has stored.

    A process that is killed gives its turn up; where files cannot be locked, nobody waits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a system has no locks but files; then those do
        from filelock import FileLock, Timeout

    user = os.getuid() if hasattr(os, "getuid") else 0
    lock = FileLock(Path(tempfile.gettempdir()) / f"gatework-{user}-{name}.lock", timeout=_LONGEST_WAIT)
    with suppress(OSError, NotImplementedError, Timeout):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()  # which does nothing without the lock
