"""The page of a run of the simulator: one self-contained file with figures and every number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatework.bench.gna.answer import answer
from gatework.bench.gna.axis import axis_tiles
from gatework.bench.gna.kernels import TilePair, shape_text
from gatework.bench.gna.plan import GnaPlan
from gatework.bench.gna.rows import REASONS, Row, searches
from gatework.bench.gna.search import StrideSearch
from gatework.bench.gna.simulator import Simulation, axis_rules, neighborhood
from gatework.bench.gna.table import percent, row_texts, times
from gatework.page.frame import assemble_page
from gatework.page.quantities import log_axis

if TYPE_CHECKING:
    from gatework.bench.gna.cases import Case
    from gatework.bench.gna.result import GnaBench

_SCRIPTS = ("bench/page/gna_figures.js", "bench/page/gna.js")
_TITLE = "Neighbourhood attention under tiles"
#: Numbers that the page's script sorts by, saves or draws.
_VALUES = (
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
    "end_to_end",
    "end_to_end_partial",
    "paper_end_to_end",
    "paper_end_to_end_partial",
    "paper_measured",
)
#: Windows times tokens of an axis, over all tiles, up to which strides are drawn that nobody asked for.
_MOST_UNASKED = 1 << 25
#: Points of one pair of tiles in a figure; beyond, only its front is drawn.
_MOST_POINTS = 400
#: Tiles along an axis that can still be told apart in a picture.
_MOST_TILES = 256


def render(bench: GnaBench) -> str:
    """Return the page as one HTML document."""
    name, data = _name(bench.directory), page_data(bench)
    words = {
        "heading": _TITLE,
        "answer": answer(bench),
        "counts": _counts(bench.rows),
        "protocol": _PROTOCOL,
        "notes": _notes(bench),
        "command": bench.command,
        "has_paper": any(row["paper_end_to_end"] is not None for row in bench.rows),
        "has_tiles": any(row["picture"] for row in data["rows"]),
    }
    return assemble_page(
        "bench/page/gna.html",
        words,
        title=f"{_TITLE}: {name}",
        eyebrow=f"gatework bench gna · {name}",
        data=data,
        scripts=_SCRIPTS,
        series="tiles",
    )


def page_data(bench: GnaBench) -> dict[str, Any]:
    """Collect what the page's script draws: plain JSON, without a number that is not finite."""
    cases = bench.plan.cases
    tiles = list(dict.fromkeys(pair for case in cases for pair in case.tiles))
    points = [point for panel, case in enumerate(cases) for point in _points(bench.plan, case, panel, tiles)]
    rows = [_row(row, [case.name for case in cases].index(row["case"]), tiles) for row in bench.rows]
    return {
        "name": _name(bench.directory),
        "series": [{"name": _pair(pair), "about": _about(pair)} for pair in tiles],
        "panels": [_panel(case, panel, points, rows) for panel, case in enumerate(cases)],
        "points": points,
        "rows": rows,
    }


