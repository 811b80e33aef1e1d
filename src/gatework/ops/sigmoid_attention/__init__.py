"""Sigmoid attention: one function for every mask, and interchangeable engines behind it."""

from gatework.ops.sigmoid_attention.front import ENGINES, sigmoid_attention
from gatework.ops.sigmoid_attention.reference import sigmoid_attention_reference

__all__ = ["ENGINES", "sigmoid_attention", "sigmoid_attention_reference"]
