"""The study itself: plan what is missing, execute it, store every result as it comes, and say how it went."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from gatework._version import __version__
from gatework.study.executor import Ended, Executor, LocalExecutor
from gatework.study.files import LOCK_NAME, StudyError, exclusive, write_atomically
from gatework.study.progress import Progress
from gatework.study.results import RESULT_FORMAT, ResultStore, check_result, finite_json, write_table
from gatework.study.spec import STUDY_FILE, RunSpec, StudySpec

TABLE_FILE = "runs.csv"
_POLL_SECONDS = 0.2  # how long Ctrl-C may go unnoticed


@dataclass(frozen=True)
class StudyOutcome:
    """How a study stands when :func:`run_study` returns.

    Attributes:
        finished: Runs of the grid that finished.
        diverged: Runs whose loss left the finite numbers: a result, not a failure.
        failed: Runs that crashed.
        missing: Runs without a result.
        executed: Runs executed by this call; the others had been stored before.
        unrelated: Stored results that belong to no run of the grid; kept, not shown.
        signal: Number of the signal that stopped the study early, if one did.
    """

    finished: int
    diverged: int
    failed: int
    missing: int
    executed: int
    unrelated: int
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0 if every run finished or diverged, 128 + the signal that stopped the study, otherwise 1."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.missing else 0

    @property
    def summary(self) -> str:
        """One line."""
        counts = [f"{getattr(self, name)} {name}" for name in ("finished", "diverged", "failed", "missing")]
        line = f"{', '.join(counts)} ({self.executed} executed now)"
        if self.unrelated:
            line += f"; {self.unrelated} stored results belong to no run of this grid: kept, not shown"
        return line


def run_study(
    study: StudySpec,
    directory: Path,
    *,
    execute: str = "gatework.study.run:execute",
    num_workers: int | None = None,
    retry_failed: bool = True,
    progress: bool = True,
) -> StudyOutcome:
    """Execute every run of ``study`` that ``directory`` has no result of, and store each result as it comes.

    May be killed at any moment; called again, it continues: finished and diverged runs are never repeated.
    Runs are recognised by their content, so a directory may be continued with another grid of the same task.
    Ctrl-C and SIGTERM end the study in order: workers are stopped, results kept, and the outcome says so.

    Args:
        study: The grid and the facts for its page.
        directory: Where ``study.json``, ``results/`` and ``runs.csv`` are; made if it does not exist.
        execute: ``"module:function"`` from a run's spec (a JSON object) to its result; called in the workers.
        num_workers: Number of processes; by default one per available core.
        retry_failed: Whether runs that failed before are tried again.
        progress: Whether to show progress and a summary on standard error.

    Returns:
        Counts over the grid, and the exit code they mean.

    Raises:
        ValueError: If ``num_workers`` is not positive.
        StudyError: If the directory is in use, holds something else or a broken or foreign file, if the disk
            is full, or if workers cannot start. Whatever was stored stays stored.
    """
    cores = _available_cores()
    num_workers = cores if num_workers is None else num_workers
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    _make_directory(directory)
    with exclusive(directory), _StopSignals() as stop:
        store = ResultStore(directory)
        stored = _open(study, directory, store)
        plan = _plan(study, stored, retry_failed=retry_failed)
        # By the workers asked for, not by those that the rest of the runs can use: a resumed study must
        # compute with the threads of an uninterrupted one, since sums depend on them.
        executor = LocalExecutor(execute, num_workers=num_workers, num_threads=max(1, cores // num_workers))
        reporter = _reporter(study, stored, plan, shown=progress)
        with closing(reporter), closing(executor):
            executed = _execute(plan, executor, store, reporter, stop)
        stored |= executed
        write_table(directory / TABLE_FILE, study.runs, stored)
    stopped = len(executed) < len(plan)
    outcome = _outcome(study, stored, executed=len(executed), received=stop.received if stopped else None)
    _say(study, outcome, shown=progress)
    return outcome


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _make_directory(directory: Path) -> None:
    """Make the study directory, or refuse one that holds something else than a study."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise StudyError(f"cannot use {directory} as study directory: {error.strerror or error}") from error
    if STUDY_FILE in names:
        return
    # A study killed before its first file leaves the lock and perhaps a temporary file.
    others = sorted(name for name in names - {LOCK_NAME} if not name.startswith(f".{STUDY_FILE}."))
    if others:
        raise StudyError(f"{directory} holds no {STUDY_FILE} but {others[0]!r}; choose another directory")


def _open(study: StudySpec, directory: Path, store: ResultStore) -> dict[str, dict[str, Any]]:
    """Write ``study.json`` if it is new or other than before; return the results that are stored."""
    path = directory / STUDY_FILE
    before = StudySpec.read(directory) if path.exists() else None
    if before is None:
        write_atomically(path, _study_text(study))
    elif before.task != study.task:
        raise StudyError(
            f"{directory} holds a study of task {before.task!r}, not {study.task!r}; choose another directory"
        )
    store.prepare()
    stored = store.read_all()
    if before is not None:
        study = replace(study, created=before.created)
        if before.to_json() != study.to_json():
            write_atomically(path, _study_text(study))
    return stored


