"""Ranks among earlier scores equal their definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.causal_ranks import causal_ranks, causal_ranks_reference


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 3), length=st.integers(0, 70), levels=st.integers(1, 90), seed=st.integers(0, 99))
def test_fast_path_equals_definition(batch, length, levels, seed):
    """Few levels make many ties."""
    gen = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (batch, length), generator=gen).double() - levels // 2
    assert torch.equal(causal_ranks(scores), causal_ranks_reference(scores))


def test_infinite_and_half_precision_scores():
    scores = torch.tensor([[0.0, torch.inf, -torch.inf, 1.0, torch.inf, -torch.inf, -0.0]])
    expected = torch.tensor([[0, 0, 2, 1, 1, 5, 4]])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(causal_ranks(scores.to(dtype)), expected)


def test_rising_and_falling_scores():
    steps = torch.arange(33.0)[None]
    assert torch.equal(causal_ranks(steps), torch.zeros(1, 33, dtype=torch.int64))
    assert torch.equal(causal_ranks(-steps), torch.arange(33)[None])
