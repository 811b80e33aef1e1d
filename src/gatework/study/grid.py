"""From the axes of a comparison to its runs."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from gatework.study.spec import RunSpec


def expand_grid(
    task: str,
    *,
    mixers: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Mapping[str, Any]],
    widths: Sequence[int],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    training: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    decode_contexts: Sequence[int] = (),
) -> list[RunSpec]:
    """Return one run for every combination: mixers x settings x widths x learning rates x seeds.

    Args:
        task: What every run is trained for.
        mixers: Label to layers (an object per layer: the mixer's ``name`` and its options).
        settings: Name to the task's options.
        widths: Numbers of channels.
        learning_rates: Peak learning rates.
        seeds: Seeds of weights and data order.
        training: What all runs share: steps, batch size, ...
        model: Options of the model around the mixers.
        decode_contexts: Lengths of context at which decoding is timed.

    Returns:
        The runs, mixers changing slowest and seeds fastest.

    Raises:
        ValueError: If an axis is empty or holds a value twice, or a value is out of range.
        TypeError: If a value has another type than the axis takes.
    """
    axes: dict[str, Iterable[Hashable]] = {
        "mixers": mixers,
        "settings": settings,
        "widths": widths,
        "learning_rates": learning_rates,
        "seeds": seeds,
    }
    for name, values in axes.items():
        _check_axis(name, list(values))
    return [
        RunSpec(
            task=task,
            setting=settings[setting],
            setting_name=setting,
            mixer=mixer,
            layers=mixers[mixer],
            width=width,
            learning_rate=learning_rate,
            seed=seed,
            training=training,
            model=model or {},
            decode_contexts=decode_contexts,
        )
        for mixer, setting, width, learning_rate, seed in itertools.product(
            mixers, settings, widths, learning_rates, seeds
        )
    ]


def _check_axis(name: str, values: list[Hashable]) -> None:
    """Refuse an axis without a value, or with one twice: it would make no run, or the same run twice."""
    if not values:
        raise ValueError(f"{name} must name at least one value, got none")
    twice = next((value for position, value in enumerate(values) if value in values[:position]), None)
    if twice is not None:
        raise ValueError(f"{name} must differ, got {twice!r} twice")
