"""Test-time training as a mixer: its equation in loops, its state, and the authors' layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import gatework
from gatework.layers.sequence.ttt import TTTMLP, TTTLinear

DIM, LENGTH = 12, 11
KINDS = {"linear": TTTLinear, "mlp": TTTMLP}
kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def randomised(mixer):
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.double()


def short_conv(x, conv):
    """``sum_s w_s x_{t-s} + b`` for every token and channel."""
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for s in range(min(conv.kernel_size, t + 1)):
            y[t] += conv.weight[:, 0, conv.kernel_size - 1 - s] * x[t - s]
    return y + conv.bias


def rotated(x, place, theta):
    """Neighbouring channels as complex numbers, turned."""
    pairs = torch.complex(x[0::2], x[1::2])
    turns = [place * theta ** (-2 * i / len(x)) for i in range(len(pairs))]
    angles = torch.tensor(turns, dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten()


def answer(parameters, x, norm):
    """The inner model behind its norm, for one token of one head."""
    for layer in range(0, len(parameters), 2):
        hidden = x if layer == 0 else F.gelu(x, approximate="tanh")
        x = hidden @ parameters[layer] + parameters[layer + 1][0]
    x = x - x.mean()
    return x / (x.square().mean() + 1e-6).sqrt() * norm[0] + norm[1]


def head_outputs(layer, head, q, k, v, x):
    """Gradient descent on one head, token by token, with gradients of automatic differentiation."""
    norm = layer.norm_weight[head], layer.norm_bias[head]
    model = [getattr(layer, name)[head].detach() for name in layer.model]
    outputs, size = [], layer.mini_batch_size
    for t in range(len(x)):
        place = t % size
        if place == 0:
            start, total = model, [torch.zeros_like(parameter) for parameter in model]
        query, key = rotated(q[t], place, layer.rope_theta), rotated(k[t], place, layer.rope_theta)
        trained = [parameter.detach().requires_grad_() for parameter in start]
        loss = (answer(trained, key, norm) - (v[t] - key)).square().sum() / 2
        logit = layer.rate_proj.weight[head] @ x[t] + layer.rate_proj.bias[head]
        rate = layer.base_rate / layer.head_dim * torch.sigmoid(logit)
        total = [s + rate * g for s, g in zip(total, torch.autograd.grad(loss, trained), strict=True)]
        factor = max(0.0, 1 / (place + 1) + float(layer.schedule_offset[place].detach()))
        model = [parameter - factor * s for parameter, s in zip(start, total, strict=True)]
        outputs.append(query + answer(model, query, norm))
    return torch.stack(outputs)


@kinds
@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 3, "mini_batch_size": 4},
        {"num_heads": 2, "mini_batch_size": 3, "base_rate": 3.0, "rope_theta": 50.0, "gate": True},
        {"num_heads": 1, "mini_batch_size": 5, "share_qk": True, "conv_size": 3},
    ],
)
def test_it_is_its_equation(kind, options):
    layer = randomised(KINDS[kind](DIM, **options))
    with torch.no_grad():
        layer.schedule_offset[1] = -0.7  # below zero where it is cut
    x = torch.randn(LENGTH, DIM, dtype=torch.float64)
    q, v = layer.q_proj(x), layer.v_proj(x)
    if layer.k_proj is None:
        q, k = short_conv(q, layer.conv_q), short_conv(q, layer.conv_k)
    else:
        k = layer.k_proj(x)
    parts = [tensor.split(layer.head_dim, 1) for tensor in (q, k, v)]
    heads = [head_outputs(layer, head, *tensors, x) for head, tensors in enumerate(zip(*parts, strict=True))]
    y = F.layer_norm(torch.cat(heads, 1), [DIM], layer.post_norm.weight, layer.post_norm.bias, 1e-6)
    if layer.g_proj is not None:
        gate = layer.g_proj(x)
        y = y * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) / 2
    torch.testing.assert_close(layer(x[None])[0], layer.o_proj(y), rtol=0, atol=1e-10)


@kinds
def test_the_state_holds_the_model_and_the_tokens_it_has_not_learned(kind):
    layer = KINDS[kind](8, num_heads=2, mini_batch_size=4)
    model = {"linear": 2 * (4 * 4 + 4), "mlp": 2 * (8 * 4 * 4 + 5 * 4)}[kind]
    assert layer.published_state_size(1000) == model
    assert [layer.state_size(length) - model for length in range(9)] == [18 * (n % 4) for n in range(9)]
    start = layer.initial_state(3)
    torch.testing.assert_close(start["W1"], layer.W1.expand(3, -1, -1, -1))
    x = torch.randn(3, 7, 8)
    _, incomplete = layer.prefill(x[:, :3], start)
    torch.testing.assert_close(incomplete["W1"], start["W1"], rtol=0, atol=0)
    _, complete = layer.prefill(x[:, :4], start)
    assert (complete["W1"] - start["W1"]).abs().min() > 0
    assert complete["keys"].shape == (3, 2, 0, 4)


@kinds
def test_training_changes_what_the_model_starts_from(kind):
    """The parameters that decoding starts from learn through every mini-batch, also from a given state."""
    layer = KINDS[kind](8, num_heads=2, mini_batch_size=4).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    cotangent = torch.randn_like(x)
    inner = [getattr(layer, name) for name in layer.model]
    expected = torch.autograd.grad(layer(x), inner, cotangent)
    first, state = layer.prefill(x[:, :6], layer.initial_state(2))
    rest, _ = layer.prefill(x[:, 6:], state)
    streamed = torch.autograd.grad(torch.cat([first, rest], 1), inner, cotangent)
    for ours, theirs in zip(streamed, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        assert theirs.abs().max() > 1e-6


@kinds
def test_the_official_layout_loads(kind):
    layer = KINDS[kind](8, num_heads=2, share_qk=True, gate=True)
    theirs = {
        "rate_proj.weight": ("learnable_ttt_lr_weight", lambda tensor: tensor[:, None]),
        "rate_proj.bias": ("learnable_ttt_lr_bias", lambda tensor: tensor[:, None]),
        "schedule_offset": ("learnable_token_idx", torch.clone),
        "norm_weight": ("ttt_norm_weight", torch.clone),
        "norm_bias": ("ttt_norm_bias", torch.clone),
    }
    official = {}
    for name, tensor in layer.state_dict().items():
        official_name, change = theirs.get(name, (name, torch.clone))
        official[f"ttt_layer.{official_name}"] = change(tensor)
    other = KINDS[kind](8, num_heads=2, share_qk=True, gate=True)
    gatework.load_checkpoint(other, official)
    for name, tensor in layer.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)


@kinds
def test_it_starts_as_the_authors_do(kind):
    layer = KINDS[kind](64, num_heads=2)
    assert 0.015 < float(layer.W1.detach().std()) < 0.025
    assert 0.01 < float(layer.rate_proj.weight.detach().std()) < 0.03
    zeros = (layer.b1, layer.rate_proj.bias, layer.schedule_offset, layer.norm_bias)
    assert not any(parameter.any() for parameter in zeros)
    assert layer.post_norm.eps == 1e-6
    assert not {"k_proj.bias", "o_proj.bias"} & layer.state_dict().keys()


@kinds
@pytest.mark.compile
def test_it_exports(kind):
    layer, x = KINDS[kind](8, num_heads=2, mini_batch_size=4), torch.randn(2, 10, 8)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


@kinds
def test_long_sequences_in_half_precision(kind):
    layer = KINDS[kind](16, num_heads=2)
    x = torch.randn(1, 2000, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    expected = layer.double()(x.double())
    assert (y - expected).abs().max() / expected.abs().max() < 0.05


@kinds
@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide dim=12, got 5"),
        ({"num_heads": 4}, "must be even to be rotated in pairs, got 12 // 4"),
        ({"num_heads": 2, "mini_batch_size": 0}, "mini_batch_size must be at least 1, got 0"),
        ({"num_heads": 2, "base_rate": -1.0}, r"base_rate must be positive, got -1\.0"),
        ({"num_heads": 2, "rope_theta": math.inf}, "rope_theta must be finite, got inf"),
        ({"num_heads": 2, "share_qk": True, "conv_size": 0}, "conv_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](DIM, **options)


@kinds
@pytest.mark.bad_input
def test_pending_tokens_that_do_not_match_are_named(kind):
    layer = KINDS[kind](8, num_heads=2)
    x = torch.randn(2, 3, 8)
    _, state = layer.prefill(x)
    with pytest.raises(ValueError, match=r"state\['values'\] must hold 3 tokens as state\['keys'\], got 2"):
        layer.prefill(x, state | {"values": state["values"][:, :, :2]})
    with pytest.raises(ValueError, match=r"state\['rates'\] must hold 3 tokens as state\['keys'\], got 2"):
        layer.step(x[:, 0], state | {"rates": state["rates"][:, :, :2]})
