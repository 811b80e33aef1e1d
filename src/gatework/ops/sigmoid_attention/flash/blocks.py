"""From a mask to lists of tiles: which blocks of keys each block of queries needs, or the other way round."""

from __future__ import annotations

import functools
import itertools
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatework.masks import FULL, PARTIAL, Mask
from gatework.masks.blocks import uniform_edges

_Ints = NDArray[np.int64]

#: How many keys a tile may have: the masks of tiles are two words of 32 bits for each query.
_COLUMNS = 64
#: Pairs that are evaluated at a time.
_PAIRS_AT_ONCE = 1 << 22


class BlockLists(NamedTuple):
    """The tiles that a mask needs, for every pattern of it, in the order in which a kernel takes them.

    List ``r = pattern * blocks + block`` is the entries ``start[r] ... start[r + 1] - 1``: first the tiles of
    which all pairs are allowed, and from ``partial[r]`` on those that have masks. There is a list for each
    block of queries, of the blocks of keys that it needs, or, along keys, the other way round.

    Attributes:
        pattern_of: ``(batch or 1, heads or 1)``: the pattern of each sequence and query head.
        masks: ``(masks, rows, 2)`` words of 32 bits, two for each query of a tile: their bit ``j`` says
            whether the query may attend to key ``j`` of the tile. Tiles share masks.
        start: Where each list begins, and the end of the last one.
        partial: Where its tiles with masks begin.
        block: The other block of each entry.
        mask: The mask of each entry, -1 for none.
    """

    pattern_of: Tensor
    masks: Tensor
    start: Tensor
    partial: Tensor
    block: Tensor
    mask: Tensor


@functools.lru_cache(maxsize=128)
def block_lists(
    mask: Mask,
    q_length: int,
    kv_length: int,
    rows: int,
    columns: int,
    along: Literal["queries", "keys"],
    device: torch.device,
) -> BlockLists:
    """List the tiles that a mask needs, see :func:`make_lists`, on a device; the last ones are remembered."""
    # Remembered lists outlive what surrounds the first call: a later one may train.
    with torch.inference_mode(False), torch.device("cpu"):
        lists = make_lists(mask, q_length, kv_length, rows, columns, along)
        return BlockLists(*(part.to(device) for part in lists))


def make_lists(
    mask: Mask,
    q_length: int,
    kv_length: int,
    rows: int,
    columns: int,
    along: Literal["queries", "keys"],
) -> BlockLists:
    """List the tiles of ``rows`` queries and ``columns <= 64`` keys in which a mask allows any pair.

    The cost is O(number of tiles), besides the pairs of tiles in doubt.

    Raises:
        ValueError: If a length is negative, or not the one that the mask is made for.
    """
    assert columns <= _COLUMNS, "the masks of tiles have no room for more keys"
    mask.check(q_length, kv_length)
    shape = mask.batch_size or 1, mask.num_heads or 1
    pattern_of = np.zeros(shape, dtype=np.int64)
    known: dict[Mask, int] = {}
    pool = _Pool(rows, columns)
    tables = []
    for batch, head in itertools.product(*map(range, shape)):
        pattern = mask.at(batch, head)
        if pattern not in known:
            known[pattern] = len(known)
            tables.append(_table(pattern, q_length, kv_length, pool))
        pattern_of[batch, head] = known[pattern]
    table = np.stack(tables) if tables else np.zeros((0, 0, 0), dtype=np.int64)
    if along == "keys":
        table = table.swapaxes(1, 2)
    return BlockLists(_ints(pattern_of), pool.masks(), *_lists(table))


#: Entries of a table of tiles that are no mask's.
_NOT_THERE, _WITHOUT_MASK = -2, -1


