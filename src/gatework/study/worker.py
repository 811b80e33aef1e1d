"""A warm worker: a process that imports the heavy modules once, then executes one run after another.

It speaks JSON over a pipe, so that the study never unpickles what a run returned. Before the first run it
says ``ready``, or why it cannot start.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from gatework.registry import load_entry_points, load_plugins
from gatework.signals import ignore_interrupts
from gatework.study.spec import StudyError

Execute = Callable[[dict[str, Any]], dict[str, Any]]

_TRACEBACK_LINES = 12
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Setup:
    """What a worker must know before its first run.

    Attributes:
        execute: ``"module:function"`` that maps a spec (a JSON object) to a result (another).
        num_threads: Threads that PyTorch may use.
        plugins: Modules to import, which register mixers and tasks.
        task: Name of the task that runs will ask for, if that is known.
        candidates: Definitions of the candidates that runs will ask for, by label.
    """

    execute: str
    num_threads: int = 1
    plugins: tuple[str, ...] = ()
    task: str | None = None
    candidates: Mapping[str, Any] = field(default_factory=dict)


def serve(connection: Connection, setup: Setup) -> None:
    """Be a worker until the other end of ``connection`` is closed.

    Args:
        connection: Gives specs, takes messages: ``{"ready": true}`` or ``{"broken": text}`` once, then
            ``{"result": ...}`` or ``{"error": text}`` for each spec. ``cpu_seconds`` of this process and its
            children stand beside them.
        setup: What to load first.
    """
    # Ctrl-C reaches every process of the terminal; the study alone decides what it means.
    ignore_interrupts()
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        function = load(setup)
    except BaseException as error:
        _send(connection, {"broken": explain(setup, error)})
        return
    _send(connection, {"ready": True, "cpu_seconds": cpu_seconds()})
    while (spec := _receive(connection)) is not None:
        _send(connection, answer(function, spec) | {"cpu_seconds": cpu_seconds()})


def load(setup: Setup) -> Execute:
    """Import everything heavy, after the number of threads is settled, and the plugins.

    Raises:
        StudyError: If a plugin cannot be loaded, or this process lacks a candidate or the task.
    """
    for variable in _THREAD_VARIABLES:
        os.environ[variable] = str(setup.num_threads)
    try:
        load_plugins(setup.plugins)
        _check_known(setup)
    except ValueError as error:
        raise StudyError(f"workers cannot start: {error}") from error
    module, _, name = setup.execute.partition(":")
    function: Execute = getattr(importlib.import_module(module), name)
    if "torch" in sys.modules:
        # The main module, imported before us, may have brought PyTorch in with another number.
        sys.modules["torch"].set_num_threads(setup.num_threads)
    return function


def explain(setup: Setup, error: BaseException) -> str:
    """Say in one line why :func:`load` failed."""
    if isinstance(error, StudyError):
        return str(error)
    return f"workers cannot load {setup.execute}: {_last_lines(error).splitlines()[-1]}"


def answer(function: Execute, spec: dict[str, Any]) -> dict[str, Any]:
    """Execute one run. Whatever it raises but Ctrl-C, even SystemExit, ends the run and not the worker.

    Returns:
        ``{"result": ...}``, which is JSON, or ``{"error": text}``.
    """
    try:
        result = function(spec)
        json.dumps(result)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"error": _last_lines(error)}
    return {"result": result}


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _check_known(setup: Setup) -> None:
    """Refuse candidates and tasks that were registered in the study's own process only."""
    from gatework.tasks import list_tasks, task_declaration

    remedy = (
        "is registered in the process of the study but not in its workers: "
        "put what registers it into a module, and name that as a plugin"
    )
    if setup.task is None:
        return
    if setup.task not in list_tasks():
        load_entry_points()
        if setup.task not in list_tasks():
            raise ValueError(f"task {setup.task!r} {remedy}")
    declared = task_declaration(setup.task)
    for label, definition in setup.candidates.items():
        try:
            declared.check(definition)
        except ValueError as error:
            raise ValueError(f"{declared.candidates.name} {label!r} {remedy} ({error})") from error


def _exit_with_parent() -> None:
    """End this process when its parent has died, also in the middle of a run."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


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
