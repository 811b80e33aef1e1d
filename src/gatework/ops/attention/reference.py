"""Softmax attention as the formula says, over all pairs: the definition that every engine is held to."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import dropout

from gatework.masks import Mask
from gatework.ops.attention.options import Alibi

#: Booleans that broadcast to ``(batch, heads, q_length, kv_length)``, True where allowed.
AllowedPairs = Bool[Tensor, "..."]
_Bias = Float[Tensor, "..."] | Alibi


def attention_reference(
    q: Float[Tensor, "batch heads q_length head_dim"],
    k: Float[Tensor, "batch kv_heads kv_length head_dim"],
    v: Float[Tensor, "batch kv_heads kv_length value_dim"],
    *,
    mask: Mask | AllowedPairs | None = None,
    bias: _Bias | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch heads q_length value_dim"], Float[Tensor, "batch heads q_length"]]:
    """The definition, in the inputs' precision: ``o_i = sum_j exp(s_ij - lse_i) v_j`` over allowed ``j``.

    The scores are ``s_ij = softcap * tanh(scale * q_i . k_j / softcap) + bias_ij``, and
    ``lse_i = log(exp(sink) + sum_j exp(s_ij))``. See :func:`gatework.ops.attention` for the arguments.

    Returns:
        The outputs ``o`` and the log-sum-exp ``lse``; zero and ``-inf`` where nothing is allowed.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if isinstance(bias, Alibi):
        bias = bias.to_dense(q.shape[2], k.shape[2], q)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        allowed = allowed_pairs(mask, q.shape[2], k.shape[2], q.device)
        scores = scores.masked_fill(~allowed, -torch.inf)
    logits = scores
    if sinks is not None:
        logits = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], -1)
    # A row of -inf has no finite lse; with any finite one its weights are exp(-inf) = 0, not NaN.
    nothing = logits.isneginf().all(-1)
    lse = torch.logsumexp(logits.masked_fill(nothing[..., None], 0.0), -1)
    weights = torch.exp(scores - lse[..., None])
    # A bias in more digits than the rest, as that of ALiBi for halves, widens the scores.
    return dropout(weights, dropout_p).to(v.dtype) @ v, lse.masked_fill(nothing, -torch.inf)


def allowed_pairs(
    mask: Mask | AllowedPairs, q_length: int, kv_length: int, device: torch.device
) -> AllowedPairs:
    """Return ``mask`` as a tensor that broadcasts to ``(batch, heads, q_length, kv_length)``."""
    return mask.to_dense(q_length, kv_length, device=device) if isinstance(mask, Mask) else mask
