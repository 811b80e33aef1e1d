"""Zoology's models (arXiv:2312.04927): the published recall models as configurations.

All published recall models have two layers, a vocabulary of 8192, the identity as channel mixer and a head
tied to the word embedding. One function each; the number of parameters is that of the official classes, and
initial weights follow their rule (``residual_init="zoology"``).
"""

from __future__ import annotations

from typing import Any

from gatework.models.language.decoder import GateworkConfig


def zoology_attention(dim: int, *, length: int = 256) -> GateworkConfig:
    """Attention with one head, learned positions, and dropout 0.1 on the attention weights."""
    return _recall_model(dim, length, [{"name": "attention", "dropout": 0.1}], learned_positions=length)


def zoology_hyena(dim: int, *, length: int = 256) -> GateworkConfig:
    """Hyena in both layers."""
    return _recall_model(dim, length, [{"name": "hyena"}])


def zoology_base_conv(dim: int, *, length: int = 256) -> GateworkConfig:
    """A gated convolution of three taps, then one as long as the sequence."""
    layers = [{"name": "base_conv", "kernel_size": 3}, {"name": "base_conv", "kernel_size": -1}]
    return _recall_model(dim, length, layers)


def zoology_h3(dim: int, *, length: int = 256) -> GateworkConfig:
    """H3 in both layers, with 256 states per channel and heads of two channels."""
    return _recall_model(dim, length, [{"name": "h3", "state_dim": 256, "head_dim": 2}])


def zoology_based(dim: int, *, length: int = 256, feature_dim: int = 8) -> GateworkConfig:
    """A gated convolution of three taps, then Based."""
    layers = [{"name": "base_conv", "kernel_size": 3}, {"name": "based", "feature_dim": feature_dim}]
    return _recall_model(dim, length, layers)


def _recall_model(dim: int, length: int, layers: list[dict[str, Any]], **options: Any) -> GateworkConfig:
    return GateworkConfig(
        vocab_size=8192,
        hidden_size=dim,
        num_hidden_layers=2,
        mixers=layers,
        channel_mixer="identity",
        context_length=length,
        embed_dropout=0.1,
        residual_init="zoology",
        **options,
    )
