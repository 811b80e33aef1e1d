"""The simulator of tiles: what a kernel for neighbourhood attention can gain, from the tiles it must visit.

Source: arXiv:2504.16922, appendix B.1 (NATTENSim, which its authors did not release).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from gatework.bench.gna.axis import AxisCounts, AxisRule, AxisVisits, axis_counts, axis_tiles
from gatework.checks import check_ints, check_number, check_per_axis
from gatework.masks import Neighborhood

#: The window that stands for all tokens of an axis.
WHOLE_AXIS = -1
#: Most axes of a grid.
_AXES = 3

Sizes = int | Sequence[int]
Flags = bool | Sequence[bool]


@dataclass(frozen=True)
class Visits:
    """How many key tiles tiles of queries visit, against attention over all pairs with the same tiles.

    Attributes:
        q_tiles: Tiles of queries, in all dilation classes together.
        worst: Key tiles that the busiest of them visits.
        visited: Key tiles that all of them visit together.
        full: How many of those visits need no mask, every pair in them being allowed; ``None`` if not
            counted.
        dense_q_tiles: Tiles of queries of attention over all pairs.
        dense_kv_tiles: Key tiles that each of those visits: all.
    """

    q_tiles: int
    worst: int
    visited: int
    full: int | None
    dense_q_tiles: int
    dense_kv_tiles: int

    @property
    def mean(self) -> float:
        """Key tiles that a tile of queries visits on average."""
        return self.visited / self.q_tiles

    @property
    def speedup(self) -> float:
        """Speed-up of the operator if each tile of queries takes as long as the busiest.

        Without dilation ``dense_kv_tiles / worst``, the paper's definition. Dilation may need more tiles of
        queries than attention over all pairs, each less full, and these cost time.
        """
        return self.dense_q_tiles * self.dense_kv_tiles / (self.q_tiles * self.worst)

    @property
    def mean_speedup(self) -> float:
        """Speed-up of the operator if time goes by all visits: what perfect scheduling would reach."""
        return self.dense_q_tiles * self.dense_kv_tiles / self.visited

    @property
    def full_share(self) -> float | None:
        """Share of the visits that need no mask."""
        return None if self.full is None else self.full / self.visited

    @property
    def is_perfect(self) -> bool:
        """Whether the tiles are perfectly block-sparse: no visit needs a mask."""
        return self.full == self.visited


@dataclass(frozen=True)
class Simulation:
    """Neighbourhood attention under tiles; made by :func:`simulate`.

    Attributes:
        mask: Grid, window, stride, dilation and causality.
        q_tile: Queries of a tile along each axis.
        kv_tile: Keys of a tile along each axis.
        static: Visits where key tiles begin at multiples of their size.
        dynamic: Visits where key tiles are cut from the windows of each tile of queries, as the first fused
            kernels did.
    """

    mask: Neighborhood
    q_tile: tuple[int, ...]
    kv_tile: tuple[int, ...]
    static: Visits
    dynamic: Visits

    @property
    def ideal_speedup(self) -> float:
        """Tokens of the grid per token of the window: the bound by floating-point operations."""
        return self.mask.q_size / math.prod(self.mask.window)

    @cached_property
    def exact_ideal_speedup(self) -> float:
        """Pairs of tokens per allowed pair; more than :attr:`ideal_speedup` if an axis is causal."""
        return self.mask.q_size**2 / math.prod(each.allowed for each in self._axes)

    @property
    def share_of_ideal(self) -> float:
        """Speed-up with static tiles over the ideal one.

        A little over 1 is possible where attention over all pairs fills up the tiles at the grid's end.
        """
        return self.static.speedup / self.ideal_speedup

    @property
    def is_divisible(self) -> bool:
        """The paper's rule for perfect dynamic tiles: key tiles divide windows, query tiles divide strides.

        It holds on axes that are not causal, and is sufficient: windows at the border, or that are the whole
        axis, may be perfect without.
        """
        return not any(self.mask.is_causal) and all(
            window % kv_tile == 0 and stride % q_tile == 0
            for window, stride, q_tile, kv_tile in zip(
                self.mask.window, self.mask.stride, self.q_tile, self.kv_tile, strict=True
            )
        )

    def visits_by_tile(self) -> Int[Tensor, "*q_tiles"]:
        """Key tiles that each tile of queries visits, with static tiles; classes of an axis one by one."""
        rules = axis_rules(self.mask)
        found = torch.ones((), dtype=torch.int64)
        for rule, q_tile, kv_tile in zip(rules, self.q_tile, self.kv_tile, strict=True):
            first, stop = axis_tiles(rule, q_tile).static_range(kv_tile)
            found = found[..., None] * (stop - first)
        return found

    @property
    def _axes(self) -> list[AxisCounts]:
        tiles = zip(axis_rules(self.mask), self.q_tile, self.kv_tile, strict=True)
        return [axis_counts(rule, q_tile, kv_tile) for rule, q_tile, kv_tile in tiles]


def simulate(
    grid: Sizes,
    window: Sizes,
    *,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    q_tile: Sizes,
    kv_tile: Sizes,
) -> Simulation:
    """Count the key tiles that tiles of queries must visit (arXiv:2504.16922, appendix B.1).

    Along an axis the queries of a tile need the places ``[a, b)`` together, those of all their windows. With
    key tiles of ``T`` that begin at its multiples (static) they visit ``(b - 1) // T - a // T + 1``, with
    tiles cut from ``a`` on (dynamic) ``ceil((b - a) / T)``. Axes multiply. The speed-up of the operator is
    the number of all key tiles over what the busiest tile of queries visits.

    With dilation each class is a problem of its own, tiled by itself, and all of them are counted. Attention
    over all pairs, which the speed-up is over, knows no classes.

    Args:
        grid: Tokens of one to three axes.
        window: Places in a window; -1 is the whole axis. A number instead of a sequence is meant for every
            axis, here and in the other arguments.
        stride: Neighbours in a group that shares its window.
        dilation: Distance of a window's places.
        is_causal: Whether queries see no later tokens of the axis.
        q_tile: Queries of a tile along each axis.
        kv_tile: Keys of a tile.

    Raises:
        TypeError: If a size is not an integer, or a flag not a boolean.
        ValueError: If a size is less than 1, ``window * dilation`` exceeds the axis, ``stride`` exceeds
            ``window``, or the axes are more than three or differ in number.
    """
    mask = neighborhood(grid, window, stride=stride, dilation=dilation, is_causal=is_causal)
    axes = len(mask.shape)
    return simulate_mask(
        mask, check_per_axis("q_tile", q_tile, axes), check_per_axis("kv_tile", kv_tile, axes)
    )


def simulate_mask(mask: Neighborhood, q_tile: tuple[int, ...], kv_tile: tuple[int, ...]) -> Simulation:
    """Simulate a neighbourhood with checked tiles, one number for each axis; see :func:`simulate`."""
    sizes = zip(axis_rules(mask), q_tile, kv_tile, strict=True)
    counts = [axis_counts(rule, queries, keys) for rule, queries, keys in sizes]
    dense = [
        math.prod(-(-length // size) for length, size in zip(mask.shape, sizes, strict=True))
        for sizes in (q_tile, kv_tile)
    ]
    q_tiles = math.prod(each.q_tiles for each in counts)
    static = _product([each.static for each in counts], q_tiles, *dense)
    dynamic = _product([each.dynamic for each in counts], q_tiles, *dense)
    return Simulation(mask, q_tile, kv_tile, static, dynamic)


def _product(axes: Sequence[AxisVisits], q_tiles: int, dense_q_tiles: int, dense_kv_tiles: int) -> Visits:
    worst, visited, full = (
        math.prod(getattr(axis, name) for axis in axes) for name in ("worst", "visited", "full")
    )
    return Visits(q_tiles, worst, visited, full, dense_q_tiles, dense_kv_tiles)


def end_to_end(speedup: float, attention_share: float, sparse_steps: float = 1.0) -> float:
    """Speed-up of a whole model, ``1 / (1 - f + f / speedup)`` with ``f = attention_share * sparse_steps``.

    Args:
        speedup: Of the attention operator.
        attention_share: Share of the model's time that attention over all pairs takes.
        sparse_steps: Share of the steps (of diffusion, say) that use the sparse operator.

    Raises:
        ValueError: If ``speedup`` is not positive, or a share not from 0 to 1.
    """
    check_number("speedup", speedup, above=0)
    check_number("attention_share", attention_share, at_least=0, at_most=1)
    check_number("sparse_steps", sparse_steps, at_least=0, at_most=1)
    part = attention_share * sparse_steps
    return 1 / (1 - part + part / speedup)


def neighborhood(
    grid: Sizes, window: Sizes, *, stride: Sizes = 1, dilation: Sizes = 1, is_causal: Flags = False
) -> Neighborhood:
    """Return the neighbourhood of these arguments; a window of -1 is the whole axis.

    Raises:
        TypeError: See :func:`simulate`.
        ValueError: See :func:`simulate`.
    """
    shape = check_ints("grid", [grid] if isinstance(grid, int) else grid, at_least=1)
    if not 1 <= len(shape) <= _AXES:
        raise ValueError(f"grid must have 1 to {_AXES} axes, got {grid!r}")
    wanted = [window] * len(shape) if isinstance(window, int) else window
    sizes = check_ints("window", wanted, at_least=WHOLE_AXIS)
    if len(sizes) == len(shape):
        sizes = tuple(
            length if size == WHOLE_AXIS else size for size, length in zip(sizes, shape, strict=True)
        )
    return Neighborhood(shape, sizes, stride=stride, dilation=dilation, is_causal=is_causal)


def axis_rules(mask: Neighborhood) -> list[AxisRule]:
    """Return the rule of each axis."""
    axes = zip(mask.shape, mask.window, mask.stride, mask.dilation, mask.is_causal, strict=True)
    return [AxisRule(*axis) for axis in axes]
