"""The steps in which the blocked engine goes through a plan with PyTorch's own operators."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gatework.ops.attention.plan import Plan, unpack

#: Scores that tiles of one step have at most, unless a single tile has more: what stays in a cache.
_SCORES_AT_ONCE = 1 << 20
#: Keys of a step, and of all tiles of a plan, whose positions are kept; those of more are found again.
_FEW_KEYS, _FEW_IN_ALL = 1 << 15, 1 << 20
#: Elements of masks, as numbers to add, that are kept for a plan.
_ADDED_AT_MOST = 1 << 22


class Heads(NamedTuple):
    """Sequences and heads that share a pattern: all, or one head, of one sequence or of all.

    Attributes:
        batch: Which sequences.
        queries: Which heads of the queries.
        keys: Which heads of keys and values.
    """

    batch: slice
    queries: slice
    keys: slice


class Stretch(NamedTuple):
    """One tile whose queries and keys are both contiguous: nothing is copied.

    Tensors of a step have shapes ``(n, groups, rows, dim)`` for queries and ``(n, columns, dim)`` for keys;
    ``n`` counts sequences, key heads and tiles, ``groups`` the query heads of a key head.
    """

    heads: Heads
    num_heads: int
    groups: int
    q_range: tuple[int, int]
    kv_range: tuple[int, int]
    masks: tuple[tuple[int, Tensor], ...]

    def queries(self, x: Tensor) -> Tensor:
        """The step's rows of a tensor of queries."""
        part = x[self.heads.batch, self.heads.queries, slice(*self.q_range)]
        return part.reshape(part.shape[0] * part.shape[1] // self.groups, self.groups, *part.shape[2:])

    def keys(self, x: Tensor) -> Tensor:
        """The step's rows of a tensor of keys."""
        part = x[self.heads.batch, self.heads.keys, slice(*self.kv_range)]
        return part.reshape(part.shape[0] * part.shape[1], *part.shape[2:])

    def put(self, into: Tensor, rows: Tensor) -> None:
        """Write the step's rows of a tensor of queries."""
        part = into[self.heads.batch, self.heads.queries, slice(*self.q_range)]
        part.copy_(rows.reshape(part.shape))

    def add_to_keys(self, into: Tensor, rows: Tensor) -> None:
        """Add to the step's rows of a tensor of keys."""
        part = into[self.heads.batch, self.heads.keys, slice(*self.kv_range)]
        part.add_(rows.reshape(part.shape))

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys, ``(tiles, rows)`` and ``(tiles, columns)``."""
        return torch.arange(*self.q_range)[None], torch.arange(*self.kv_range)[None]


class Gather(NamedTuple):
    """Tiles of one shape, whose queries and keys are gathered. See :class:`Stretch` for the methods.

    Whatever the tensors' layout in memory, rows are taken from one long list of them: indexing of the first
    axis is several times faster in PyTorch than indexing of a later one.
    """

    heads: Heads
    num_heads: int
    groups: int
    tiles: int
    query: Tensor
    run_start: Tensor
    run_length: Tensor
    remembered: dict[object, Tensor] | None
    masks: tuple[tuple[int, Tensor], ...]

    def queries(self, x: Tensor) -> Tensor:
        """The step's rows of a tensor of queries."""
        rows, strides = _as_rows(x)
        rows = rows.index_select(0, self._query_index(x, strides))
        count = len(self.query) // self.tiles
        return rows.view(len(rows) // (self.groups * count), self.groups, count, *x.shape[3:])

    def keys(self, x: Tensor) -> Tensor:
        """The step's rows of a tensor of keys."""
        rows, strides = _as_rows(x)
        index = self._key_index(x, strides)
        return rows.index_select(0, index.view(-1)).view(*index.shape, *x.shape[3:])

    def put(self, into: Tensor, rows: Tensor) -> None:
        """Write the step's rows of a contiguous tensor of queries."""
        whole, strides = _as_rows(into)
        index = self._query_index(into, strides)
        whole.index_copy_(0, index, rows.reshape(len(index), *into.shape[3:]))

    def add_to_keys(self, into: Tensor, rows: Tensor) -> None:
        """Add to the step's rows of a contiguous tensor of keys."""
        whole, strides = _as_rows(into)
        whole.index_add_(0, self._key_index(into, strides).view(-1), rows.flatten(0, 1))

    def positions(self) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys, ``(tiles, rows)`` and ``(tiles, columns)``."""
        return self.query.view(self.tiles, -1), self.key().view(self.tiles, -1)

    def key(self) -> Tensor:
        """Positions of the keys, tile by tile."""
        return self._remember("keys", lambda: _positions(self.run_start, self.run_length))

    def _query_index(self, x: Tensor, strides: _RowStrides) -> Tensor:
        """Rows of the queries in the order ``(sequence, key head, tile, group, row)``."""

        def make() -> Tensor:
            first = _first_rows(x, self.heads.batch, self.heads.queries, strides)
            first = first.view(len(first), -1, 1, self.groups, 1)
            return (first + self.query.view(self.tiles, 1, -1) * strides.position).view(-1)

        return self._remember(("queries", x.shape[:3], strides), make)

    def _key_index(self, x: Tensor, strides: _RowStrides) -> Tensor:
        """Rows of the keys, ``(sequences * key heads * tiles, columns)``."""

        def make() -> Tensor:
            first = _first_rows(x, self.heads.batch, self.heads.keys, strides)
            key = self.key().view(self.tiles, -1) * strides.position
            return (first[..., None, None] + key).flatten(0, 2)

        return self._remember(("keys", x.shape[:3], strides), make)

    def _remember(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """Find rows once if they are few; those of many are found again each time."""
        if self.remembered is None:
            return make()
        if key not in self.remembered:
            self.remembered[key] = make()
        return self.remembered[key]


class _RowStrides(NamedTuple):
    """By how many rows sequences, heads and positions lie apart in a list of all rows of a tensor."""

    batch: int
    head: int
    position: int


def _as_rows(x: Tensor) -> tuple[Tensor, _RowStrides]:
    """View a tensor of shape ``(batch, heads, length, ...)`` as a list of rows; copy it if that cannot be."""
    _, heads, length = x.shape[:3]
    if not x.is_contiguous() and x.transpose(1, 2).is_contiguous():
        return x.transpose(1, 2).flatten(0, 2), _RowStrides(length * heads, 1, heads)
    return x.contiguous().flatten(0, 2), _RowStrides(heads * length, length, 1)


def _first_rows(x: Tensor, batch: slice, heads: slice, strides: _RowStrides) -> Tensor:
    """The rows of position 0 of some sequences and heads."""
    sequences = torch.arange(x.shape[0])[batch] * strides.batch
    return sequences[:, None] + torch.arange(x.shape[1])[heads] * strides.head


Step = Stretch | Gather


class AddedMasks:
    """Masks of steps as numbers to add, 0 where allowed, else -inf; what fits is remembered."""

    def __init__(self) -> None:
        self._made: dict[object, Tensor] = {}
        self._nothing: dict[object, Tensor | None] = {}
        self._size = 0

    def piece(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """One piece, ``(tiles or 1, rows, width)``."""
        return self._get(
            (id(mask), dtype), lambda: torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
        )

    def whole(self, step: Step, columns: int, dtype: torch.dtype) -> Tensor:
        """All pieces of a step over all of its columns, ``(tiles or 1, rows, columns)``."""
        if len(step.masks) == 1 and step.masks[0][1].shape[2] == columns:
            return self.piece(step.masks[0][1], dtype)

        def make() -> Tensor:
            tiles = max(mask.shape[0] for _, mask in step.masks)
            whole = torch.zeros(tiles, step.masks[0][1].shape[1], columns, dtype=dtype)
            for column, mask in step.masks:
                whole[..., column : column + mask.shape[2]].masked_fill_(~mask, -torch.inf)
            return whole

        key = (*((column, id(mask)) for column, mask in step.masks), columns, dtype)
        return self._get(key, make)

    def nothing(self, step: Step, columns: int) -> Tensor | None:
        """Rows that a step leaves nothing, ``(tiles or 1, rows)``; ``None`` if there are none."""
        if sum(mask.shape[2] for _, mask in step.masks) < columns:
            return None
        key = tuple(id(mask) for _, mask in step.masks)
        if key not in self._nothing:
            nothing = ~functools.reduce(torch.logical_or, [mask.any(-1) for _, mask in step.masks])
            self._nothing[key] = nothing if bool(nothing.any()) else None
        return self._nothing[key]

    def _get(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if key in self._made:
            return self._made[key]
        made = make()
        if self._size + made.numel() <= _ADDED_AT_MOST:
            self._made[key] = made
            self._size += made.numel()
        return made


class _Tile(NamedTuple):
    """One tile of a plan, as slices of its arrays."""

    rows: int
    columns: int
    pieces: tuple[tuple[int, int, int], ...]
    query: slice
    runs: slice
    in_order: bool


class Schedule(NamedTuple):
    """The steps for a plan, and what their masks are as numbers to add."""

    steps: tuple[Step, ...]
    added: AddedMasks


def schedule(packed: Tensor, digest: bytes, batch: int, heads: int, kv_heads: int) -> Schedule:
    """Return the steps for a packed plan and its digest; those of the last plans are remembered."""
    return _remembered(_Packed(packed, digest), batch, heads, kv_heads)


class _Packed:
    """A packed plan that is equal to another one if their digests are."""

    def __init__(self, packed: Tensor, digest: bytes) -> None:
        self.packed = packed
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Packed) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@functools.lru_cache(maxsize=16)
def _remembered(packed: _Packed, batch: int, heads: int, kv_heads: int) -> Schedule:
    plan = unpack(packed.packed)
    groups = heads // kv_heads
    masks = _Masks(plan.pool)
    found: list[Step] = []
    for pattern, selection in _selections(plan, heads, groups):
        count = (batch if selection.batch == slice(None) else 1) * (
            kv_heads if selection.queries == slice(None) else 1
        )
        whole = selection.queries == slice(None)
        shared = (heads, groups) if whole else (1, 1)
        found.extend(_of_pattern(plan, masks, pattern, selection, shared, count))
    if int(plan.run_length.sum()) > _FEW_IN_ALL:
        # A long plan that is new in every call would fill the memory.
        found = [step._replace(remembered=None) if isinstance(step, Gather) else step for step in found]
    return Schedule(tuple(found), AddedMasks())


class _Masks:
    """The masks of a plan, each of them one tensor however often it is used."""

    def __init__(self, pool: Tensor) -> None:
        self._pool = pool
        self._made: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}

    def get(self, rows: int, width: int, offsets: tuple[int, ...]) -> Tensor:
        """Masks of one shape that begin at ``offsets``, ``(masks, rows, width)``, True where allowed."""
        key = (rows, width, offsets)
        if key not in self._made:
            parts = [self._pool[at : at + rows * width].view(rows, width) for at in offsets]
            self._made[key] = torch.stack(parts).bool()
        return self._made[key]


def _selections(plan: Plan, heads: int, groups: int) -> Iterator[tuple[int, Heads]]:
    """Every pattern with the sequences and heads that it is for."""
    batches, distinct = plan.pattern_of.shape
    for b, h in itertools.product(range(batches), range(distinct)):
        batch = slice(None) if batches == 1 else slice(b, b + 1)
        queries, keys = slice(None), slice(None)
        if distinct > 1 or heads == 1:
            queries, keys = slice(h, h + 1), slice(h // groups, h // groups + 1)
        yield int(plan.pattern_of[b, h]), Heads(batch, queries, keys)


def _of_pattern(
    plan: Plan, masks: _Masks, pattern: int, heads: Heads, shared: tuple[int, int], count: int
) -> Iterator[Step]:
    """Steps of one pattern: a stretch by itself if its ``count`` heads suffice, else tiles alike together."""
    alike: dict[tuple[int, ...], list[_Tile]] = {}
    for tile in _tiles(plan, pattern):
        if count >= 4 and _is_stretch(tile):
            yield _stretch(plan, masks, tile, heads, shared)
        elif tile.pieces == ((0, tile.columns, tile.pieces[0][2] if tile.pieces else 0),) or not tile.pieces:
            alike.setdefault((tile.rows, tile.columns, bool(tile.pieces)), []).append(tile)
        else:
            places = tuple(itertools.chain.from_iterable(tile.pieces))
            alike.setdefault((tile.rows, tile.columns, True, *places), []).append(tile)
    for (rows, columns, *_), tiles in alike.items():
        tiles.sort(key=lambda tile: tile.pieces)
        at_once = max(1, _SCORES_AT_ONCE // max(1, rows * columns * count * shared[1]))
        for start in range(0, len(tiles), at_once):
            yield _gather(plan, masks, tiles[start : start + at_once], heads, shared)


def _tiles(plan: Plan, pattern: int) -> Iterator[_Tile]:
    first, last = plan.pattern_tile[pattern : pattern + 2].tolist()
    query, run, piece = (
        part[first : last + 1].tolist() for part in (plan.tile_query, plan.tile_run, plan.tile_piece)
    )
    total = torch.cat([plan.run_length.new_zeros(1), plan.run_length.cumsum(0)])
    columns = (total[plan.tile_run[first + 1 : last + 1]] - total[plan.tile_run[first:last]]).tolist()
    # Lists, at once: a plan that is new in every call is asked for thousands of numbers.
    pieces = list(
        zip(
            *(
                part[piece[0] : piece[-1]].tolist()
                for part in (plan.piece_column, plan.piece_width, plan.piece_mask)
            ),
            strict=True,
        )
    )
    jumps = torch.nn.functional.pad((plan.query[query[0] : query[-1]].diff() != 1).cumsum(0), (1, 0)).tolist()
    for tile in range(last - first):
        start, stop = query[tile], query[tile + 1]
        yield _Tile(
            stop - start,
            columns[tile],
            tuple(pieces[piece[tile] - piece[0] : piece[tile + 1] - piece[0]]),
            slice(start, stop),
            slice(run[tile], run[tile + 1]),
            stop > start and jumps[start - query[0]] == jumps[stop - 1 - query[0]],
        )


def _is_stretch(tile: _Tile) -> bool:
    """Whether queries and keys of a tile are each one run."""
    return tile.in_order and tile.runs.stop - tile.runs.start == 1


def _stretch(plan: Plan, masks: _Masks, tile: _Tile, heads: Heads, shared: tuple[int, int]) -> Stretch:
    start = int(plan.run_start[tile.runs.start])
    first = int(plan.query[tile.query.start])
    pieces = tuple((column, masks.get(tile.rows, width, (at,))) for column, width, at in tile.pieces)
    return Stretch(heads, *shared, (first, first + tile.rows), (start, start + tile.columns), pieces)


def _positions(starts: Tensor, lengths: Tensor) -> Tensor:
    """All positions of runs, one run after the other."""
    ends = lengths.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    return torch.repeat_interleave(starts - ends + lengths, lengths, output_size=total) + torch.arange(total)


def _gather(plan: Plan, masks: _Masks, tiles: list[_Tile], heads: Heads, shared: tuple[int, int]) -> Gather:
    """Tiles with pieces at the same columns, or each with one piece over all of them."""
    stacked = []
    for pieces in zip(*(tile.pieces for tile in tiles), strict=True):
        column, width, _ = pieces[0]
        offsets = list(dict.fromkeys(piece[2] for piece in pieces))
        if len(offsets) > 1:
            offsets = [piece[2] for piece in pieces]
        stacked.append((column, masks.get(tiles[0].rows, width, tuple(offsets))))
    query, starts, lengths = (
        torch.from_numpy(np.concatenate([part[getattr(tile, name)] for tile in tiles])).long()
        for part, name in (
            (plan.query.numpy(), "query"),
            (plan.run_start.numpy(), "runs"),
            (plan.run_length.numpy(), "runs"),
        )
    )
    few = len(tiles) * tiles[0].columns <= _FEW_KEYS
    remembered: dict[object, Tensor] | None = {} if few else None
    return Gather(heads, *shared, len(tiles), query, starts, lengths, remembered, tuple(stacked))
