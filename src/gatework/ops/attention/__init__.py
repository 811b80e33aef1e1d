"""Softmax attention: one function for every mask, and interchangeable engines behind it."""

from gatework.ops.attention.front import ENGINES, attention
from gatework.ops.attention.options import Alibi
from gatework.ops.attention.reference import attention_reference

__all__ = ["ENGINES", "Alibi", "attention", "attention_reference"]
