"""The study itself: plan what is missing, execute it, store every result as it comes, and say how it went."""

from __future__ import annotations

import json
import math
import platform
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatework._version import __version__
from gatework.files import LOCK_NAME, exclusive, write_atomically
from gatework.registry import loaded_plugins
from gatework.signals import StopSignals
from gatework.study.budget import CALIBRATION_FILE
from gatework.study.executor import Ended, Executor, check_executor, make_executor, threads_per_worker
from gatework.study.progress import Progress
from gatework.study.results import RESULT_FORMAT, ResultStore, check_result, finite_json, write_table
from gatework.study.spec import STUDY_FILE, RunSpec, StudyError, StudySpec
from gatework.study.worker import Setup
from gatework.tasks import task_declaration
from gatework.tasks.declaration import Companion

TABLE_FILE = "runs.csv"
EXECUTE = "gatework.study.run:execute"
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
        cores_busy: Cores that the workers kept busy, on average over this call, if runs were executed.
    """

    finished: int
    diverged: int
    failed: int
    missing: int
    executed: int
    unrelated: int
    signal: int | None = None
    cores_busy: float | None = None

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
        if self.cores_busy is not None:
            line += f"; {self.cores_busy:.2f} cores busy on average"
        if self.unrelated:
            line += f"; {self.unrelated} stored results belong to no run of this grid: kept, not shown"
        return line


def run_study(
    study: StudySpec,
    directory: Path,
    *,
    execute: str = EXECUTE,
    executor: str | Executor = "local",
    num_workers: int | None = None,
    ray_address: str | None = None,
    retry_failed: bool = True,
    progress: bool = True,
) -> StudyOutcome:
    """Execute every run of ``study`` that ``directory`` has no result of, and store each result as it comes.

    May be killed at any moment; called again, it continues: finished and diverged runs are never repeated.
    Runs are recognised by their content, so a directory may be continued with another grid of the same task.
    Ctrl-C and SIGTERM end it in order: workers are stopped, results kept, and the outcome says so.

    Args:
        study: The grid and the facts for its page.
        directory: Where ``study.json``, ``results/`` and ``runs.csv`` are; made if it does not exist.
        execute: ``"module:function"`` from a run's spec (a JSON object) to its result; called in the workers.
        executor: ``"local"``, ``"ray"``, or an executor, which is closed at the end.
        num_workers: Runs at a time; by default one per available core.
        ray_address: Address of a Ray cluster.
        retry_failed: Whether runs that failed before are tried again.
        progress: Whether to show progress and a summary on standard error.

    Returns:
        Counts over the grid, and the exit code they mean.

    Raises:
        ValueError: If ``num_workers`` is not positive, or there is no such executor.
        FileError: If the directory is in use, holds something else or a broken or foreign file, if the disk
            is full, workers cannot start, or a plugin was not loaded here. What was stored stays stored.
    """
    check_executor(executor, num_workers, ray_address)
    check_plugins(study)
    make_directory(directory, study.declaration.companion)
    with exclusive(directory), StopSignals(second="nothing") as stop:
        store = ResultStore(directory)
        stored = _open(study, directory, store)
        plan = order(_missing(study, stored, retry_failed=retry_failed))
        with closing(_reporter(study, stored, plan, shown=progress)) as reporter, ExitStack() as stack:
            if isinstance(executor, str):
                threads = threads_per_worker(executor, num_workers)
                setup = worker_setup(study.runs, study.plugins, execute, threads)
                executor = make_executor(executor, setup, num_workers=num_workers, ray_address=ray_address)
            stack.enter_context(closing(executor))
            executed = _execute(plan, executor, store, reporter, stop)
            cores_busy = executor.cores_busy()
        stored |= executed
        write_table(directory / TABLE_FILE, study, stored)
    stopped = len(executed) < len(plan)
    outcome = replace(
        _outcome(study, stored, executed=len(executed)),
        signal=stop.received if stopped else None,
        cores_busy=None if stopped or not executed else cores_busy,
    )
    _say(study, outcome, shown=progress)
    return outcome


def plan_study(study: StudySpec, directory: Path, *, retry_failed: bool = True) -> list[RunSpec]:
    """Write ``study.json`` and return what is missing, in the order in which to execute it.

    Args:
        study: The grid and the facts for its page.
        directory: The study directory; made if it does not exist.
        retry_failed: Whether runs that failed before are among the missing.

    Raises:
        FileError: If the directory is in use, holds something else or a broken or foreign file.
    """
    check_plugins(study)
    make_directory(directory, study.declaration.companion)
    with exclusive(directory):
        stored = _open(study, directory, ResultStore(directory))
    return order(_missing(study, stored, retry_failed=retry_failed))


def check_plugins(study: StudySpec) -> None:
    """Refuse a study with a plugin that the caller did not load: what a file names is not imported.

    Raises:
        FileError: Naming the plugin.
    """
    for plugin in study.plugins:
        if plugin not in loaded_plugins():
            raise StudyError(
                f"the study needs the plugin {plugin!r}, whose code would be run: allow it with "
                f"--plugin {plugin}, or with gatework.registry.load_plugins([{plugin!r}])"
            )


def worker_setup(runs: Sequence[RunSpec], plugins: Sequence[str], execute: str, num_threads: int) -> Setup:
    """Return what workers load before the first of these runs."""
    candidates = {run.candidate: run.definition for run in runs}
    return Setup(execute, num_threads, tuple(plugins), runs[0].task, candidates)


def make_directory(directory: Path, companion: Companion | None = None) -> None:
    """Make a study directory, or refuse one that holds something else than a study.

    Args:
        directory: The directory.
        companion: The study that may accompany it, in a folder of its own there.

    Raises:
        FileError: If it does, or the directory cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise StudyError(f"cannot use {directory} as study directory: {error.strerror or error}") from error
    if STUDY_FILE in names:
        return
    # A study killed before its first file leaves the lock, what it measured, the folder of its companion, and
    # perhaps a temporary file.
    early = (f".{STUDY_FILE}.", f".{CALIBRATION_FILE}.", f"{LOCK_NAME}.")
    kept = {LOCK_NAME, CALIBRATION_FILE, *([] if companion is None else [companion.option])}
    others = sorted(name for name in names - kept if not name.startswith(early))
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


