"""Timing that the benchmarks share: the sides take turns, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one side: the median turn, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float

    def __str__(self) -> str:
        return f"{self.median:9.2f} ({self.fastest:8.2f} - {self.slowest:8.2f})"


def take_turns(sides: Mapping[str, Callable[[], object]], turns: int) -> dict[str, Timing]:
    """Time every side once per turn, after one turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: Timing(statistics.median(ms), min(ms), max(ms)) for name, ms in taken.items()}
