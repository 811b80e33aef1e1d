"""One axis under tiles: the windows that a tile of queries needs together, and the key tiles that hold them.

Allowed is what every axis allows, so that axes are counted one by one and multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from gatework.masks import Neighborhood

_PerTile = Int[Tensor, " q_tiles"]


@dataclass(frozen=True)
class AxisRule:
    """Neighbourhood attention along one axis, as in :class:`~gatework.masks.Neighborhood`.

    Attributes:
        length: Tokens of the axis.
        window: Places in a window.
        stride: Neighbours in a group that shares its window.
        dilation: Number of classes, each a sequence of its own.
        is_causal: Whether queries see no later tokens.
    """

    length: int
    window: int
    stride: int
    dilation: int
    is_causal: bool


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """What the tiles of queries of one axis need, class after class.

    Places count the tokens of one dilation class. The windows of a tile's queries leave no gap between
    them, since a group is no larger than its window.

    Attributes:
        length: Places in the tile's class.
        low: First place that one of its queries sees.
        high: End of the places that one of them sees.
        common_low: First place that all of them see.
        common_high: End of the places that all of them see; not after ``common_low`` if there are none.
    """

    length: _PerTile
    low: _PerTile
    high: _PerTile
    common_low: _PerTile
    common_high: _PerTile

    def static_range(self, kv_tile: int) -> tuple[_PerTile, _PerTile]:
        """First key tile visited and the end of them, for tiles that begin at multiples of ``kv_tile``."""
        return self.low // kv_tile, (self.high - 1) // kv_tile + 1

    def static_full_range(self, kv_tile: int) -> tuple[_PerTile, _PerTile]:
        """First key tile that all queries see entirely and the end of them; an empty range if there is none.

        The last tile of the class may have fewer tokens: those that exist count.
        """
        first = -(-self.common_low // kv_tile)
        to_the_end = self.common_high == self.length
        stop = torch.where(to_the_end, -(-self.length // kv_tile), self.common_high // kv_tile)
        return first, torch.maximum(first, stop)

    def dynamic_visits(self, kv_tile: int) -> _PerTile:
        """Key tiles visited if they are cut from ``low`` on."""
        return -((self.low - self.high) // kv_tile)

    def dynamic_full(self, kv_tile: int) -> _PerTile:
        """How many of those all queries see entirely."""
        first = -((self.low - self.common_low) // kv_tile)
        return ((self.common_high - self.low) // kv_tile - first).clamp(min=0)


@dataclass(frozen=True)
class AxisVisits:
    """Key tiles visited along one axis.

    Attributes:
        worst: By the tile of queries that visits most.
        visited: By all tiles of queries together.
        full: How many of those visits need no mask.
    """

    worst: int
    visited: int
    full: int

    @property
    def is_perfect(self) -> bool:
        """Whether no visit needs a mask."""
        return self.visited == self.full


@dataclass(frozen=True)
class AxisCounts:
    """Counts of one axis, over all dilation classes.

    Attributes:
        q_tiles: Tiles of queries.
        allowed: Pairs of tokens that the axis allows.
        static: With key tiles at multiples of their size.
        dynamic: With key tiles cut from the windows of each tile of queries.
    """

    q_tiles: int
    allowed: int
    static: AxisVisits
    dynamic: AxisVisits


def axis_tiles(rule: AxisRule, q_tile: int) -> AxisTiles:
    """Return what each tile of ``q_tile`` successive queries of one dilation class needs.

    Along a class windows never move back, so that the first and the last query of a tile tell all.
    """
    windows = Neighborhood(
        (rule.length,),
        (rule.window,),
        stride=(rule.stride,),
        dilation=(rule.dilation,),
        is_causal=(rule.is_causal,),
    ).axis(0)
    kind = torch.arange(rule.dilation)[:, None]
    length = (rule.length - 1 - kind) // rule.dilation + 1
    first = torch.arange(0, int(length.max()), q_tile)[None]
    exists = first < length  # classes may differ in length by one token, and so in tiles by one
    last = torch.minimum(first + q_tile, length) - 1
    begin, end = ((place * rule.dilation + kind)[exists] for place in (first, last))
    return AxisTiles(
        length.expand_as(exists)[exists],
        low=windows.low[begin],
        high=windows.high[end],
        common_low=windows.low[end],
        common_high=windows.high[begin],
    )


@lru_cache(maxsize=1 << 16)
def axis_counts(rule: AxisRule, q_tile: int, kv_tile: int) -> AxisCounts:
    """Count the key tiles that the tiles of queries of an axis visit.

    Args:
        rule: The axis.
        q_tile: Queries of a tile.
        kv_tile: Keys of a tile.
    """
    tiles = axis_tiles(rule, q_tile)
    first, stop = tiles.static_range(kv_tile)
    full_first, full_stop = tiles.static_full_range(kv_tile)
    return AxisCounts(
        len(tiles.low),
        _allowed(rule),
        _visits(stop - first, full_stop - full_first),
        _visits(tiles.dynamic_visits(kv_tile), tiles.dynamic_full(kv_tile)),
    )


def _visits(visited: Tensor, full: Tensor) -> AxisVisits:
    return AxisVisits(int(visited.max()), int(visited.sum()), int(full.sum()))


@lru_cache(maxsize=1 << 12)
def _allowed(rule: AxisRule) -> int:
    """Pairs of tokens along the axis that may attend."""
    if not rule.is_causal:
        return rule.length * rule.window
    windows = axis_tiles(rule, 1)
    return int((windows.high - windows.low).sum())
