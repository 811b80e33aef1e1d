"""From a mask to a plan: which keys each tile of queries needs, found from the mask's structure."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatework.masks import AxisWindows, GridMask, Mask
from gatework.masks.algebra import EMPTY, FULL, PARTIAL
from gatework.ops.attention.plan import Plan, TileList, pack
from gatework.ops.attention.planning_blocks import block_pattern, block_plan

_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]

#: Pairs that are evaluated at a time.
_PAIRS_AT_ONCE = 1 << 22


class TileSize(NamedTuple):
    """How large the tiles of one way to compute attention are.

    Attributes:
        rows: Most queries in a tile of a sequence.
        columns: Keys that are told apart, in a sequence, as needed or not.
        grid_rows: Most queries in a tile of a grid, where it does not share one window.
        grid_overhead: What a tile of a grid costs besides its pairs, in queries.
    """

    rows: int
    columns: int
    grid_rows: int
    grid_overhead: int


def packed_plan(mask: Mask, q_length: int, kv_length: int, size: TileSize) -> Tensor:
    """Plan a mask, see :func:`make_plan`, and pack the plan; the last ones are remembered.

    Those of block-sparse masks are quickly made, large, and rarely asked for again: few are remembered.
    """
    remembered = _packed if block_pattern(mask) is None else _packed_blocks
    return remembered(mask, q_length, kv_length, size)


def _pack(mask: Mask, q_length: int, kv_length: int, size: TileSize) -> Tensor:
    # A remembered plan outlives what surrounds the first call: a later one may train, and is on the CPU.
    with torch.inference_mode(False), torch.device("cpu"):
        return pack(make_plan(mask, q_length, kv_length, size))


_packed = functools.lru_cache(maxsize=64)(_pack)
_packed_blocks = functools.lru_cache(maxsize=2)(_pack)


def make_plan(mask: Mask, q_length: int, kv_length: int, size: TileSize) -> Plan:
    """Cut queries into tiles and find the keys that each of them needs.

    A tile may hold pairs that the mask forbids, which its pieces then say; a pair that the mask allows is in
    exactly one tile. The cost is O(number of tiles and blocks of keys), besides the pairs in doubt.
    """
    mask.check(q_length, kv_length)
    pattern = block_pattern(mask)
    plan = None if pattern is None else block_plan(pattern, size.rows)
    return _plan_by_parts(mask, q_length, kv_length, size) if plan is None else plan


def _plan_by_parts(mask: Mask, q_length: int, kv_length: int, size: TileSize) -> Plan:
    """Plan any mask, pattern by pattern and tile by tile."""
    tiles = TileList()
    shape = mask.batch_size or 1, mask.num_heads or 1
    pattern_of = np.zeros(shape, dtype=np.int64)
    known: dict[Mask, int] = {}
    for batch, head in itertools.product(*map(range, shape)):
        pattern = mask.at(batch, head)
        if pattern not in known:
            known[pattern] = len(known)
            if isinstance(pattern, GridMask):
                _add_grid(pattern, size, tiles)
            else:
                _add_sequence(pattern, q_length, kv_length, size, tiles)
            tiles.end_pattern()
        pattern_of[batch, head] = known[pattern]
    return tiles.plan(pattern_of)


# --- sequences: intervals of keys ---


def _add_sequence(mask: Mask, q_length: int, kv_length: int, size: TileSize, tiles: TileList) -> None:
    """Add the tiles of a mask over two sequences: stretches of queries, with the blocks of keys they need."""
    q_hint, kv_hint = mask.edges(q_length, kv_length)
    q_edges = _edges(q_hint, q_length, size.rows)
    kv_edges = _edges(kv_hint, kv_length, size.columns)
    states = mask.classify(torch.from_numpy(q_edges), torch.from_numpy(kv_edges)).numpy().copy()
    allowed = _evaluate(mask, states, q_edges, kv_edges)
    for tile, row in enumerate(states):
        blocks = np.flatnonzero(row != EMPTY)
        edges = np.stack([kv_edges[blocks], kv_edges[blocks + 1]], 1)
        for block in blocks[row[blocks] == PARTIAL]:
            _trim(allowed, tile, int(block), blocks, edges)
        runs = _runs(edges)
        pieces = _pieces(allowed, tile, blocks, edges, tiles)
        tiles.add(np.arange(q_edges[tile], q_edges[tile + 1]), runs, pieces)


def _edges(hint: Tensor | None, length: int, most: int) -> _Ints:
    """Edges of stretches of at most ``most`` positions, at the hinted ones where they are not too close."""
    borders = [0, length]
    if hint is not None:
        least = max(1, most // 8)
        borders = [0]
        for border in hint.tolist():
            if least <= border - borders[-1] and border <= length - least:
                borders.append(border)
        borders.append(length)
    edges = [0]
    for start, stop in itertools.pairwise(borders):
        count = max(1, math.ceil((stop - start) / most))
        step = math.ceil((stop - start) / count) if hint is not None else most
        edges.extend(min(stop, start + step * (i + 1)) for i in range(count))
    return np.unique(np.array(edges, dtype=np.int64))


def _evaluate(
    mask: Mask, states: NDArray[np.int8], q_edges: _Ints, kv_edges: _Ints
) -> dict[tuple[int, int], _Bools]:
    """Evaluate the blocks in doubt; those found empty or full are marked so in ``states``."""
    tile, block = np.nonzero(states == PARTIAL)
    places: dict[tuple[int, ...], list[int]] = {}
    for i, (q, kv) in enumerate(zip(tile, block, strict=True)):
        # What depends on distances only is the same wherever it begins.
        first = (int(q_edges[q] - kv_edges[kv]),) if mask.is_relative else (int(q), int(kv))
        shape = int(q_edges[q + 1] - q_edges[q]), int(kv_edges[kv + 1] - kv_edges[kv])
        places.setdefault((*shape, *first), []).append(i)
    by_shape: dict[tuple[int, ...], list[list[int]]] = {}
    for key, same in places.items():
        by_shape.setdefault(key[:2], []).append(same)
    found: dict[tuple[int, int], _Bools] = {}
    for (rows, columns), groups in by_shape.items():
        at_once = max(1, _PAIRS_AT_ONCE // (rows * columns))
        for start in range(0, len(groups), at_once):
            stretch = groups[start : start + at_once]
            firsts = np.array([same[0] for same in stretch])
            pairs = _pairs(mask, q_edges[tile[firsts]], rows, kv_edges[block[firsts]], columns)
            for same, one in zip(stretch, pairs, strict=True):
                state = FULL if one.all() else PARTIAL if one.any() else EMPTY
                states[tile[same], block[same]] = state
                if state == PARTIAL:
                    found.update(((int(tile[i]), int(block[i])), one) for i in same)
    return found


def _pairs(mask: Mask, q_start: _Ints, rows: int, kv_start: _Ints, columns: int) -> _Bools:
    """Evaluate blocks of pairs of one shape, ``(blocks, rows, columns)``."""
    zero = torch.zeros((), dtype=torch.int64)
    q_idx = torch.from_numpy(q_start)[:, None, None] + torch.arange(rows)[:, None]
    kv_idx = torch.from_numpy(kv_start)[:, None, None] + torch.arange(columns)
    pairs: _Bools = mask(zero, zero, q_idx, kv_idx).expand(len(q_start), rows, columns).numpy()
    return pairs


def _trim(allowed: dict[tuple[int, int], _Bools], tile: int, block: int, blocks: _Ints, edges: _Ints) -> None:
    """Leave out keys that no query needs where a run begins or ends with them."""
    at = int(np.searchsorted(blocks, block))
    needed = np.flatnonzero(allowed[tile, block].any(0))
    first, last = 0, allowed[tile, block].shape[1] - 1
    if at == 0 or edges[at - 1, 1] != edges[at, 0]:
        first = int(needed[0])
    if at + 1 == len(blocks) or blocks[at + 1] != block + 1:
        last = int(needed[-1])
    allowed[tile, block] = allowed[tile, block][:, first : last + 1]
    edges[at] = edges[at, 0] + first, edges[at, 0] + last + 1


def _runs(edges: _Ints) -> tuple[_Ints, _Ints]:
    """Join blocks of keys that follow one another: starts and lengths."""
    begins = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(edges)), bool), edges[1:, 0] != edges[:-1, 1]])
    )
    starts = edges[begins, 0]
    ends = edges[np.concatenate([begins[1:] - 1, [len(edges) - 1]]), 1] if len(edges) else starts
    return starts, ends - starts


def _pieces(
    allowed: dict[tuple[int, int], _Bools], tile: int, blocks: _Ints, edges: _Ints, tiles: TileList
) -> list[tuple[int, int, int]]:
    """Column, width and mask of each stretch of neighbouring blocks in doubt."""
    columns = np.concatenate([[0], np.cumsum(edges[:, 1] - edges[:, 0])])
    pieces = []
    together: list[_Bools] = []
    for at, block in enumerate(blocks):
        if (tile, block) in allowed:
            together.append(allowed[tile, block])
        if together and (at + 1 == len(blocks) or (tile, blocks[at + 1]) not in allowed):
            joined = np.concatenate(together, 1)
            stop = columns[at] if (tile, block) not in allowed else columns[at + 1]
            pieces.append((int(stop) - joined.shape[1], joined.shape[1], tiles.mask(joined)))
            together = []
    return pieces


# --- grids: boxes of keys ---


class _AxisTile(NamedTuple):
    """Queries of one axis that are served together, the keys that they need, and who attends to whom."""

    queries: _Ints
    keys: _Ints
    allowed: _Bools


def _add_grid(mask: GridMask, size: TileSize, tiles: TileList) -> None:
    """Add the tiles of a mask over a grid: boxes of queries, with the boxes of keys around them."""
    axes = [mask.axis(axis) for axis in range(len(mask.q_shape))]
    sizes = _box(axes, mask.tile_hint, mask.q_shape, size)
    per_axis = [_axis_tiles(axis, step) for axis, step in zip(axes, sizes, strict=True)]
    products: dict[tuple[bytes, ...], int] = {}
    for box in itertools.product(*per_axis):
        queries = _flat([tile.queries for tile in box], mask.q_shape)
        keys = _flat([tile.keys for tile in box], mask.kv_shape)
        pieces = []
        if len(keys) and not all(tile.allowed.all() for tile in box):
            key = tuple(str(tile.allowed.shape).encode() + tile.allowed.tobytes() for tile in box)
            if key not in products:
                products[key] = tiles.mask(_product([tile.allowed for tile in box]))
            pieces = [(0, len(keys), products[key])]
        tiles.add(queries, _runs(np.stack([keys, keys + 1], 1)), pieces)


def _box(axes: list[AxisWindows], hint: tuple[int, ...], shape: tuple[int, ...], size: TileSize) -> list[int]:
    """Sizes of the boxes of queries: cheap in pairs, and not too small."""
    spans = [int((axis.high - axis.low).max()) if len(axis.low) else 0 for axis in axes]
    shared = [max(1, min(step, length)) for step, length in zip(hint, shape, strict=True)]

    def cost(box: Iterable[int]) -> float:
        box = tuple(box)
        keys = math.prod(
            max(span, span + step - share) for step, span, share in zip(box, spans, shared, strict=True)
        )
        # A box that does not divide the grid leaves smaller ones at its end.
        filled = math.prod(
            math.ceil(length / step) * step / length for length, step in zip(shape, box, strict=True)
        )
        return keys * (filled + size.grid_overhead / math.prod(box))

    most = max(size.grid_rows, math.prod(shared) if math.prod(shared) <= 1024 else 0)
    options = [
        sorted(
            {min(share * step, length) for step in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128)}
            | {share // part for part in (2, 4, 8, 16, share) if share % part == 0}
        )
        for share, length in zip(shared, shape, strict=True)
    ]
    boxes = [box for box in itertools.product(*options) if math.prod(box) <= most]
    return list(min(boxes, key=cost)) if math.prod(shape) else [1] * len(shape)


def _axis_tiles(axis: AxisWindows, step: int) -> list[_AxisTile]:
    """Cut one axis into tiles of ``step`` queries of one dilation class."""
    q_class, low, high = (part.numpy() for part in (axis.q_class, axis.low, axis.high))
    tiles = []
    for residue in range(axis.dilation):
        queries = np.flatnonzero(q_class == residue)
        for start in range(0, len(queries), step):
            rows = queries[start : start + step]
            some = rows[high[rows] > low[rows]]
            first, last = (low[some].min(), high[some].max()) if len(some) else (0, 0)
            p = np.arange(first, last)
            allowed = (low[rows, None] <= p) & (p < high[rows, None])
            tiles.append(_AxisTile(rows, residue + axis.dilation * p, allowed))
    return tiles


def _flat(coordinates: list[_Ints], shape: tuple[int, ...]) -> _Ints:
    """Row-major positions of the product of coordinates."""
    flat: _Ints = np.ravel_multi_index(np.ix_(*coordinates), shape).reshape(-1).astype(np.int64)
    return flat


def _product(allowed: list[_Bools]) -> _Bools:
    """Who attends to whom in a box: allowed on every axis."""
    whole = allowed[0]
    for one in allowed[1:]:
        whole = (whole[:, None, :, None] & one[None, :, None, :]).reshape(
            len(whole) * len(one), whole.shape[1] * one.shape[1]
        )
    return whole
