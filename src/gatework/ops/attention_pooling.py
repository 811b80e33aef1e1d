"""The attention map, max-pooled over blocks: what a gate that selects blocks is trained towards.

SeerAttention (arXiv:2410.13276) distils the map of a frozen model, pooled over tiles of queries and keys,
into a gate for prefilling; SeerAttention-R (arXiv:2506.08889) pools over keys and heads, for decoding. The
map itself is never held whole here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from gatework.checks import check_int, check_number
from gatework.masks import Causal, Full, Mask
from gatework.masks.algebra import EMPTY, PARTIAL
from gatework.masks.blocks import uniform_edges
from gatework.ops.attention import attention_reference
from gatework.ops.attention.checks import check_tensors

_Queries = Float[Tensor, "batch heads q_length head_dim"]
_Keys = Float[Tensor, "batch kv_heads kv_length head_dim"]
_Map = Float[Tensor, "batch heads q_blocks kv_blocks"]
_Rows = Float[Tensor, "batch kv_heads q_length kv_blocks"]

#: Queries whose scores are held at a time, and scores at a time if that leaves a head whole.
_ROWS, _SCORES = 128, 1 << 20
#: What SeerAttention-R adds to the sums that it divides by.
_EPSILON = 1e-9


def pooled_attention_map_reference(
    q: _Queries,
    k: _Keys,
    *,
    block_size: int = 64,
    is_causal: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    normalize: bool = True,
) -> _Map:
    """The definition: ``map[I, J] = max p[i, j]``, ``p`` the attention map, over the pairs of a tile."""
    by_keys = _in_blocks(_weights(q, k, is_causal, mask, scale), block_size).amax(-1)
    pooled = _in_blocks(by_keys.mT, block_size).amax(-1).mT
    return _normalized(pooled) if normalize else pooled


def pooled_attention_rows_reference(
    q: _Queries, k: _Keys, *, block_size: int = 64, mask: Mask | None = None, scale: float | None = None
) -> _Rows:
    """The definition: ``rows[i, J] = max p[i, j]`` over the keys of block ``J`` and the heads of a key head.

    Zero unless ``J`` is before the block of query ``i``; then ``rows[i] / (sum(rows[i]) + 1e-9)``.
    """
    weights = _weights(q, k, True, mask, scale)
    by_group = _in_blocks(weights, block_size).amax(-1).unflatten(1, (k.shape[1], -1))
    return _before_own_block(by_group.amax(2), k.shape[2], block_size)


@torch.no_grad()
def pooled_attention_map(
    q: _Queries,
    k: _Keys,
    *,
    block_size: int = 64,
    is_causal: bool = True,
    mask: Mask | None = None,
    scale: float | None = None,
    normalize: bool = True,
) -> _Map:
    """Return the largest attention weight in each tile: ``map[I, J] = max_(i in I, j in J) softmax_j(s_ij)``.

    Computes what :func:`pooled_attention_map_reference` defines, in about the time of attention itself and
    O(q_length + kv_length) memory besides the result. It is a target: no gradient goes through it.

    Args:
        q: Queries, with positions in them (after RoPE); they are the last tokens: query ``i`` stands at
            position ``i + kv_length - q_length``. Half precisions are computed in float32.
        k: Keys; their heads may divide those of ``q``.
        block_size: Tokens of a block of queries and of keys; the last may have fewer.
        is_causal: Whether queries see no later keys.
        mask: What else forbids pairs; it counts queries and keys from 0, as for
            :func:`gatework.ops.attention`.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        normalize: Whether rows are divided by their sums, which makes them distributions over blocks.

    Returns:
        The pooled map, float32 or float64; zeros where nothing is allowed.

    Raises:
        ValueError: If shapes or dtypes do not fit, or a causal map has more queries than keys.
        TypeError: If ``mask`` is no mask.
    """
    scores = _checked(q, k, block_size, is_causal, mask, scale)
    pooled = scores.zeros(-(-q.shape[2] // block_size), groups=scores.q.shape[1])
    for tile in _tiles(scores, block_size):
        by_block = _in_blocks(tile.weights, block_size).amax(-1).permute(0, 2, 3, 1)
        first = tile.start // block_size
        part = pooled[tile.units, tile.groups, first : first + by_block.shape[2], tile.blocks]
        part.copy_(torch.maximum(part, by_block))  # a large block has several tiles
    pooled = pooled.view(*q.shape[:2], *pooled.shape[2:])
    return _normalized(pooled) if normalize else pooled


@torch.no_grad()
def pooled_attention_rows(
    q: _Queries, k: _Keys, *, block_size: int = 64, mask: Mask | None = None, scale: float | None = None
) -> _Rows:
    """Return, for every query, how much each earlier block of keys matters to the heads of a key head.

    Computes what :func:`pooled_attention_rows_reference` defines, the target of a gate for decoding, in about
    the time of causal attention and O(q_length + kv_length) memory besides the result. It is a target: no
    gradient goes through it.

    Args:
        q: Queries, with positions in them (after RoPE): the last tokens of those of ``k``. Half precisions
            are computed in float32.
        k: Keys; their heads may divide those of ``q``.
        block_size: Tokens of a block of keys; the last may have fewer.
        mask: What else forbids pairs, besides the order of tokens; it counts queries and keys from 0.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.

    Returns:
        Rows that sum to 1, or to 0 where no earlier block is allowed; float32 or float64.

    Raises:
        ValueError: If shapes or dtypes do not fit, or there are more queries than keys.
        TypeError: If ``mask`` is no mask.
    """
    scores = _checked(q, k, block_size, True, mask, scale)
    rows = scores.zeros(q.shape[2], groups=1)[:, 0]
    for tile in _tiles(scores, 1):
        by_group = tile.weights.amax(2).mT
        part = rows[tile.units, tile.start : tile.start + by_group.shape[1], tile.blocks]
        part.copy_(torch.maximum(part, by_group))  # heads of a group may come one by one
    return _before_own_block(rows.view(*k.shape[:2], *rows.shape[1:]), k.shape[2], block_size)


def pooled_map_loss(
    logits: Float[Tensor, "batch heads blocks blocks"],
    target: Float[Tensor, "batch heads blocks blocks"],
    *,
    first_row: int | None = None,
) -> Float[Tensor, ""]:
    """Divergence of a gate's block scores from the pooled map: ``mean target * (log target - log p)``.

    ``p`` is the softmax of the logits up to the diagonal; the mean is over all elements of the rows that
    count, those above the diagonal too, so it scales like ``1 / blocks`` (arXiv:2410.13276, and
    ``KLDivLoss()`` in the authors' code).

    Args:
        logits: Scores of blocks of keys, not masked, or with -inf where masked.
        target: From :func:`pooled_attention_map`.
        first_row: First block of queries that counts; a quarter of them by default, as in the authors' code.

    Raises:
        ValueError: If shapes differ or are not square, or no row would count.
    """
    blocks = logits.shape[-1] if logits.ndim else 0
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[2] != blocks:
        raise ValueError(
            f"logits and target must have one shape (batch, heads, blocks, blocks), "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    first = _first_row(blocks // 4 if first_row is None else first_row, blocks)
    column = torch.arange(blocks, device=logits.device)
    return _divergence(logits[:, :, first:], target[:, :, first:], column <= column[first:, None])


def pooled_rows_loss(
    logits: Float[Tensor, "batch kv_heads length blocks"],
    target: Float[Tensor, "batch kv_heads length blocks"],
    *,
    block_size: int = 64,
    first_row: int | None = None,
) -> Float[Tensor, ""]:
    """Divergence of a decoding gate's scores from the pooled rows: ``mean target * (log target - log p)``.

    ``p`` is the softmax of the logits of the blocks before the query's own; the mean is over all elements of
    the rows that count (arXiv:2506.08889, and the authors' code).

    Args:
        logits: Scores of blocks of keys for every query, not masked, or with -inf where masked.
        target: From :func:`pooled_attention_rows`.
        block_size: Tokens of a block of keys.
        first_row: First query that counts; half of them by default, as in the authors' scripts.

    Raises:
        ValueError: If shapes differ or are not those of a sequence in such blocks, or no row would count.
    """
    check_int("block_size", block_size, at_least=1)
    length = logits.shape[2] if logits.ndim == 4 else 0
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[3] != -(-length // block_size):
        raise ValueError(
            f"logits and target must have one shape (batch, kv_heads, length, blocks of {block_size}), "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    first = _first_row(length // 2 if first_row is None else first_row, length)
    own = torch.arange(first, length, device=logits.device)[:, None] // block_size
    column = torch.arange(logits.shape[3], device=logits.device)
    return _divergence(logits[:, :, first:], target[:, :, first:], column < own)


def _first_row(row: int, rows: int) -> int:
    if check_int("first_row", row, at_least=0) >= rows:
        raise ValueError(f"first_row must be less than the {rows} rows, got {row}")
    return row


def _divergence(logits: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
    """Mean of ``target * (log target - log softmax(logits))``; what is not allowed adds 0 to the sum."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, target = logits.to(dtype), target.to(dtype).masked_fill(~allowed, 0.0)
    # The least number, not -inf: a row may be left nothing, and 0 * inf is no number.
    logits = logits.masked_fill(~allowed | logits.isneginf(), torch.finfo(dtype).min)
    losses: Tensor = torch.special.xlogy(target, target) - target * log_softmax(logits, -1)
    return losses.mean()


# --- the loop over tiles of queries ---


class _Scores(NamedTuple):
    """What weights are made of: a unit is a key head of a sequence, a group its query heads.

    Attributes:
        q: Queries times the scale, ``(units, groups, q_length, head_dim)``.
        k: Keys, with zeros up to the end of the last block, ``(units, kv_blocks * block_size, head_dim)``.
        kv_length: Number of keys without these zeros.
        block_size: Tokens of a block of keys.
        kv_heads: Units of a sequence.
        mask: Which pairs are allowed.
    """

    q: Tensor
    k: Tensor
    kv_length: int
    block_size: int
    kv_heads: int
    mask: Mask

    def zeros(self, rows: int, *, groups: int) -> Tensor:
        """Zeros for ``rows`` of queries and all blocks of keys, of every unit."""
        return self.q.new_zeros(len(self.q), groups, rows, self.k.shape[1] // self.block_size)


class _Tile(NamedTuple):
    """Weights of a stretch of queries: the largest in each block of keys.

    Attributes:
        units: Which units.
        groups: Which of their query heads.
        start: First query.
        blocks: Which blocks of keys.
        weights: ``(units, blocks, groups, rows)``.
    """

    units: slice
    groups: slice
    start: int
    blocks: slice
    weights: Tensor


def _checked(
    q: Tensor, k: Tensor, block_size: int, is_causal: bool, mask: Mask | None, scale: float | None
) -> _Scores:
    """Check the arguments, and bring them into the form that the loop takes."""
    check_tensors(q, k, k)
    check_int("block_size", block_size, at_least=1)
    if is_causal and q.shape[2] > k.shape[2]:
        raise ValueError(f"q must be the last of the {k.shape[2]} tokens of k, got {q.shape[2]} queries")
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be a gatework.masks.Mask, got {mask!r:.200}")
    whole = _whole_mask(q, k, is_causal, mask)
    whole.check(q.shape[2], k.shape[2], batch=q.shape[0], heads=q.shape[1])
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(dtype) * (q.shape[3] ** -0.5 if scale is None else check_number("scale", scale))
    queries = queries.reshape(k.shape[0] * k.shape[1], q.shape[1] // k.shape[1], *q.shape[2:])
    keys = pad(k.detach().to(dtype).flatten(0, 1), (0, 0, 0, -k.shape[2] % block_size))
    return _Scores(queries, keys, k.shape[2], block_size, k.shape[1], whole)


def _whole_mask(q: Tensor, k: Tensor, is_causal: bool, mask: Mask | None) -> Mask:
    """The order of tokens, where the queries are the last ones, and what else there is."""
    order = Causal().with_query_offset(k.shape[2] - q.shape[2]) if is_causal else Full()
    if mask is None:
        return order
    return order & mask if is_causal else mask


def _tiles(scores: _Scores, q_block: int) -> Iterator[_Tile]:
    """Go through the queries, in tiles of whole blocks of ``q_block``, or of parts of one such block."""
    edges = _tile_edges(scores.q.shape[2], q_block)
    kv_edges = uniform_edges(scores.kv_length, scores.block_size)
    buffer = scores.q.new_empty(0)
    for mask, units, groups in _entries(scores):
        classes = mask.classify(edges, kv_edges)
        for row, (start, stop) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            needed = (classes[row] != EMPTY).nonzero()
            if not len(needed):
                continue
            blocks = slice(int(needed[0]), int(needed[-1]) + 1)
            forbidden = _forbidden(scores, mask, classes[row], (start, stop), blocks)
            size = (blocks.stop - blocks.start) * scores.block_size * (stop - start)
            for some in _at_once(range(len(scores.q))[units], size * len(range(scores.q.shape[1])[groups])):
                queries = scores.q[some, groups, start:stop]
                keys = scores.k[some, blocks.start * scores.block_size : blocks.stop * scores.block_size]
                if (count := len(keys) * size * queries.shape[1]) > len(buffer):
                    buffer = scores.q.new_empty(count)
                weights = _largest_weights(queries, keys, forbidden, scores.block_size, buffer[:count])
                yield _Tile(some, groups, start, blocks, weights)


def _tile_edges(q_length: int, q_block: int) -> Tensor:
    """Where tiles of queries begin, with the end."""
    if q_block <= _ROWS:
        return uniform_edges(q_length, _ROWS // q_block * q_block)
    starts = torch.arange(0, q_length, q_block)[:, None] + torch.arange(0, q_block, _ROWS)
    return torch.cat([starts[starts < q_length], torch.tensor([q_length])])


def _entries(scores: _Scores) -> Iterator[tuple[Mask, slice, slice]]:
    """The masks of heads and sequences that are told apart, with the units and groups they are for."""
    mask, per_sequence = scores.mask, scores.kv_heads
    groups = scores.q.shape[1]
    for sequence in range(mask.batch_size or 1):
        first, last = (
            (0, len(scores.q))
            if mask.batch_size is None
            else (sequence * per_sequence, (sequence + 1) * per_sequence)
        )
        if mask.num_heads is None:
            yield mask.at(sequence, 0), slice(first, last), slice(None)
            continue
        for head in range(mask.num_heads):
            units = slice(first + head // groups, last, per_sequence)
            yield mask.at(sequence, head), units, slice(head % groups, head % groups + 1)


def _at_once(units: range, size: int) -> Iterator[slice]:
    """Stretches of the units that have few enough scores together, ``size`` each, but at least one unit."""
    count = max(1, _SCORES // max(1, size))
    for first in range(0, len(units), count):
        some = units[first : first + count]
        yield slice(some.start, some.stop, some.step)


def _forbidden(
    scores: _Scores, mask: Mask, classes: Tensor, queries: tuple[int, int], blocks: slice
) -> list[tuple[slice, Tensor | None]]:
    """Stretches of a tile's keys that some query may not see, with the pairs ``(keys, queries)``, or all."""
    q_idx = torch.arange(*queries)
    found: list[tuple[slice, Tensor | None]] = []
    states = classes[blocks].tolist()
    begin = 0
    for block in range(1, len(states) + 1):
        if block < len(states) and states[block] == states[begin]:
            continue
        first = (blocks.start + begin) * scores.block_size
        last = min((blocks.start + block) * scores.block_size, scores.kv_length)
        place = slice(begin * scores.block_size, begin * scores.block_size + last - first)
        if states[begin] == EMPTY:
            found.append((place, None))
        elif states[begin] == PARTIAL:
            allowed = mask.pairs(q_idx, torch.arange(first, last))
            found.append((place, ~allowed.T.to(scores.q.device)))
        begin = block
    end = scores.kv_length - blocks.start * scores.block_size
    found.append((slice(end, len(states) * scores.block_size), None))  # beyond the last key, if anything
    return found


def _largest_weights(
    q: Tensor, k: Tensor, forbidden: list[tuple[slice, Tensor | None]], block_size: int, buffer: Tensor
) -> Tensor:
    """The largest weight of each query in each block of keys, ``(units, blocks, groups, rows)``.

    Scores lie key by key: over keys PyTorch reduces much faster than over neighbours in memory.
    """
    units, groups, rows, dim = q.shape
    with torch.autocast(q.device.type, enabled=False):
        scores = buffer.view(units, k.shape[1], groups * rows)
        torch.bmm(k, q.reshape(units, groups * rows, dim).mT, out=scores)
    for keys, pairs in forbidden:
        part = scores[:, keys].view(units, -1, groups, rows) if keys.stop > keys.start else scores[:, :0]
        if pairs is None:
            part.fill_(-torch.inf)
        else:
            part.masked_fill_(pairs[:, None], -torch.inf)
    largest = scores.unflatten(1, (k.shape[1] // block_size, block_size)).amax(2)
    peak = largest.amax(1, keepdim=True)
    peak.masked_fill_(peak.isneginf(), 0.0)  # of a query that may see nothing
    total = scores.sub_(peak).exp_().sum(1, keepdim=True)
    # Where anything is allowed, the largest alone adds 1 to the sum.
    weights: Tensor = largest.sub_(peak).exp_().div_(total.clamp_(min=1.0)).unflatten(2, (groups, rows))
    return weights


# --- what the definitions share with the loop ---


def _weights(q: Tensor, k: Tensor, is_causal: bool, mask: Mask | None, scale: float | None) -> Tensor:
    """The attention map: outputs for values of which each has a coordinate of its own."""
    values = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
    weights: Tensor
    weights, _ = attention_reference(q, k, values, mask=_whole_mask(q, k, is_causal, mask), scale=scale)
    return weights


def _in_blocks(x: Tensor, size: int) -> Tensor:
    """Cut the last axis, of numbers not negative, into blocks; the last one is filled up with zeros."""
    blocks: Tensor = pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-(-x.shape[-1] // size), size))
    return blocks


def _normalized(pooled: Tensor) -> Tensor:
    """Rows over their sums; rows of zeros stay."""
    total = pooled.sum(-1, keepdim=True)
    shares: Tensor = pooled / total.masked_fill(total == 0, 1.0)
    return shares


def _before_own_block(rows: Tensor, kv_length: int, block_size: int) -> Tensor:
    """Rows over their sums, with zeros for the block of the query, one of the last tokens, and later ones."""
    position = torch.arange(rows.shape[2], device=rows.device) + kv_length - rows.shape[2]
    earlier = torch.arange(rows.shape[3], device=rows.device) < position[:, None] // block_size
    kept = rows * earlier
    shares: Tensor = kept / (kept.sum(-1, keepdim=True) + _EPSILON)
    return shares
