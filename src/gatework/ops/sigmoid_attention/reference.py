"""Sigmoid attention as the formula says, over all pairs: the definition that every engine is held to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import dropout

from gatework.masks import Mask
from gatework.ops.attention.reference import AllowedPairs, allowed_pairs

_Bias = Float[Tensor, "..."] | float


def sigmoid_attention_reference(
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    bias: _Bias,
    *,
    mask: Mask | AllowedPairs | None = None,
    alibi_slopes: Float[Tensor, "*_batch heads"] | None = None,
    query_offset: int = 0,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Float[Tensor, "batch heads q_length value_dim"]:
    """The definition, in the inputs' precision: ``o_i = sum_j sigmoid(s_ij) v_j`` over the allowed ``j``.

    The scores are ``s_ij = scale * q_i . k_j + bias_ij - slopes * |i + query_offset - j|`` (arXiv:2409.04431,
    section 2 and appendix F). See :func:`gatework.ops.sigmoid_attention` for the arguments.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    if alibi_slopes is not None:
        positions = torch.arange(q.shape[2], device=q.device) + query_offset
        distance = (positions[:, None] - torch.arange(k.shape[2], device=q.device)).abs().to(scores.dtype)
        scores = scores - alibi_slopes[..., None, None] * distance
    weights = torch.sigmoid(scores)
    if mask is not None:
        weights = weights.masked_fill(~allowed_pairs(mask, q.shape[2], k.shape[2], q.device), 0.0)
    return dropout(weights, dropout_p) @ v
