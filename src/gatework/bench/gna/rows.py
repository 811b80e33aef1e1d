"""The rows of a run of the simulator: one per stride, window and pair of tiles, with all that follows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from gatework.bench.gna.cases import Case
from gatework.bench.gna.flattened import num_intervals, simulate_flattened
from gatework.bench.gna.kernels import TilePair
from gatework.bench.gna.plan import GnaPlan
from gatework.bench.gna.search import StrideSearch, best_first
from gatework.bench.gna.simulator import Simulation, Visits, end_to_end, neighborhood, simulate_mask
from gatework.masks import Neighborhood

#: Columns of a row, in order.
COLUMNS = (
    "case",
    "why",
    "grid",
    "window",
    "stride",
    "dilation",
    "is_causal",
    "kernel",
    "q_tile",
    "kv_tile",
    "kv_tiles",
    "worst_visited",
    "mean_visited",
    "speedup",
    "mean_speedup",
    "dynamic_speedup",
    "flattened_speedup",
    "ideal_speedup",
    "exact_ideal_speedup",
    "share_of_ideal",
    "full_share",
    "is_perfect",
    "is_perfect_dynamic",
    "is_divisible",
    "attention_share",
    "sparse_steps",
    "end_to_end",
    "end_to_end_partial",
    "paper_end_to_end",
    "paper_end_to_end_partial",
    "paper_measured",
)
#: Why a row is there, in words.
REASONS = {
    "published": "printed in the paper",
    "asked": "asked for",
    "front": "no smaller stride is as fast",
    "perfect": "the smallest stride that is perfectly block-sparse",
    "nearby": "another window that a stride makes perfectly block-sparse",
}

#: Flattened grids with more intervals of keys than this are not simulated: it would take many seconds.
_MOST_INTERVALS = 1 << 25

Row = dict[str, Any]


def make_rows(plan: GnaPlan) -> list[Row]:
    """Simulate everything a plan asks for; see :data:`COLUMNS`."""
    return [row for case in plan.cases for row in _case_rows(plan, case)]


def searches(plan: GnaPlan, case: Case) -> dict[str, tuple[StrideSearch, ...]]:
    """The searches for the strides of a case: by kernel, for each of its pairs of tiles, the best first."""
    mask = neighborhood(case.grid, case.window, dilation=case.dilation, is_causal=case.is_causal)
    kernels = dict.fromkeys(tiles.kernel for tiles in case.tiles)
    return {
        kernel: best_first(
            [StrideSearch(mask, tiles, plan.tiling) for tiles in case.tiles if tiles.kernel == kernel]
        )
        for kernel in kernels
    }


def _case_rows(plan: GnaPlan, case: Case) -> Iterator[Row]:
    """For each pair of tiles the strides of the case first, then what the search found besides."""
    if not plan.search:
        for tiles in case.tiles:
            yield from _rows(case, tiles, _asked(case))
        return
    for of_kernel in searches(plan, case).values():
        for search in of_kernel:
            found = _of_best(of_kernel) if search is of_kernel[0] else _in_short(search)
            yield from _rows(case, search.tiles, itertools.chain(_asked(case), found))


def _rows(case: Case, tiles: TilePair, masks: Iterable[tuple[str, Neighborhood]]) -> Iterator[Row]:
    seen = set()
    for why, mask in masks:
        if mask not in seen:
            seen.add(mask)
            yield make_row(case, tiles, simulate_mask(mask, tiles.q_tile, tiles.kv_tile), why)


def _asked(case: Case) -> Iterator[tuple[str, Neighborhood]]:
    why = "published" if case.printed else "asked"
    for stride in case.strides:
        options: Any = {"stride": stride, "dilation": case.dilation, "is_causal": case.is_causal}
        yield why, neighborhood(case.grid, case.window, **options)


def _in_short(search: StrideSearch) -> Iterator[tuple[str, Neighborhood]]:
    """The smallest perfect stride and the fastest one."""
    if search.perfect is not None:
        yield "perfect", search.perfect.mask
    yield "front", search.fastest.mask


def _of_best(searches: Sequence[StrideSearch]) -> Iterator[tuple[str, Neighborhood]]:
    """All of the front of the best tiles; other windows if no stride is perfect with any tiles."""
    best = searches[0]
    if best.perfect is not None:
        yield "perfect", best.perfect.mask
    for each in best.front:
        yield "front", each.mask
    if all(search.perfect is None for search in searches):
        for each in best.nearby:
            yield "nearby", each.mask


def make_row(case: Case, tiles: TilePair, simulation: Simulation, why: str) -> Row:
    """One simulation with everything that follows from it; ``None`` where nothing is known."""
    mask, static = simulation.mask, simulation.static
    flattened = _flattened(mask, math.prod(tiles.q_tile), math.prod(tiles.kv_tile))
    printed = case.printed.get(mask.stride) if why == "published" else None
    row = {
        "case": case.name,
        "why": why,
        "grid": [*mask.shape],
        "window": [*mask.window],
        "stride": [*mask.stride],
        "dilation": [*mask.dilation],
        "is_causal": [*mask.is_causal],
        "kernel": tiles.kernel or None,
        "q_tile": [*tiles.q_tile],
        "kv_tile": [*tiles.kv_tile],
        "kv_tiles": static.dense_kv_tiles,
        "worst_visited": static.worst,
        "mean_visited": static.mean,
        "speedup": static.speedup,
        "mean_speedup": static.mean_speedup,
        "dynamic_speedup": simulation.dynamic.speedup,
        "flattened_speedup": None if flattened is None else flattened.speedup,
        "ideal_speedup": simulation.ideal_speedup,
        "exact_ideal_speedup": simulation.exact_ideal_speedup,
        "share_of_ideal": simulation.share_of_ideal,
        "full_share": static.full_share,
        "is_perfect": static.is_perfect,
        "is_perfect_dynamic": simulation.dynamic.is_perfect,
        "is_divisible": simulation.is_divisible,
        **_end_to_end(case, static.speedup),
        "paper_end_to_end": printed and printed.simulated,
        "paper_end_to_end_partial": printed and printed.simulated_partial,
        "paper_measured": printed and printed.measured,
    }
    assert tuple(row) == COLUMNS, "a row has every column, in order"
    return row


def _end_to_end(case: Case, speedup: float) -> Row:
    """What the operator's speed-up is worth for the whole model, as far as shares are known."""
    part, steps = case.attention_share, case.sparse_steps
    return {
        "attention_share": part,
        "sparse_steps": steps,
        "end_to_end": None if part is None else end_to_end(speedup, part),
        "end_to_end_partial": None if part is None or steps is None else end_to_end(speedup, part, steps),
    }


@lru_cache(maxsize=1 << 10)
def _flattened(mask: Neighborhood, q_tokens: int, kv_tokens: int) -> Visits | None:
    """Visits with tiles of the flattened grid; ``None`` where counting them would take long."""
    return None if num_intervals(mask) > _MOST_INTERVALS else simulate_flattened(mask, q_tokens, kv_tokens)
