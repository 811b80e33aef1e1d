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
from tests.golden.arguments import official, only
from tests.golden.case import Adapter, Case


def distillation(case: Case) -> dict[str, Tensor]:
    """Both targets, both losses of gates that are distilled towards them, and attention over blocks."""
    q, k, v = (case.inputs[name] for name in "qkv")
    groups = q.shape[1] // k.shape[1]
    a = official(
        "distillation",
        case.kwargs,
        block_size=64,
        softmax_scale=None,
        num_key_value_groups=groups,
        loss_slice_ratio=0.5,
    )
    only("distillation", a, num_key_value_groups=groups)  # it is that of the inputs
    size, scale = a["block_size"], a["softmax_scale"]
    by_tile = pooled_attention_map(q, k, block_size=size, scale=scale)
    by_query = pooled_attention_rows(q, k, block_size=size, scale=scale)
    first = int(q.shape[2] * a["loss_slice_ratio"])
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

#: What the authors' cases have and this library does not.
NOT_HERE = {
    "seer_attention/AttnGatePrefill": "the gates are not here yet, only the operators",
    "seer_attention/AttnGateDecode": "the gates are not here yet, only the operators",
    "seer_attention/SeerAttnLlamaForCausalLM": "the language models are not here yet",
    "seer_attention/SeerAttnQwen2ForCausalLM": "the language models are not here yet",
}
