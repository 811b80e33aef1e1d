"""Who executes the runs of a study: an interface of five methods, and local processes that stay warm."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from gatework.checks import check_choice, check_sizes
from gatework.signals import interrupts_blocked
from gatework.study.spec import RunSpec, StudyError
from gatework.study.worker import Setup, serve

if TYPE_CHECKING:  # Windows has no fork server
    from multiprocessing.context import ForkServerContext, SpawnContext

#: The names of :func:`make_executor`.
EXECUTORS = ("local", "ray")

# A worker that dies while importing is replaced, since memory may have been short for a moment;
# this many in a row mean that none will ever start.
_MAX_STILLBORN = 3
_SECONDS_TO_EXIT = 5.0
# A fresh interpreter, which takes nothing over from the process of the study; tests may put another way here.
_CONTEXT: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
# Windows waits for 63 processes at once; the others' messages are looked at when the time is up.
_MOST_WAITED_FOR = 60 if os.name == "nt" else None


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        run: Which.
        started: When it was handed to a worker, in ISO 8601.
        result: What the execute function returned, or None if it did not return.
        error: Why it did not: the last lines of a traceback, or how the worker died.
    """

    run: RunSpec
    started: str
    result: Any = None
    error: str | None = None


class Executor(ABC):
    """Executes runs somewhere; knows nothing of grids, files or statuses."""

    @abstractmethod
    def submit(self, run: RunSpec) -> None:
        """Queue a run; runs start in the order of submission."""

    @abstractmethod
    def poll(self, timeout: float) -> list[Ended]:
        """Return the runs that ended since the last call, waiting up to ``timeout`` seconds for the first."""

    @abstractmethod
    def running(self) -> list[RunSpec]:
        """Return the runs that are being executed now."""

    @abstractmethod
    def cores_busy(self) -> float | None:
        """Return the processor time of all workers over the time since the first was started, if known."""

    @abstractmethod
    def close(self) -> None:
        """Stop everything at once, unfinished runs included."""


def make_executor(
    kind: str, setup: Setup, *, num_workers: int | None = None, ray_address: str | None = None
) -> Executor:
    """Make the executor that a user named.

    Args:
        kind: ``"local"`` or ``"ray"``.
        setup: What workers load before their first run.
        num_workers: Runs at a time, by default as many as there are cores.
        ray_address: Address of a Ray cluster, for ``"ray"`` alone.

    Raises:
        ValueError: If there is no such executor, or ``num_workers`` is not positive.
        StudyError: If Ray is not installed, or its cluster cannot be reached.
    """
    check_executor(kind, num_workers, ray_address)
    if kind == "ray":
        from gatework.study.ray_executor import RayExecutor

        return RayExecutor(setup, num_workers=num_workers, address=ray_address)
    return LocalExecutor(setup, num_workers=num_workers or available_cores())


