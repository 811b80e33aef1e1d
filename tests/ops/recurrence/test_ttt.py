"""Test-time training in mini-batches: equal to gradient descent token by token, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatework.ops.recurrence.ttt import ttt_linear, ttt_linear_reference, ttt_mlp, ttt_mlp_reference

OPERATORS = {"linear": (ttt_linear, ttt_linear_reference), "mlp": (ttt_mlp, ttt_mlp_reference)}
EXACT = {"rtol": 0, "atol": 1e-10}
kinds = pytest.mark.parametrize("kind", sorted(OPERATORS))


def inputs(
    kind, batch=2, heads=2, length=11, width=4, mini_batch=4, *, hidden=5, dtype=torch.float64, seed=0
):
    """Arguments in order: q, k, v, rates, schedule, norm weight and bias, and the model before."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return scale * torch.randn(shape, generator=gen, dtype=torch.float64)

    q, k, v = (normal(batch, heads, length, width) for _ in range(3))
    rates = torch.rand(batch, heads, length, generator=gen, dtype=torch.float64) / width
    schedule = 1 / torch.arange(1, mini_batch + 1) + normal(mini_batch, scale=0.1)
    norm = [1 + normal(heads, width, scale=0.2), normal(heads, width, scale=0.2)]
    shapes = [(width, width), (1, width)]
    if kind == "mlp":
        shapes = [(width, hidden), (1, hidden), (hidden, width), (1, width)]
    model = [normal(batch, heads, *shape, scale=0.3) for shape in shapes]
    return [tensor.to(dtype) for tensor in (q, k, v, rates, schedule, *norm, *model)]


