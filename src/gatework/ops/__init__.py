"""Pure functions on tensors: the mathematics of token mixing, and its fast paths."""

# Imported here, not on demand, because a function shares its name with the module that it comes from.
from gatework.ops.attention import attention, attention_reference

__all__ = ["attention", "attention_reference"]
