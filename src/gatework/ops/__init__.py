"""Pure functions on tensors: the mathematics of token mixing, and its fast paths."""

# Imported here, not on demand, because some functions share their name with the module that they come from.
from gatework.ops.attention import Alibi, attention, attention_reference
from gatework.ops.attention_pooling import (
    pooled_attention_map,
    pooled_attention_rows,
    pooled_map_loss,
    pooled_rows_loss,
)
from gatework.ops.block_sparse_attention import block_sparse_attention, block_sparse_attention_reference
from gatework.ops.long_conv import causal_conv, causal_conv_reference
from gatework.ops.recurrence.diagonal_ssm import diagonal_ssm, diagonal_ssm_reference
from gatework.ops.recurrence.linear_recurrence import (
    delta_rule,
    delta_rule_reference,
    gated_linear_attention,
    gated_linear_attention_reference,
    low_rank_recurrence,
    low_rank_recurrence_reference,
)
from gatework.ops.recurrence.selective_scan import selective_scan, selective_scan_reference
from gatework.ops.recurrence.taylor_attention import taylor_attention, taylor_attention_reference
from gatework.ops.recurrence.ttt import ttt_linear, ttt_linear_reference, ttt_mlp, ttt_mlp_reference
from gatework.ops.recurrence.wkv import wkv, wkv_reference
from gatework.ops.short_conv import short_conv, short_conv_reference
from gatework.ops.sigmoid_attention import sigmoid_attention, sigmoid_attention_reference
from gatework.ops.vision.halo import halo_attention, halo_attention_reference
from gatework.ops.vision.neighborhood import merge_attentions, na1d, na2d, na3d, neighborhood_reference
from gatework.ops.vision.window import (
    grid_attention,
    grid_attention_reference,
    window_attention,
    window_attention_reference,
)

__all__ = [
    "Alibi",
    "attention",
    "attention_reference",
    "block_sparse_attention",
    "block_sparse_attention_reference",
    "causal_conv",
    "causal_conv_reference",
    "delta_rule",
    "delta_rule_reference",
    "diagonal_ssm",
    "diagonal_ssm_reference",
    "gated_linear_attention",
    "gated_linear_attention_reference",
    "grid_attention",
    "grid_attention_reference",
    "halo_attention",
    "halo_attention_reference",
    "low_rank_recurrence",
    "low_rank_recurrence_reference",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_reference",
    "pooled_attention_map",
    "pooled_attention_rows",
    "pooled_map_loss",
    "pooled_rows_loss",
    "selective_scan",
    "selective_scan_reference",
    "short_conv",
    "short_conv_reference",
    "sigmoid_attention",
    "sigmoid_attention_reference",
    "taylor_attention",
    "taylor_attention_reference",
    "ttt_linear",
    "ttt_linear_reference",
    "ttt_mlp",
    "ttt_mlp_reference",
    "window_attention",
    "window_attention_reference",
    "wkv",
    "wkv_reference",
]
