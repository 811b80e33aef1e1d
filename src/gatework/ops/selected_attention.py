"""Causal attention in which every query reads its own choice of key blocks, besides the one it stands in.

The selected branch of native sparse attention (arXiv:2502.11089, section 3.3.2).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gatework.checks import check_number, check_sizes

_Queries = Float[Tensor, "batch heads q_length head_dim"]
_Keys = Float[Tensor, "batch kv_heads kv_length head_dim"]
_Values = Float[Tensor, "batch kv_heads kv_length value_dim"]
_Blocks = Int[Tensor, "batch block_heads q_length selected"]
_Outputs = Float[Tensor, "batch heads q_length value_dim"]

#: All pairs are computed where there are at most this many times as many keys as each query reads: reading
#: blocks for each query costs so much more per key.
_DENSE_KEYS = 24
#: Elements of keys per sequence that are gathered at a time at least; more only if the keys are more.
_GATHERED = 1 << 20


def selected_attention_reference(
    q: _Queries, k: _Keys, v: _Values, blocks: _Blocks, *, block_size: int, scale: float | None = None
) -> _Outputs:
    """The definition, query by query: softmax over the keys of the selected blocks and of its own block."""
    heads, past = q.shape[1], k.shape[2] - q.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    outputs = q.new_zeros(*q.shape[:3], v.shape[3])
    for batch in range(q.shape[0]):
        for head in range(heads):
            shared, chooser = head * k.shape[1] // heads, head * blocks.shape[1] // heads
            for row in range(q.shape[2]):
                own = (past + row) // block_size
                chosen = {*blocks[batch, chooser, row].tolist(), own} - {-1}
                seen = [j for j in range(past + row + 1) if j // block_size in chosen]
                weights = (scale * (k[batch, shared, seen] @ q[batch, head, row])).softmax(0)
                outputs[batch, head, row] = weights @ v[batch, shared, seen]
    return outputs


def selected_attention(
    q: _Queries, k: _Keys, v: _Values, blocks: _Blocks, *, block_size: int, scale: float | None = None
) -> _Outputs:
    """Causal attention to selected blocks of keys: ``o_i = sum_j softmax_j(scale * q_i . k_j) v_j``.

    ``j`` runs over the keys in the blocks selected for query ``i`` and in the block at its own position, up
    to itself (:func:`selected_attention_reference`). Takes ``O(q_length * (selected + 1) * block_size)`` time
    for long sequences, and memory linear in them: keys are gathered for some queries at a time, and again in
    the backward pass. Gradients reach q, k and v, not the selection.

    Args:
        q: Queries: the last tokens of those of ``k``.
        k: Keys, the first at position 0; their heads may divide those of ``q``: query head ``h`` uses
            ``h // (heads // kv_heads)``.
        v: Values.
        blocks: Indices of selected blocks, different ones for each query, all before the query's own, -1
            for none. As many heads as ``q``, or as ``k``, or a number between them that divides.
        block_size: Tokens of a block; the last may have fewer.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.

    Raises:
        ValueError: If shapes do not fit.
    """
    _check(q, k, v, blocks, block_size)
    scale = q.shape[3] ** -0.5 if scale is None else check_number("scale", scale)
    reach = (blocks.shape[3] + 1) * block_size
    length, past = q.shape[2], k.shape[2] - q.shape[2]
    if length != 1 and (0 in (q.shape[0], length) or k.shape[2] <= _DENSE_KEYS * reach):
        return _all_pairs(q, k, v, blocks, block_size, scale)
    padding = -k.shape[2] % block_size
    k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, block_size)).flatten(3) for x in (k, v))
    if length == 1:
        return _gathered(q, k, v, blocks, past, block_size, scale)
    # Gathering at most as much as there are keys keeps memory linear; so few pieces keep the sums over them
    # of the backward pass, each as large as the keys, below the work of the pieces themselves.
    elements = max(_GATHERED, k[0].numel())
    rows = max(1, elements // (blocks.shape[1] * reach * q.shape[3]))
    pieces = []
    for start in range(0, length, rows):
        piece = slice(start, start + rows)
        arguments = (q[:, :, piece], k, v, blocks[:, :, piece], past + start, block_size, scale)
        if torch.is_grad_enabled() and rows < length:
            pieces.append(checkpoint(_gathered, *arguments, use_reentrant=False))
        else:
            pieces.append(_gathered(*arguments))
    return torch.cat(pieces, 2)


def _all_pairs(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, scale: float) -> Tensor:
    """Every pair in PyTorch's fused kernel, masked."""
    length = k.shape[2]
    count = -(-length // block_size)
    # One column more than there are blocks, for what is none.
    chosen = blocks.new_zeros(*blocks.shape[:3], count + 1, dtype=torch.bool)
    chosen = chosen.scatter(3, blocks.where(blocks >= 0, count), True)[..., :count]
    queries = torch.arange(length - q.shape[2], length, device=q.device)[:, None]
    keys = torch.arange(length, device=q.device)
    own = (keys <= queries) & (keys // block_size == queries // block_size)
    allowed = chosen.repeat_interleave(block_size, 3)[..., :length] | own
    if allowed.shape[1] not in (1, q.shape[1]):
        allowed = allowed.repeat_interleave(q.shape[1] // allowed.shape[1], 1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=allowed, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _gathered(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, start: int, block_size: int, scale: float
) -> Tensor:
    """Attention of the queries from position ``start`` on; ``k`` and ``v`` have a row for each block."""
    batch, choosers, length = blocks.shape[:3]
    positions = torch.arange(start, start + length, device=q.device)
    own = (positions // block_size)[:, None].expand(batch, choosers, -1, 1)
    chosen = torch.cat([blocks, own], 3)
    # Rows of blocks are numbered through sequences and heads.
    table = torch.arange(batch * k.shape[1], device=q.device).view(batch, k.shape[1], 1, 1) * k.shape[2]
    table = table.repeat_interleave(choosers // k.shape[1], 1)
    rows = (table + chosen.clamp(min=0)).flatten()
    keys, values = (
        x.flatten(0, 2)
        .index_select(0, rows)
        .view(batch * choosers * length, chosen.shape[3] * block_size, x.shape[3] // block_size)
        for x in (k, v)
    )
    offsets = torch.arange(block_size, device=q.device)
    seen = torch.cat(
        [
            (blocks >= 0)[..., None].expand(-1, -1, -1, -1, block_size),
            (own * block_size)[..., None] + offsets <= positions[:, None, None],
        ],
        3,
    )
    queries = q.unflatten(1, (choosers, q.shape[1] // choosers)).transpose(2, 3).flatten(0, 2)
    scores = scale * (queries @ keys.mT)
    seen = seen.flatten(3).flatten(0, 2).unsqueeze(1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    group = q.shape[1] // choosers
    mixed: Tensor = (weights.to(values.dtype) @ values).view(batch, choosers, length, group, values.shape[2])
    return mixed.transpose(2, 3).flatten(1, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int) -> None:
    check_sizes(block_size=block_size)
    if q.shape[2] > k.shape[2]:
        raise ValueError(f"q must be the last of the {k.shape[2]} tokens of k, got {q.shape[2]} queries")
    heads, choosers = q.shape[1], blocks.shape[1]
    if k.shape[1] < 1 or heads % k.shape[1] or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"k and v must have heads that divide those of q {tuple(q.shape)} and equal lengths, "
            f"got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if choosers < 1 or choosers % k.shape[1] or heads % choosers or blocks.shape[2] != q.shape[2]:
        raise ValueError(
            f"blocks must have a row for each of {q.shape[2]} queries, and heads that divide {heads} and are "
            f"divided by {k.shape[1]}, got shape {tuple(blocks.shape)}"
        )
