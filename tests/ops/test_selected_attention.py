"""Attention to selected blocks equals its definition, however it is computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops import selected_attention as module
from gatework.ops.selected_attention import selected_attention, selected_attention_reference


def problem(batch, kv_heads, share, group, q_length, past, width, block_size, seed=0, dtype=torch.float64):
    """Queries, keys, values and distinct earlier blocks for each query, with -1 among them."""
    gen = torch.Generator().manual_seed(seed)
    length, heads = q_length + past, kv_heads * share * group
    q, k, v = (
        torch.randn(batch, number, size, dim, generator=gen, dtype=dtype)
        for number, size, dim in ((heads, q_length, 4), (kv_heads, length, 4), (kv_heads, length, 3))
    )
    count = -(-length // block_size)
    own = (past + torch.arange(q_length))[:, None] // block_size
    order = torch.rand(batch, kv_heads * share, q_length, count, generator=gen).argsort(-1)[..., :width]
    return q, k, v, order.where((order < own) & (order % 4 != 3), -1)


def force(monkeypatch, *, dense: bool, elements: int = 1) -> None:
    monkeypatch.setattr(module, "_DENSE_KEYS", 1 << 30 if dense else 0)
    monkeypatch.setattr(module, "_GATHERED", elements)


@pytest.mark.parametrize("dense", [True, False])
@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.tuples(*[st.integers(1, 2)] * 3),
    q_length=st.integers(0, 11),
    past=st.integers(0, 9),
    width=st.integers(0, 3),
    block_size=st.integers(1, 5),
    elements=st.integers(1, 500),
)
def test_both_ways_equal_the_definition(dense, batch, heads, q_length, past, width, block_size, elements):
    arguments = problem(batch, *heads, q_length, past, width, block_size)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, dense=dense, elements=elements)
        y = selected_attention(*arguments, block_size=block_size)
    torch.testing.assert_close(
        y, selected_attention_reference(*arguments, block_size=block_size), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dense", [True, False])
def test_gradients(monkeypatch, dense):
    force(monkeypatch, dense=dense)
    q, k, v, blocks = problem(1, 1, 2, 1, 5, 1, 2, 2)

    def attend(q, k, v):
        return selected_attention(q, k, v, blocks, block_size=2, scale=0.7)

    assert torch.autograd.gradcheck(attend, [x.requires_grad_() for x in (q, k, v)])


def test_half_precision(monkeypatch):
    for dense in (True, False):
        force(monkeypatch, dense=dense)
        q, k, v, blocks = problem(1, 2, 1, 2, 20, 0, 2, 4)
        expected = selected_attention(q, k, v, blocks, block_size=4)
        y = selected_attention(*(x.bfloat16() for x in (q, k, v)), blocks, block_size=4)
        assert y.dtype == torch.bfloat16
        assert (y - expected).abs().max() < 0.03


def test_memory_of_training_is_linear(monkeypatch):
    """What is kept for the backward pass: the tensors of the call, not the gathered keys of every query."""
    force(monkeypatch, dense=False, elements=1 << 8)
    q, k, v, blocks = (
        x.requires_grad_() if x.is_floating_point() else x for x in problem(1, 1, 1, 1, 256, 0, 4, 8)
    )
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        selected_attention(q, k, v, blocks, block_size=8)
    given = sum(x.untyped_storage().nbytes() for x in (q, k, v, blocks))
    assert sum(kept.values()) < 3 * given  # gathered keys and values would be 35 times the keys


@pytest.mark.bad_input
def test_mistakes_are_named():
    q, k, v, blocks = problem(1, 2, 1, 2, 6, 0, 2, 3)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        selected_attention(q, k, v, blocks, block_size=0)
    with pytest.raises(ValueError, match="last of the 5 tokens of k, got 6 queries"):
        selected_attention(q, k[:, :, :5], v[:, :, :5], blocks, block_size=3)
    with pytest.raises(
        ValueError, match=r"blocks must have a row for each of 6 queries.*got shape \(1, 2, 5, 2\)"
    ):
        selected_attention(q, k, v, blocks[:, :, :5], block_size=3)
    with pytest.raises(ValueError, match=r"blocks must .*got shape \(1, 1, 6, 2\)"):
        selected_attention(q, k, v, blocks[:, :1], block_size=3)
    with pytest.raises(ValueError, match="k and v must have heads that divide"):
        selected_attention(q[:, :3], k, v, blocks, block_size=3)
