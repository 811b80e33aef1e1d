"""Golden adapters of SeerAttention: the authors' operators to ours."""

from __future__ import annotations

from torch import Tensor

from gatework.ops import (
    block_sparse_attention,
    pooled_attention_map,
    pooled_attention_rows,
    pooled_map_loss,
    pooled_rows_loss,
)
from tests.golden.case import Adapter, Case


def distillation(case: Case) -> dict[str, Tensor]:
    """Both targets, both losses of gates that are distilled towards them, and attention over blocks."""
    q, k, v = (case.inputs[name] for name in "qkv")
    size, scale = case.kwargs["block_size"], case.kwargs["softmax_scale"]
    assert q.shape[1] == k.shape[1] * case.kwargs["num_key_value_groups"]
    by_tile = pooled_attention_map(q, k, block_size=size, scale=scale)
    by_query = pooled_attention_rows(q, k, block_size=size, scale=scale)
    first = int(q.shape[2] * case.kwargs["loss_slice_ratio"])
    losses = {
        "loss_2d": pooled_map_loss(case.inputs["gate_logits_2d"], by_tile),
        "loss_1d": pooled_rows_loss(
            case.inputs["gate_logits_1d"], by_query, block_size=size, first_row=first
        ),
    }
    return {
        **losses,
        "loss": losses["loss_1d"] + losses["loss_2d"],
        "ground_truth_2d": by_tile,
        "ground_truth_1d": by_query,
        "block_sparse_output": block_sparse_attention(
            q, k, v, case.inputs["block_mask"], block_size=size, scale=scale
        ),
    }


ADAPTERS: dict[str, Adapter] = {"seer_attention/DistillAndBlockSparse": distillation}
