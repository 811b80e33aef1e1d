from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.linear_recurrence import (
    gated_linear_attention,
    gated_linear_attention_reference,
    gated_linear_attention_step,
)

DECAYS = ("none", "head", "channel")


def draw(batch, heads, length, key_dim, value_dim, decay, seed, *, strength=1.0, dtype=torch.float64):
    """Queries, keys, values, log-decay and an initial state, all of them asking for gradients."""
    gen = torch.Generator().manual_seed(seed)
    shape = (batch, heads, length)
    q, k = (torch.randn(*shape, key_dim, generator=gen, dtype=dtype) for _ in range(2))
    v = torch.randn(*shape, value_dim, generator=gen, dtype=dtype)
    state = torch.randn(batch, heads, key_dim, value_dim, generator=gen, dtype=dtype)
    log_decay = None
    if decay != "none":
        log_decay = -strength * torch.rand(
            *shape, *([key_dim] if decay == "channel" else []), generator=gen, dtype=dtype
        )
    inputs = [q, k, v, log_decay, state]
    return [None if tensor is None else tensor.requires_grad_() for tensor in inputs]


def run(function, q, k, v, log_decay, state):
    return function(q, k, v, log_decay, initial_state=state)


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 2),
    length=st.integers(0, 20) | st.integers(60, 70) | st.integers(126, 135),
    key_dim=st.integers(1, 5),
    value_dim=st.integers(1, 4),
    decay=st.sampled_from(DECAYS),
    strength=st.sampled_from([0.0, 0.1, 3.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_definition(batch, heads, length, key_dim, value_dim, decay, strength, seed):
    inputs = draw(batch, heads, length, key_dim, value_dim, decay, seed, strength=strength)
    results = run(gated_linear_attention, *inputs)
    expected = run(gated_linear_attention_reference, *inputs)
    given_inputs = [tensor for tensor in inputs if tensor is not None]
    gradients = []
    for outputs in (results, expected):
        torch.manual_seed(seed)
        total = sum((tensor * torch.randn_like(tensor)).sum() for tensor in outputs)
        gradients.append(torch.autograd.grad(total, given_inputs, materialize_grads=True, allow_unused=True))
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("decay", DECAYS)
def test_gradients(decay):
    q, k, v, log_decay, state = draw(1, 2, 7, 3, 2, decay, 0)
    inputs = [q, k, v, state] if log_decay is None else [q, k, v, state, log_decay]

    def function(q, k, v, state, log_decay=None):
        return gated_linear_attention(q, k, v, log_decay, initial_state=state)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("decay", DECAYS)
def test_any_chunking_continues(decay):
    q, k, v, log_decay, state = draw(2, 2, 150, 4, 3, decay, 1)
    whole, final = gated_linear_attention(q, k, v, log_decay, initial_state=state)
    parts, start = [], 0
    for size in (1, 2, 3, 64, 0, 65, 15):
        piece = slice(start, start + size)
        cut = None if log_decay is None else log_decay[:, :, piece]
        y, state = gated_linear_attention(
            q[:, :, piece], k[:, :, piece], v[:, :, piece], cut, initial_state=state
        )
        parts.append(y)
        start += size
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-11)


@pytest.mark.parametrize("decay", DECAYS)
def test_steps_equal_the_definition(decay):
    q, k, v, log_decay, state = draw(2, 2, 5, 4, 3, decay, 2)
    whole, final = gated_linear_attention_reference(q, k, v, log_decay, initial_state=state)
    for t in range(5):
        cut = None if log_decay is None else log_decay[:, :, t]
        y, state = gated_linear_attention_step(q[:, :, t], k[:, :, t], v[:, :, t], cut, state)
        torch.testing.assert_close(y, whole[:, :, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("decay", DECAYS)
def test_no_output_sees_the_future(decay):
    q, k, v, log_decay, state = (None if t is None else t.detach() for t in draw(1, 1, 130, 3, 2, decay, 3))
    before, _ = gated_linear_attention(q, k, v, log_decay, initial_state=state)
    changed = [None if t is None else t.clone() for t in (q, k, v, log_decay)]
    for tensor in changed:
        if tensor is not None:
            tensor[:, :, 70:] -= 1
    after, _ = gated_linear_attention(*changed, initial_state=state)
    torch.testing.assert_close(after[:, :, :70], before[:, :, :70], rtol=0, atol=1e-12)
    assert (after[:, :, 70:] - before[:, :, 70:]).abs().min() > 0


@pytest.mark.parametrize("strength", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_strong_decay_underflows_and_never_overflows(decay, strength):
    inputs = draw(1, 2, 100, 4, 3, decay, 4, strength=strength, dtype=torch.float32)
    y, state = run(gated_linear_attention, *inputs)
    assert y.isfinite().all()
    assert state.isfinite().all()
    (y.sum() + state.sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    expected, _ = run(gated_linear_attention_reference, *(tensor.double() for tensor in inputs))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(decay, dtype):
    q, k, v, log_decay, _ = (
        None if t is None else t.detach().to(dtype) for t in draw(1, 2, 80, 4, 3, decay, 5)
    )
    y, state = gated_linear_attention(q, k, v, log_decay)
    wide = [None if t is None else t.float() for t in (q, k, v, log_decay)]
    expected, expected_state = gated_linear_attention(*wide)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(state, expected_state)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast, _ = gated_linear_attention(*wide)
    torch.testing.assert_close(under_autocast, expected)


@pytest.mark.compile
@pytest.mark.parametrize("decay", DECAYS)
def test_one_graph(decay):
    torch.compiler.reset()
    inputs = draw(1, 2, 70, 4, 3, decay, 6, dtype=torch.float32)
    compiled = torch.compile(gated_linear_attention, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(run(compiled, *inputs), run(gated_linear_attention, *inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 2, 5, 4)}, r"k must have the shape of q"),
        ({"v": torch.zeros(1, 2, 6, 3)}, r"v must have shape .* got \(1, 2, 6, 3\)"),
        ({"log_decay": torch.zeros(1, 2)}, r"log_decay must have shape \(1, 2, 5\).*got \(1, 2\)"),
        ({"initial_state": torch.zeros(1, 2, 3, 4)}, r"initial_state must have shape \(1, 2, 3, 2\)"),
    ],
)
def test_shapes_that_do_not_match_are_named(change, message):
    tensors = {"q": torch.zeros(1, 2, 5, 3), "k": torch.zeros(1, 2, 5, 3), "v": torch.zeros(1, 2, 5, 2)}
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**(tensors | change))
