"""The adapter with other arguments, beside the formula of the authors' reference."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from tests.golden.maker import normal, sometimes


@pytest.mark.parametrize("seed", range(30))
def test_flash_sigmoid(maker, seed):
    rng = random.Random(seed)
    heads, kv_heads = rng.choice(((2, 2), (4, 2), (3, 1)))
    queries, keys = rng.randint(1, 9), rng.randint(1, 9)
    inputs = {
        "q": normal(2, queries, heads, 4),
        "k": normal(2, keys, kv_heads, 4),
        "v": normal(2, keys, kv_heads, 3),
    }
    fixed = sometimes(rng, alibi_slopes=normal(2, heads).abs(), attn_bias=normal(2, heads, queries, keys))
    kwargs = sometimes(
        rng,
        softmax_scale=rng.choice((None, 0.3)),
        causal=rng.choice((True, False)),
        window_size=[rng.randint(-1, 4), rng.randint(-1, 4)],
        sigmoid_bias=rng.uniform(-3, 1),
        dropout_p=0.0,
        deterministic=True,
        reorder_ops=True,
    )

    def truth(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        k, v = (leaves[name].repeat_interleave(heads // kv_heads, 2) for name in "kv")
        scores = torch.einsum("bthd,bshd->bhts", leaves["q"], k) * (kwargs.get("softmax_scale") or 0.5)
        distance = torch.arange(keys) - torch.arange(queries)[:, None] - (keys - queries)
        left, right = kwargs.get("window_size", (-1, -1))
        right = 0 if kwargs.get("causal") else right
        hidden = (distance > (math.inf if right < 0 else right)) | (
            -distance > (math.inf if left < 0 else left)
        )
        if "alibi_slopes" in fixed:
            scores = scores - fixed["alibi_slopes"][:, :, None, None] * distance.abs()
        scores = scores + fixed.get("attn_bias", 0) + kwargs.get("sigmoid_bias", 0)
        probs = scores.sigmoid().masked_fill(hidden, 0)
        return {"out": torch.einsum("bhts,bshd->bthd", probs, v), "probs": probs}

    def whole(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return truth({name: leaves[name] for name in "qkv"})

    maker.compare("sigmoid_attention/FlashSigmoid", kwargs, {**inputs, **fixed}, whole)
