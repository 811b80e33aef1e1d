"""The recurrent layers against their equations, written out token by token and head by head."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gatework.layers.norm import GroupRMSNorm
from gatework.layers.sequence.based import Based
from gatework.layers.sequence.gated_linear_attention import GatedLinearAttention
from gatework.layers.sequence.mamba2 import Mamba2

DIM, LENGTH = 12, 9


def randomised(mixer):
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer.double()


def short_conv_silu(x, conv):
    """``silu(sum_s w_s x_{t-s} + b)`` for every token and channel."""
    y = torch.zeros_like(x)
    taps = conv.kernel_size
    for t in range(len(x)):
        for s in range(min(taps, t + 1)):
            y[t] += conv.weight[:, 0, taps - 1 - s] * x[t - s]
    return F.silu(y if conv.bias is None else y + conv.bias)


def rms_norm(x, weight=None, eps=1e-5):
    y = x / (x.square().mean() + eps).sqrt()
    return y if weight is None else y * weight


@pytest.mark.parametrize("gate", ["swish", "sigmoid", "gelu", None])
def test_gated_linear_attention_is_its_equation(gate):
    heads, kv_heads, d_k, d_v = 4, 2, 3, 6
    layer = randomised(
        GatedLinearAttention(
            DIM,
            num_heads=heads,
            num_kv_heads=kv_heads,
            expand_k=1.0,
            expand_v=2.0,
            gate_rank=5,
            gate_logit_normalizer=2.0,
            min_log_decay=-0.4,
            conv_size=3,
            output_gate=gate,
            feature_map="relu",
        )
    )
    x = torch.randn(LENGTH, DIM, dtype=torch.float64)
    q = short_conv_silu(layer.q_proj(x), layer.q_conv1d).relu()
    k = short_conv_silu(layer.k_proj(x), layer.k_conv1d).relu()
    v = short_conv_silu(layer.v_proj(x), layer.v_conv1d)
    g = (F.logsigmoid(layer.gk_proj[1](layer.gk_proj[0](x))) / 2).clamp(min=-0.4)
    outputs = torch.zeros(LENGTH, heads, d_v, dtype=torch.float64)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        state = torch.zeros(d_k, d_v, dtype=torch.float64)
        for t in range(LENGTH):
            keys = slice(shared * d_k, (shared + 1) * d_k)
            values = slice(shared * d_v, (shared + 1) * d_v)
            state = g[t, keys].exp()[:, None] * state + torch.outer(k[t, keys], v[t, values])
            query = q[t, head * d_k : (head + 1) * d_k] / math.sqrt(d_k)
            outputs[t, head] = rms_norm(state.T @ query, layer.norm.weight)
    y = outputs.flatten(1)
    if gate is not None:
        activation = {
            "swish": F.silu,
            "sigmoid": torch.sigmoid,
            "gelu": lambda z: F.gelu(z, approximate="tanh"),
        }
        y = y * activation[gate](layer.g_proj(x))
    torch.testing.assert_close(layer(x[None])[0], layer.o_proj(y))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_groups": 2, "skip_per_channel": True, "norm_before_gate": True},
        {"ssm_dim": 16, "norm": False, "bias": True, "conv_bias": False, "dt_limit": (0.05, 0.5)},
    ],
)
def test_mamba2_is_its_equation(options):
    state_dim, head_dim = 3, 4
    layer = randomised(Mamba2(DIM, state_dim=state_dim, head_dim=head_dim, conv_size=3, **options))
    groups, ssm = options.get("num_groups", 1), options.get("ssm_dim", 2 * DIM)
    heads, mlp = ssm // head_dim, 2 * DIM - ssm
    x = torch.randn(LENGTH, DIM, dtype=torch.float64)
    widths = [mlp, mlp, ssm, ssm + 2 * groups * state_dim, heads]
    gate, value, z, xbc, dt = layer.in_proj(x).split(widths, 1)
    u, b, c = short_conv_silu(xbc, layer.conv1d).split([ssm, groups * state_dim, groups * state_dim], 1)
    dt = F.softplus(dt + layer.dt_bias).clamp(*options.get("dt_limit", (0.0, math.inf)))
    y = torch.zeros(LENGTH, ssm, dtype=torch.float64)
    for head in range(heads):
        channels = slice(head * head_dim, (head + 1) * head_dim)
        group = head // (heads // groups)
        rows = slice(group * state_dim, (group + 1) * state_dim)
        state = torch.zeros(state_dim, head_dim, dtype=torch.float64)
        skip = layer.D[channels] if options.get("skip_per_channel") else layer.D[head]
        for t in range(LENGTH):
            decay = torch.exp(-dt[t, head] * layer.A_log[head].exp())
            state = decay * state + dt[t, head] * torch.outer(b[t, rows], u[t, channels])
            y[t, channels] = state.T @ c[t, rows] + skip * u[t, channels]
    part = ssm // groups
    for t in range(LENGTH):
        row = y[t] if options.get("norm_before_gate") else y[t] * F.silu(z[t])
        if options.get("norm", True):
            row = torch.cat([rms_norm(piece) for piece in row.split(part)]) * layer.norm.weight
        y[t] = row * F.silu(z[t]) if options.get("norm_before_gate") else row
    y = torch.cat([F.silu(gate) * value, y], 1) if mlp else y
    torch.testing.assert_close(layer(x[None])[0], layer.out_proj(y))


@pytest.mark.parametrize("is_causal", [True, False])
def test_based_is_its_equation(is_causal):
    heads, features, width = 2, 4, 6
    layer = randomised(Based(DIM, num_heads=heads, feature_dim=features, is_causal=is_causal, eps=0.1))
    x = torch.randn(LENGTH, DIM, dtype=torch.float64)
    q, k, v = layer.proj_q(x), layer.proj_k(x), layer.proj_v(x)
    y = torch.zeros(LENGTH, DIM, dtype=torch.float64)
    for head in range(heads):
        wide, narrow = slice(head * width, (head + 1) * width), slice(head * features, (head + 1) * features)
        for i in range(LENGTH):
            total = torch.tensor(0.1, dtype=torch.float64)
            for j in range(i + 1 if is_causal else LENGTH):
                score = q[i, narrow] @ k[j, narrow] / math.sqrt(features)
                weight = 1 + score + score**2 / 2
                y[i, wide] += weight * v[j, wide]
                total = total + weight
            y[i, wide] /= total
    torch.testing.assert_close(layer(x[None])[0], layer.proj_o(y))


def test_a_bidirectional_mixer_cannot_decode():
    with pytest.raises(ValueError, match="is_causal=False"):
        Based(DIM, is_causal=False).initial_state(1)


def test_group_norm_keeps_the_dtype_of_its_input():
    norm = GroupRMSNorm(6, 2)
    assert norm(torch.randn(2, 3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    x = torch.randn(4, 6)
    torch.testing.assert_close(norm(x)[1, 3:], rms_norm(x[1, 3:]))
    assert not list(GroupRMSNorm(6, affine=False).parameters())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GatedLinearAttention(DIM, num_heads=2, num_kv_heads=4),
            "num_kv_heads must divide num_heads=2, got 4",
        ),
        (lambda: GatedLinearAttention(DIM, num_heads=5), r"divide dim \* expand_k=6, got 5"),
        (lambda: GatedLinearAttention(DIM, expand_k=0.01), r"expand_k must leave at least one.* got 0\.01"),
        (lambda: GatedLinearAttention(DIM, output_gate="tanh"), "output_gate must be one of None"),
        (lambda: Mamba2(DIM), "head_dim must divide ssm_dim=24, got 64"),
        (lambda: Mamba2(DIM, head_dim=8, num_groups=2), "num_groups must divide num_heads=3, got 2"),
        (lambda: Mamba2(DIM, head_dim=4, ssm_dim=48), "ssm_dim must be between 1 and 24, got 48"),
        (lambda: Based(DIM, feature_dim=0), "feature_dim must be at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
