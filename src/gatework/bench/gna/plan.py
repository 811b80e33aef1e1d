"""What a run of the simulator is about: cases, checked, from the options of a call or a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatework.bench.gna.cases import PUBLISHED, Case
from gatework.bench.gna.kernels import TilePair, offered
from gatework.bench.gna.search import TILINGS, Tiling
from gatework.bench.gna.simulator import Flags, Sizes, neighborhood
from gatework.checks import check_bool, check_choice, check_number, check_per_axis

#: Cases by the name of their preset.
PRESETS = {"published": PUBLISHED}
Strides = Sizes | Sequence[Sequence[int]]


@dataclass(frozen=True)
class GnaPlan:
    """What to simulate.

    Attributes:
        preset: Name of the cases; ``None`` for a case of one's own.
        cases: The cases.
        search: Whether strides are searched besides those of the cases.
        tiling: How key tiles are cut for the search.
    """

    preset: str | None
    cases: tuple[Case, ...]
    search: bool
    tiling: Tiling


def make_plan(
    *,
    preset: str | None = None,
    grid: Sizes | None = None,
    window: Sizes | None = None,
    stride: Strides | None = None,
    dilation: Sizes | None = None,
    is_causal: Flags | None = None,
    q_tile: Sizes | None = None,
    kv_tile: Sizes | None = None,
    kernel: str | None = None,
    attention_share: float | None = None,
    sparse_steps: float | None = None,
    search: bool = False,
    tiling: str = "static",
) -> GnaPlan:
    """Check options and return what they ask for; see :func:`gatework.bench.gna.front.gna`.

    Raises:
        TypeError: If an option has another type.
        ValueError: If a value is impossible, or options do not go together.
    """
    own = {
        name: value
        for name, value in locals().items()
        if name not in ("preset", "search", "tiling") and value is not None
    }
    cut = check_choice("tiling", tiling, TILINGS)
    check_bool("search", search)
    if "grid" not in own:
        if own:
            raise ValueError(f"{', '.join(own)}: these need a grid, such as grid=[30, 48, 80]")
        name = "published" if preset is None else preset
        check_choice("preset", name, PRESETS)
        return GnaPlan(name, PRESETS[name], search, cut)
    if preset is not None:
        raise ValueError(f"preset must be left out where a grid is given, got {preset!r}")
    if "window" not in own:
        raise ValueError("window must be given with a grid, such as window=[18, 24, 24]; -1 is a whole axis")
    return GnaPlan(None, (_own_case(**own),), search, cut)


def _own_case(
    *,
    grid: Sizes,
    window: Sizes,
    stride: Strides = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    q_tile: Sizes | None = None,
    kv_tile: Sizes | None = None,
    kernel: str | None = None,
    attention_share: float | None = None,
    sparse_steps: float | None = None,
) -> Case:
    """One case with everything checked and every axis given its own number."""
    masks = [
        neighborhood(grid, window, stride=each, dilation=dilation, is_causal=is_causal)
        for each in _strides(stride)
    ]
    mask = masks[0]
    for name, share in (("attention_share", attention_share), ("sparse_steps", sparse_steps)):
        if share is not None:
            check_number(name, share, at_least=0, at_most=1)
    if sparse_steps is not None and attention_share is None:
        raise ValueError("sparse_steps needs attention_share, the share of time that attention takes")
    return Case(
        "grid",
        mask.shape,
        mask.window,
        tuple(dict.fromkeys(each.stride for each in masks)),
        _tiles(len(mask.shape), q_tile, kv_tile, kernel),
        dilation=mask.dilation,
        is_causal=mask.is_causal,
        attention_share=attention_share,
        sparse_steps=sparse_steps,
    )


def _strides(stride: Strides) -> list[Any]:
    """One stride, or several: a list of lists."""
    if isinstance(stride, int) or not any(isinstance(each, Sequence) for each in stride):
        return [stride]
    return [*stride]


def _tiles(axes: int, q_tile: Any, kv_tile: Any, kernel: str | None) -> tuple[TilePair, ...]:
    """The given pair of tiles, or all that kernels offer."""
    if q_tile is None and kv_tile is None:
        return offered(axes, kernel)
    if q_tile is None or kv_tile is None or kernel is not None:
        raise ValueError(
            "give q_tile and kv_tile together, or neither of them to have all tiles that kernels offer; "
            f"got q_tile={q_tile!r}, kv_tile={kv_tile!r}, kernel={kernel!r}"
        )
    return (TilePair("", check_per_axis("q_tile", q_tile, axes), check_per_axis("kv_tile", kv_tile, axes)),)
