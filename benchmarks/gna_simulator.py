"""The simulator of neighbourhood attention under tiles: axis by axis, against the mask tile by tile.

Both sides count the key tiles that every tile of queries visits, for all strides of each published use case.
They are checked to agree on the busiest and on the sum before they are timed, and take turns. All pairs of
the published grids are too many, so both run on smaller ones. Then ours alone, with nothing remembered, on
the published sizes: the strides in the tables, and the search through all strides.

    python benchmarks/gna_simulator.py [--shrink 3] [--turns 3] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from _timing import take_turns
from gatework.bench.gna import PUBLISHED, Case, Simulation, search_strides, simulate
from gatework.bench.gna import axis as counting
from gatework.bench.gna import search as searching
from gatework.masks import Neighborhood
from gatework.ops.vision.token_permutation import token_permute


def shrunk(case: Case, factor: int) -> list[Neighborhood]:
    """The masks of a case, every size divided."""

    def smaller(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(max(1, size // factor) for size in sizes)

    return [
        Neighborhood(smaller(case.grid), smaller(case.window), stride=smaller(stride))
        for stride in case.strides
    ]


def tokens_by_tile(shape: tuple[int, ...], tile: tuple[int, ...]) -> Tensor:
    """Numbers of the tokens of each tile; -1 where the grid has ended."""
    numbers = 1 + torch.arange(torch.Size(shape).numel()).view(1, *shape, 1, 1)
    return token_permute(numbers, tile)[0].view(-1, torch.Size(tile).numel()) - 1


def pairs(masks: list[Neighborhood], case: Case) -> list[tuple[int, int]]:
    """Key tiles that the busiest tile of queries visits, and all together, by evaluating every pair."""
    (tiles,) = case.tiles
    found = []
    for mask in masks:
        queries = tokens_by_tile(mask.shape, tiles.q_tile)
        keys = tokens_by_tile(mask.shape, tiles.kv_tile)
        flat = keys.flatten()
        zero = torch.zeros((), dtype=torch.int64)
        visits = [
            (mask(zero, zero, tile[tile >= 0][:, None], flat) & (flat >= 0))
            .any(0)
            .view(keys.shape)
            .any(1)
            .sum()
            for tile in queries
        ]
        found.append((int(max(visits)), int(sum(visits))))
    return found


def ours(masks: list[Neighborhood], case: Case) -> list[tuple[int, int]]:
    """The same, axis by axis, with nothing remembered."""
    forget()
    return [(each.static.worst, each.static.visited) for each in simulated(masks, case)]


def simulated(masks: list[Neighborhood], case: Case) -> list[Simulation]:
    (tiles,) = case.tiles
    return [
        simulate(mask.shape, mask.window, stride=mask.stride, q_tile=tiles.q_tile, kv_tile=tiles.kv_tile)
        for mask in masks
    ]


def forget() -> None:
    """Empty the caches, which a first call finds empty."""
    counting.axis_counts.cache_clear()
    counting._allowed.cache_clear()
    searching._options.cache_clear()


def search(case: Case) -> Any:
    """Search all strides of a case."""
    forget()
    (tiles,) = case.tiles
    found = search_strides(case.grid, case.window, q_tile=tiles.q_tile, kv_tile=tiles.kv_tile)
    return found.perfect, found.front


def measure(case: Case, shrink: int, turns: int) -> dict[str, Any]:
    """Time both sides on the smaller grid, taking turns."""
    masks = shrunk(case, shrink)
    expected, found = pairs(masks, case), ours(masks, case)
    if expected != found:
        raise SystemExit(f"{case.name}: the simulator counts {found}, the mask {expected}")
    timings = take_turns({"pairs": lambda: pairs(masks, case), "axes": lambda: ours(masks, case)}, turns)
    return {
        "case": case.name,
        "strides": len(masks),
        "grid": masks[0].shape,
        **{name: asdict(timing) for name, timing in timings.items()},
        "ratio": timings["pairs"].median / timings["axes"].median,
    }


def alone(turns: int) -> dict[str, Any]:
    """Time ours on the published sizes."""
    volumes = [case for case in PUBLISHED if len(case.grid) == 3]
    sides = {
        "tables": lambda: [ours(shrunk(case, 1), case) for case in volumes],
        "search": lambda: [search(case) for case in volumes],
    }
    return {name: asdict(timing) for name, timing in take_turns(sides, turns).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shrink", type=int, default=3, help="divide the published sizes by this")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(case, options.shrink, options.turns) for case in PUBLISHED]
    whole = alone(options.turns)
    if options.json:
        print(json.dumps({"cases": results, "published sizes": whole}, indent=2))
        return
    print("milliseconds, one thread: median (range)")
    for result in results:
        columns = "  ".join(
            "{0} {median:9.2f} ({fastest:.2f} - {slowest:.2f})".format(name, **result[name])
            for name in ("pairs", "axes")
        )
        size = "x".join(map(str, result["grid"]))
        print(f"{result['case']:24} {size:9} {result['strides']} strides  {columns}  {result['ratio']:6.0f}x")
    count = sum(len(case.strides) for case in PUBLISHED if len(case.grid) == 3)
    for name, text in {"tables": f"{count} strides of the tables", "search": "search of 4 windows"}.items():
        timing = "{median:.1f} ({fastest:.1f} - {slowest:.1f})".format(**whole[name])
        print(f"published sizes in three dimensions, {text}: {timing}")


if __name__ == "__main__":
    main()
