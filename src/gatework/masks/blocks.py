"""Masks in blocks: what a mask says of whole rectangles of pairs, without looking at each pair.

Everything here works on the CPU with tensors of *edges*: block ``a`` is the positions
``edges[a] ... edges[a + 1] - 1``. Time and memory follow the number of blocks; only blocks that are neither
empty nor full are ever looked at pair by pair, a bounded number of pairs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

if TYPE_CHECKING:
    from gatework.masks.algebra import Mask

#: No pair of the block is allowed; some may be; all are. EMPTY and FULL are promises.
EMPTY, PARTIAL, FULL = 0, 1, 2

#: Pairs that are evaluated at a time.
_PAIRS = 1 << 21
#: A grid of blocks is refined where its pattern changes if that multiplies the blocks by at most this.
_REFINEMENT = 8


def uniform_edges(length: int, size: int) -> Tensor:
    """Edges of blocks of ``size`` positions; the last block may be smaller."""
    return torch.cat([torch.arange(0, length, size), torch.tensor([length])])


def merged_edges(*edges: Tensor | None) -> Tensor | None:
    """All given edges in one increasing tensor; ``None`` if there are none."""
    given = [each for each in edges if each is not None]
    return torch.cat(given).unique() if given else None


def states(empty: Tensor, full: Tensor) -> Tensor:
    """EMPTY, PARTIAL or FULL from what is known to be empty and what is known to be full."""
    return torch.where(empty, EMPTY, torch.where(full, FULL, PARTIAL)).to(torch.int8)


def range_states(edges: Tensor, start: int | Tensor, stop: int | Tensor) -> Tensor:
    """Whether blocks of positions lie outside, partly in, or inside ``start ... stop - 1``."""
    low, high = edges[:-1], edges[1:]
    return states((high <= start) | (low >= stop), (low >= start) & (high <= stop))


def classify_pairs(mask: Mask, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
    """Classify exactly by evaluating every pair, stretch by stretch, in bounded memory."""
    counts = torch.zeros(len(q_edges) - 1, len(kv_edges) - 1, dtype=torch.int64)
    areas = q_edges.diff()[:, None] * kv_edges.diff()
    if counts.numel() == 0:
        return counts.to(torch.int8)
    first, last = int(kv_edges[0]), int(kv_edges[-1])
    columns = min(max(last - first, 1), _PAIRS)
    rows = max(1, _PAIRS // columns)
    for top in range(int(q_edges[0]), int(q_edges[-1]), rows):
        queries = torch.arange(top, min(top + rows, int(q_edges[-1])))
        block = torch.searchsorted(q_edges, queries, right=True) - 1
        for left in range(first, last, columns):
            keys = torch.arange(left, min(left + columns, last))
            sums = torch.nn.functional.pad(mask.pairs(queries, keys).cumsum(1), (1, 0))
            ends = sums[:, (kv_edges - left).clamp(0, len(keys))]
            counts.index_add_(0, block, ends.diff(dim=1))
    return states(counts == 0, counts == areas)


def classify_diagonals(mask: Mask, q_edges: Tensor, kv_edges: Tensor) -> Tensor:
    """Classify a relative mask exactly: each block is a range of diagonals, and sums tell how many count."""
    if len(q_edges) < 2 or len(kv_edges) < 2:
        return torch.zeros(len(q_edges) - 1, len(kv_edges) - 1, dtype=torch.int8)
    base = int(kv_edges[0] - q_edges[-1]) + 1
    allowed = _diagonals(mask, base, int(kv_edges[-1] - q_edges[0]) - 1)
    sums = torch.nn.functional.pad(allowed.cumsum(0, dtype=torch.int32), (1, 0))
    low = (kv_edges[:-1] - (q_edges[1:, None] - 1)) - base
    high = (kv_edges[1:] - q_edges[:-1, None]) - base
    count = sums[high] - sums[low]
    return states(count == 0, count == high - low)


def _diagonals(mask: Mask, first: int, last: int) -> Tensor:
    """What a relative mask says of the differences ``first ... last`` of key and query position."""
    zero = torch.zeros((), dtype=torch.int64)
    distance = torch.arange(first, last + 1)
    return mask(zero, zero, zero.expand_as(distance), distance).expand_as(distance)


def refined(
    classify: Callable[[Tensor, Tensor], Tensor],
    q_edges: Tensor,
    kv_edges: Tensor,
    q_cuts: Tensor | None,
    kv_cuts: Tensor | None,
) -> Tensor:
    """Classify the blocks cut also where the pattern changes, and put the pieces together again.

    Parts of a mask that are exact on each piece then give the exact class of the whole block. Where the
    pattern changes so often that the pieces were too many, the blocks are classified as they are.
    """
    fine_q, fine_kv = _with_cuts(q_edges, q_cuts), _with_cuts(kv_edges, kv_cuts)
    pieces, blocks = len(fine_q) * len(fine_kv), len(q_edges) * len(kv_edges)
    unchanged = len(fine_q) == len(q_edges) and len(fine_kv) == len(kv_edges)
    if unchanged or pieces > max(_REFINEMENT * blocks, 1 << 16) or min(len(q_edges), len(kv_edges)) < 2:
        return classify(q_edges, kv_edges)
    fine = classify(fine_q, fine_kv).numpy()
    rows = torch.searchsorted(fine_q, q_edges[:-1]).numpy()
    columns = torch.searchsorted(fine_kv, kv_edges[:-1]).numpy()
    least = np.minimum.reduceat(np.minimum.reduceat(fine, rows, 0), columns, 1)
    most = np.maximum.reduceat(np.maximum.reduceat(fine, rows, 0), columns, 1)
    return torch.from_numpy(np.where(least == most, least, PARTIAL).astype(np.int8))


def _with_cuts(edges: Tensor, cuts: Tensor | None) -> Tensor:
    if cuts is None or len(edges) < 2:
        return edges
    inside = cuts[(cuts > edges[0]) & (cuts < edges[-1])]
    return torch.cat([edges, inside]).unique() if len(inside) else edges


def count_diagonals(mask: Mask, q_length: int, kv_length: int) -> int:
    """Count the pairs that a relative mask allows, diagonal by diagonal."""
    if q_length == 0 or kv_length == 0:
        return 0
    distance = torch.arange(1 - q_length, kv_length)
    lengths = torch.minimum(
        (kv_length - distance).clamp(max=q_length), (q_length + distance).clamp(max=kv_length)
    )
    return int(lengths[_diagonals(mask, 1 - q_length, kv_length - 1)].sum())


def count_blocks(mask: Mask, q_length: int, kv_length: int) -> int:
    """Count the allowed pairs: full blocks by their area, the partial ones pair by pair."""
    q_cuts, kv_cuts = mask.edges(q_length, kv_length)
    q_edges = _with_cuts(uniform_edges(q_length, max(32, -(-q_length // 1024))), q_cuts)
    kv_edges = _with_cuts(uniform_edges(kv_length, max(32, -(-kv_length // 1024))), kv_cuts)
    classes = mask.classify(q_edges, kv_edges)
    areas = q_edges.diff()[:, None] * kv_edges.diff()
    count = int(areas[classes == FULL].sum())
    rows, columns = (classes == PARTIAL).nonzero(as_tuple=True)
    if len(rows) == 0:
        return count
    across, along = (torch.arange(int(edges.diff().max())) for edges in (q_edges, kv_edges))
    zero = torch.zeros((), dtype=torch.int64)
    step = max(1, _PAIRS // (len(across) * len(along)))
    for row, column in zip(rows.split(step), columns.split(step), strict=True):
        q_idx = (q_edges[row, None] + across)[:, :, None]
        kv_idx = (kv_edges[column, None] + along)[:, None, :]
        inside = (q_idx < q_edges[row + 1, None, None]) & (kv_idx < kv_edges[column + 1, None, None])
        allowed = mask(zero, zero, q_idx.clamp(max=q_length - 1), kv_idx.clamp(max=kv_length - 1))
        count += int((allowed & inside).sum())
    return count


def uniform_classes(masks: Iterable[Mask], lengths: tuple[int, int], block_size: tuple[int, int]) -> Tensor:
    """Classify blocks of one size by each of the masks: ``(masks, q_blocks, kv_blocks)``."""
    q_edges, kv_edges = map(uniform_edges, lengths, block_size)
    return torch.stack([mask.classify(q_edges, kv_edges) for mask in masks])


def to_block_mask(
    mask: Mask,
    classes: Tensor,
    lengths: tuple[int, int],
    block_size: tuple[int, int],
    device: torch.device | str | None,
) -> BlockMask:
    """Wrap classes ``(batch, heads, q_blocks, kv_blocks)`` of uniform blocks as FlexAttention's BlockMask.

    Like ``create_block_mask`` it calls no block full that sticks out of the sequence.
    """
    partial, full = classes == PARTIAL, classes == FULL
    for axis, (length, size) in enumerate(zip(lengths, block_size, strict=True)):
        if length % size:
            last = full.narrow(axis + 2, full.shape[axis + 2] - 1, 1)
            partial.narrow(axis + 2, full.shape[axis + 2] - 1, 1).logical_or_(last)
            last.fill_(False)
    kv, full_kv, q, full_q = (
        [part.to(device or "cpu") for part in _ordered(blocks)]
        for blocks in (partial, full, partial.mT, full.mT)
    )
    return BlockMask(
        seq_lengths=lengths,
        kv_num_blocks=kv[0],
        kv_indices=kv[1],
        full_kv_num_blocks=full_kv[0],
        full_kv_indices=full_kv[1],
        q_num_blocks=q[0],
        q_indices=q[1],
        full_q_num_blocks=full_q[0],
        full_q_indices=full_q[1],
        BLOCK_SIZE=block_size,
        mask_mod=mask,
    )


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per row: how many blocks are chosen, and the indices of these, then of the others."""
    width = chosen.shape[-1]
    before = chosen.cumsum(-1)
    count = before[..., -1:] if width else before.new_zeros(*chosen.shape[:-1], 1)
    column = torch.arange(width)
    place = torch.where(chosen, before - 1, count + column - before)
    indices = torch.zeros(chosen.shape, dtype=torch.int32)
    indices.scatter_(-1, place, column.to(torch.int32).expand_as(indices))
    return count[..., 0].to(torch.int32), indices
