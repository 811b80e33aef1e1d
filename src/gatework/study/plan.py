"""From what a user asks for to a study: every combination of the axes, checked before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gatework.checks import check_int
from gatework.study.spec import RunSpec, StudySpec
from gatework.tasks import create_task, task_declaration
from gatework.tasks.candidates import Candidate
from gatework.tasks.declaration import Declaration
from gatework.tasks.task import Task, Training


def expand_grid(
    task: str,
    *,
    candidates: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    sizes: Sequence[int],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    measure: Mapping[str, Sequence[int]] | None = None,
) -> list[RunSpec]:
    """Return one run for every combination: candidates x settings x sizes x learning rates x seeds.

    Args:
        task: What every run is trained for.
        candidates: Label to definition, see :class:`~gatework.tasks.candidates.Candidate`.
        settings: Name to the task's options.
        sizes: Widths, resolutions.
        learning_rates: Peak learning rates.
        seeds: Seeds of weights and data order.
        training: What all runs share: steps, batch size, ...
        model: Options that all models share.
        measure: Points to measure at, by the option that lists them.

    Returns:
        The runs, candidates changing slowest and seeds fastest.

    Raises:
        ValueError: If an axis is empty or holds a value twice, or a value is out of range.
        TypeError: If a value has another type than the axis takes.
    """
    declared = task_declaration(task)
    _check_axis(declared.candidates.plural, list(candidates))
    _check_axis("settings", list(settings))
    _check_axis(declared.sizes.plural, sizes)
    _check_axis("learning_rates", learning_rates)
    _check_axis("seeds", seeds)
    for size in sizes:
        check_int(declared.sizes.name, size, at_least=1)
    return [
        RunSpec(
            task=task,
            setting=settings[setting],
            setting_name=setting,
            candidate=candidate,
            definition=candidates[candidate],
            size=size,
            learning_rate=learning_rate,
            seed=seed,
            training=training,
            model=model or {},
            measure=measure or {},
        )
        for candidate, setting, size, learning_rate, seed in itertools.product(
            candidates, settings, sizes, learning_rates, seeds
        )
    ]


def plan_runs(
    task: str,
    *,
    candidates: Iterable[Candidate],
    learning_rates: Sequence[float],
    model: Mapping[str, Any],
    **axes: Any,
) -> list[RunSpec]:
    """Return the grid of a comparison, each candidate with its own learning rates and model options.

    Args:
        task: What every run is trained for.
        candidates: What is compared.
        learning_rates: Those of candidates without their own.
        model: Options that all models share.
        **axes: The other arguments of :func:`expand_grid`.

    Raises:
        ValueError: If an axis is empty or holds a value twice, or a value is out of range.
        TypeError: If a value has another type than its axis takes.
    """
    runs = []
    for candidate in candidates:
        runs += expand_grid(
            task,
            candidates={candidate.label: candidate.definition},
            learning_rates=candidate.learning_rates or learning_rates,
            model={**model, **candidate.model},
            **axes,
        )
    return runs


def _check_axis(name: str, values: Sequence[Any]) -> None:
    """Refuse an axis without a value, or with one twice: it would make no run, or the same run twice."""
    if not values:
        raise ValueError(f"{name} must name at least one value, got none")
    twice = next((value for position, value in enumerate(values) if value in values[:position]), None)
    if twice is not None:
        raise ValueError(f"{name} must differ, got {twice!r} twice")


def model_options(task: Task, run: RunSpec) -> dict[str, Any]:
    """Return what a run's model is built from, as the ``model`` section of a recipe says it.

    Raises:
        TypeError: If the options that all models share say what the axes say.
    """
    axes = task.model_options(run.definition, run.size)
    declared = task.declaration
    for option in run.model:
        if option in axes:
            named = f"{declared.candidates.plural} and {declared.sizes.plural}"
            raise TypeError(f"model has no option {option!r} in a comparison: the {named} say it")
    return {**axes, **run.model}


def check_runs(runs: Sequence[RunSpec]) -> None:
    """Build every distinct task and model of a grid, without memory for weights, and refuse impossible ones.

    Raises:
        ValueError: If a value is impossible, in the words of whatever refuses it.
        TypeError: If there is no such option.
    """
    from gatework.tasks.module import check_model

    training = Training.of(runs[0].training)  # which they share
    for run in {replace(run, seed=0, learning_rate=1.0).run_id: run for run in runs}.values():
        try:
            task = create_task(run.task, run.setting)
            check_model(task, model_options(task, run), training, run.learning_rate, named=run.model)
        except Exception as error:  # tasks come from plugins too, which refuse by any kind of error
            kind = TypeError if isinstance(error, TypeError) else ValueError
            reason = str(error) if isinstance(error, TypeError | ValueError) else _named(error)
            where = f"{run.candidate}, {run.setting_name}, {_size(task_declaration(run.task), run)}"
            raise kind(f"{where}: {reason}") from error


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _size(declared: Declaration, run: RunSpec) -> str:
    return f"{declared.sizes.name} {run.size}"


def make_study(
    name: str,
    runs: Sequence[RunSpec],
    *,
    command: str,
    title: str | None = None,
    notes: Sequence[str] = (),
    budget: str | None = None,
    budget_kind: str = "steps",
    plugins: Sequence[str] = (),
) -> StudySpec:
    """Put a checked grid and the facts that its page must state into a study.

    Args:
        name: Name of the study.
        runs: Its grid.
        command: The command line that resumes it.
        title: Heading of the page.
        notes: Sentences for the page.
        budget: What is held equal, in words, from :func:`~gatework.study.budget.apply_budget`.
        budget_kind: What is held equal, in one word.
        plugins: Modules that workers import first.

    Raises:
        ValueError: If there is no run, or something in it is empty or doubled.
    """
    tasks = {run.setting_name: create_task(run.task, run.setting) for run in runs}
    declared = task_declaration(runs[0].task)
    facts = list(notes) + training_facts(runs, declared)
    for setting, task in tasks.items():
        prefix = f"{setting}: " if len(tasks) > 1 else ""
        facts += [prefix + sentence for sentence in task.describe()]
    compared = declared.candidates.plural
    return StudySpec(
        name=name,
        task=runs[0].task,
        command=command,
        title=title or f"{compared[:1].upper()}{compared[1:]} compared on {runs[0].task}",
        quality=next(iter(tasks.values())).quality,
        declaration=declared,
        runs=runs,
        notes=facts,
        budget=budget or f"the same training steps for every {declared.candidates.name}",
        budget_kind=budget_kind,
        plugins=tuple(plugins),
    )


def training_facts(runs: Sequence[RunSpec], declared: Declaration) -> list[str]:
    """Say how everything is trained, and where the learning rates come from."""
    training = Training.of(runs[0].training)
    noun = declared.candidates.name
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.candidate, set()).add(run.learning_rate)
    texts = {label: ", ".join(f"{rate:g}" for rate in sorted(values)) for label, values in rates.items()}
    if len(rates) > 1 and len(set(texts.values())) == 1:
        listed = f"{next(iter(texts.values()))} for every {noun}"
    else:
        listed = "; ".join(f"{label} {text}" for label, text in texts.items())
    tried = any(len(values) > 1 for values in rates.values())
    origin = "tried" if tried else "fixed before the study ran"
    return [
        f"Batches of {training.batch_size} {declared.unit.example}s, the same data for every {noun}; "
        f"{optimizer_text(training)}; {schedule_text(training)}.",
        f"Learning rates {origin}: {listed}.",
    ]


def optimizer_text(training: Training) -> str:
    """Say what changes the weights: ``AdamW (beta2 0.95), weight decay 0.1, gradients clipped at norm 1``."""
    name = "SGD with momentum 0.9" if training.optimizer == "sgd" else f"AdamW (beta2 {training.beta2:g})"
    decay = f"weight decay {training.weight_decay:g}" if training.weight_decay else "no weight decay"
    return f"{name}, {decay}, gradients clipped at norm {training.gradient_clip:g}"


def schedule_text(training: Training) -> str:
    """Say how the learning rate changes over the training."""
    warmup = (
        f"rises over the first {100 * training.warmup:.3g}% of the steps, then " if training.warmup else ""
    )
    if training.final_rate == 1:
        return f"the learning rate {warmup}stays"
    end = f"{100 * training.final_rate:.3g}% of its peak" if training.final_rate else "zero"
    return f"the learning rate {warmup}falls along a cosine to {end}"
