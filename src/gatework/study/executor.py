"""Who executes the runs of a study: an interface of four methods, and local processes that stay warm."""

from __future__ import annotations

import json
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from gatework.study.files import StudyError
from gatework.study.spec import RunSpec
from gatework.study.worker import serve

# A worker that dies while importing is replaced, since memory may have been short for a moment;
# this many in a row mean that none will ever start.
_MAX_STILLBORN = 3
_SECONDS_TO_EXIT = 5.0


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
    def close(self) -> None:
        """Stop everything at once, unfinished runs included."""


class LocalExecutor(Executor):
    """Runs in processes of this machine, each of which imports the heavy modules once.

    A worker that dies is replaced; its run ends with an error and the others go on.

    Args:
        execute: ``"module:function"``, from a spec (a JSON object) to a result (another).
        num_workers: Number of processes.
        num_threads: Threads that PyTorch may use in each.
    """

    def __init__(self, execute: str, *, num_workers: int, num_threads: int) -> None:
        self._execute = execute
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._queue: deque[RunSpec] = deque()
        self._workers: list[_Worker] = []
        self._stillborn = 0

    def submit(self, run: RunSpec) -> None:
        """Queue a run."""
        self._queue.append(run)

    def poll(self, timeout: float) -> list[Ended]:
        """Hand out queued runs and return those that ended; see :meth:`Executor.poll`.

        Raises:
            StudyError: If no worker can be started.
        """
        self._start_workers()
        wait([worker.connection for worker in self._workers], timeout)
        ended = [over for worker in list(self._workers) if (over := self._hear(worker)) is not None]
        # At once, before the caller stores anything: no core waits for a disk.
        self._hand_out()
        return ended

    def running(self) -> list[RunSpec]:
        """Return the runs that are being executed now."""
        return [worker.run for worker in self._workers if worker.run is not None]

    def close(self) -> None:
        """Kill busy workers and let idle ones exit; the queue is dropped."""
        self._queue.clear()
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.bury()
        self._workers.clear()

    def _start_workers(self) -> None:
        wanted = min(self._num_workers, len(self.running()) + len(self._queue))
        while len(self._workers) < wanted:
            try:
                self._workers.append(_Worker(self._execute, self._num_threads))
            except OSError as error:
                raise StudyError(f"cannot start a worker process: {error.strerror or error}") from error

    def _hear(self, worker: _Worker) -> Ended | None:
        """Take what the worker said or how it died; return its run if that is over."""
        message = worker.receive()
        if message is None:
            return None
        if "ready" in message:
            worker.ready, self._stillborn = True, 0
            return None
        if "broken" in message:
            raise StudyError(f"workers cannot load {self._execute}: {message['broken'].splitlines()[-1]}")
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


class _Worker:
    """The study's side of one worker process."""

    def __init__(self, execute: str, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Not a daemon: daemons may not have children, and a data loader needs them.
        self.process = context.Process(
            target=serve, args=(theirs, execute, num_threads), name="gatework-worker", daemon=False
        )
        self.ready = False
        self.run: RunSpec | None = None
        self.started = ""
        with theirs, _interrupts_blocked():
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
            return {"died": self.bury()}
        # A child of the dead worker may hold the pipe open, so its end is not the only sign.
        return {"died": self.bury()} if self.process.exitcode is not None else None

    def dismiss(self) -> None:
        """Make the process end: an idle one by itself, with its exit handlers; a busy one by force."""
        if not self.ready or self.run is not None:
            self.process.kill()
        self.connection.close()

    def bury(self) -> str:
        """Wait for the end of the process, and say how it ended."""
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


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start a process that Ctrl-C cannot hit before it has decided to ignore it."""
    resource_tracker.ensure_running()  # started on first use otherwise, and it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
