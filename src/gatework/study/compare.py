"""The main job as one function: plan a comparison, check it, execute what is missing, and write its page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from gatework.files import check_directory
from gatework.study.budget import apply_budget
from gatework.study.companion import named_companion, read_companion
from gatework.study.engine import EXECUTE, StudyOutcome, make_directory, plan_study, run_study, worker_setup
from gatework.study.executor import Executor, LocalExecutor, available_cores, threads_per_worker
from gatework.study.options import CompareOptions
from gatework.study.plan import check_runs, make_study
from gatework.study.results import ResultStore
from gatework.study.spec import RunSpec, StudySpec
from gatework.study.study import Study


def compare(task: str, candidates: Any = None, **options: Any) -> Study:
    """Train candidates on one task, every combination of the axes, and return the study with its results.

    The same as ``gatework compare``: called again it continues, and repeats no run that finished or diverged.

    Args:
        task: What to train for, such as ``"recall"``.
        candidates: What is compared: for tasks on tokens mixers, by name or as labels with their layers. By
            name it is an option called as the task's axis, such as ``mixers``.
        **options: Those of :class:`~gatework.study.options.CompareOptions`, with the axes, points and
            companion under the names that the task has for them: for tasks on tokens ``widths`` and
            ``decode_contexts``, for text ``recall`` too.

    Raises:
        TypeError: If an argument or option has another type, or is unknown.
        ValueError: If a value is impossible.
        FileError: If the study cannot go on.
    """
    return run_comparison(CompareOptions.of(task, candidates, **options))


def run_comparison(options: CompareOptions) -> Study:
    """Do what :func:`compare` does, with its arguments already checked."""
    check_directory("output", options.directory)
    directory, runs = options.directory, options.grid()
    beside, declared = options.beside, options.declaration.companion
    with ExitStack() as stack:
        executor: str | Executor = options.executor
        measured = "seconds" in (options.budget, beside.budget if beside else None)
        if options.executor == "local" and not measured:  # measuring wants quiet
            executor = stack.enter_context(closing(_warming_workers(options, runs)))
        study, companion = _plan(options, runs), None
        if beside is not None:
            read_companion(directory, declared)  # refuses now what would be refused after hours of training
            with named_companion(declared):
                companion = _plan(beside, beside.grid())
        if options.executor == "print":
            _print_commands(study, directory, progress=options.progress)
            if beside is not None and companion is not None:
                _print_commands(companion, beside.directory, progress=options.progress)
            return Study.open(directory)
        outcome = _run(options, study, executor)
    found = Study.open(directory, outcome=outcome)
    if beside is not None and companion is not None and outcome.signal is None:
        found.companion = Study.open(beside.directory, outcome=_run(beside, companion, beside.executor))
        found.companion.report()
    found.report()
    return found


def _run(options: CompareOptions, study: StudySpec, executor: str | Executor) -> StudyOutcome:
    """Execute what is missing."""
    return run_study(
        study,
        options.directory,
        executor=executor,
        num_workers=options.workers,
        ray_address=options.ray_address,
        progress=options.progress,
    )


def _num_threads(options: CompareOptions) -> int:
    """Threads of each worker; of a run that a scheduler executes, unless it is told otherwise, one."""
    return 1 if options.executor == "print" else threads_per_worker(options.executor, options.workers)


def _plan(options: CompareOptions, runs: Sequence[RunSpec]) -> StudySpec:
    """Check the grid, give every run its share of the budget, and state the facts."""
    check_runs(runs)
    if options.budget == "seconds":  # where the speeds are kept, and nothing else may be
        make_directory(options.directory, options.declaration.companion)
    runs, held_equal = apply_budget(
        runs,
        options.budget,
        options.budget_amount,
        directory=options.directory,
        num_threads=_num_threads(options),
    )
    return make_study(
        options.directory.resolve().name,
        runs,
        command=options.command or options.equivalent_command(),
        title=options.title,
        notes=options.notes,
        budget=held_equal,
        budget_kind=options.budget,
        plugins=options.plugins,
    )


def _warming_workers(options: CompareOptions, runs: Sequence[RunSpec]) -> LocalExecutor:
    """Workers that import the heavy modules while this process checks the plan: as many as will be needed."""
    store = ResultStore(options.directory)
    missing = sum(not store.path(run.run_id).exists() for run in runs)
    setup = worker_setup(runs, options.plugins, EXECUTE, _num_threads(options))
    executor = LocalExecutor(setup, num_workers=options.workers or available_cores())
    executor.start(missing)
    return executor


def _print_commands(study: StudySpec, directory: Path, *, progress: bool) -> None:
    """Write the plan, and print one command per run that has no final result."""
    missing = plan_study(study, directory)
    for run in missing:
        words = ["gatework", "run", str(directory), run.run_id]
        words += [word for plugin in study.plugins for word in ("--plugin", plugin)]
        print(shlex.join(words))
    if progress:
        print(
            f"{study.name}: {len(study.runs)} runs, {len(missing)} to do, each by one of these commands; "
            "then run the same without `--executor print` to write the page",
            file=sys.stderr,
        )
