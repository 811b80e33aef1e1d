"""Block-sparse attention for patterns that a model learns, and chooses anew in every call.

SeerAttention (arXiv:2410.13276) and SeerAttention-R (arXiv:2506.08889) predict for every head and block of
queries which blocks of keys matter, and compute softmax attention over these alone.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gatework.checks import check_per_axis
from gatework.masks import BlockSparse, Causal, Mask
from gatework.masks.block_sparse import BlockSize
from gatework.ops.attention import attention, attention_reference
from gatework.ops.attention.checks import check_tensors

_Queries = Float[Tensor, "batch heads q_length head_dim"]
_Keys = Float[Tensor, "batch kv_heads kv_length head_dim"]
_Values = Float[Tensor, "batch kv_heads kv_length value_dim"]
_Outputs = Float[Tensor, "batch heads q_length value_dim"]
_LogSumExp = Float[Tensor, "batch heads q_length"]
#: A map ``(batch or 1, heads or kv_heads or 1, q_blocks, kv_blocks)``, or indices ``(..., q_blocks, width)``.
_Blocks = Bool[Tensor, "_batch _heads q_blocks kv_blocks"] | Int[Tensor, "_batch _heads q_blocks width"]
_Counts = Int[Tensor, "_batch _heads q_blocks"]


def block_sparse_attention_reference(
    q: _Queries,
    k: _Keys,
    v: _Values,
    block_map: Bool[Tensor, "_batch heads q_blocks kv_blocks"],
    *,
    block_size: int = 64,
    is_causal: bool = True,
    scale: float | None = None,
) -> tuple[_Outputs, _LogSumExp]:
    """The definition, pair by pair: query ``i`` may see key ``j`` iff ``map[i // b, j // b] & (j <= i)``.

    The map has all query heads. In the comparison ``i`` is a position, ``kv_length - q_length`` for query 0.
    """
    rows, columns = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    allowed = block_map[:, :, rows[:, None] // block_size, columns // block_size]
    if is_causal:
        allowed = allowed & (columns <= rows[:, None] + len(columns) - len(rows))
    return attention_reference(q, k, v, mask=allowed, scale=scale)


@overload
def block_sparse_attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    blocks: _Blocks,
    *,
    block_size: BlockSize = ...,
    counts: _Counts | None = ...,
    is_causal: bool = ...,
    force_diagonal: bool = ...,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    engine: str | None = ...,
) -> _Outputs: ...


@overload
def block_sparse_attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    blocks: _Blocks,
    *,
    block_size: BlockSize = ...,
    counts: _Counts | None = ...,
    is_causal: bool = ...,
    force_diagonal: bool = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
    engine: str | None = ...,
) -> tuple[_Outputs, _LogSumExp]: ...


# A pattern is data, not a constant of a compiled graph: torch.compile leaves the graph here.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def block_sparse_attention(
    q: _Queries,
    k: _Keys,
    v: _Values,
    blocks: _Blocks,
    *,
    block_size: BlockSize = 64,
    counts: _Counts | None = None,
    is_causal: bool = True,
    force_diagonal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    engine: str | None = None,
) -> _Outputs | tuple[_Outputs, _LogSumExp]:
    """Softmax attention over selected blocks of keys: ``o_i = sum_j softmax_j(scale * q_i . k_j) v_j``.

    ``j`` runs over the keys in the blocks that are selected for the block of query ``i``, without those after
    the query if ``is_causal`` (arXiv:2410.13276; for a map of every head this is
    :func:`block_sparse_attention_reference`). A query that is left nothing gets zeros. Time follows the
    selected blocks, also where they are others in every call; gradients reach q, k and v, not the selection.

    The queries are the last tokens: query ``i`` stands at position ``i + kv_length - q_length``. Blocks of
    keys are counted from the first key, blocks of queries from the first query of the call.

    Args:
        q: Queries.
        k: Keys; their heads may divide those of ``q``: query head ``h`` uses ``h // (heads // kv_heads)``.
        v: Values, of any ``value_dim``.
        blocks: A boolean map, ``(batch or 1, heads or kv_heads or 1, q_blocks, kv_blocks)``, True where a
            block is selected; or indices of the selected blocks, with a ``width`` as last axis, in any order,
            -1 where a row has fewer than others.
        block_size: Tokens of a block, or those of blocks of queries and of keys; the last may have fewer.
        counts: How many indices of each row are meant, if not all that are not -1; what is behind them
            is not looked at.
        is_causal: Whether queries see no later keys.
        force_diagonal: Whether the blocks of keys at the positions of a block of queries, up to its last one,
            are always selected, so that every query sees itself.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        return_lse: Also return the logarithm of the softmax's denominator, ``-inf`` for nothing.
        engine: As for :func:`gatework.ops.attention`; by default the fastest.

    Raises:
        ValueError: If shapes do not fit, an index is beyond the last block or less than -1, a count is
            negative or more than the width, or there are more queries than keys where these have an order.
        TypeError: If ``blocks`` is neither boolean nor of integers, or ``counts`` not of integers.
    """
    check_tensors(q, k, v)
    mask = _mask(q, k, blocks, counts, _sizes(block_size), is_causal, force_diagonal)
    if return_lse:
        return attention(q, k, v, mask=mask, scale=scale, return_lse=True, engine=engine)
    return attention(q, k, v, mask=mask, scale=scale, engine=engine)


def _mask(
    q: Tensor,
    k: Tensor,
    blocks: Tensor,
    counts: Tensor | None,
    sizes: tuple[int, int],
    is_causal: bool,
    force_diagonal: bool,
) -> Mask:
    """The mask of the checked selection."""
    offset = k.shape[2] - q.shape[2]
    if offset < 0 and (is_causal or force_diagonal):
        raise ValueError(
            f"q must be the last of the {k.shape[2]} tokens of k, got {q.shape[2]} queries; "
            "without is_causal and force_diagonal there may be more queries than keys"
        )
    block_map = _checked_map(q, k, blocks, counts, sizes)
    if force_diagonal:
        block_map = block_map | _diagonal(q.shape[2], k.shape[2], sizes, block_map.device)
    mask = BlockSparse.from_map(
        block_map,
        sizes,
        q_length=q.shape[2],
        kv_length=k.shape[2],
        group_size=q.shape[1] // block_map.shape[1] if block_map.shape[1] > 1 else 1,
    )
    return mask & Causal().with_query_offset(offset) if is_causal else mask


def _sizes(block_size: BlockSize) -> tuple[int, int]:
    """Checked tokens of blocks of queries and of keys."""
    q_size, kv_size = check_per_axis("block_size", block_size, 2)
    return q_size, kv_size


def _checked_map(
    q: Tensor, k: Tensor, blocks: Tensor, counts: Tensor | None, sizes: tuple[int, int]
) -> Tensor:
    """The map of the selected blocks, ``(batch or 1, heads or kv_heads or 1, q_blocks, kv_blocks)``.

    There is a sequence in it even where the batch has none.
    """
    is_map = blocks.dtype == torch.bool
    if not is_map and (blocks.is_floating_point() or blocks.is_complex()):
        raise TypeError(f"blocks must be a boolean map or integer indices, got {blocks.dtype}")
    q_blocks, kv_blocks = (-(-x.shape[2] // size) for x, size in zip((q, k), sizes, strict=True))
    allowed = (1, q.shape[0]), (1, k.shape[1], q.shape[1]), (q_blocks,), (kv_blocks,)
    fits = blocks.ndim == 4 and all(
        size in choices for size, choices in zip(blocks.shape, allowed[: 3 + is_map], strict=False)
    )
    if not fits:
        last = str(kv_blocks) if is_map else "width"
        raise ValueError(
            f"blocks must have shape (1 or {q.shape[0]}, 1 or {k.shape[1]} or {q.shape[1]}, {q_blocks}, "
            f"{last}) for {q.shape[2]} queries and {k.shape[2]} keys in blocks of {sizes}, "
            f"got {tuple(blocks.shape)}"
        )
    if is_map and counts is not None:
        raise ValueError(f"counts go with indices, but blocks is a map of shape {tuple(blocks.shape)}")
    block_map = blocks if is_map else _map_of_indices(blocks, counts, kv_blocks)
    return block_map if len(block_map) else block_map.new_zeros(1, *block_map.shape[1:])


def _map_of_indices(indices: Tensor, counts: Tensor | None, kv_blocks: int) -> Tensor:
    """The map of checked indices."""
    width = indices.shape[3]
    meant = torch.ones_like(indices, dtype=torch.bool)
    if counts is not None:
        if counts.dtype == torch.bool or counts.is_floating_point() or counts.is_complex():
            raise TypeError(f"counts must be integers, got {counts.dtype}")
        if counts.shape != indices.shape[:3]:
            raise ValueError(
                f"counts must have the shape {tuple(indices.shape[:3])}, got {tuple(counts.shape)}"
            )
        if counts.numel() and not 0 <= int(counts.min()) <= int(counts.max()) <= width:
            raise ValueError(
                f"counts must be from 0 to the {width} indices of a row, "
                f"got {int(counts.min())} to {int(counts.max())}"
            )
        meant = torch.arange(width, device=indices.device) < counts[..., None]
    known = indices.long().where(meant, -1)
    if known.numel() and not -1 <= int(known.min()) <= int(known.max()) < kv_blocks:
        raise ValueError(
            f"blocks must be indices less than the {kv_blocks} blocks of keys, or -1 for none, "
            f"got {int(known.min())} to {int(known.max())}"
        )
    # One column more than there are blocks, for what is none.
    block_map = indices.new_zeros(*indices.shape[:3], kv_blocks + 1, dtype=torch.bool)
    block_map.scatter_(-1, known.where(known >= 0, kv_blocks), value=True)
    return block_map[..., :kv_blocks]


def _diagonal(q_length: int, kv_length: int, sizes: tuple[int, int], device: torch.device) -> Tensor:
    """The blocks of keys that hold the position of a query of each block, ``(q_blocks, kv_blocks)``."""
    first = torch.arange(0, q_length, sizes[0], device=device)[:, None]
    last = (first + sizes[0] - 1).clamp(max=q_length - 1)
    start = torch.arange(0, kv_length, sizes[1], device=device)
    offset = kv_length - q_length
    return (start <= last + offset) & (start + sizes[1] > first + offset)
