"""Where the matrix products come from: MKL inside PyTorch's own library, else the BLAS of SciPy.

Both are used with one thread for each of ours.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Provider(NamedTuple):
    """A source of matrix products.

    Attributes:
        name: Of the library.
        sgemm: Address of the Fortran routine.
        limit_thread: Set how many threads products of the calling thread use, return how many they did.
        limit_process: Get and set the number for the whole process, in libraries that have no other.
    """

    name: str
    sgemm: int
    limit_thread: Callable[[int], int] | None = None
    limit_process: tuple[Callable[[], int], Callable[[int], None]] | None = None


@functools.cache
def provider() -> Provider | None:
    """The fastest source there is, or None."""
    return mkl() or scipy_blas()


def mkl() -> Provider | None:
    """MKL, if PyTorch was built with it and exports its routines."""
    names = {"win32": "torch_cpu.dll", "darwin": "libtorch_cpu.dylib"}
    path = Path(torch.__file__).parent / "lib" / names.get(sys.platform, "libtorch_cpu.so")
    try:
        library = ctypes.CDLL(str(path))
        routine, limit = library.sgemm_, library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    return Provider("mkl", _address(routine), limit_thread=limit)


def scipy_blas() -> Provider | None:
    """The BLAS that SciPy was built with; its threads are set for the whole process where we know how."""
    try:
        from scipy.linalg import cython_blas
    except ImportError:
        return None
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsule = cython_blas.__pyx_capi__["sgemm"]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return Provider("scipy", address, limit_process=_openblas_threads(cython_blas.__file__))


def _openblas_threads(path: str) -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Find OpenBLAS's functions that get and set the number of its threads, under one of their names."""
    library: Any = ctypes.CDLL(path)  # symbols are looked up in what it links to as well
    for prefix in ("scipy_", ""):
        for suffix in ("", "64_"):
            get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                return get, put
    return None


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


class _Users:
    """How many calls rely on a library's process-wide number of threads, and what it was before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.before = 1


_users = _Users()


def limit_process(source: Provider) -> None:
    """Let all products of the process use one thread each, where a library has but one setting for all."""
    if source.limit_process is not None:
        get, put = source.limit_process
        with _users.lock:
            if _users.count == 0:
                _users.before = get()
                put(1)
            _users.count += 1


def restore_process(source: Provider) -> None:
    """Undo :func:`limit_process`, when the last of concurrent calls is over."""
    if source.limit_process is not None:
        with _users.lock:
            _users.count -= 1
            if _users.count == 0:
                source.limit_process[1](_users.before)


def _forget_users() -> None:
    """Start anew in a forked child, in which no other thread is left that could hold the lock."""
    global _users
    users, _users = _users, _Users()
    source = provider() if users.count else None
    if source is not None and source.limit_process is not None:
        source.limit_process[1](users.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_users)
