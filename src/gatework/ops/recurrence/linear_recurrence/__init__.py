"""Linear recurrences on a matrix state, in chunks: linear time, any decay, no overflow.

One routine serves the linear-recurrent family. The state may decay not at all (linear attention), by one
number per head (RetNet, Mamba-2) or per key channel (gated linear attention, RWKV); and what is written to it
may be corrected not at all, by the delta rule (DeltaNet, Gated DeltaNet) or by a matrix of rank one (RWKV-7).
"""

from gatework.ops.recurrence.linear_recurrence.chunks import chunk_recurrence, split_chunks
from gatework.ops.recurrence.linear_recurrence.front import (
    delta_rule,
    gated_linear_attention,
    low_rank_recurrence,
)
from gatework.ops.recurrence.linear_recurrence.reference import (
    delta_rule_reference,
    delta_rule_step,
    gated_linear_attention_reference,
    gated_linear_attention_step,
    low_rank_recurrence_reference,
    low_rank_recurrence_step,
)

__all__ = [
    "chunk_recurrence",
    "delta_rule",
    "delta_rule_reference",
    "delta_rule_step",
    "gated_linear_attention",
    "gated_linear_attention_reference",
    "gated_linear_attention_step",
    "low_rank_recurrence",
    "low_rank_recurrence_reference",
    "low_rank_recurrence_step",
    "split_chunks",
]
