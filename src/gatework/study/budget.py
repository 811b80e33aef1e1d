"""What a comparison holds equal: training steps, the task's unit of work, arithmetic, or time.

A budget becomes a number of steps for every run before anything is trained, so that the plan of a study is
fixed and each run's learning-rate schedule ends where its budget does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.checks import check_number, suggestion
from gatework.files import read_json, write_atomically
from gatework.page.quantities import format_count, format_seconds
from gatework.study.plan import model_options
from gatework.study.spec import RunSpec, spec_hash
from gatework.tasks import create_task, task_declaration
from gatework.tasks.declaration import Declaration
from gatework.tasks.task import Training

if TYPE_CHECKING:
    from gatework.study.flops import StepCost

CALIBRATION_FILE = "calibration.json"
#: Training batches whose shapes stand for all.
_SAMPLED_BATCHES = 1000
_PROBED_STEPS = 24


def apply_budget(
    runs: Sequence[RunSpec], kind: str, amount: float | None, *, directory: Path, num_threads: int
) -> tuple[list[RunSpec], str]:
    """Give every run the number of steps that its budget pays for.

    Args:
        runs: The grid, each run with the steps of its ``training``.
        kind: ``"steps"``, the task's unit of work such as ``"tokens"``, ``"flops"`` (of training, see
            :class:`~gatework.study.flops.FlopCounter`) or ``"seconds"`` (of training steps, on this machine).
        amount: How much of it each run gets. By default what the first candidate needs for its ``steps``, at
            the same size and in the same setting; of units of work, in the first setting.
        directory: The study directory, where measured speeds are kept: a resumed study must plan the same.
        num_threads: Threads that a worker will have.

    Returns:
        The runs with their steps, and a sentence that says what is held equal.

    Raises:
        ValueError: If there is no such kind, ``amount`` is not positive, or it pays for less than one step.
    """
    declared = task_declaration(runs[0].task)
    if kind not in declared.budgets:
        raise ValueError(f"budget {kind!r} is not known{suggestion(str(kind), list(declared.budgets))}")
    if amount is not None:
        check_number("budget_amount", amount, above=0)
    if kind == "steps":
        planned = [_with_steps(run, int(amount)) for run in runs] if amount else list(runs)
        return planned, _steps_sentence(planned, declared)
    price = _prices(kind, directory, num_threads)
    if kind == declared.unit.plural and amount is None:
        amount = price(runs[0]) * make_steps(runs[0])
    references: dict[tuple[str, int], float] = {}
    planned = []
    for run in runs:
        reference = references.setdefault((run.setting_name, run.size), price(run) * make_steps(run))
        available = reference if amount is None else amount
        # What pays for exactly so many steps must not lose one to rounding.
        planned.append(_with_steps(run, int(available / price(run) * (1 + 1e-12))))
    return planned, _sentence(kind, amount, runs[0].candidate, planned, declared)


def make_steps(run: RunSpec) -> int:
    """Return how many steps a run takes: those of its ``training``, or the default."""
    return Training.of(run.training).steps


def _with_steps(run: RunSpec, steps: int) -> RunSpec:
    if steps < 1:
        raise ValueError(
            f"budget_amount pays for no training step of {run.candidate} at "
            f"{task_declaration(run.task).sizes.name} {run.size}; raise it"
        )
    training = {**run.training, "steps": steps}
    if Training.of(run.training).evaluations > steps:
        training["evaluations"] = steps
    return replace(run, training=training)


def _prices(kind: str, directory: Path, num_threads: int) -> Callable[[RunSpec], float]:
    """Return what one step of a run costs, measured once for all runs that differ in seed or rate only."""
    known: dict[str, float] = {}
    path = directory / CALIBRATION_FILE
    stored: dict[str, Any] = {}
    if kind == "seconds" and path.exists():
        stored = read_json(path, remedy="move it away to have the speeds measured again")

    def price(run: RunSpec) -> float:
        key = spec_hash(run.identity(seed=0, learning_rate=1.0, candidate="", setting_name=""))
        if key in known:
            return known[key]
        if kind != "seconds":
            known[key] = _step_flops(run) if kind == "flops" else _step_work(run)
            return known[key]
        if key not in stored:
            stored[key] = _step_seconds(run, num_threads)
            directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(stored, indent=1) + "\n")
        known[key] = float(stored[key])
        return known[key]

    return price


def _sampled_batches(run: RunSpec) -> list[tuple[Any, float]]:
    """Return a training batch of each shape, and which share of the first ones has that shape."""
    from gatework.tasks.batches import batch_shape

    training = Training.of(run.training)
    task = create_task(run.task, run.setting)
    loader = task.train_batches(training.batch_size, steps=training.steps, seed=0)
    batches = list(islice(loader, min(training.steps, _SAMPLED_BATCHES)))
    examples = {batch_shape(batch): batch for batch in batches}
    counts = Counter(map(batch_shape, batches))
    return [(example, counts[shape] / len(batches)) for shape, example in examples.items()]


def _step_work(run: RunSpec) -> float:
    task = create_task(run.task, run.setting)
    return sum(task.work(batch) * share for batch, share in _sampled_batches(run))


def _step_flops(run: RunSpec) -> float:
    from gatework.study.flops import step_cost
    from gatework.tasks.module import make_module

    task = create_task(run.task, run.setting)
    model = task.build_model(model_options(task, run))
    module = make_module(task, model, Training.of(run.training), run.learning_rate)

    def cost(batch: Any) -> StepCost:
        return step_cost(module, batch)

    return sum(cost(batch).flops * share for batch, share in _sampled_batches(run))


def _step_seconds(run: RunSpec, num_threads: int) -> float:
    """Train a few steps, as a worker would, and return the time of a typical one."""
    import torch

    from gatework.study.run import execute

    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        steps = min(_PROBED_STEPS, make_steps(run))
        training = {**run.training, "steps": steps, "evaluations": 1}
        probe = replace(run, seed=0, training=training, measure={})
        rate = execute(probe.to_json())["cost"][task_declaration(run.task).unit.rate]
    finally:
        torch.set_num_threads(threads)
    return _step_work(run) / float(rate)


def _steps_sentence(runs: Sequence[RunSpec], declared: Declaration) -> str:
    counts = sorted({make_steps(run) for run in runs})
    return (
        f"{', '.join(f'{count:,}' for count in counts)} training steps for every {declared.candidates.name}"
    )


def _sentence(
    kind: str, amount: float | None, first: str, runs: Sequence[RunSpec], declared: Declaration
) -> str:
    units = declared.unit.plural
    write: Mapping[str, Callable[[float], str]] = {
        units: lambda value: f"{format_count(value)} training {units}",
        "flops": lambda value: f"{format_count(value)} floating-point operations of training",
        "seconds": lambda value: (
            f"{format_seconds(value)} of training steps, by the speed measured beforehand"
        ),
    }
    unit = {"flops": "floating-point operations of training", "seconds": "seconds of training steps"}
    if amount is not None:
        what = f"{write[kind](amount)} for every {declared.candidates.name}"
    else:
        at = f"at each {declared.sizes.name} and in each setting"
        what = f"the {unit[kind]} that {first} needs for its steps, {at}"
    steps = [make_steps(run) for run in runs]
    between = f"{min(steps):,}" if min(steps) == max(steps) else f"between {min(steps):,} and {max(steps):,}"
    return f"{what}: {between} steps"
