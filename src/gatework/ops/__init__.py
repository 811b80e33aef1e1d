"""Pure functions on tensors: the mathematics of token mixing, and its fast paths."""

# Imported here, not on demand, because a function shares its name with the module that it comes from.
from gatework.ops.attention import Alibi, attention, attention_reference
from gatework.ops.neighborhood import merge_attentions, na1d, na2d, na3d

__all__ = ["Alibi", "attention", "attention_reference", "merge_attentions", "na1d", "na2d", "na3d"]
