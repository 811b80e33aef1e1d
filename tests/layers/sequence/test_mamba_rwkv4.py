"""Mamba and RWKV-4 against their equations, written out token by token and channel by channel."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gatework.layers.sequence.mamba import Mamba
from gatework.layers.sequence.rwkv4 import RWKV4
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from tests.layers.sequence.test_recurrent_layers import randomised, short_conv_silu

DIM, LENGTH = 6, 9


@pytest.mark.parametrize(
    "options",
    [{"state_dim": 3}, {"state_dim": 2, "dt_rank": 4, "expand": 3, "bias": True, "conv_bias": False}],
)
def test_mamba_is_its_equation(options):
    layer = randomised(Mamba(DIM, **options))
    states, inner, rank = options["state_dim"], layer.inner_dim, options.get("dt_rank", 1)
    tokens = torch.randn(LENGTH, DIM, dtype=torch.float64)
    projected = layer.in_proj(tokens)
    x, z = short_conv_silu(projected[:, :inner], layer.conv1d), projected[:, inner:]
    outputs = torch.zeros(LENGTH, inner, dtype=torch.float64)
    h = torch.zeros(inner, states, dtype=torch.float64)
    for t in range(LENGTH):
        row = layer.x_proj.weight @ x[t]
        low, b, c = row[:rank], row[rank : rank + states], row[rank + states :]
        for channel in range(inner):
            dt = F.softplus(layer.dt_proj.weight[channel] @ low + layer.dt_proj.bias[channel])
            h = h.clone()
            for n in range(states):
                a = -layer.A_log[channel, n].exp()
                h[channel, n] = (dt * a).exp() * h[channel, n] + dt * b[n] * x[t, channel]
            y = h[channel] @ c + layer.D[channel] * x[t, channel]
            outputs[t, channel] = y * F.silu(z[t, channel])
    torch.testing.assert_close(layer(tokens[None])[0], layer.out_proj(outputs))


def test_mamba_starts_as_the_authors_do():
    layer = Mamba(64, dt_min=0.002, dt_max=0.05, dt_floor=0.004, dt_scale=2.0)
    assert layer.dt_proj.weight.shape == (128, 4)
    assert layer.x_proj.weight.shape == (4 + 2 * 16, 128)
    steps = F.softplus(layer.dt_proj.bias)
    assert 0.004 - 1e-6 <= steps.min() < 0.005
    assert 0.04 < steps.max() <= 0.05 + 1e-6
    assert 0.9 < layer.dt_proj.weight.abs().max() <= 2.0 / math.sqrt(4)
    torch.testing.assert_close(layer.A_log.exp()[5], torch.arange(1.0, 17.0))
    assert torch.equal(layer.D, torch.ones(128))
    constant = Mamba(64, dt_init="constant", dt_scale=2.0)
    assert torch.equal(constant.dt_proj.weight, torch.ones(128, 4))


def test_a_model_keeps_the_steps_that_mamba_starts_with():
    config = GateworkConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        mixers=[{"name": "mamba", "bias": True}],
        channel_mixer="none",
        norm="rmsnorm",
    )
    mixer = GateworkForCausalLM(config).model.layers[1].mixer
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() > 0.9e-4
    assert steps.max() < 0.11
    assert torch.equal(mixer.in_proj.bias, torch.zeros(64))


def test_rwkv4_is_its_equation():
    layer = randomised(RWKV4(DIM, layer_index=2, num_layers=5))
    tokens = torch.randn(LENGTH, DIM, dtype=torch.float64)
    before = torch.cat([torch.zeros(1, DIM, dtype=torch.float64), tokens[:-1]])

    def mixed(share):
        return tokens * share[0] + before * (1 - share[0])

    k, v = layer.key(mixed(layer.time_mix_k)), layer.value(mixed(layer.time_mix_v))
    r = layer.receptance(mixed(layer.time_mix_r))
    w = -layer.time_decay.exp()
    means = torch.zeros(LENGTH, DIM, dtype=torch.float64)
    for t in range(LENGTH):
        for c in range(DIM):
            exponents = [(t - 1 - i) * w[c] + k[i, c] for i in range(t)] + [layer.time_first[c] + k[t, c]]
            means[t, c] = torch.softmax(torch.stack(exponents), 0) @ v[: t + 1, c]
    torch.testing.assert_close(layer(tokens[None])[0], layer.output(torch.sigmoid(r) * means))


def test_rwkv4_starts_as_the_authors_do():
    dim, index, layers = 5, 2, 9
    layer = RWKV4(dim, layer_index=index, num_layers=layers)
    depth, rest = index / (layers - 1), 1 - index / layers
    for c in range(dim):
        expected = {
            "time_decay": -5 + 8 * (c / (dim - 1)) ** (0.7 + 1.3 * depth),
            "time_first": math.log(0.3) + 0.5 * ((c + 1) % 3 - 1),
            "time_mix_k": (c / dim) ** rest,
            "time_mix_v": (c / dim) ** rest + 0.3 * depth,
            "time_mix_r": (c / dim) ** (0.5 * rest),
        }
        for name, value in expected.items():
            assert getattr(layer, name).flatten()[c].item() == pytest.approx(value, abs=1e-6)


def test_rwkv4_has_seen_nothing_at_first():
    layer = RWKV4(DIM)
    state = layer.initial_state(2)
    assert torch.equal(state["log_weight"], torch.full((2, DIM), -torch.inf))
    x = torch.randn(2, DIM)
    _, after = layer.step(x, state)
    torch.testing.assert_close(after["mean"], layer.value(x * layer.time_mix_v[0, 0]))


def test_states_as_they_are_published():
    assert Mamba(8, state_dim=4, expand=3).published_state_size(100) == 2 * 8 * 4
    assert RWKV4(8).published_state_size(100) is None


@pytest.mark.parametrize("mixer", [Mamba(DIM, state_dim=3), RWKV4(DIM)])
def test_bfloat16_weights(mixer):
    mixer, wide = mixer.bfloat16(), mixer
    x = torch.randn(2, 40, DIM)
    y, state = mixer.prefill(x.bfloat16())
    assert y.dtype == torch.bfloat16
    step, _ = mixer.step(x[:, 0].bfloat16(), state)
    assert step.dtype == torch.bfloat16
    expected = wide.float()(x)
    assert (y - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.compile
@pytest.mark.parametrize("mixer", [Mamba(DIM, state_dim=3), RWKV4(DIM)])
def test_export(mixer):
    x = torch.randn(2, 12, DIM)
    length = torch.export.Dim("length", min=8, max=100)
    program = torch.export.export(mixer, (x,), dynamic_shapes=({1: length},))
    longer = torch.randn(2, 70, DIM)
    torch.testing.assert_close(program.module()(longer), mixer(longer))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mamba(8, state_dim=0), "state_dim must be at least 1, got 0"),
        (lambda: Mamba(8, expand=0), "expand must be at least 1, got 0"),
        (lambda: Mamba(8, dt_rank=0), "dt_rank must be at least 1, got 0"),
        (lambda: Mamba(8, conv_size=0), "conv_size must be at least 1, got 0"),
        (lambda: Mamba(8, dt_init="zero"), "dt_init must be one of random, constant, got 'zero'"),
        (lambda: Mamba(8, dt_min=0.2), r"dt_max must be at least dt_min=0\.2, got 0\.1"),
        (lambda: RWKV4(8, num_layers=1), "num_layers must be at least 2, got 1"),
        (lambda: RWKV4(8, layer_index=12), "layer_index must be between 0 and 11, got 12"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("mixer", "name", "wrong"),
    [
        (Mamba(DIM, state_dim=3), "memory", torch.zeros(2, 12, 4)),
        (Mamba(DIM, state_dim=3), "conv", torch.zeros(2, 4, 12)),
        (RWKV4(DIM), "mean", torch.zeros(2, DIM + 1)),
        (RWKV4(DIM), "log_weight", torch.zeros(3, DIM)),
        (RWKV4(DIM), "last", torch.zeros(2, 1, DIM)),
    ],
)
def test_states_of_another_shape_are_named(mixer, name, wrong):
    state = mixer.initial_state(2) | {name: wrong}
    with pytest.raises(ValueError, match=f"state\\['{name}'\\] must have shape"):
        mixer.step(torch.zeros(2, DIM), state)
    with pytest.raises(ValueError, match=f"state\\['{name}'\\] must have shape"):
        mixer.prefill(torch.zeros(2, 3, DIM), state)