def _panel(
    case: Case, panel: int, points: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A case: its title, its ideal, and the axis of strides."""
    mask = neighborhood(case.grid, case.window)
    products = [point["x"] for point in points if point["panel"] == panel]
    products += [
        row["values"]["stride_product"] for row in rows if row["panel"] == panel and row["why"] != "nearby"
    ]
    return {
        "name": case.name,
        "title": f"{case.name} {shape_text(mask.shape)}, window {shape_text(mask.window)}",
        "ideal": mask.q_size / math.prod(mask.window),
        "axis": log_axis(products, "Neighbours that share a window: the stride's product", _write_product, 2),
    }


def _write_product(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else ""


def _points(plan: GnaPlan, case: Case, panel: int, tiles: Sequence[TilePair]) -> list[dict[str, Any]]:
    """Strides worth a point, for each pair of tiles; none where finding them would take long."""
    length_by_window = zip(case.grid, case.window, strict=True)
    work = len(case.tiles) * sum(length * abs(window) for length, window in length_by_window)
    if not plan.search and work > _MOST_UNASKED:
        return []
    return [
        _point(search, simulation, panel, tiles)
        for of_kernel in searches(plan, case).values()
        for search in of_kernel
        for simulation in _drawn(search, case)
    ]


def _drawn(search: StrideSearch, case: Case) -> list[Simulation]:
    """What the search finds worthwhile, and the strides of the case."""
    found = search.candidates if len(search.candidates) <= _MOST_POINTS else search.front
    asked = (search.at(stride) for stride in case.strides)
    return list(dict.fromkeys([*found, *asked]))


def _point(
    search: StrideSearch, simulation: Simulation, panel: int, tiles: Sequence[TilePair]
) -> dict[str, Any]:
    visits = search.visits(simulation)
    stride = shape_text(simulation.mask.stride)
    mask = (
        "perfectly block-sparse" if visits.is_perfect else f"{percent(visits.full_share or 0)} without a mask"
    )
    return {
        "series": tiles.index(search.tiles),
        "panel": panel,
        "label": stride,
        "x": math.prod(simulation.mask.stride),
        "y": visits.speedup,
        "front": simulation in search.front,
        "perfect": visits.is_perfect,
        "hover": [
            f"stride {stride}, {search.tiling} tiles",
            f"tiles {_pair(search.tiles)}",
            f"{times(visits.speedup)} of the ideal {times(simulation.ideal_speedup)}",
            f"{visits.worst} of {visits.dense_kv_tiles} key tiles visited, {mask}",
        ],
    }


def _row(row: Row, panel: int, tiles: Sequence[TilePair]) -> dict[str, Any]:
    """One row of the table, with its picture."""
    pair = TilePair(row["kernel"] or "", tuple(row["q_tile"]), tuple(row["kv_tile"]))
    texts = row_texts(row)
    return {
        "id": f"{panel}|{texts['window']}|{texts['stride']}|{_pair(pair)}",
        "series": tiles.index(pair),
        "panel": panel,
        "why": row["why"],
        "reason": REASONS[row["why"]],
        "perfect": row["is_perfect"],
        "perfect_dynamic": row["is_perfect_dynamic"],
        "divisible": row["is_divisible"],
        "causal": [axis for axis, flag in enumerate(row["is_causal"]) if flag],
        "values": {name: row[name] for name in _VALUES} | {"stride_product": math.prod(row["stride"])},
        "texts": texts,
        "picture": _picture(row),
    }


def _picture(row: Row) -> list[dict[str, Any]] | None:
    """Key tiles visited along each axis of the first dilation class; ``None`` if they are too many to draw.

    For each tile of queries the first key tile visited and the end of them, then those without a mask.
    """
    options = {name: row[name] for name in ("stride", "dilation", "is_causal")}
    axes = []
    rules = axis_rules(neighborhood(row["grid"], row["window"], **options))
    for rule, q_tile, kv_tile in zip(rules, row["q_tile"], row["kv_tile"], strict=True):
        tokens = -(-rule.length // rule.dilation)
        if max(-(-tokens // q_tile), -(-tokens // kv_tile)) > _MOST_TILES:
            return None
        tiles = axis_tiles(rule, q_tile)
        ranges = (*tiles.static_range(kv_tile), *tiles.static_full_range(kv_tile))
        first_class = -(-tokens // q_tile)
        visits = [[int(value) for value in numbers] for numbers in zip(*ranges, strict=True)]
        axes.append({"tokens": tokens, "q_tile": q_tile, "kv_tile": kv_tile, "visits": visits[:first_class]})
    return axes


def _counts(rows: Sequence[Row]) -> list[tuple[None, int, str]]:
    perfect = sum(row["is_perfect"] for row in rows)
    number = len(rows)
    return [(None, number, "simulation" + "s" * (number != 1)), (None, perfect, "perfectly block-sparse")]


_PROTOCOL = {
    "Visited": (
        "along an axis the queries of a tile need the keys [a, b) together; static tiles of T keys begin at "
        "multiples of T, and (b - 1) // T - a // T + 1 of them are visited. Axes multiply"
    ),
    "Speed-up": (
        "all key tiles over those that the busiest tile of queries visits: what the operator gains if every "
        "tile takes as long as that one"
    ),
    "Perfectly block-sparse": "every pair of every visited tile is allowed, so that no mask is needed",
    "End to end": (
        "1 / (1 - f + f / speed-up), where f is the share of time that attention over all pairs takes, times "
        "the share of the steps that are sparse"
    ),
}


def _notes(bench: GnaBench) -> list[str]:
    notes = ["Nothing was timed: tiles were counted, by the simulator of arXiv:2504.16922, appendix B.1."]
    for case in bench.plan.cases:
        parts = [f"{case.name} {shape_text(case.grid)}, window {shape_text(case.window)}"]
        mask = neighborhood(case.grid, case.window, dilation=case.dilation, is_causal=case.is_causal)
        if max(mask.dilation) > 1:
            parts.append(f"dilation {shape_text(mask.dilation)}")
        if any(mask.is_causal):
            causal = (str(axis) for axis, flag in enumerate(mask.is_causal) if flag)
            parts.append(f"causal on axis {' and '.join(causal)}")
        if case.attention_share is not None:
            parts.append(f"attention takes {percent(case.attention_share)} of the time")
        if case.sparse_steps is not None:
            parts.append(f"{percent(case.sparse_steps)} of the steps sparse where the first are dense")
        notes.append(f"{', '.join(parts)}.")
    return notes


def _pair(pair: TilePair) -> str:
    return f"{pair} ({pair.kernel})" if pair.kernel else str(pair)


def _about(pair: TilePair) -> str:
    sizes = f"{math.prod(pair.q_tile)} queries and {math.prod(pair.kv_tile)} keys"
    return f"{sizes}, offered by NATTEN for {pair.kernel}" if pair.kernel else sizes


def _name(directory: Path | None) -> str:
    return "not stored" if directory is None else directory.resolve().name
