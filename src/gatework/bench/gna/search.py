"""The search for strides: which make a window perfectly block-sparse, and what the others gain.

Axes are independent: a stride is perfectly block-sparse iff it is so on every axis, and the key tiles of the
busiest tile of queries multiply. So each axis is searched alone, and what is worthwhile there is combined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from gatework.bench.gna.axis import AxisRule, AxisVisits, axis_counts
from gatework.bench.gna.kernels import TilePair, offered
from gatework.bench.gna.simulator import (
    Flags,
    Simulation,
    Sizes,
    Visits,
    axis_rules,
    neighborhood,
    simulate_mask,
)
from gatework.checks import check_choice, check_per_axis
from gatework.masks import Neighborhood

Tiling = Literal["static", "dynamic"]
TILINGS: tuple[Tiling, ...] = ("static", "dynamic")

#: Most windows near the wanted one that are proposed.
_NEARBY = 8
#: Shares of the ideal within this are taken for equal.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class StrideSearch:
    """What strides do to one window under one pair of tiles; made by :func:`search_strides`.

    Attributes:
        mask: Grid, window, dilation and causality; its stride is 1.
        tiles: The pair of tiles.
        tiling: How key tiles are cut.
    """

    mask: Neighborhood
    tiles: TilePair
    tiling: Tiling

    @cached_property
    def perfect_by_axis(self) -> tuple[tuple[int, ...], ...]:
        """For each axis the strides that are perfectly block-sparse there: all combinations are perfect."""
        return tuple(
            tuple(
                option.stride
                for option in map(self._option(axis, rule), range(1, rule.window + 1))
                if option.visits.is_perfect
            )
            for axis, rule in enumerate(axis_rules(self.mask))
        )

    @cached_property
    def perfect(self) -> Simulation | None:
        """The smallest stride that makes the window perfectly block-sparse; ``None`` if none does."""
        strides = [_smallest_perfect(options) for options in self._axes]
        found = tuple(stride for stride in strides if stride is not None)
        return self.at(found) if len(found) == len(strides) else None

    @cached_property
    def candidates(self) -> tuple[Simulation, ...]:
        """Every stride that no other equals or beats on one of its axes, and the smallest perfect ones.

        Beaten on an axis is a stride if a smaller one visits no more key tiles there. Ordered by product.
        """
        axes = [_worthwhile(axis) for axis in self._axes]
        found = sorted(itertools.product(*axes), key=_size)
        return tuple(self.at(stride) for stride in found)

    @cached_property
    def front(self) -> tuple[Simulation, ...]:
        """The Pareto front: strides than which no smaller or equal one, by product, is as fast.

        From the smallest to the fastest. Of strides with the same product and speed-up it has the one whose
        largest axis is smallest, then the first in the order of numbers.
        """
        found: list[Simulation] = []
        ordered = sorted(
            self.candidates, key=lambda each: (math.prod(each.mask.stride), self.visits(each).worst)
        )
        for each in ordered:
            if not found or self.visits(each).worst < self.visits(found[-1]).worst:
                found.append(each)
        return tuple(found)

    @property
    def fastest(self) -> Simulation:
        """The smallest stride with the largest speed-up."""
        return self.front[-1]

    @property
    def reaching(self) -> Simulation | None:
        """The smallest stride whose speed-up reaches the ideal one; ``None`` if none does."""
        return next(
            (
                each
                for each in self.front
                if self.visits(each).speedup >= each.ideal_speedup * (1 - _TOLERANCE)
            ),
            None,
        )

    @cached_property
    def nearby(self) -> tuple[Simulation, ...]:
        """Windows that a stride makes perfectly block-sparse, each with the smallest; the nearest first.

        On an axis where some stride is perfect the window stays; elsewhere it becomes the next smaller or
        larger one for which there is such a stride. Near is where the sizes change by small factors. Up to
        eight.
        """
        axes = []
        for axis, (rule, options) in enumerate(zip(axis_rules(self.mask), self._axes, strict=True)):
            stride = _smallest_perfect(options)
            axes.append([*self._near(axis, rule)] if stride is None else [(rule.window, stride)])
        found = sorted(itertools.product(*axes), key=self._distance)[:_NEARBY]
        windows_and_strides = (zip(*combination, strict=True) for combination in found)
        return tuple(self.at(tuple(stride), tuple(window)) for window, stride in windows_and_strides)

    def visits(self, simulation: Simulation) -> Visits:
        """The visits that this search goes by."""
        return simulation.static if self.tiling == "static" else simulation.dynamic

    @cached_property
    def _axes(self) -> list[tuple[_Option, ...]]:
        return [self._options(axis, rule) for axis, rule in enumerate(axis_rules(self.mask))]

    def _options(self, axis: int, rule: AxisRule) -> tuple[_Option, ...]:
        return _options(rule, self.tiles.q_tile[axis], self.tiles.kv_tile[axis], self.tiling)

    def _option(self, axis: int, rule: AxisRule) -> Callable[[int], _Option]:
        """What a stride of an axis visits."""
        q_tile, kv_tile = self.tiles.q_tile[axis], self.tiles.kv_tile[axis]
        return lambda stride: _option(replace(rule, stride=stride), q_tile, kv_tile, self.tiling)

    def _near(self, axis: int, rule: AxisRule) -> Iterator[tuple[int, int]]:
        """The next smaller and larger window with a perfect stride, and the smallest such stride.

        Windows can end where key tiles do only if they are multiples of these, or whole classes.
        """
        kv_tile, whole = self.tiles.kv_tile[axis], rule.length // rule.dilation
        windows = sorted({*range(kv_tile, whole + 1, kv_tile), whole})
        smaller = [window for window in reversed(windows) if window < rule.window]
        larger = [window for window in windows if window > rule.window]
        for direction in (smaller, larger):
            for window in direction:
                stride = _smallest_perfect(self._options(axis, replace(rule, window=window)))
                if stride is not None:
                    yield window, stride
                    break

    def _distance(self, axes: Sequence[tuple[int, int]]) -> tuple[float, Sequence[tuple[int, int]]]:
        """How far the windows of these pairs of window and stride are from the wanted one."""
        changes = (
            abs(math.log(window / wanted)) for (window, _), wanted in zip(axes, self.mask.window, strict=True)
        )
        return sum(changes), axes

    def at(self, stride: tuple[int, ...], window: tuple[int, ...] | None = None) -> Simulation:
        """Simulate a stride of this search, or of another window."""
        mask = Neighborhood(
            self.mask.shape,
            window or self.mask.window,
            stride=stride,
            dilation=self.mask.dilation,
            is_causal=self.mask.is_causal,
        )
        return simulate_mask(mask, self.tiles.q_tile, self.tiles.kv_tile)


@dataclass(frozen=True)
class _Option:
    """A stride along one axis, and the key tiles visited there."""

    stride: int
    visits: AxisVisits


@lru_cache(maxsize=1 << 12)
def _options(rule: AxisRule, q_tile: int, kv_tile: int, tiling: Tiling) -> tuple[_Option, ...]:
    """Strides of an axis, from 1 to where a larger one can be neither faster nor the first perfect one."""
    fewest = -(-rule.window // kv_tile)  # some query sees a whole window
    wanted = _may_be_perfect(rule, kv_tile)
    found = []
    for stride in range(1, rule.window + 1):
        option = _option(replace(rule, stride=stride), q_tile, kv_tile, tiling)
        found.append(option)
        wanted = wanted and not option.visits.is_perfect
        if option.visits.worst == fewest and not wanted:
            break
    return tuple(found)


def _option(rule: AxisRule, q_tile: int, kv_tile: int, tiling: Tiling) -> _Option:
    counts = axis_counts(rule, q_tile, kv_tile)
    return _Option(rule.stride, counts.static if tiling == "static" else counts.dynamic)


def _may_be_perfect(rule: AxisRule, kv_tile: int) -> bool:
    """Whether some stride may be perfect on an axis, by what the first query of a class sees.

    With causality that is itself alone; else the window from the class's beginning on, which ends where a
    key tile does or is the whole class.
    """
    if rule.is_causal:
        return kv_tile == 1 or rule.length <= rule.dilation
    return rule.window % kv_tile == 0 or rule.window == rule.length // rule.dilation


def _smallest_perfect(options: Sequence[_Option]) -> int | None:
    return next((option.stride for option in options if option.visits.is_perfect), None)


def _worthwhile(options: Sequence[_Option]) -> list[int]:
    """Strides that visit fewer key tiles than all smaller ones, and the smallest perfect one."""
    found = [options[0].stride]
    worst = options[0].visits.worst
    for option in options[1:]:
        if option.visits.worst < worst:
            found.append(option.stride)
            worst = option.visits.worst
    perfect = _smallest_perfect(options)
    return found if perfect is None or perfect in found else sorted([*found, perfect])


def _size(stride: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """Strides are ordered by their product, then the largest axis, then as numbers."""
    return math.prod(stride), max(stride), stride


def search_strides(
    grid: Sizes,
    window: Sizes,
    *,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    q_tile: Sizes,
    kv_tile: Sizes,
    tiling: Tiling = "static",
) -> StrideSearch:
    """Search the strides of a window, given a pair of tiles.

    A larger stride makes locality coarser: more neighbours see the same window, on average less centred on
    them. The search therefore asks for the smallest strides, by their product, for the speed-up they give.

    Args:
        grid: See :func:`~gatework.bench.gna.simulator.simulate`, as for the other arguments.
        window: Places in a window; -1 is the whole axis.
        dilation: Distance of a window's places.
        is_causal: Whether queries see no later tokens of the axis. No stride is perfect on such an axis,
            unless tiles have one token there.
        q_tile: Queries of a tile along each axis.
        kv_tile: Keys of a tile.
        tiling: ``"static"``, key tiles at multiples of their size, or ``"dynamic"``, cut from the windows.

    Raises:
        TypeError: If a size is no integer, or a flag no bool.
        ValueError: If the window does not fit the grid, a tile has no token, or ``tiling`` is another one.
    """
    mask = neighborhood(grid, window, dilation=dilation, is_causal=is_causal)
    axes = len(mask.shape)
    pair = TilePair("", check_per_axis("q_tile", q_tile, axes), check_per_axis("kv_tile", kv_tile, axes))
    return StrideSearch(mask, pair, check_choice("tiling", tiling, TILINGS))


def search_tiles(
    grid: Sizes,
    window: Sizes,
    *,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    kernel: str | None = None,
    tiling: Tiling = "static",
) -> tuple[StrideSearch, ...]:
    """Search the strides of a window for every pair of tiles that kernels offer, the best pair first.

    The best can reach the largest speed-up; among equals perfectly block-sparse ones come first, then those
    with the smallest stride. Speed-ups of different kernels are each over attention over all pairs with the
    same tiles, and say nothing of the kernels' speed.

    Args:
        grid: See :func:`search_strides`, as for the other arguments.
        window: Places in a window; -1 is the whole axis.
        dilation: Distance of a window's places.
        is_causal: Whether queries see no later tokens of the axis.
        kernel: Only its tiles; see :data:`~gatework.bench.gna.kernels.TILE_PAIRS`.
        tiling: ``"static"`` or ``"dynamic"``.

    Raises:
        TypeError: If a size is no integer, or a flag no bool.
        ValueError: If the window does not fit the grid, ``tiling`` is another one, or no tiles are known for
            the kernel and so many axes.
    """
    mask = neighborhood(grid, window, dilation=dilation, is_causal=is_causal)
    pairs = offered(len(mask.shape), kernel)
    return best_first([StrideSearch(mask, pair, check_choice("tiling", tiling, TILINGS)) for pair in pairs])


def best_first(searches: Sequence[StrideSearch]) -> tuple[StrideSearch, ...]:
    """Order searches of one window by what their fastest stride gains; then perfect ones, small strides."""

    def key(search: StrideSearch) -> tuple[float, bool, int, int]:
        fastest = search.fastest
        stride = fastest.mask.stride
        return -search.visits(fastest).speedup, search.perfect is None, math.prod(stride), max(stride)

    return tuple(sorted(searches, key=key))
