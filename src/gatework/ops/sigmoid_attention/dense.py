"""The dense engine: the definition over all pairs, in float32 at least, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework.ops.sigmoid_attention.options import SigmoidOptions
from gatework.ops.sigmoid_attention.reference import sigmoid_attention_reference


def dense(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Compute sigmoid attention over all pairs, in O(q_length * kv_length) time and memory."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        y = by_definition(q.to(dtype), k.to(dtype), v.to(dtype), options)
    return y.to(v.dtype)


def by_definition(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Evaluate the definition in the inputs' precision."""
    bias = options.row_bias[..., None].to(q.dtype)
    if options.pair_bias is not None:
        bias = bias + options.pair_bias.to(q.dtype)
    return sigmoid_attention_reference(
        q,
        k,
        v,
        bias,
        mask=options.mask,
        alibi_slopes=None if options.slopes is None else options.slopes.to(q.dtype),
        query_offset=options.query_offset,
        scale=options.scale,
        dropout_p=options.dropout_p,
    )
