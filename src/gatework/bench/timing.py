"""Timing of several sides in one run: they take turns, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

#: Most turns, however short a call is.
MOST_TURNS = 1000
#: The quantiles that stand beside a median.
LOW, HIGH = 0.2, 0.8


class Timing(NamedTuple):
    """Seconds of one side.

    Attributes:
        median: Median over the turns.
        low: The 20 % quantile.
        high: The 80 % quantile.
        turns: How many turns were timed.
    """

    median: float
    low: float
    high: float
    turns: int


def take_turns(
    sides: Mapping[str, Callable[[], float]], *, repeats: int, min_time: float = 0.0
) -> dict[str, Timing]:
    """Time every side once per turn, after one turn that is not counted.

    Every other turn goes through the sides backwards: what one side leaves in the caches then helps or
    disturbs no other side more than the rest.

    Args:
        sides: Each does its work once and returns the seconds that count.
        repeats: At least so many turns.
        min_time: And so many that each side was timed for these seconds, up to 1000 turns.

    Raises:
        ValueError: If ``repeats`` is below 1 or ``min_time`` negative.
    """
    if repeats < 1 or min_time < 0:
        raise ValueError(f"repeats must be at least 1 and min_time 0, got {repeats} and {min_time}")
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for turn in range(MOST_TURNS):
        if turn >= repeats and all(sum(seconds) >= min_time for seconds in taken.values()):
            break
        for name in [*sides][:: -1 if turn % 2 else 1]:
            taken[name].append(sides[name]())
    return {name: summarise(seconds) for name, seconds in taken.items()}


def summarise(seconds: list[float]) -> Timing:
    """Return the median and the quantiles of at least one measurement."""
    low, median, high = np.quantile(seconds, (LOW, 0.5, HIGH)).tolist()
    return Timing(median, low, high, len(seconds))
