"""The main job as one function: plan a comparison, check it, execute what is missing, and write its page."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from gatework.registry import load_entry_points, load_plugins, suggestion
from gatework.study.budget import apply_budget
from gatework.study.companion import (
    COMPANION_FOLDER,
    COMPANION_TASK,
    OWN,
    companion_options,
    named_recall,
    read_companion,
)
from gatework.study.engine import EXECUTE, StudyOutcome, make_directory, plan_study, run_study, worker_setup
from gatework.study.executor import (
    EXECUTORS,
    Executor,
    LocalExecutor,
    available_cores,
    check_executor,
    threads_per_worker,
)
from gatework.study.plan import (
    DECODE_CONTEXTS,
    DEFAULT_MIXERS,
    check_runs,
    make_study,
    parse_mixers,
    plan_runs,
)
from gatework.study.results import ResultStore
from gatework.study.spec import BUDGETS, RunSpec, StudySpec
from gatework.study.study import Study
from gatework.tasks import list_tasks

#: What may execute the runs: an executor, or printing commands for a scheduler.
CHOICES = (*EXECUTORS, "print")


def compare(
    task: str,
    mixers: Sequence[str] | Mapping[str, Any] | Literal["all"] = DEFAULT_MIXERS,
    *,
    widths: Sequence[int] = (32,),
    learning_rates: Sequence[float] = (0.005,),
    seeds: Sequence[int] = (0, 1, 2),
    setting: Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    decode_contexts: Sequence[int] = DECODE_CONTEXTS,
    budget: str = "steps",
    budget_amount: float | None = None,
    recall: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    executor: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    output: str | Path | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Train mixers on one task, every combination of the axes, and return the study with its results.

    The same as ``gatework compare``: called again it continues, and repeats no run that finished or diverged.

    Args:
        task: What to train for, such as ``"recall"``.
        mixers: Names, labels with their layers, or ``"all"``: see :func:`~gatework.study.plan.parse_mixers`.
        widths: Numbers of channels.
        learning_rates: Peak learning rates; the best on validation data is reported.
        seeds: Seeds of weights and data order.
        setting: Options of the task, common to all ``settings``.
        settings: Several settings by name.
        training: Options of :class:`~gatework.tasks.task.Training`.
        model: Options of the model around the mixers.
        decode_contexts: Lengths of context, growing, at which decoding is timed after the training.
        budget: What is held equal: ``"steps"``, ``"tokens"``, ``"flops"`` or ``"seconds"``.
        budget_amount: How much of it; by default what the first mixer needs for its steps.
        recall: For ``"text"``: options of a recall study of the same mixers beside it, in its folder
            ``recall``; see :func:`~gatework.study.companion.companion_options`.
        plugins: Modules that register mixers or tasks, imported here and in the workers.
        executor: ``"local"``, ``"ray"``, or ``"print"`` to print a command for each missing run instead.
        workers: Runs at a time, one per core by default.
        ray_address: Address of a Ray cluster.
        output: Study directory, ``runs/TASK`` by default.
        title: Heading of the page.
        notes: Sentences for the page.
        progress: Whether to show progress on standard error.
        command: What the page says made the study, by default ``gatework compare`` with these options.

    Raises:
        TypeError: If an argument or option has another type, or is unknown.
        ValueError: If a value is impossible.
        FileError: If the study cannot go on.
    """
    return _compare(_Request(**locals()))


_DEFAULTS = {name: parameter.default for name, parameter in signature(compare).parameters.items()}


