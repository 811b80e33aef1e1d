"""The published use cases: generators of images and videos, their windows, and the speed-ups printed for it.

Source: arXiv:2504.16922, its tables of end-to-end speed-ups. Shares of time are of its runs on one B200. The
tiles for Cosmos are not printed there: these are NATTEN's default ones for volumes, which fit the printed
speed-ups best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gatework.bench.gna.kernels import TilePair


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


def _published(
    name: str,
    grid: tuple[int, ...],
    window: tuple[int, ...],
    tiles: TilePair,
    attention_share: float,
    sparse_steps: float,
    printed: Mapping[tuple[int, ...], Printed],
) -> Case:
    return Case(
        name,
        grid,
        window,
        tuple(printed),
        (tiles,),
        attention_share=attention_share,
        sparse_steps=sparse_steps,
        printed=printed,
    )


_VIDEO = TilePair("blackwell", (4, 8, 8), (2, 8, 8))
_COSMOS = TilePair("blackwell", (8, 4, 8), (4, 4, 8))

#: The use cases of the paper: 21 rows, 18 of them in three dimensions.
PUBLISHED = (
    _published(
        "FLUX.1-dev 4K",
        (256, 256),
        (80, 80),
        TilePair("blackwell", (16, 16), (16, 8)),
        0.518,
        19 / 28,
        {
            (1, 1): Printed(1.76, 1.42, 1.65),
            (16, 1): Printed(1.84, 1.45, 1.72),
            (16, 16): Printed(1.88, 1.46, 1.82),
        },
    ),
    _published(
        "HunyuanVideo 91 % sparse",
        (30, 48, 80),
        (18, 24, 24),
        _VIDEO,
        0.607,
        35 / 50,
        {
            (1, 1, 1): Printed(1.73, 1.42, 1.73),
            (2, 1, 1): Printed(1.78, 1.44),
            (1, 1, 8): Printed(1.99, 1.53, 1.95),
            (2, 1, 8): Printed(2.02, 1.55),
            (1, 8, 8): Printed(2.17, 1.61, 2.09),
            (2, 8, 8): Printed(2.20, 1.62, 2.11),
            (16, 8, 8): Printed(2.23, 1.63, 2.23),
        },
    ),
    _published(
        "HunyuanVideo 58 % sparse",
        (30, 48, 80),
        (30, 40, 40),
        _VIDEO,
        0.607,
        35 / 50,
        {
            (1, 1, 1): Printed(1.21, 1.14, 1.15),
            (1, 1, 8): Printed(1.44, 1.27, 1.26),
            (1, 32, 8): Printed(1.55, 1.33, 1.53),
        },
    ),
    _published(
        "Cosmos-7B 56 % sparse",
        (16, 44, 80),
        (16, 32, 48),
        _COSMOS,
        0.587,
        23 / 35,
        {
            (1, 1, 1): Printed(1.35, 1.21, 1.18),
            (1, 8, 1): Printed(1.42, 1.24),
            (1, 1, 16): Printed(1.42, 1.24),
            (1, 8, 16): Printed(1.50, 1.28, 1.46),
        },
    ),
    _published(
        "Cosmos-7B 89 % sparse",
        (16, 44, 80),
        (16, 24, 16),
        _COSMOS,
        0.587,
        23 / 35,
        {
            (1, 1, 1): Printed(1.90, 1.45, 1.76),
            (1, 8, 1): Printed(1.96, 1.48),
            (1, 1, 16): Printed(2.05, 1.51),
            (1, 8, 16): Printed(2.10, 1.52, 2.05),
        },
    ),
)