def _missing(study: StudySpec, stored: Mapping[str, Any], *, retry_failed: bool) -> list[RunSpec]:
    """The runs of the grid that have no final result."""
    final = {"finished", "diverged"} if retry_failed else {"finished", "diverged", "failed"}
    done = {run_id for run_id, result in stored.items() if result["status"] in final}
    return [run for run in study.runs if run.run_id not in done]


def order(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """Return the runs in the order to execute them.

    One seed of the whole grid before the next, so that a study stopped early is still a comparison; within a
    seed the longest first, so that the last runs are short and no core waits long for another.
    """
    seeds = list(dict.fromkeys(run.seed for run in runs))

    def work(run: RunSpec) -> float:
        steps = [run.training.get(name) for name in ("steps", "batch_size")]
        known = math.prod(count for count in steps if isinstance(count, int) and count > 0)
        return known * task_declaration(run.task).effort(run.setting, run.size)

    return sorted(runs, key=lambda run: (seeds.index(run.seed), -work(run)))


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
    return Progress(study, kept, shown=shown)


def _execute(
    plan: list[RunSpec], executor: Executor, store: ResultStore, reporter: Progress, stop: StopSignals
) -> dict[str, dict[str, Any]]:
    """Execute the plan until it is done or a signal comes; return the new results, all of them stored."""
    executed: dict[str, dict[str, Any]] = {}
    for run in plan:
        executor.submit(run)
    while len(executed) < len(plan):
        stopping = stop.received is not None
        try:
            over = executor.poll(0.0 if stopping else _POLL_SECONDS)
        except StudyError:
            if stop.received is None:
                raise
            break  # Ctrl-C has reached the workers as well, and those that had just started end of it
        for ended in over:
            if ended.error is not None and stop.received is not None:
                continue  # its worker may have died of the same signal: that is no failure of the run
            result = result_of(ended)
            store.write(result)
            executed[ended.run.run_id] = result
            reporter.ended(ended.run, result)
        reporter.running(executor.running())
        if stopping:
            break
    return executed


def result_of(ended: Ended) -> dict[str, Any]:
    """Return the result to store: what the run returned, or that it failed and why."""
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
        "scaling": {},
        "environment": {
            "gatework": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "started": ended.started,
    }


def _outcome(study: StudySpec, stored: Mapping[str, Mapping[str, Any]], *, executed: int) -> StudyOutcome:
    grid = {run.run_id for run in study.runs}
    counts = Counter(stored[run_id]["status"] for run_id in grid & stored.keys())
    return StudyOutcome(
        finished=counts["finished"],
        diverged=counts["diverged"],
        failed=counts["failed"],
        missing=len(grid - stored.keys()),
        executed=executed,
        unrelated=len(stored.keys() - grid),
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
