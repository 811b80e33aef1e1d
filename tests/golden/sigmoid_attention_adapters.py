"""Golden adapters of sigmoid attention: official keyword arguments to ours."""

from __future__ import annotations

import torch
from torch import Tensor

from gatework import ops
from gatework.masks import SlidingWindow
from tests.golden.case import Adapter, Case


def flash_sigmoid(case: Case) -> dict[str, Tensor]:
    """The authors' layout is heads last, and their windows are aligned at the ends of queries and keys."""
    q, k, v = (case.inputs[name].transpose(1, 2) for name in "qkv")
    longer = k.shape[2] - q.shape[2]
    left, right = (k.shape[2] + q.shape[2] if side < 0 else side for side in case.kwargs["window_size"])
    options = {
        "bias": case.kwargs["sigmoid_bias"],
        "is_causal": case.kwargs["causal"],
        "mask": SlidingWindow(left, right).with_query_offset(longer),
        "alibi_slopes": case.inputs.get("alibi_slopes"),
        "scale": case.kwargs["softmax_scale"],
    }
    identity = torch.eye(k.shape[2], dtype=case.dtype).expand(*k.shape[:2], -1, -1)
    return {
        "out": ops.sigmoid_attention(q, k, v, **options).transpose(1, 2),
        "probs": ops.sigmoid_attention(q, k, identity, **options),
    }


ADAPTERS: dict[str, Adapter] = {"sigmoid_attention/FlashSigmoid": flash_sigmoid}
