"""Threads that run a kernel together: each takes work items from a common counter until none is left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from gatework.ops.cpu.blas import Provider, limit_process, restore_process

Kernel = Callable[[int, int], None]

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_workers = 0
_memory = threading.local()


def count() -> int:
    """Return how many threads PyTorch would use."""
    return torch.get_num_threads()


def run(kernel: Kernel, params: int, scratch_size: int, threads: int, source: Provider) -> None:
    """Run a kernel on the calling thread and ``threads - 1`` others; return when all are done.

    Args:
        kernel: Gets the address of the call's parameters and of memory of its thread's own.
        params: The address of the parameters.
        scratch_size: Bytes of memory that each thread needs.
        threads: Number of threads.
        source: Where the kernel gets its matrix products.
    """
    limit_process(source)
    try:
        if threads > 1:
            _run_together(kernel, params, scratch_size, threads, source)
        else:
            _work(kernel, params, scratch_size, source)
    finally:
        restore_process(source)


def _run_together(kernel: Kernel, params: int, scratch_size: int, threads: int, source: Provider) -> None:
    pool = _executor(threads - 1)
    helpers = [pool.submit(_work, kernel, params, scratch_size, source) for _ in range(threads - 1)]
    try:
        _work(kernel, params, scratch_size, source)
    finally:
        # One that has not begun, because of other calls, would find nothing left to do.
        begun = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in begun]  # this waits
    for error in filter(None, errors):
        raise error


def _work(kernel: Kernel, params: int, scratch_size: int, source: Provider) -> None:
    """Run a kernel on the calling thread, whose matrix products use no other."""
    scratch = _scratch(scratch_size)
    if source.limit_thread is None:
        kernel(params, scratch)
        return
    before = source.limit_thread(1)
    try:
        kernel(params, scratch)
    finally:
        source.limit_thread(before)


def _scratch(size: int) -> int:
    """Return the address of memory that is the calling thread's own, aligned to a cache line."""
    memory: tuple[np.ndarray, int] | None = getattr(_memory, "block", None)
    if memory is None or memory[0].nbytes < size + 64:
        block = np.empty(size + 64, np.uint8)
        memory = _memory.block = block, block.ctypes.data + -block.ctypes.data % 64
    return memory[1]


def _executor(workers: int) -> ThreadPoolExecutor:
    """Return a pool of at least so many threads; a smaller one ends when the last call that uses it does."""
    global _pool, _workers
    with _lock:
        if _pool is None or _workers < workers:
            _pool, _workers = ThreadPoolExecutor(workers, thread_name_prefix="gatework-attention"), workers
        return _pool


def _forget() -> None:
    """Start anew in a forked child, which has none of its parent's threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
