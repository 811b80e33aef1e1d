"""What was still improving when its budget ended: slow to start is not worse, and a study must not say so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from gatework.study.summary import Run
from gatework.tasks.task import Quality

#: Part of the steps after which a curve should be flat.
LATE = 0.75
#: Whatever improves by more after that was still improving: a share of the quality's range or final value.
VISIBLE_GAIN = 0.02

Curve = Sequence[Mapping[str, Any]]


def late_gain(curves: Iterable[Curve], quality: Quality) -> float | None:
    """Return how much the mean of some learning curves improved over the last quarter of the steps.

    It is a share of the quality's range if it has one, otherwise of the mean final value. Where a curve has
    no point at three quarters of its last step, it is interpolated.

    Args:
        curves: Curves of seeds, points with a ``step`` and a ``quality``; unknown qualities are left out.
        quality: What improving means.

    Returns:
        The share, below 0 if they got worse; None if no curve reaches back to three quarters of its steps.
    """
    ends = [end for curve in curves if (end := _last_quarter(curve)) is not None]
    if not ends:
        return None
    before, after = fmean(end[0] for end in ends), fmean(end[1] for end in ends)
    gain = after - before if quality.better == "higher" else before - after
    scale = abs(after) if quality.range is None else quality.range[1] - quality.range[0]
    if scale == 0:
        return math.inf if gain > 0 else 0.0
    return gain / scale


def is_improving(runs: Iterable[Run], quality: Quality) -> bool:
    """Return whether the mean over the finished seeds improved by more than 2% over the last quarter."""
    gain = late_gain(finished_curves(runs), quality)
    # One part in a billion, so that exactly 2% is not more than that after rounding.
    return gain is not None and gain > VISIBLE_GAIN * (1 + 1e-9)


def finished_curves(runs: Iterable[Run]) -> list[Curve]:
    """Return the learning curves of the runs that finished."""
    return [(run.result or {}).get("curve") or () for run in runs if run.status == "finished"]


def describe_rule(quality: Quality) -> str:
    """Say when something is called still improving."""
    of = "its range" if quality.range is not None else "its final value"
    return (
        f"the mean validation {quality.name} over its finished seeds improved by more than "
        f"{VISIBLE_GAIN:.0%} of {of} over the last quarter of its steps"
    )


def _last_quarter(curve: Curve) -> tuple[float, float] | None:
    """The quality at three quarters of the last step, interpolated, and at the last step."""
    known = {point["step"]: point["quality"] for point in curve if _is_known(point)}
    steps = sorted(known)
    if len(steps) < 2 or steps[0] > LATE * steps[-1]:
        return None
    import numpy as np  # what only reads a study does without it

    qualities = [known[step] for step in steps]
    return float(np.interp(LATE * steps[-1], steps, qualities)), qualities[-1]


def _is_known(point: Mapping[str, Any]) -> bool:
    """Whether a point has both numbers, and finite ones."""
    numbers = point.get("step"), point.get("quality")
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
