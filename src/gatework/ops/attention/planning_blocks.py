"""Plans for block-sparse masks, straight from the map: for patterns that are new in every call.

A model that chooses its blocks anew makes a new mask in every call, and then planning is part of attention.
What :mod:`~gatework.ops.attention.planning` finds tile by tile is found here for all tiles of all heads at
once. Such plans are not worth remembering: nobody asks for them again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatework.masks import And, BlockSparse, Causal, Mask, QueryOffset
from gatework.ops.attention.plan import Plan

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]

#: Fewest queries of a block that are worth a tile; several smaller blocks make one, which is not done here.
_LEAST_ROWS = 8


class BlockPattern(NamedTuple):
    """A block-sparse mask, alone or together with the causal one.

    Attributes:
        blocks: The mask of blocks; all heads and sequences have the same edges.
        offset: Query ``i`` sees the keys up to ``i + offset``; ``None`` if it sees all that blocks allow.
    """

    blocks: BlockSparse
    offset: int | None

    def edges(self) -> tuple[_Ints, _Ints]:
        """Where blocks of queries and of keys begin, and the ends."""
        return self.blocks.q_edges.tensor[0, 0].numpy(), self.blocks.kv_edges.tensor[0, 0].numpy()

    def last_key(self, queries: _Ints) -> _Ints:
        """The last key that queries may see, whatever their blocks."""
        return np.full_like(queries, self.blocks.kv_size) if self.offset is None else queries + self.offset


def block_pattern(mask: Mask) -> BlockPattern | None:
    """Return the pattern that a mask is, ``BlockSparse`` alone or ``& Causal()``; ``None`` for any other."""
    if type(mask) is BlockSparse:
        shared = mask.q_edges.tensor.shape[:2] == mask.kv_edges.tensor.shape[:2] == (1, 1)
        return BlockPattern(mask, None) if shared else None
    if type(mask) is And:
        for one, other in ((mask.left, mask.right), (mask.right, mask.left)):
            pattern, offset = block_pattern(one), _causal_offset(other)
            if pattern is not None and pattern.offset is None and offset is not None:
                return BlockPattern(pattern.blocks, offset)
    return None


def _causal_offset(mask: Mask) -> int | None:
    """Position of the first query under a causal mask; ``None`` for any other mask."""
    if type(mask) is Causal:
        return 0
    is_moved = type(mask) is QueryOffset and type(mask.mask) is Causal and isinstance(mask.offset, int)
    return mask.offset if is_moved else None  # type: ignore[attr-defined] # it is a QueryOffset then


def block_classes(pattern: BlockPattern) -> tuple[Tensor, Tensor]:
    """Which blocks are allowed in part, and which wholly: two tensors of the shape of the map."""
    kept = pattern.blocks.blocks.tensor
    q_edges, kv_edges = pattern.edges()
    first, last = pattern.last_key(q_edges[:-1, None]), pattern.last_key(q_edges[1:, None] - 1)
    some, whole = (torch.from_numpy(part) for part in (kv_edges[:-1] <= last, kv_edges[1:] - 1 <= first))
    return kept & some & ~whole, kept & whole


def tile_share(pattern: BlockPattern) -> float:
    """Return the share of all pairs that is in the tiles of a plan, found from the map alone."""
    kept = pattern.blocks.blocks.tensor
    q_edges, kv_edges = pattern.edges()
    ends = np.minimum(kv_edges[1:], pattern.last_key(q_edges[1:, None] - 1) + 1)
    pairs = (ends - kv_edges[:-1]).clip(min=0) * np.diff(q_edges)[:, None]
    share = kept.double().mean((0, 1)) * torch.from_numpy(pairs).double()
    return float(share.sum()) / max(1, pattern.blocks.q_size * pattern.blocks.kv_size)


def block_plan(pattern: BlockPattern, most_rows: int) -> Plan | None:
    """Plan a pattern in O(number of blocks), with tiles of the queries of one block each.

    Args:
        pattern: Blocks, and whether later keys are forbidden.
        most_rows: Most queries of a tile: those of larger blocks are cut into equal tiles.

    Returns:
        The plan; ``None`` if blocks have so few queries that several should share a tile.
    """
    q_edges, kv_edges = pattern.edges()
    if len(q_edges) > 2 and np.diff(q_edges).max() < _LEAST_ROWS:
        return None
    pattern_of, maps = _distinct(pattern.blocks)
    tile_edges, block = _tile_edges(q_edges, most_rows)
    first, last = (pattern.last_key(edge) for edge in (tile_edges[:-1], tile_edges[1:] - 1))
    kept = maps[:, block] & (kv_edges[:-1] <= last[:, None])
    tile, column = _places(kept)
    start, end = kv_edges[column], np.minimum(kv_edges[column + 1], np.tile(last, len(maps))[tile] + 1)
    num_tiles = kept.shape[0] * kept.shape[1]
    begins = np.ones(len(tile), dtype=bool)
    begins[1:] = (start[1:] != end[:-1]) | (tile[1:] != tile[:-1])
    runs = np.flatnonzero(begins)
    ends = end[np.append(runs[1:] - 1, len(end) - 1)] if len(runs) else end
    return Plan(
        pattern_of=_int32(pattern_of),
        pattern_tile=_int32(np.arange(len(maps) + 1) * kept.shape[1]),
        tile_query=_int32(_cumulated(np.tile(np.diff(tile_edges), len(maps)))),
        query=_int32(np.tile(np.arange(q_edges[-1]), len(maps))),
        tile_run=_counted(tile[runs], num_tiles),
        run_start=_int32(start[runs]),
        run_length=_int32(ends - start[runs]),
        **_pieces(tile, start, end, np.tile(tile_edges[:-1], len(maps)), first, np.diff(tile_edges)),
    )


def _distinct(blocks: BlockSparse) -> tuple[_Ints, _Bools]:
    """The pattern of each sequence and query head, and the map of each pattern."""
    maps = blocks.blocks.tensor.numpy()
    known: dict[bytes, int] = {}
    chosen: list[_Bools] = []
    pattern_of = np.empty(maps.shape[:2], dtype=np.int64)
    for place in np.ndindex(*maps.shape[:2]):
        key = maps[place].tobytes()
        if key not in known:
            known[key] = len(chosen)
            chosen.append(maps[place])
        pattern_of[place] = known[key]
    told_apart = 1 if blocks.num_heads is None else blocks.group_size
    return pattern_of.repeat(told_apart, 1), np.stack(chosen)


def _tile_edges(q_edges: _Ints, most_rows: int) -> tuple[_Ints, _Ints]:
    """Where tiles begin, with the end, and the block that each tile is of."""
    sizes = np.diff(q_edges)
    parts = -(-sizes // most_rows)
    block = np.repeat(np.arange(len(sizes)), parts)
    part = np.arange(len(block)) - np.repeat(np.cumsum(parts) - parts, parts)
    starts = q_edges[block] + sizes[block] * part // parts[block]
    return np.append(starts, q_edges[-1]), block


def _places(kept: _Bools) -> tuple[_Ints, _Ints]:
    """Tiles, counted through all patterns, and the blocks of keys that they keep, in this order."""
    tile, column = np.nonzero(kept.reshape(kept.shape[0] * kept.shape[1], kept.shape[2]))
    return tile, column


def _pieces(
    tile: _Ints, start: _Ints, end: _Ints, tile_start: _Ints, first: _Ints, rows: _Ints
) -> dict[str, Any]:
    """The parts of a plan that say which pairs of the kept blocks are not allowed: those of the diagonal.

    Args:
        tile: Tile of each kept block, ascending.
        start: First key of each.
        end: End of its keys that some query of the tile may see.
        tile_start: First query of each tile.
        first: Last key that the first query of a tile may see, for the tiles of one pattern.
        rows: Queries of each of these tiles.
    """
    in_pattern = tile % max(1, len(rows))
    partial = np.flatnonzero(end - 1 > first[in_pattern])
    column = np.cumsum(end - start) - (end - start)
    leading = np.searchsorted(tile, tile[partial])  # the first block of the piece's tile
    one = in_pattern[partial]
    width = end[partial] - start[partial]
    # Masks are told apart by their shape, and by the keys that the first query may see.
    kinds, kind = np.unique(
        np.stack([rows[one], width, first[one] - start[partial]], 1), axis=0, return_inverse=True
    )
    pool = [np.arange(wide) - np.arange(high)[:, None] <= seen for high, wide, seen in kinds.tolist()]
    offsets = _cumulated(kinds[:, 0] * kinds[:, 1])
    return {
        "tile_piece": _counted(tile[partial], len(tile_start)),
        "piece_column": _int32(column[partial] - column[leading]),
        "piece_width": _int32(width),
        "piece_mask": torch.from_numpy(offsets[kind.reshape(-1)].astype(np.int64)),
        "pool": torch.from_numpy(
            np.concatenate([np.empty(0, np.uint8), *(part.reshape(-1) for part in pool)]).astype(np.uint8)
        ),
    }


def _cumulated(counts: _Ints) -> _Ints:
    """Sums of all counts before each, and of all."""
    sums: _Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return sums


def _counted(tile: _Ints, num_tiles: int) -> Tensor:
    """Where the entries of each tile begin, with the end, if every entry names its tile."""
    return _int32(_cumulated(np.bincount(tile, minlength=num_tiles)))


def _int32(values: _Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
