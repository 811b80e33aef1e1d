"""From what a user asks for to a study: mixers by name or in full, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gatework.registry import list_mixers, mixer_entry
from gatework.study.grid import expand_grid
from gatework.study.spec import RunSpec, StudySpec

#: Mixers compared when none are named: attention, a gated convolution, a hybrid of both, a linear recurrence.
DEFAULT_MIXERS = ("attention", "base_conv", "base_conv+attention", "gated_linear_attention")

#: Lengths of context at which decoding is timed: a second or two per run, on one core at a width of 64.
DECODE_CONTEXTS = (64, 256, 1024, 4096)

#: Options that give ``"all"`` mixers states of a laptop's size, at widths that 16 divides; else defaults.
SMALL_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "based": {"feature_dim": 8},
    "big_bird": {"block_size": 8, "num_random": 1},
    "h3": {"state_dim": 16, "head_dim": 2},
    "mamba2": {"state_dim": 16, "head_dim": 16},
    "nsa": {"block_size": 8, "num_selected_blocks": 2, "window_size": 16},
    "rwkv5": {"head_dim": 16},
    "rwkv7": {"head_dim": 16, "decay_rank": 16, "rate_rank": 16, "gate_rank": 32},
    "sliding_window": {"window_size": 16},
}


@dataclass(frozen=True)
class MixerChoice:
    """One line of the comparison.

    Attributes:
        label: Its name on the page.
        layers: The mixer of each layer, with its options.
        learning_rates: Its own learning rates; ``None`` for those of the study.
        model: Its own model options, on top of those of the study.
    """

    label: str
    layers: tuple[Mapping[str, Any], ...]
    learning_rates: tuple[float, ...] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


def parse_mixers(mixers: Sequence[str] | Mapping[str, Any] | Literal["all"]) -> list[MixerChoice]:
    """Read the mixers of a study.

    Args:
        mixers: Names, where ``"base_conv+attention"`` alternates two of them layer by layer; or labels with
            a list of layers, or with ``layers``, ``learning_rates`` and ``model``; or ``"all"`` for every
            registered mixer by itself, with :data:`SMALL_OPTIONS`.

    Raises:
        ValueError: If there is none, or no mixer of that name.
        TypeError: If an entry has another form.
    """
    if mixers == "all":
        mixers = {name: [{"name": name, **SMALL_OPTIONS.get(name, {})}] for name in list_mixers()}
    if isinstance(mixers, str) or not isinstance(mixers, Sequence | Mapping):
        raise TypeError(f"mixers must be a list of names, a mapping of labels or 'all', got {mixers!r}")
    if not mixers:
        raise ValueError("mixers must name at least one sequence mixer, got none")
    if isinstance(mixers, Mapping):
        choices = [_choice(label, value) for label, value in mixers.items()]
    else:
        choices = [_choice(name, str(name).split("+")) for name in mixers]
    for choice in choices:
        for layer in choice.layers:
            mixer_entry(layer["name"])
    return choices


def _choice(label: str, value: Any) -> MixerChoice:
    options = dict(value) if isinstance(value, Mapping) else {"layers": value}
    unknown = sorted(set(options) - {"layers", "learning_rates", "model"})
    if unknown or "layers" not in options:
        raise TypeError(
            f"mixer {label!r} must be a list of layers, or have layers, learning_rates and model, "
            f"got {value!r}"
        )
    layers = options["layers"]
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise TypeError(f"layers of mixer {label!r} must be a list of mixers, got {layers!r}")
    rates = options.get("learning_rates")
    return MixerChoice(
        str(label),
        tuple({"name": layer} if isinstance(layer, str) else layer for layer in layers),
        None if rates is None else tuple(rates),
        options.get("model") or {},
    )


def plan_runs(
    task: str,
    *,
    mixers: Iterable[MixerChoice],
    settings: Mapping[str, Mapping[str, Any]],
    widths: Sequence[int],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    model: Mapping[str, Any],
    decode_contexts: Sequence[int] = (),
) -> list[RunSpec]:
    """Return the grid of a comparison, each mixer with its own learning rates and model options.

    Raises:
        ValueError: If an axis is empty or holds a value twice, or a value is out of range.
        TypeError: If a value has another type than its axis takes.
    """
    runs = []
    for choice in mixers:
        runs += expand_grid(
            task,
            mixers={choice.label: choice.layers},
            settings=settings,
            widths=widths,
            learning_rates=choice.learning_rates or learning_rates,
            seeds=seeds,
            training=training,
            model={**model, **choice.model},
            decode_contexts=decode_contexts,
        )
    return runs


def check_runs(runs: Sequence[RunSpec]) -> None:
    """Build every distinct task and model of a grid, without memory for weights, and refuse impossible ones.

    Raises:
        ValueError: If a value is impossible, in the words of whatever refuses it.
        TypeError: If there is no such option.
    """
    import torch

    from gatework.models.language.decoder import GateworkForCausalLM
    from gatework.study.run import make_config, make_training
    from gatework.tasks import create_task

    for run in {replace(run, seed=0, learning_rate=1.0).run_id: run for run in runs}.values():
        try:
            make_training(run.training)
            task = create_task(run.task, run.setting)
            with torch.device("meta"):
                GateworkForCausalLM(make_config(run, task))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{run.mixer}, {run.setting_name}, width {run.width}: {error}") from error


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
    from gatework.tasks import create_task

    tasks = {run.setting_name: create_task(run.task, run.setting) for run in runs}
    facts = list(notes) + _training_facts(runs)
    for setting, task in tasks.items():
        prefix = f"{setting}: " if len(tasks) > 1 else ""
        facts += [prefix + sentence for sentence in task.describe()]
    quality = next(iter(tasks.values())).quality
    return StudySpec(
        name=name,
        task=runs[0].task,
        command=command,
        title=title or f"Token mixers compared on {runs[0].task}",
        quality=quality,
        runs=runs,
        notes=facts,
        budget=budget or "the same training steps for every mixer",
        budget_kind=budget_kind,
        plugins=tuple(plugins),
    )


def _training_facts(runs: Sequence[RunSpec]) -> list[str]:
    """Say how everything is trained, and where the learning rates come from."""
    from gatework.study.run import make_training

    training = make_training(runs[0].training)
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run.mixer, set()).add(run.learning_rate)
    texts = {mixer: ", ".join(f"{rate:g}" for rate in sorted(values)) for mixer, values in rates.items()}
    if len(rates) > 1 and len(set(texts.values())) == 1:
        listed = f"{next(iter(texts.values()))} for every mixer"
    else:
        listed = "; ".join(f"{mixer} {text}" for mixer, text in texts.items())
    tried = any(len(values) > 1 for values in rates.values())
    origin = "tried" if tried else "fixed before the study ran"
    return [
        f"Batches of {training.batch_size} sequences, the same data for every mixer; AdamW, weight decay "
        f"{training.weight_decay:g}, cosine schedule.",
        f"Learning rates {origin}: {listed}.",
    ]
