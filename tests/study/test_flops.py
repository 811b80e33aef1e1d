"""Counted arithmetic: against formulas worked out by hand, and the same however it is computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gatework.data.segment import TokenBatch
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.study.flops import FlopCounter, step_cost
from gatework.tasks.next_token import NextTokenModule
from gatework.tasks.task import Training


def flops_of(function, *args, **options):
    with FlopCounter() as counter:
        function(*args, **options)
    return counter.flops


def test_products():
    x, w, b = torch.randn(6, 32), torch.randn(7, 32), torch.randn(7)
    assert flops_of(F.linear, x, w, b) == 2 * 6 * 32 * 7
    assert flops_of(torch.matmul, torch.randn(3, 4, 5), torch.randn(3, 5, 2)) == 2 * 3 * 4 * 5 * 2
    assert flops_of(F.conv1d, torch.randn(2, 3, 10), torch.randn(4, 3, 3)) == 2 * 2 * 4 * 8 * 3 * 3


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (5, 9)])
def test_attention_counts_the_pairs_it_may_look_at(is_causal, queries, keys):
    q = torch.randn(2, 3, queries, 8, requires_grad=True)
    k = torch.randn(2, 3, keys, 8, requires_grad=True)
    pairs = 6 * sum(min(row + 1, keys) if is_causal else keys for row in range(queries))
    with FlopCounter() as counter:
        y = F.scaled_dot_product_attention(q, k, k, is_causal=is_causal)
        forward = counter.flops
        torch.autograd.grad(y, (q, k), torch.ones_like(y))
    assert forward == 4 * 8 * pairs
    backward = counter.flops - forward
    # The key is used twice, so its two gradients are added.
    assert backward - 2.5 * forward == pytest.approx(k.numel(), rel=0.01)


def test_fourier_transforms():
    x = torch.randn(6, 64)
    assert flops_of(torch.fft.rfft, x) == 6 * 2.5 * 64 * math.log2(64)
    assert flops_of(torch.fft.rfft, x, n=128) >= 6 * 2.5 * 128 * math.log2(128)
    assert flops_of(torch.fft.fft, x.to(torch.complex64)) == 6 * 5 * 64 * math.log2(64)


def test_elements_count_once_and_moving_is_free():
    x = torch.randn(4, 5)
    assert flops_of(torch.exp, x) == 20
    assert flops_of(torch.softmax, x, -1) == 20
    assert flops_of(torch.sum, x) == 20
    assert flops_of(lambda: x.T.contiguous().reshape(2, 10)[:, :3].clone()) == 0


def make_model(mixer, **options):
    torch.manual_seed(0)
    config = GateworkConfig(
        vocab_size=32, hidden_size=8, mixers=[{"name": mixer, **options}], context_length=16
    )
    return GateworkForCausalLM(config)


def training_of(model):
    return NextTokenModule(model, Training(), 0.01)


def make_batch(rows, length):
    tokens = torch.arange(rows * length).reshape(rows, length) % 32
    return TokenBatch(tokens, tokens.roll(-1, 1), [])


@pytest.mark.parametrize("mixer", ["attention", "hyena", "gated_linear_attention", "base_conv"])
def test_a_step_costs_in_proportion_to_its_sequences(mixer):
    model = make_model(mixer)
    few, some, many = (step_cost(training_of(model), make_batch(rows, 16)) for rows in (4, 8, 12))
    # What does not grow with the batch (filters, sums of weights) stands in all three.
    assert many.flops - some.flops == some.flops - few.flops > 0
    growth = some.activation_bytes - few.activation_bytes
    assert many.activation_bytes - some.activation_bytes == growth > 0


def test_a_step_leaves_no_trace():
    model = make_model("attention", dropout=0.5)
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = step_cost(training_of(model), make_batch(2, 8))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert step_cost(training_of(model), make_batch(2, 8)) == first


def test_the_matrix_products_of_a_transformer_dominate_and_are_exact():
    """Six times parameters in products per token is the usual estimate; at this width the rest adds to it."""
    model = make_model("attention")
    batch = make_batch(4, 16)
    products = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    estimate = 6 * products * batch.inputs.numel()
    assert estimate < step_cost(training_of(model), batch).flops < 2 * estimate