def check_executor(kind: str | Executor, num_workers: int | None, ray_address: str | None) -> None:
    """Refuse what :func:`make_executor` would refuse, before anything is made.

    Raises:
        ValueError: If there is no such executor, ``num_workers`` is not positive, or there is an address for
            an executor that takes none.
    """
    if isinstance(kind, str):
        check_choice("executor", kind, EXECUTORS)
    if num_workers is not None:
        check_sizes(num_workers=num_workers)
    if ray_address is not None and kind != "ray":
        raise ValueError(f"ray_address is for executor 'ray', got {ray_address!r} with executor {kind!r}")


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_worker(kind: str, num_workers: int | None) -> int:
    """Return how many threads PyTorch has in each worker: the cores shared out, or the one of a Ray task.

    By the workers asked for, not by those that the rest of the runs can use: a resumed study must compute
    with the threads of an uninterrupted one, since sums depend on them.
    """
    cores = available_cores()
    return 1 if kind == "ray" else max(1, cores // (num_workers or cores))


class LocalExecutor(Executor):
    """Runs in processes of this machine, each of which imports the heavy modules once.

    A worker that dies is replaced; its run ends with an error and the others go on.

    Args:
        setup: What workers load before their first run.
        num_workers: Number of processes.
    """

    def __init__(self, setup: Setup, *, num_workers: int) -> None:
        self._setup = setup
        self._num_workers = num_workers
        self._queue: deque[RunSpec] = deque()
        self._workers: list[_Worker] = []
        self._stillborn = 0
        self._cpu_seconds: dict[_Worker, float] = {}
        self._began: float | None = None

    def submit(self, run: RunSpec) -> None:
        """Queue a run."""
        self._queue.append(run)

    def start(self, num_runs: int) -> None:
        """Start the workers for so many runs before there is one, so that they import what they need.

        Raises:
            StudyError: If no worker can be started.
        """
        self._start_workers(min(self._num_workers, num_runs))

    def poll(self, timeout: float) -> list[Ended]:
        """Hand out queued runs and return those that ended; see :meth:`Executor.poll`.

        Raises:
            StudyError: If no worker can be started.
        """
        self._start_workers(min(self._num_workers, len(self.running()) + len(self._queue)))
        wait([worker.connection for worker in self._workers][:_MOST_WAITED_FOR], timeout)
        ended = [over for worker in list(self._workers) if (over := self._handle_message(worker)) is not None]
        # At once, before the caller stores anything: no core waits for a disk.
        self._hand_out()
        return ended

    def running(self) -> list[RunSpec]:
        """Return the runs that are being executed now."""
        return [worker.run for worker in self._workers if worker.run is not None]

    def cores_busy(self) -> float | None:
        """Return the processor time that workers reported over the time since the first was started."""
        if self._began is None:
            return None
        return sum(self._cpu_seconds.values()) / (time.monotonic() - self._began)

    def close(self) -> None:
        """Kill busy workers and let idle ones exit; the queue is dropped."""
        self._queue.clear()
        for worker in self._workers:
            worker.shut_down()
        for worker in self._workers:
            worker.join()
        self._workers.clear()

    def _start_workers(self, wanted: int) -> None:
        while len(self._workers) < wanted:
            if self._began is None:
                self._began = time.monotonic()
            try:
                self._workers.append(_Worker(self._setup))
            except OSError as error:
                raise StudyError(f"cannot start a worker process: {error.strerror or error}") from error

    def _handle_message(self, worker: _Worker) -> Ended | None:
        """Take what the worker said or how it died; return its run if that is over."""
        message = worker.receive()
        if message is None:
            return None
        if "cpu_seconds" in message:  # of the process so far
            self._cpu_seconds[worker] = message["cpu_seconds"]
        if "ready" in message:
            worker.ready, self._stillborn = True, 0
            return None
        if "broken" in message:
            raise StudyError(message["broken"])
        if "died" in message:
            self._remove(worker, message["died"])
        if worker.run is None:
            return None
        run, worker.run = worker.run, None
        return Ended(run, worker.started, message.get("result"), message.get("error") or message.get("died"))

    def _remove(self, worker: _Worker, reason: str) -> None:
        self._workers.remove(worker)
        self._stillborn += not worker.ready
        if self._stillborn >= _MAX_STILLBORN:
            raise StudyError(
                f"workers cannot start ({reason}); see their messages above. A script that starts a study "
                "must do so below `if __name__ == '__main__':`"
            )

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and worker.run is None and worker.give(self._queue[0]):
                self._queue.popleft()


@contextmanager
def _main_without_file() -> Iterator[None]:
    """Let a process be started from a script that is no file (``python - < script``).

    A new process runs the file of the main module again, and here there is only a name, ``<stdin>``.
    """
    main = sys.modules["__main__"]
    name = getattr(main, "__file__", None)
    if name is None or getattr(main, "__spec__", None) is not None or os.path.exists(name):
        yield
        return
    del main.__file__
    try:
        yield
    finally:
        main.__file__ = name


class _Worker:
    """The study's side of one worker process."""

    def __init__(self, setup: Setup) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        # Not a daemon: daemons may not have children, and a data loader needs them.
        self.process = _CONTEXT.Process(
            target=serve, args=(theirs, setup), name="gatework-worker", daemon=False
        )
        self.ready = False
        self.run: RunSpec | None = None
        self.started = ""
        with theirs, interrupts_blocked(), _main_without_file():
            self.process.start()

    def give(self, run: RunSpec) -> bool:
        """Send a run; return False if the worker is no longer there to take it."""
        try:
            self.connection.send_bytes(json.dumps(run.to_json()).encode())
        except OSError:
            return False
        self.run, self.started = run, datetime.now(UTC).isoformat(timespec="seconds")
        return True

    def receive(self) -> dict[str, Any] | None:
        """Return the next message if there is one; ``{"died": how}`` once there will be none."""
        try:
            if self.connection.poll():
                message: dict[str, Any] = json.loads(self.connection.recv_bytes())
                return message
        except (EOFError, OSError):
            return {"died": self.join()}
        # A child of the dead worker may hold the pipe open, so its end is not the only sign.
        return {"died": self.join()} if self.process.exitcode is not None else None

    def shut_down(self) -> None:
        """Make the process end: an idle one by itself, with its exit handlers; a busy one by force."""
        if not self.ready or self.run is not None:
            self.process.kill()
        self.connection.close()

    def join(self) -> str:
        """Wait for the process to end, and say how it ended."""
        self.process.join(_SECONDS_TO_EXIT)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        assert code is not None
        self.connection.close()
        self.process.close()
        if code >= 0:
            return f"worker died: exit code {code}"
        name = ""
        with suppress(ValueError):
            name = f" ({signal.Signals(-code).name})"
        return f"worker died: signal {-code}{name}"