@kinds
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(0, 2),
    length=st.integers(0, 40),
    # Normalised over two channels, everything is near 1 or -1, and one rounding of the inputs moves outputs
    # of either form by 1e-6; from three on by less than 1e-12.
    width=st.integers(3, 5),
    mini_batch=st.integers(1, 9),
    hidden=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_mini_batches_equal_the_definition(kind, batch, length, width, mini_batch, hidden, seed):
    fast, definition = OPERATORS[kind]
    tensors = inputs(kind, batch, 2, length, width, mini_batch, hidden=hidden, seed=seed)
    for ours, theirs in zip(fast(*tensors), definition(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@kinds
def test_more_mini_batches_than_are_computed_together(kind):
    fast, definition = OPERATORS[kind]
    tensors = inputs(kind, 1, 1, 139, 3, 2)
    for ours, theirs in zip(fast(*tensors), definition(*tensors), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@kinds
def test_gradients(kind):
    tensors = [tensor.requires_grad_() for tensor in inputs(kind, 1, 1, 5, 3, 2, hidden=2)]
    assert torch.autograd.gradcheck(OPERATORS[kind][0], tensors)


@kinds
def test_gradients_equal_those_of_the_definition(kind):
    gradients = []
    for operator in OPERATORS[kind]:
        tensors = [tensor.requires_grad_() for tensor in inputs(kind)]
        total = sum(output.sin().sum() for output in operator(*tensors))
        gradients.append(torch.autograd.grad(total, tensors))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@kinds
def test_a_sequence_can_be_cut_after_a_mini_batch(kind):
    operator = OPERATORS[kind][0]
    tensors = inputs(kind, length=14)
    whole = operator(*tensors)
    sequence, constants, model = tensors[:4], tensors[4:7], tensors[7:]
    first, *model = operator(*(t[:, :, :8] for t in sequence), *constants, *model)
    rest = operator(*(t[:, :, 8:] for t in sequence), *constants, *model)
    torch.testing.assert_close(torch.cat([first, rest[0]], 2), whole[0], **EXACT)
    for ours, theirs in zip(rest[1:], whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@kinds
@pytest.mark.parametrize("at", [3, 8, 10])
def test_no_output_sees_the_future(kind, at):
    operator = OPERATORS[kind][0]
    tensors, changed = inputs(kind), inputs(kind)
    for tensor in changed[:4]:
        tensor[:, :, at:] += 0.5
    y, y_changed = operator(*tensors)[0], operator(*changed)[0]
    torch.testing.assert_close(y[:, :, :at], y_changed[:, :, :at], **EXACT)
    assert (y - y_changed)[:, :, at:].abs().amax((0, 1, 3)).min() > 1e-3


@kinds
def test_learning_reduces_the_loss(kind):
    """Five keys that repeat with their values are learned: answers at the keys approach ``v - k``."""
    *_, rates, schedule, weight, bias = inputs(kind, 1, 1, 400, 8, 4)[:7]
    model = inputs(kind, 1, 1, 400, 8, 4, hidden=16)[7:]
    k = torch.randn(1, 1, 5, 8, dtype=torch.float64).repeat(1, 1, 80, 1)
    target = F.layer_norm(k.roll(1, -1) * k.roll(2, -1), [8])
    y, *_ = OPERATORS[kind][0](k, k, k + target, rates, schedule, torch.ones_like(weight), 0 * bias, *model)
    errors = (y - k - target).square().sum(-1)
    assert errors[..., -20:].mean() < 0.3 * errors[..., :20].mean()


@kinds
@pytest.mark.parametrize(("size", "tolerance"), [(1.0, 1e-5), (30.0, 1e-2)])
def test_long_sequences_stay_near_double_precision(kind, size, tolerance):
    tensors = inputs(kind, 1, 2, 3000, 16, 16, hidden=64)
    for tensor in tensors[:3]:
        tensor.mul_(size)
    half = [tensor.bfloat16() for tensor in tensors]
    for arguments, error in (([t.float() for t in tensors], tolerance), (half, max(tolerance, 5e-3))):
        y, *model = OPERATORS[kind][0](*arguments)
        exact = OPERATORS[kind][0](*(tensor.double() for tensor in arguments))[0]
        assert y.dtype == arguments[0].dtype
        assert all(parameter.dtype == torch.float32 for parameter in model)
        assert (y - exact).abs().max() / exact.abs().max() < error


def saved_bytes(operator, tensors):
    """Bytes that the backward pass of ``operator`` keeps, each storage once."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        operator(*(tensor.requires_grad_() for tensor in tensors))
    return sum(storage.nbytes() for storage in storages.values())


@kinds
def test_training_memory_grows_linearly(kind):
    sizes = [saved_bytes(OPERATORS[kind][0], inputs(kind, length=length)) for length in (256, 512, 1024)]
    assert 1.9 < (sizes[2] - sizes[1]) / (sizes[1] - sizes[0]) < 2.1


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("kind", "position", "shape", "message"),
    [
        ("linear", 0, (2, 11, 4), r"q must have shape \(batch, heads, length, head_dim\), got \(2, 11, 4\)"),
        ("linear", 1, (2, 2, 10, 4), r"k must have shape \(2, 2, 11, 4\), got \(2, 2, 10, 4\)"),
        ("mlp", 2, (2, 2, 11, 5), r"v must have shape \(2, 2, 11, 4\)"),
        ("linear", 3, (2, 2, 11, 1), r"rates must have shape \(2, 2, 11\)"),
        ("linear", 4, (0,), r"schedule must have shape \(mini_batch>=1,\), got \(0,\)"),
        ("linear", 5, (4,), r"norm_weight must have shape \(2, 4\)"),
        ("mlp", 6, (2, 3), r"norm_bias must have shape \(2, 4\)"),
        ("linear", 7, (2, 4, 4), r"weight must have shape \(2, 2, 4, 4\)"),
        ("linear", 8, (2, 2, 4), r"bias must have shape \(2, 2, 1, 4\)"),
        ("mlp", 8, (2, 2, 1, 4), r"bias1 must have shape \(2, 2, 1, 5\)"),
        ("mlp", 9, (2, 2, 4, 5), r"weight2 must have shape \(2, 2, 5, 4\)"),
    ],
)
def test_mistakes_are_named(kind, position, shape, message):
    tensors = inputs(kind)
    tensors[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        OPERATORS[kind][0](*tensors)
