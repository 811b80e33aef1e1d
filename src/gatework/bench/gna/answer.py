"""What a run of the simulator found, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gatework.bench.gna.kernels import TilePair, shape_text
from gatework.bench.gna.rows import Row, searches
from gatework.bench.gna.search import StrideSearch
from gatework.bench.gna.simulator import Simulation
from gatework.bench.gna.table import percent, times

if TYPE_CHECKING:
    from gatework.bench.gna.cases import Case
    from gatework.bench.gna.result import GnaBench


def answer(bench: GnaBench) -> list[str]:
    """Say what was found, the most important sentence first."""
    sentences = [*_agreement(bench.rows)]
    for case in bench.plan.cases:
        if bench.plan.preset is None:
            sentences += _asked(case, bench.rows)
        if bench.plan.search:
            name = f"{case.name}, window {shape_text(case.window)}: " if bench.plan.preset else ""
            found = [_found(of_kernel) for of_kernel in searches(bench.plan, case).values()]
            sentences += [_sentence(name + text) for text in found]
    return sentences


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _agreement(rows: list[Row]) -> Iterator[str]:
    """How far our end-to-end speed-ups are from the printed ones."""
    printed = [row for row in rows if row["paper_end_to_end"] is not None]
    if not printed:
        return
    all_steps = max(abs(row["end_to_end"] - row["paper_end_to_end"]) for row in printed)
    partial = max(abs(row["end_to_end_partial"] - row["paper_end_to_end_partial"]) for row in printed)
    perfect = [row for row in printed if row["is_perfect"]]
    yield (
        f"All {len(printed)} end-to-end speed-ups that the paper's simulator gives are reproduced: within "
        f"{all_steps:.3f} with every step sparse, within {partial:.3f} with the first steps dense."
    )
    measured = [row for row in printed if row["paper_measured"] is not None]
    reached = [row["paper_measured"] / row["end_to_end"] for row in measured]
    yield (
        f"Measured on a B200, the paper's kernels reach {percent(min(reached))} to {percent(max(reached))} "
        f"of what is simulated. {len(perfect)} of the {len(printed)} rows are perfectly block-sparse."
    )


def _asked(case: Case, rows: list[Row]) -> Iterator[str]:
    """What the strides that were asked for gain, with the best tiles of each kernel."""
    for stride in case.strides:
        mine = [row for row in rows if row["why"] == "asked" and tuple(row["stride"]) == stride]
        kernels = dict.fromkeys(row["kernel"] for row in mine)
        best = [
            max((row for row in mine if row["kernel"] == kernel), key=lambda row: row["speedup"])
            for kernel in kernels
        ]
        gains = ", ".join(f"{times(row['speedup'])} with tiles {_tiles(row)}{_praise(row)}" for row in best)
        yield f"Of the ideal {times(best[0]['ideal_speedup'])}, stride {shape_text(stride)} gains {gains}."


def _praise(row: Row) -> str:
    return ", perfectly block-sparse" if row["is_perfect"] else ""


def _found(of_kernel: tuple[StrideSearch, ...]) -> str:
    """What the search found for the tiles of one kernel."""
    best = of_kernel[0]
    return _perfect(best) if best.perfect is not None else _imperfect(best)


def _perfect(search: StrideSearch) -> str:
    assert search.perfect is not None, "the caller has looked"
    text = (
        f"with tiles {_pair(search.tiles)} the smallest perfectly block-sparse stride is "
        f"{_gain(search, search.perfect)}"
    )
    fastest = search.fastest
    if fastest.mask.stride != search.perfect.mask.stride:
        return f"{text}; {_gain(search, fastest)} is the smallest that is as fast as any."
    return f"{text}; no smaller stride is as fast."


def _imperfect(search: StrideSearch) -> str:
    text = (
        f"with tiles {_pair(search.tiles)} no stride is perfectly block-sparse; the smallest of the fastest "
        f"is {_gain(search, search.fastest)}"
    )
    if not search.nearby:
        return f"{text}, and no window nearby has one that is."
    near = search.nearby[0]
    return f"{text}; window {shape_text(near.mask.window)} has one, {_gain(search, near)}."


def _gain(search: StrideSearch, simulation: Simulation) -> str:
    speedup, ideal = search.visits(simulation).speedup, simulation.ideal_speedup
    return f"{shape_text(simulation.mask.stride)} ({times(speedup)} of the ideal {times(ideal)})"


def _tiles(row: Row) -> str:
    return _pair(TilePair(row["kernel"] or "", tuple(row["q_tile"]), tuple(row["kv_tile"])))


def _pair(tiles: TilePair) -> str:
    return f"{tiles} ({tiles.kernel})" if tiles.kernel else str(tiles)