def _study_text(study: StudySpec) -> str:
    return json.dumps(study.to_json(), indent=1, allow_nan=False) + "\n"


def _plan(study: StudySpec, stored: Mapping[str, Any], *, retry_failed: bool) -> list[RunSpec]:
    """The runs to execute, in order.

    One seed of the whole grid before the next, so that a study stopped early is still a comparison; wide
    models first, so that the last runs are short and no core waits long for another.
    """
    final = {"finished", "diverged"} if retry_failed else {"finished", "diverged", "failed"}
    missing = [
        run for run in study.runs if run.run_id not in stored or stored[run.run_id]["status"] not in final
    ]
    seeds = list(dict.fromkeys(run.seed for run in study.runs))
    return sorted(missing, key=lambda run: (seeds.index(run.seed), -run.width))


def _reporter(study: StudySpec, stored: Mapping[str, Any], plan: list[RunSpec], *, shown: bool) -> Progress:
    """Say what will be done, and return what shows it being done."""
    planned = {run.run_id for run in plan}
    kept = [stored[run.run_id]["status"] for run in study.runs if run.run_id not in planned]
    if shown:
        retried = sum(run_id in stored for run_id in planned)
        again = f", {retried} of them failed before" if retried else ""
        print(
            f"{study.name}: {len(study.runs)} runs, {len(kept)} stored, {len(plan)} to do{again}",
            file=sys.stderr,
            flush=True,
        )
    return Progress(len(study.runs), kept, quality=study.quality.name, shown=shown)


def _execute(
    plan: list[RunSpec], executor: Executor, store: ResultStore, reporter: Progress, stop: _StopSignals
) -> dict[str, dict[str, Any]]:
    """Execute the plan until it is done or a signal comes; return the new results, all of them stored."""
    executed: dict[str, dict[str, Any]] = {}
    for run in plan:
        executor.submit(run)
    while len(executed) < len(plan):
        stopping = stop.received is not None
        for ended in executor.poll(0.0 if stopping else _POLL_SECONDS):
            if ended.error is not None and stop.received is not None:
                continue  # its worker may have died of the same signal: that is no failure of the run
            result = _result(ended)
            store.write(result)
            executed[ended.run.run_id] = result
            reporter.ended(ended.run, result)
        reporter.running(executor.running())
        if stopping:
            break
    return executed


def _result(ended: Ended) -> dict[str, Any]:
    """The result to store: what the run returned, or that it failed and why."""
    if ended.error is not None:
        return _failure(ended, ended.error)
    try:
        if not isinstance(ended.result, dict):
            raise ValueError(f"it must be an object, got {ended.result!r:.80}")
        result: dict[str, Any] = finite_json(ended.result)
        check_result(result)
        if result["run_id"] != ended.run.run_id:
            raise ValueError(f"run_id must be {ended.run.run_id}, got {result['run_id']}")
    except ValueError as error:
        return _failure(ended, f"the run returned an invalid result: {error}")
    return result


def _failure(ended: Ended, message: str) -> dict[str, Any]:
    return {
        "format": RESULT_FORMAT,
        "run_id": ended.run.run_id,
        "spec": ended.run.to_json(),
        "status": "failed",
        "message": message,
        "metrics": None,
        "cost": None,
        "curve": None,
        "environment": {
            "gatework": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "started": ended.started,
    }


def _outcome(
    study: StudySpec, stored: Mapping[str, Mapping[str, Any]], *, executed: int, received: int | None
) -> StudyOutcome:
    grid = {run.run_id for run in study.runs}
    counts = Counter(stored[run_id]["status"] for run_id in grid & stored.keys())
    return StudyOutcome(
        finished=counts["finished"],
        diverged=counts["diverged"],
        failed=counts["failed"],
        missing=len(grid - stored.keys()),
        executed=executed,
        unrelated=len(stored.keys() - grid),
        signal=received,
    )


def _say(study: StudySpec, outcome: StudyOutcome, *, shown: bool) -> None:
    """Print the summary, and how to resume if the study was stopped (that even if nothing is to be shown)."""
    if shown:
        print(f"{study.name}: {outcome.summary}", file=sys.stderr, flush=True)
    if outcome.signal is not None:
        print(
            f"{study.name}: stopped by {signal.Signals(outcome.signal).name}; every ended run is stored. "
            f"Resume with: {study.command}",
            file=sys.stderr,
            flush=True,
        )


class _StopSignals:
    """Notes Ctrl-C and SIGTERM instead of raising wherever the program is: it may be storing a result.

    Attributes:
        received: The first such signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets only the main thread handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):  # who started us ignores it on purpose
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
