"""Pure functions on tensors: the mathematics of token mixing, and its fast paths."""

# Imported here, not on demand, because a function shares its name with the module that it comes from.
from gatework.ops.attention import Alibi, attention, attention_reference
from gatework.ops.attention_pooling import (
    pooled_attention_map,
    pooled_attention_rows,
    pooled_map_loss,
    pooled_rows_loss,
)
from gatework.ops.block_sparse_attention import block_sparse_attention
from gatework.ops.sigmoid_attention import sigmoid_attention, sigmoid_attention_reference
from gatework.ops.vision.neighborhood import merge_attentions, na1d, na2d, na3d

__all__ = [
    "Alibi",
    "attention",
    "attention_reference",
    "block_sparse_attention",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "pooled_attention_map",
    "pooled_attention_rows",
    "pooled_map_loss",
    "pooled_rows_loss",
    "sigmoid_attention",
    "sigmoid_attention_reference",
]
