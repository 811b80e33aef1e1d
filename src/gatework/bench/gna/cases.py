"""The published use cases: generators of images and videos, their windows, and the speed-ups printed for it.

Source: arXiv:2504.16922, its tables of end-to-end speed-ups; the numbers lie in :mod:`gatework.published`.
The tiles for Cosmos are not printed there: these are NATTEN's default ones for volumes, which fit the printed
speed-ups best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gatework.bench.gna.kernels import TilePair
from gatework.published import read_published


@dataclass(frozen=True)
class Printed:
    """What the paper prints for one stride: end-to-end speed-ups over attention over all pairs.

    Attributes:
        simulated: By its simulator, all steps sparse.
        simulated_partial: By its simulator, with the first steps dense.
        measured: On a B200, all steps sparse; ``None`` where we have no number.
    """

    simulated: float
    simulated_partial: float
    measured: float | None = None


@dataclass(frozen=True)
class Case:
    """One grid and window, and the strides and tiles to simulate.

    Attributes:
        name: What people call it.
        grid: Tokens of each axis.
        window: Places in a window; -1 is the whole axis.
        strides: Strides to simulate.
        tiles: Pairs of tiles to simulate.
        dilation: Distance of a window's places, one number or one for each axis.
        is_causal: Whether queries see no later tokens.
        attention_share: Share of the model's time that attention over all pairs takes; ``None`` if unknown.
        sparse_steps: Share of the steps that are sparse where the first ones stay dense.
        printed: What the paper prints, by stride.
    """

    name: str
    grid: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    tiles: tuple[TilePair, ...]
    dilation: int | tuple[int, ...] = 1
    is_causal: bool | tuple[bool, ...] = False
    attention_share: float | None = None
    sparse_steps: float | None = None
    printed: Mapping[tuple[int, ...], Printed] = field(default_factory=dict)


_VIDEO = TilePair("blackwell", (4, 8, 8), (2, 8, 8))
_COSMOS = TilePair("blackwell", (8, 4, 8), (4, 4, 8))

#: Tiles by the published case: the paper's, but for Cosmos.
_TILES = {
    "FLUX.1-dev 4K": TilePair("blackwell", (16, 16), (16, 8)),
    "HunyuanVideo 91 % sparse": _VIDEO,
    "HunyuanVideo 58 % sparse": _VIDEO,
    "Cosmos-7B 56 % sparse": _COSMOS,
    "Cosmos-7B 89 % sparse": _COSMOS,
}


def _published(case: Mapping[str, Any]) -> Case:
    """Make a case of what the paper prints of it, and its tiles."""
    sparse, steps = case["sparse_steps"]
    printed = {
        tuple(row["stride"]): Printed(row["simulated"], row["simulated_partial"], row["measured"])
        for row in case["speedups"]
    }
    return Case(
        case["name"],
        tuple(case["grid"]),
        tuple(case["window"]),
        tuple(printed),
        (_TILES[case["name"]],),
        attention_share=case["attention_share"],
        sparse_steps=sparse / steps,
        printed=printed,
    )


#: The use cases of the paper: 21 rows, 18 of them in three dimensions.
PUBLISHED = tuple(_published(case) for case in read_published("gna_speedups")["cases"])
