"""Measurement: what the operators cost on this machine, checked before it is timed."""

from gatework.bench.attention import AttentionBench, attention

__all__ = ["AttentionBench", "attention"]
