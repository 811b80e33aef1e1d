"""Timing that the benchmarks share: the sides take turns, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one side: the median turn, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float

    def __str__(self) -> str:
        return f"{self.median:9.2f} ({self.fastest:8.2f} - {self.slowest:8.2f})"


def settle_allocator() -> None:
    """Free one block of 31 MiB, so that freed memory stays with the process, as in one that has run a while.

    glibc returns freed memory to the system above a threshold that follows the largest block freed so far (up
    to 32 MiB). Young processes therefore pay for fresh pages in every call, depending on what ran before.
    """
    torch.zeros(31 * 2**18)


def _go_on() -> None:
    """Wait for nothing: calls on a CPU return when they are done."""


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    least: float = 0.0,
    wait: Callable[[], object] = _go_on,
) -> dict[str, Timing]:
    """Time every side once per turn, after one turn that is not counted.

    Args:
        sides: What to call, by name.
        turns: How many turns each side has.
        least: Seconds that a turn should last: quick sides are called as often as that takes, and a turn
            counts their mean. Threads that one side leaves waiting busily then disturb the next one less.
            A single turn, which tries out and measures nothing, has one call.
        wait: Returns when everything called so far is done, such as ``torch.cuda.synchronize``.
    """
    calls = {name: _calls(side, least if turns > 1 else 0.0, wait) for name, side in sides.items()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            wait()
            start = time.perf_counter()
            for _ in range(calls[name]):
                side()
            wait()
            if turn:
                taken[name].append((time.perf_counter() - start) / calls[name] * 1e3)
    return {name: Timing(statistics.median(ms), min(ms), max(ms)) for name, ms in taken.items()}


def _calls(side: Callable[[], object], least: float, wait: Callable[[], object]) -> int:
    """How often to call a side in a turn; the first call, which may compile, does not tell."""
    if not least:
        return 1
    side()
    wait()
    start = time.perf_counter()
    side()
    wait()
    return max(1, int(least / (time.perf_counter() - start)))
