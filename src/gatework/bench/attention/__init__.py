"""``gatework bench attention``: what attention under a mask costs, with which engine."""

from gatework.bench.attention.front import attention
from gatework.bench.attention.result import AttentionBench

__all__ = ["AttentionBench", "attention"]
