"""Golden adapters of sigmoid attention: official keyword arguments to ours."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework import ops
from gatework.masks import SlidingWindow
from tests.golden.arguments import REQUIRED, official, only
from tests.golden.case import Adapter, Case


def flash_sigmoid(case: Case) -> dict[str, Tensor]:
    """The authors' layout is heads last, and their windows are aligned at the ends of queries and keys."""
    given = official(
        "attention_ref",
        case.inputs,
        **dict.fromkeys("qkv", REQUIRED),
        alibi_slopes=None,
        attn_bias=None,
        query_padding_mask=None,
        key_padding_mask=None,
        dropout_mask=None,
    )
    only("attention_ref", given, query_padding_mask=None, key_padding_mask=None, dropout_mask=None)
    a = official(
        "flash_attn_func",
        case.kwargs,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        sigmoid_bias=0.0,
        # They change no number that is compared.
        deterministic=False,
        return_attn_probs=False,
        upcast=True,
        reorder_ops=False,
    )
    only("flash_attn_func", a, dropout_p=0.0)
    q, k, v = (given[name].transpose(1, 2) for name in "qkv")
    longer = k.shape[2] - q.shape[2]
    left, right = (k.shape[2] + q.shape[2] if side < 0 else side for side in a["window_size"])
    bias = a["sigmoid_bias"]
    options = {
        "bias": bias if given["attn_bias"] is None else given["attn_bias"] + bias,
        "is_causal": a["causal"],
        "mask": SlidingWindow(left, right).with_query_offset(longer),
        "alibi_slopes": given["alibi_slopes"],
        "scale": a["softmax_scale"],
    }
    identity = torch.eye(k.shape[2], dtype=case.dtype).expand(*k.shape[:2], -1, -1)
    return {
        "out": ops.sigmoid_attention(q, k, v, **options).transpose(1, 2),
        "probs": ops.sigmoid_attention(q, k, identity, **options),
    }


ADAPTERS: dict[str, Adapter] = {"sigmoid_attention/FlashSigmoid": flash_sigmoid}

#: What the authors' cases have and this library does not.
NOT_HERE = {
    "sigmoid_attention/SimulatorAttention": "the attention layers are not here yet, only the operator",
    "sigmoid_attention/CausalBlockContainer": "the models are not here yet, only the operator",
    "sigmoid_attention/HybridNormBlock": "the block is not here yet, only the operator",
}
