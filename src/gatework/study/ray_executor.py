"""Runs on a Ray cluster, or on a Ray started for the study: one task per run, one processor per task."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from gatework.study.executor import Ended, Executor
from gatework.study.spec import RunSpec, StudyError, canonical_json
from gatework.study.worker import Execute, Setup, answer, cpu_seconds, explain, load

# Specs and results are kilobytes; Ray would set aside a third of the memory.
_OBJECT_STORE_BYTES = 100 * 2**20

_functions: dict[str, Execute] = {}


def perform(setup: Setup, spec_text: str) -> str:
    """Execute one run in a Ray worker, which loads what it needs once and then stays warm.

    Args:
        setup: What to load first.
        spec_text: The spec, as JSON.

    Returns:
        JSON text, since the study never unpickles what a run made: ``{"result": ...}``, ``{"error": text}``,
        or ``{"broken": text}`` if no run can be executed here; beside it the ``cpu_seconds`` that it took.
    """
    before = cpu_seconds()
    key = canonical_json(asdict(setup))
    if key not in _functions:
        try:
            _functions[key] = load(setup)
        except BaseException as error:
            return json.dumps({"broken": explain(setup, error)})
    message = answer(_functions[key], json.loads(spec_text))
    return json.dumps(message | {"cpu_seconds": cpu_seconds() - before})


@dataclass(frozen=True)
class _Task:
    """A run that was given to Ray."""

    run: RunSpec
    started: str


class RayExecutor(Executor):
    """Runs as Ray tasks that Ray never tries again: a worker or node that dies ends its run with an error.

    Uses the Ray that the process is connected to; otherwise the cluster at ``address`` or ``RAY_ADDRESS``;
    otherwise a Ray on this machine that lives as long as the executor.

    Args:
        setup: What workers load before their first run.
        num_workers: Processors of a Ray started here, one per core by default; the most runs at a time on a
            cluster, which by default is as many as it has processors.
        address: Address of a cluster, such as ``"head:6379"`` or ``"auto"``.

    Raises:
        StudyError: If Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, setup: Setup, *, num_workers: int | None = None, address: str | None = None) -> None:
        self._ray = _import_ray()
        self._setup = setup
        self._num_workers = num_workers
        self._queue: deque[RunSpec] = deque()
        self._tasks: dict[Any, _Task] = {}
        self._cpu_seconds = 0.0
        self._began: float | None = None
        self._connected_here = not self._ray.is_initialized()
        if self._connected_here:
            _connect(self._ray, address or os.environ.get("RAY_ADDRESS"), num_workers)
        self._perform = self._ray.remote(num_cpus=1, max_retries=0, retry_exceptions=False)(perform)

    def submit(self, run: RunSpec) -> None:
        """Queue a run."""
        self._queue.append(run)

    def poll(self, timeout: float) -> list[Ended]:
        """Hand out queued runs and return those that ended; see :meth:`Executor.poll`.

        Raises:
            StudyError: If workers cannot load what they need.
        """
        self._hand_out()
        if not self._tasks:
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        if ready:  # others may have ended with it
            ready, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        ended = [self._end(reference) for reference in ready]
        self._hand_out()
        return ended

    def running(self) -> list[RunSpec]:
        """Return the runs that Ray has, as many as the cluster can execute at a time."""
        return [task.run for task in self._tasks.values()]

    def cores_busy(self) -> float | None:
        """Return the processor time of all tasks that ended over the time since the first was begun."""
        return None if self._began is None else self._cpu_seconds / (time.monotonic() - self._began)

    def close(self) -> None:
        """Cancel every task by force; leave a cluster, and end a Ray that was started here."""
        self._queue.clear()
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()
        if self._connected_here:
            self._ray.shutdown()

    def _hand_out(self) -> None:
        if not self._queue:
            return
        most = self._num_workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        while self._queue and len(self._tasks) < most:
            run = self._queue.popleft()
            reference = self._perform.remote(self._setup, json.dumps(run.to_json()))
            self._tasks[reference] = _Task(run, datetime.now(UTC).isoformat(timespec="seconds"))
            self._began = self._began or time.monotonic()

    def _end(self, reference: Any) -> Ended:
        """Take the answer of a task that is over."""
        task = self._tasks.pop(reference)
        try:
            message: dict[str, Any] = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:  # not of the run: its errors are answers
            raise StudyError(
                f"Ray workers cannot execute runs: {_last_line(error)}; "
                "every node needs the same gatework and the same plugins"
            ) from error
        except self._ray.exceptions.RayError as error:
            return Ended(task.run, task.started, error=_death(error))
        if "broken" in message:
            raise StudyError(message["broken"])
        self._cpu_seconds += message["cpu_seconds"]
        return Ended(task.run, task.started, message.get("result"), message.get("error"))


def _import_ray() -> Any:
    """Import Ray, without its advice."""
    try:
        with _undisturbed():
            import ray
    except ImportError as error:
        raise StudyError(
            'executor "ray" needs Ray, which the extra installs: pip install "gatework[ray]"'
        ) from error
    return ray


def _connect(ray: Any, address: str | None, num_workers: int | None) -> None:
    """Connect to the cluster at ``address``, or start a Ray on this machine."""
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    # There is no public switch for Ray's own words on workers that die: here, their runs say so.
    ray._private.worker._worker_logs_enabled = False
    with _undisturbed():
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(
                address="local",
                num_cpus=num_workers,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
            return
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudyError(f"cannot reach Ray at {address!r}: {_last_line(error)}") from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep Ray from taking over SIGTERM, and from warning of its future."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            if in_main_thread and before is not None:
                signal.signal(signal.SIGTERM, before)


def _death(error: Exception) -> str:
    """Say how the worker of a run ended: by the first sentence, the others name logs and options of Ray."""
    return f"worker died: {type(error).__name__}: {' '.join(str(error).split()).split('. ')[0]}"


def _last_line(error: Exception) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
