"""What a comparison is asked for, said once: the arguments of ``gatework.compare`` and of its command line.

The dataclass below is both. Its docstring explains the options on the command line, and the command that
makes the same study is written from its fields. What is compared, at which sizes, and what is measured beside
the training are options that the task names (:class:`gatework.tasks.declaration.Declaration`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gatework.checks import check_choice, check_number, check_sizes, suggestion
from gatework.registry import load_plugins
from gatework.study.companion import OWN, companion_options, named_companion
from gatework.study.executor import EXECUTORS, check_executor
from gatework.study.plan import plan_runs
from gatework.study.spec import RunSpec, check_points
from gatework.tasks import check_task, list_tasks, task_declaration
from gatework.tasks.declaration import Declaration

#: What may execute the runs: an executor, or printing commands for a scheduler.
CHOICES = (*EXECUTORS, "print")
#: Options that say how a study is executed or shown, and nothing of what it is.
EXECUTION = ("plugins", "executor", "workers", "ray_address", "progress", "command")


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, and how; ``training`` holds options of :class:`~gatework.tasks.task.Training`.

    Attributes:
        task: What to train for, such as ``"recall"``.
        candidates: What is compared, under the name of the task's axis, such as ``mixers``.
        sizes: At which sizes, under the name of the task's axis, such as ``widths``.
        learning_rates: Peak learning rates; the best on validation data is reported.
        seeds: Seeds of weights and data order.
        setting: Options of the task, such as --setting.length 128, common to all settings.
        settings: Several settings by name (YAML).
        training: Options of the training, such as --training.steps 2000, the same for all.
        model: Options that all models share.
        measure: Points to measure at, each under the option's own name, such as ``decode_contexts``.
        companion: Options of the study that accompanies this one, under its own name, such as ``recall``.
        budget: What is held equal: steps, the task's unit of work such as tokens, flops or seconds.
        budget_amount: How much of it; by default what the first candidate needs for its steps.
        title: Heading of the page.
        notes: Sentences for the page.
        output: Study directory, runs/TASK by default.
        executor: Processes of this machine (local), a Ray cluster (ray), or a command per run for a scheduler
            (print).
        workers: Runs at a time, one per core by default.
        ray_address: Address of a Ray cluster, RAY_ADDRESS by default; without one, a Ray on this machine.
        plugins: Modules that register mixers or tasks, imported here and in the workers.
        progress: Whether to show progress on standard error.
        command: What the page says made the study, by default ``gatework compare`` with these options.

    Raises:
        TypeError: If an option has another type, or is unknown.
        ValueError: If a value is impossible.
    """

    task: str
    candidates: Sequence[str] | Mapping[str, Any] | str | None = None
    sizes: Sequence[int] | None = None
    learning_rates: Sequence[float] = (0.005,)
    seeds: Sequence[int] = (0, 1, 2)
    setting: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Sequence[int]] = field(default_factory=dict)
    companion: Mapping[str, Any] | None = None
    budget: str = "steps"
    budget_amount: float | None = None
    title: str | None = None
    notes: Sequence[str] = ()
    output: str | Path | None = None
    executor: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    plugins: Sequence[str] = ()
    progress: bool = True
    command: str | None = None

    @classmethod
    def of(cls, task: str, candidates: Any = None, **named: Any) -> CompareOptions:
        """Make the options from names as the task has them: ``mixers``, ``widths``, ``decode_contexts``.

        Raises:
            TypeError: If the task has no such option, or an option has another type.
            ValueError: If there is no such task, or a value is impossible.
        """
        load_plugins(_list("plugins", named.get("plugins", ())))
        check_task(task)
        declared = task_declaration(task)
        options = {name: value for name, value in named.items() if name in OPTIONS}
        options["measure"] = dict(options.get("measure") or {})
        meant = option_meanings(declared)
        for name, value in named.items():
            if name in OPTIONS:
                continue
            if name not in meant:
                raise TypeError(unknown_option(task, name))
            if meant[name] == "measure":
                options["measure"][name] = value
            elif meant[name] == "candidates" and candidates is not None:
                raise TypeError(f"{name} are given twice: by position and by name")
            else:
                options[meant[name]] = value
        if candidates is not None:
            options["candidates"] = candidates
        return cls(task, **options)

    def __post_init__(self) -> None:
        for name in ("setting", "settings", "training", "model", "measure"):  # None stands for none
            object.__setattr__(self, name, _mapping(name, getattr(self, name)))
        for name, options in self.settings.items():
            _mapping(f"setting {name!r}", options)
        load_plugins(self.plugins)
        check_task(self.task)
        declared = self.declaration
        self._fill_axes(declared)
        _list(declared.sizes.plural, self.sizes)
        for name in _LISTS:
            _list(name, getattr(self, name))
        check_choice("budget", self.budget, declared.budgets)
        if self.budget_amount is not None:
            check_number("budget_amount", self.budget_amount, above=0)
        check_choice("executor", self.executor, CHOICES)
        if self.workers is not None:
            check_sizes(workers=self.workers)
        if self.executor != "print":
            check_executor(self.executor, self.workers, self.ray_address)
        elif self.workers is not None or self.ray_address is not None:
            raise ValueError("executor 'print' executes nothing: it takes neither workers nor ray_address")
        if self.beside is not None:
            with named_companion(declared.companion):
                self.beside.grid()

    def _fill_axes(self, declared: Declaration) -> None:
        """Take what the task gives where nothing was asked for, and refuse what it does not have."""
        for name, axis in (("candidates", declared.candidates), ("sizes", declared.sizes)):
            if getattr(self, name) is None:
                if not axis.default:
                    raise ValueError(f"{axis.plural} must be given: {axis.about or axis.title}")
                object.__setattr__(self, name, axis.default)
        known = {scaling.option: scaling for scaling in declared.scalings}
        for option in self.measure:
            if option not in known:
                raise TypeError(unknown_option(self.task, str(option)))
        points = {option: self.measure.get(option, known[option].default) for option in known}
        for option, values in points.items():
            check_points(option, values, least=known[option].least)
        object.__setattr__(self, "measure", points)
        if self.companion is not None and declared.companion is None:
            raise TypeError(f"task {self.task!r} has no study that accompanies it, got {self.companion!r}")
        if self.companion is not None and declared.companion is not None:
            _mapping(declared.companion.option, self.companion)

    @property
    def declaration(self) -> Declaration:
        """What the task declares."""
        return task_declaration(self.task)

    @cached_property
    def beside(self) -> CompareOptions | None:
        """The study beside this one: the same candidates and executor, a training of its own."""
        declared = self.declaration.companion
        if self.companion is None or declared is None:
            return None
        with named_companion(declared):
            options = companion_options(self.companion, self)
            own = {name: _DEFAULTS[name] for name in OWN} | options
            return replace(
                self,
                **own,
                task=declared.task,
                companion=None,
                output=self.directory / declared.option,
                command=self.command or self.equivalent_command(),
            )

    @property
    def directory(self) -> Path:
        """The study directory."""
        return Path(self.output if self.output is not None else f"runs/{self.task}")

    def grid(self) -> list[RunSpec]:
        """Every run, before the budget decides its steps."""
        common = self.setting
        name = ", ".join(f"{key}={value}" for key, value in sorted(common.items())) or "default"
        return plan_runs(
            self.task,
            candidates=self.declaration.parse(self.candidates, self.declaration.candidates),
            settings={key: {**common, **own} for key, own in (self.settings or {name: {}}).items()},
            sizes=self.sizes,
            learning_rates=self.learning_rates,
            seeds=self.seeds,
            training=self.training,
            model=self.model,
            measure={option: points for option, points in self.measure.items() if points},
        )

    def equivalent_command(self) -> str:
        """Return the command line of the same study."""
        declared = self.declaration
        names = {meaning: option for option, meaning in option_meanings(declared).items()}
        words = ["gatework", "compare", self.task]
        for option, value in self._said(declared).items():
            text = str(value)
            if not isinstance(value, str | Path):
                text = json.dumps(value, default=_plain, ensure_ascii=False)
            words += [f"--{names.get(option, option)}", text]
        words += [word for plugin in self.plugins for word in ("--plugin", plugin)]
        return shlex.join(words)

    def _said(self, declared: Declaration) -> dict[str, Any]:
        """The options that the command has to say, by their names here, points by those of their options."""
        said: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "measure":
                usual = {scaling.option: list(scaling.default) for scaling in declared.scalings}
                said |= {option: points for option, points in value.items() if [*points] != usual[option]}
            elif entry.name == "companion":
                said |= {} if value is None else {"companion": value}
            elif entry.name not in ("task", *EXECUTION) and value not in (None, {}, (), []):
                said[entry.name] = value
        return said


