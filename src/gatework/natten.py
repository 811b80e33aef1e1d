"""The names of NATTEN: ``import gatework.natten as natten`` moves code that was written for it over.

Today's functions and modules have the arguments of version 0.21; what older versions called otherwise is here
by its old name. Two names meant other things once: version 0.17 called ``na2d_fused`` ``na2d``, and
``BiasedNeighborhoodAttention2D`` ``NeighborhoodAttention2D`` (likewise for one and three axes). See
``docs/neighborhood.md`` for everything that differs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gatework.checks import check_choice
from gatework.layers.vision.neighborhood import (
    BiasedNeighborhoodAttention1D,
    BiasedNeighborhoodAttention2D,
    BiasedNeighborhoodAttention3D,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from gatework.masks import Causal, Mask
from gatework.ops.attention import attention as masked_attention
from gatework.ops.vision.neighborhood import merge_attentions, na1d, na2d, na3d
from gatework.ops.vision.neighborhood_engine import check_kernel_schedule
from gatework.ops.vision.neighborhood_split import (
    na1d_av,
    na1d_fused,
    na1d_qk,
    na1d_qk_with_bias,
    na2d_av,
    na2d_fused,
    na2d_qk,
    na2d_qk_with_bias,
    na3d_av,
    na3d_fused,
    na3d_qk,
    na3d_qk_with_bias,
    natten1dav,
    natten1dqkrpb,
    natten2dav,
    natten2dqkrpb,
)
from gatework.ops.vision.neighborhood_windows import rescale_windows
from gatework.ops.vision.token_permutation import token_permute, token_unpermute

__all__ = [
    "BiasedNeighborhoodAttention1D",
    "BiasedNeighborhoodAttention2D",
    "BiasedNeighborhoodAttention3D",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "attention",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_fused",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d",
    "na2d_av",
    "na2d_fused",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d",
    "na3d_av",
    "na3d_fused",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqkrpb",
    "rescale_windows",
    "token_permute",
    "token_unpermute",
]

#: Names of NATTEN's dense kernels.
_BACKENDS = ("cutlass-fmha", "hopper-fmha", "blackwell-fmha", "flex-fmha")

_Lengths = Int[Tensor, " sequences"]
_Edges = Int[Tensor, " edges"]
_Outputs = Float[Tensor, "batch q_length heads value_dim"]


def attention(  # noqa: D417 (the others are described as one)
    query: Float[Tensor, "batch q_length heads head_dim"],
    key: Float[Tensor, "batch kv_length kv_heads head_dim"],
    value: Float[Tensor, "batch kv_length kv_heads value_dim"],
    is_causal: bool = False,
    scale: float | None = None,
    seqlens_Q: _Lengths | None = None,
    seqlens_KV: _Lengths | None = None,
    cumulative_seqlen_Q: _Edges | None = None,
    cumulative_seqlen_KV: _Edges | None = None,
    max_seqlen_Q: int | None = None,
    max_seqlen_KV: int | None = None,
    backend: str | None = None,
    q_tile_size: int | None = None,
    kv_tile_size: int | None = None,
    backward_q_tile_size: int | None = None,
    backward_kv_tile_size: int | None = None,
    backward_kv_splits: int | None = None,
    backward_use_pt_reduction: bool = False,
    run_persistent_kernel: bool = True,
    kernel_schedule: Any | None = None,
    torch_compile: bool = False,
    return_lse: bool = False,
) -> _Outputs | tuple[_Outputs, Float[Tensor, "batch q_length heads"]]:
    """Softmax attention with the arguments of NATTEN's ``attention``, by :func:`gatework.ops.attention`.

    Args:
        query: Queries, heads last.
        key: Keys; query head ``h`` uses key head ``h // (heads // kv_heads)``.
        value: Values, of any ``value_dim``.
        is_causal: Whether query ``i`` of a sequence sees its keys ``0..i`` only.
        scale: Factor on the scores, ``head_dim ** -0.5`` by default.
        seqlens_Q: Queries of each of the sequences that lie one after the other in a batch of one.
        seqlens_KV: Their keys.
        cumulative_seqlen_Q: The same as edges from 0 on, instead; likewise ``cumulative_seqlen_KV``.
        return_lse: Also return the log-sum-exp, ``-inf`` for a query that has no key.

    The arguments that are not described change nothing.

    Raises:
        ValueError: If shapes, lengths or edges do not fit, or ``backend`` is unknown.
    """
    check_choice("backend", backend, (None, *_BACKENDS))
    check_kernel_schedule(kernel_schedule)
    q_edges = _edges("Q", query, seqlens_Q, cumulative_seqlen_Q)
    kv_edges = _edges("KV", key, seqlens_KV, cumulative_seqlen_KV)
    if len(q_edges) != len(kv_edges):
        raise ValueError(
            "the lengths of Q and KV must be given together, for as many sequences, "
            f"got {len(q_edges) - 1} and {len(kv_edges) - 1}"
        )
    parts = list(zip(pairwise(q_edges), pairwise(kv_edges), strict=True))
    output, lse = _attend(query, key, value, parts, Causal() if is_causal else None, scale, return_lse)
    return output if lse is None else (output, lse)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parts: list[tuple[tuple[int, int], tuple[int, int]]],
    mask: Mask | None,
    scale: float | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of every part, a range of queries with a range of keys, one after the other."""
    outputs, lses = [], []
    for queries, keys in parts:
        q = query[:, slice(*queries)].transpose(1, 2)
        k, v = (tensor[:, slice(*keys)].transpose(1, 2) for tensor in (key, value))
        if return_lse:
            output, lse = masked_attention(q, k, v, mask=mask, scale=scale, return_lse=True)
            lses.append(lse.transpose(1, 2))
        else:
            output = masked_attention(q, k, v, mask=mask, scale=scale)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, 1).contiguous(), torch.cat(lses, 1).contiguous() if lses else None


def _edges(name: str, tensor: Tensor, lengths: Tensor | None, edges: Tensor | None) -> list[int]:
    """Where the sequences of a tensor begin and end; the whole tensor is one if nothing is said."""
    if lengths is None and edges is None:
        return [0, tensor.shape[1]]
    if lengths is not None and edges is not None:
        raise ValueError(f"seqlens_{name} and cumulative_seqlen_{name} must not both be given")
    found = [0, *lengths.cumsum(0).tolist()] if lengths is not None else torch.as_tensor(edges).tolist()
    ascending = all(low <= high for low, high in pairwise(found))
    if len(found) < 2 or not ascending or found[0] != 0 or found[-1] != tensor.shape[1]:
        given = f"seqlens_{name}" if lengths is not None else f"cumulative_seqlen_{name}"
        raise ValueError(
            f"{given} must divide the {tensor.shape[1]} tokens among sequences, got edges {found}"
        )
    if tensor.shape[0] != 1:
        raise ValueError(f"sequences of several lengths must be in a batch of 1, got batch {tensor.shape[0]}")
    return found
