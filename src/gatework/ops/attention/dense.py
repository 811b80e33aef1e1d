"""The dense engine: every pair is computed, by PyTorch's ``scaled_dot_product_attention`` where it can."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gatework.masks import Causal, Full
from gatework.ops.attention.options import Alibi, Options, Result
from gatework.ops.attention.reference import allowed_pairs, attention_reference


def dense(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute attention over all pairs, in O(q_length * kv_length) time.

    The fused kernels know neither soft caps nor sinks, return no log-sum-exp and round the bias to the
    dtype of the queries: where that matters the definition is computed, in float32 at least.
    """
    if isinstance(options.bias, Alibi):
        options = options._replace(bias=options.bias.to_dense(q.shape[2], k.shape[2], q))
    scored = options.softcap is not None or options.sinks is not None or options.return_lse
    if scored or _rounds_bias(q, options.bias):
        return _by_definition(q, k, v, options)
    is_causal = _is_causal(q, k, options)
    y = scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if is_causal else _attn_mask(q, k.shape[2], options),
        dropout_p=options.dropout_p,
        is_causal=is_causal,
        scale=options.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return y, None


def _is_causal(q: Tensor, k: Tensor, options: Options) -> bool:
    """Whether the kernels' own causal mask, the fastest one, is the mask asked for.

    Only for equal lengths do all kernels align it as we do. Not for a scale of zero or less: the CPU kernel
    of PyTorch (2.14) scales after masking, which turns minus infinity into NaN or plus infinity.
    """
    alone = isinstance(options.mask, Causal) and options.bias is None
    return alone and q.shape[2] == k.shape[2] and options.scale > 0


def _attn_mask(q: Tensor, kv_length: int, options: Options) -> Tensor | None:
    """Mask and bias as one tensor of rank 4: boolean, or in the dtype of the queries."""
    assert not isinstance(options.bias, Alibi), "dense() made it a tensor"
    attn_mask = None if options.bias is None else options.bias.to(q.dtype)
    if options.mask is not None and not isinstance(options.mask, Full):
        allowed = allowed_pairs(options.mask, q.shape[2], kv_length, q.device)
        attn_mask = allowed if attn_mask is None else attn_mask.masked_fill(~allowed, -torch.inf)
    if attn_mask is None:
        return None
    # The kernels broadcast over batch and heads only, and are slow for any rank but 2 and 4.
    attn_mask = attn_mask.expand(*attn_mask.shape[:-2], q.shape[2], kv_length)
    return attn_mask[(None,) * (4 - attn_mask.ndim)]


def _rounds_bias(q: Tensor, bias: Tensor | Alibi | None) -> bool:
    """Whether a fused kernel would lose digits of the bias that the caller did not ask autocast to drop."""
    if not isinstance(bias, Tensor) or bias.dtype == q.dtype or q.dtype.itemsize >= 4:
        return False
    return not torch.is_autocast_enabled(q.device.type)


def _by_definition(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        y, lse = attention_reference(
            q.to(dtype),
            k.to(dtype),
            v.to(dtype),
            mask=options.mask,
            bias=options.bias.to(dtype) if isinstance(options.bias, Tensor) else None,
            scale=options.scale,
            softcap=options.softcap,
            sinks=None if options.sinks is None else options.sinks.to(dtype),
            dropout_p=options.dropout_p,
        )
    return y.to(v.dtype), lse if options.return_lse else None