class _Pool:
    """Masks of tiles, equal ones stored once."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self._of: dict[bytes, int] = {}

    def add(self, allowed: NDArray[np.bool_]) -> int:
        words = np.zeros((self.rows, _COLUMNS // 8), dtype=np.uint8)
        bits = np.packbits(allowed, axis=1, bitorder="little")
        words[:, : bits.shape[1]] = bits
        return self._of.setdefault(words.tobytes(), len(self._of))

    def masks(self) -> Tensor:
        words = np.frombuffer(b"".join(self._of), dtype="<i4")
        return torch.from_numpy(words.astype(np.int32).reshape(-1, self.rows, 2))


def _table(mask: Mask, q_length: int, kv_length: int, pool: _Pool) -> _Ints:
    """What each tile of one pattern is: not there, without a mask, or the number of its mask."""
    q_edges, kv_edges = uniform_edges(q_length, pool.rows), uniform_edges(kv_length, pool.columns)
    states = mask.classify(q_edges, kv_edges).numpy()
    table = np.where(states == FULL, _WITHOUT_MASK, _NOT_THERE)
    for places in _alike(mask, states, (q_length, kv_length), (pool.rows, pool.columns)):
        firsts = np.array([same[0] for same in places])
        pairs, inside = _pairs(mask, firsts * [pool.rows, pool.columns], (q_length, kv_length), pool)
        for same, allowed, there in zip(places, pairs, inside, strict=True):
            kind = _NOT_THERE if not allowed.any() else _WITHOUT_MASK
            if kind == _WITHOUT_MASK and not allowed[there].all():
                kind = pool.add(allowed)
            table[tuple(np.array(same).T)] = kind
    return table


def _alike(
    mask: Mask, states: NDArray[np.int8], lengths: tuple[int, int], sizes: tuple[int, int]
) -> list[list[list[tuple[int, int]]]]:
    """Tiles in doubt, those that are sure to be alike together; in stretches to be evaluated at a time."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for q, kv in zip(*(axis.tolist() for axis in np.nonzero(states == PARTIAL)), strict=True):
        key = (q, kv)
        whole = (q + 1) * sizes[0] <= lengths[0] and (kv + 1) * sizes[1] <= lengths[1]
        if mask.is_relative and whole:
            # What depends on distances only is the same wherever it begins.
            key = (q * sizes[0] - kv * sizes[1], -1)
        groups.setdefault(key, []).append((q, kv))
    at_once = max(1, _PAIRS_AT_ONCE // (sizes[0] * sizes[1]))
    every = list(groups.values())
    return [every[start : start + at_once] for start in range(0, len(every), at_once)]


def _pairs(
    mask: Mask, starts: _Ints, lengths: tuple[int, int], pool: _Pool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What a mask says of the pairs of whole tiles, and which of them are in the sequences."""
    q_idx = torch.from_numpy(starts[:, 0, None, None]) + torch.arange(pool.rows)[:, None]
    kv_idx = torch.from_numpy(starts[:, 1, None, None]) + torch.arange(pool.columns)
    inside = (q_idx < lengths[0]) & (kv_idx < lengths[1])
    zero = torch.zeros((), dtype=torch.int64)
    # Masks may look their answer up in tables: they are asked only of positions that there are.
    allowed = mask(zero, zero, q_idx.clamp(max=lengths[0] - 1), kv_idx.clamp(max=lengths[1] - 1))
    return (allowed & inside).numpy(), inside.numpy()


def _lists(table: _Ints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Start, start of the tiles with masks, block and mask of the lists of each row of a table."""
    kinds = table.reshape(table.shape[0] * table.shape[1], table.shape[2])
    row, block = np.nonzero(kinds != _NOT_THERE)
    mask = kinds[row, block]
    order = np.lexsort((mask != _WITHOUT_MASK, row))  # stable: blocks stay in order
    start = np.concatenate([[0], np.cumsum((kinds != _NOT_THERE).sum(1))])
    partial = start[:-1] + (kinds == _WITHOUT_MASK).sum(1)
    return _ints(start), _ints(partial), _ints(block[order]), _ints(mask[order])


def _ints(values: _Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int32))
