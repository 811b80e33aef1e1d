"""A warm worker: a process that imports the heavy modules once, then executes one run after another.

It speaks JSON over a pipe, so that the study never unpickles what a run returned. Before the first run it
says ``ready``, or why it cannot start.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

Execute = Callable[[dict[str, Any]], dict[str, Any]]

_TRACEBACK_LINES = 12
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def serve(connection: Connection, execute: str, num_threads: int) -> None:
    """Be a worker until the other end of ``connection`` is closed.

    Args:
        connection: Gives specs, takes messages: ``{"ready": true}`` or ``{"broken": text}`` once, then
            ``{"result": ...}`` or ``{"error": text}`` for each spec.
        execute: ``"module:function"`` that maps a spec to a result.
        num_threads: Threads that PyTorch may use.
    """
    # Ctrl-C reaches every process of the terminal; the study alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        function = _load(execute, num_threads)
    except BaseException as error:
        _send(connection, {"broken": _last_lines(error)})
        return
    _send(connection, {"ready": True})
    while (spec := _receive(connection)) is not None:
        _send(connection, _answer(function, spec))


def _exit_with_parent() -> None:
    """End this process when its parent has died, also in the middle of a run."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _load(execute: str, num_threads: int) -> Execute:
    """Import the function, and with it everything heavy, after the number of threads is settled."""
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(num_threads)
    module, _, name = execute.partition(":")
    function: Execute = getattr(importlib.import_module(module), name)
    if "torch" in sys.modules:
        # The main module, imported before us, may have brought PyTorch in with another number.
        sys.modules["torch"].set_num_threads(num_threads)
    return function


def _answer(function: Execute, spec: dict[str, Any]) -> dict[str, Any]:
    """Execute one run. Whatever it raises, even SystemExit, ends the run and not the worker."""
    try:
        result = function(spec)
        json.dumps(result)
    except BaseException as error:
        return {"error": _last_lines(error)}
    return {"result": result}


def _last_lines(error: BaseException) -> str:
    """Return the end of the traceback, where the cause is."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(lines[-_TRACEBACK_LINES:])


def _receive(connection: Connection) -> dict[str, Any] | None:
    try:
        spec: dict[str, Any] = json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
    return spec


def _send(connection: Connection, message: dict[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:  # the parent has gone: nobody is left to tell
        sys.exit(1)
