"""The adapter with other arguments, beside the definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatework.ops.block_sparse_attention import block_sparse_attention_reference
from tests.golden.maker import normal


@pytest.mark.parametrize("size", [3, 5, None])
@pytest.mark.parametrize("groups", [1, 3])
def test_block_sparse_operator(maker, size, groups):
    length, block = 11, 64 if size is None else size
    blocks = -(-length // block)
    q, k, v = normal(1, 2 * groups, length, 4), normal(1, 2, length, 4), normal(1, 2, length, 3)
    block_map = (torch.rand(1, 2 * groups, blocks, blocks) < 0.5) | torch.eye(blocks, dtype=torch.bool)
    kwargs: dict[str, Any] = {"num_key_value_groups": groups, "softmax_scale": 0.3}
    kwargs |= {} if size is None else {"block_size": size, "loss_slice_ratio": 0.25}
    inputs = {"q": q, "k": k, "v": v, "block_mask": block_map}
    inputs |= {"gate_logits_2d": normal(1, 2 * groups, blocks, blocks)}
    inputs |= {"gate_logits_1d": normal(1, 2, length, blocks)}
    y, _ = block_sparse_attention_reference(q, k, v, block_map, block_size=block, scale=0.3)
    case = maker.write(kwargs, mode="train", inputs=inputs, outputs={"block_sparse_output": y})
    maker.check("seer_attention/DistillAndBlockSparse", case)
