from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.recurrence.taylor_attention import (
    taylor_attention,
    taylor_attention_prefill,
    taylor_attention_reference,
    taylor_feature_count,
    taylor_features,
)


def draw(batch, heads, length, feature_dim, value_dim, seed, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(batch, heads, length, feature_dim, generator=gen, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, heads, length, value_dim, generator=gen, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (q, k, v)]


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 2),
    length=st.integers(0, 20) | st.integers(125, 132) | st.integers(255, 260),
    feature_dim=st.integers(1, 5),
    value_dim=st.integers(1, 4),
    is_causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_definition(batch, heads, length, feature_dim, value_dim, is_causal, seed):
    inputs = draw(batch, heads, length, feature_dim, value_dim, seed)
    y = taylor_attention(*inputs, is_causal=is_causal)
    expected = taylor_attention_reference(*inputs, is_causal=is_causal)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, inputs, cotangent, materialize_grads=True, allow_unused=True)
    theirs = torch.autograd.grad(expected, inputs, cotangent)
    for gradient, expected_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-9)


@given(feature_dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_features_have_the_taylor_series_as_product(feature_dim, seed):
    gen = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 3, feature_dim, generator=gen, dtype=torch.float64)
    features = taylor_features(q)
    assert features.shape == (3, taylor_feature_count(feature_dim))
    score = (q * k).sum(-1) / feature_dim**0.5
    torch.testing.assert_close((features * taylor_features(k)).sum(-1), 1 + score + score**2 / 2)


@pytest.mark.parametrize("is_causal", [True, False])
def test_gradients(is_causal):
    inputs = draw(1, 2, 6, 3, 2, 0)
    assert torch.autograd.gradcheck(lambda *args: taylor_attention(*args, is_causal=is_causal), inputs)


def test_any_chunking_continues():
    q, k, v = draw(2, 2, 300, 3, 4, 1)
    whole = taylor_attention(q, k, v)
    state = torch.zeros(2, 2, taylor_feature_count(3), 5, dtype=torch.float64)
    parts, start = [], 0
    for size in (1, 2, 0, 128, 129, 40):
        piece = slice(start, start + size)
        y, state = taylor_attention_prefill(q[:, :, piece], k[:, :, piece], v[:, :, piece], state)
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-11)


def test_no_output_sees_the_future():
    q, k, v = (tensor.detach() for tensor in draw(1, 1, 200, 3, 2, 2))
    before = taylor_attention(q, k, v)
    for tensor in (q, k, v):
        tensor[:, :, 140:] += 1
    torch.testing.assert_close(taylor_attention(q, k, v)[:, :, :140], before[:, :, :140], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    q, k, v = (tensor.detach().to(dtype) for tensor in draw(1, 2, 150, 4, 3, 3))
    y = taylor_attention(q, k, v)
    expected = taylor_attention(q.float(), k.float(), v.float())
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(taylor_attention(q.float(), k.float(), v.float()), expected)


def test_large_scores_stay_finite_and_right():
    q, k, v = (tensor.detach() for tensor in draw(1, 1, 300, 4, 3, 4, torch.float32))
    y = taylor_attention(100 * q, 100 * k, v)  # scores of about 1e4
    expected = taylor_attention_reference(100 * q.double(), 100 * k.double(), v.double())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)
    assert taylor_attention(1e8 * q, 1e8 * k, v).isfinite().all()


@pytest.mark.compile
def test_one_graph():
    torch.compiler.reset()
    inputs = draw(1, 2, 140, 4, 3, 5, torch.float32)
    compiled = torch.compile(taylor_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), taylor_attention(*inputs))


@pytest.mark.bad_input
def test_shapes_that_do_not_match_are_named():
    q = torch.zeros(1, 2, 5, 3)
    with pytest.raises(ValueError, match=r"q and k must have one shape .*\(1, 2, 5, 4\)"):
        taylor_attention(q, torch.zeros(1, 2, 5, 4), q)
    with pytest.raises(ValueError, match=r"v must have shape .*got \(1, 2, 6, 3\)"):
        taylor_attention(q, q, torch.zeros(1, 2, 6, 3))