@dataclass(frozen=True)
class _Request:
    """The arguments of :func:`compare`, checked as far as that needs nothing heavy."""

    task: str
    mixers: Sequence[str] | Mapping[str, Any] | Literal["all"]
    widths: Sequence[int]
    learning_rates: Sequence[float]
    seeds: Sequence[int]
    setting: Mapping[str, Any] | None
    settings: Mapping[str, Mapping[str, Any]] | None
    training: Mapping[str, Any] | None
    model: Mapping[str, Any] | None
    decode_contexts: Sequence[int]
    budget: str
    budget_amount: float | None
    recall: Mapping[str, Any] | None
    plugins: Sequence[str]
    executor: str
    workers: int | None
    ray_address: str | None
    output: str | Path | None
    title: str | None
    notes: Sequence[str]
    progress: bool
    command: str | None

    def __post_init__(self) -> None:
        for name in ("widths", "learning_rates", "seeds", "decode_contexts", "notes", "plugins"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise TypeError(f"{name} must be a list, got {value!r}")
        for name in ("setting", "settings", "training", "model", "recall"):
            _check_mapping(name, getattr(self, name))
        for name, options in (self.settings or {}).items():
            _check_mapping(f"setting {name!r}", options)
        load_plugins(self.plugins)
        _check_task(self.task)
        if self.budget not in BUDGETS:
            raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, got {self.budget!r}")
        if self.executor not in CHOICES:
            raise ValueError(f"executor must be one of {', '.join(CHOICES)}, got {self.executor!r}")
        if self.executor != "print":
            check_executor(self.executor, self.workers, self.ray_address)
        elif self.workers is not None or self.ray_address is not None:
            raise ValueError("executor 'print' executes nothing: it takes neither workers nor ray_address")
        if self.recall is not None and self.task != "text":
            raise ValueError(f"recall accompanies a study of task 'text' only, got task {self.task!r}")
        if self.companion is not None:
            with named_recall():
                self.companion.grid()

    @cached_property
    def companion(self) -> _Request | None:
        """The recall study beside this one: the same models and executor, a training of its own."""
        if self.recall is None:
            return None
        text = {field.name: getattr(self, field.name) for field in fields(self)}
        options = companion_options(self.recall, text)
        own = {name: _DEFAULTS[name] for name in OWN} | options
        with named_recall():
            return replace(
                self,
                **own,
                task=COMPANION_TASK,
                recall=None,
                output=self.directory / COMPANION_FOLDER,
                command=self.command or _equivalent_command(self),
            )

    @property
    def directory(self) -> Path:
        """The study directory."""
        return Path(self.output if self.output is not None else f"runs/{self.task}")

    @property
    def num_threads(self) -> int:
        """Threads of each worker; of a run that a scheduler executes, unless it is told otherwise, one."""
        return 1 if self.executor == "print" else threads_per_worker(self.executor, self.workers)

    def grid(self) -> list[RunSpec]:
        """Every run, before the budget decides its steps."""
        common = dict(self.setting or {})
        name = ", ".join(f"{key}={value}" for key, value in sorted(common.items())) or "default"
        return plan_runs(
            self.task,
            mixers=parse_mixers(self.mixers),
            settings={key: {**common, **own} for key, own in (self.settings or {name: {}}).items()},
            widths=self.widths,
            learning_rates=self.learning_rates,
            seeds=self.seeds,
            training=self.training or {},
            model=self.model or {},
            decode_contexts=self.decode_contexts,
        )


def _compare(request: _Request) -> Study:
    directory, runs = request.directory, request.grid()
    companion = request.companion
    with ExitStack() as stack:
        executor: str | Executor = request.executor
        measured = "seconds" in (request.budget, companion.budget if companion else None)
        if request.executor == "local" and not measured:  # measuring wants quiet
            executor = stack.enter_context(closing(_warming_workers(request, runs)))
        study, recall = _plan(request, runs), None
        if companion is not None:
            read_companion(directory)  # refuses now what would be refused after hours of training
            with named_recall():
                recall = _plan(companion, companion.grid())
        if request.executor == "print":
            _print_commands(study, directory, progress=request.progress)
            if companion is not None and recall is not None:
                _print_commands(recall, companion.directory, progress=request.progress)
            return Study.open(directory)
        outcome = _run(request, study, executor)
    found = Study.open(directory, outcome=outcome)
    if companion is not None and recall is not None and outcome.signal is None:
        found.companion = Study.open(companion.directory, outcome=_run(companion, recall, companion.executor))
        found.companion.report()
    found.report()
    return found


def _run(request: _Request, study: StudySpec, executor: str | Executor) -> StudyOutcome:
    """Execute what is missing."""
    return run_study(
        study,
        request.directory,
        executor=executor,
        num_workers=request.workers,
        ray_address=request.ray_address,
        progress=request.progress,
    )


def _plan(request: _Request, runs: Sequence[RunSpec]) -> StudySpec:
    """Check the grid, give every run its share of the budget, and state the facts."""
    check_runs(runs)
    if request.budget == "seconds":
        make_directory(request.directory)  # where the speeds are kept, and nothing else may be
    runs, held_equal = apply_budget(
        runs,
        request.budget,
        request.budget_amount,
        directory=request.directory,
        num_threads=request.num_threads,
    )
    return make_study(
        request.directory.resolve().name,
        runs,
        command=request.command or _equivalent_command(request),
        title=request.title,
        notes=request.notes,
        budget=held_equal,
        budget_kind=request.budget,
        plugins=request.plugins,
    )


def _warming_workers(request: _Request, runs: Sequence[RunSpec]) -> LocalExecutor:
    """Workers that import the heavy modules while this process checks the plan: as many as will be needed."""
    store = ResultStore(request.directory)
    missing = sum(not store.path(run.run_id).exists() for run in runs)
    setup = worker_setup(runs, request.plugins, EXECUTE, request.num_threads)
    executor = LocalExecutor(setup, num_workers=request.workers or available_cores())
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


def _equivalent_command(request: _Request) -> str:
    """The command line of the same study."""
    words = ["gatework", "compare", request.task]
    names = {"mixers", "widths", "learning_rates", "seeds", "setting", "settings", "training", "model"}
    names |= {"budget", "budget_amount", "output", "title", "notes"}
    if request.recall is not None:
        words += ["--recall", json.dumps(request.recall, default=_plain, ensure_ascii=False)]
    if [*request.decode_contexts] != [*DECODE_CONTEXTS]:
        words += ["--decode_contexts", json.dumps([*request.decode_contexts])]
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in names and value not in (None, {}, (), []):
            text = value if isinstance(value, str) else json.dumps(value, default=_plain, ensure_ascii=False)
            words += [f"--{field.name}", text]
    words += [word for plugin in request.plugins for word in ("--plugin", plugin)]
    return shlex.join(words)


def _plain(value: Any) -> Any:
    """What JSON does not know by itself."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else str(value)


def _check_mapping(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {value!r}")


def _check_task(task: Any) -> None:
    if not isinstance(task, str):
        raise TypeError(f"task must be a name, got {task!r}")
    if task not in list_tasks():
        load_entry_points()
    if task not in list_tasks():
        raise ValueError(f"task {task!r} is not known{suggestion(task, list_tasks())}")