#: The options that every task has, by the names of the dataclass.
OPTIONS = tuple(
    entry.name
    for entry in fields(CompareOptions)
    if entry.name not in ("task", "candidates", "sizes", "companion")
)
_LISTS = ("learning_rates", "seeds", "notes", "plugins")
_DEFAULTS: dict[str, Any] = {
    entry.name: entry.default_factory() if callable(entry.default_factory) else entry.default
    for entry in fields(CompareOptions)
}


def option_meanings(declared: Declaration) -> dict[str, str]:
    """Return the options that a task names, each with the field of :class:`CompareOptions` that it means."""
    meant = {declared.candidates.plural: "candidates", declared.sizes.plural: "sizes"}
    meant |= {scaling.option: "measure" for scaling in declared.scalings}
    return meant if declared.companion is None else {**meant, declared.companion.option: "companion"}


def unknown_option(task: str, name: str) -> str:
    """Say that a task has no such option, which tasks have it, and what it may have meant."""
    declared = task_declaration(task)
    axes = f"its axes are {declared.candidates.plural} and {declared.sizes.plural}"
    others = [
        other for other in list_tasks() if other != task and name in option_meanings(task_declaration(other))
    ]
    if others:
        return (
            f"task {task!r} has no option {name!r}, which is of task {', '.join(map(repr, others))}; {axes}"
        )
    known = [*option_meanings(declared), *OPTIONS]
    return f"task {task!r} has no option {name!r}{suggestion(name, known)}; {axes}"


def _list(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list, got {value!r}")
    return value


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {value!r}")
    return value or {}


def _plain(value: Any) -> Any:
    """What JSON does not know by itself."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else str(value)
