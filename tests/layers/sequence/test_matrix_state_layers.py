"""Layers with a matrix state against their equations, written out token by token and head by head."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import gatework
from gatework.layers.positions import rotary_embedding
from gatework.layers.sequence.delta_net import DeltaNet, GatedDeltaNet
from gatework.layers.sequence.linear_attention import LinearAttention
from gatework.layers.sequence.retention import Retention
from gatework.layers.sequence.rwkv5 import RWKV5
from gatework.layers.sequence.rwkv7 import RWKV7
from gatework.layers.sequence.rwkv_memory import token_shift
from tests.layers.sequence.test_recurrent_layers import randomised, rms_norm

DIM, LENGTH = 12, 9
DOUBLE = torch.float64


def tokens():
    return torch.randn(LENGTH, DIM, dtype=DOUBLE)


def part(head, width):
    return slice(head * width, (head + 1) * width)


def check_equal(layer, x, expected):
    torch.testing.assert_close(layer(x[None])[0], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("feature_map", ["elu", "cosformer", "exp_dim", "performer"])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_attention_is_its_equation(is_causal, feature_map, normalize):
    heads, features, width = 2, 4, 6
    layer = randomised(
        LinearAttention(
            DIM,
            num_heads=heads,
            feature_dim=features,
            feature_map=feature_map,
            max_length=LENGTH + 2,
            normalize=normalize,
            is_causal=is_causal,
            eps=0.1,
        )
    )
    x = tokens()
    q, k = (
        layer.feature_map(proj(x)[None].unflatten(-1, (heads, features)).transpose(1, 2))[0]
        for proj in (layer.proj_q, layer.proj_k)
    )
    v, y = layer.proj_v(x), torch.zeros(LENGTH, DIM, dtype=DOUBLE)
    for head in range(heads):
        for i in range(LENGTH):
            total = torch.tensor(0.1, dtype=DOUBLE)
            for j in range(i + 1 if is_causal else LENGTH):
                weight = q[head, i] @ k[head, j]
                y[i, part(head, width)] += weight * v[j, part(head, width)]
                total = total + weight
            if normalize:
                y[i, part(head, width)] /= total
    check_equal(layer, x, layer.proj_o(y))


def test_a_bidirectional_mixer_cannot_decode():
    with pytest.raises(ValueError, match="is_causal=False"):
        LinearAttention(DIM, is_causal=False).initial_state(1)


@pytest.mark.parametrize("affine", [True, False])
def test_retention_is_its_equation(affine):
    heads, d_k, d_v = 2, 6, 12
    layer = randomised(Retention(DIM, num_heads=heads, norm_affine=affine, norm_eps=1e-3))
    x = tokens()
    q, k = (
        rotary_embedding(proj(x)[None].unflatten(-1, (heads, d_k)).transpose(1, 2))[0]
        for proj in (layer.q_proj, layer.k_proj)
    )
    v, y = layer.v_proj(x), torch.zeros(LENGTH, heads, d_v, dtype=DOUBLE)
    for head in range(heads):
        gamma = 1 - 2.0 ** (-5 - head)
        for i in range(LENGTH):
            total = torch.zeros(d_v, dtype=DOUBLE)
            for j in range(i + 1):
                weight = gamma ** (i - j) * (q[head, i] @ k[head, j]) / math.sqrt(d_k)
                total = total + weight * v[j, part(head, d_v)]
            y[i, head] = rms_norm(total, layer.norm.weight, eps=1e-3)
    check_equal(layer, x, layer.o_proj(y.flatten(1) * F.silu(layer.g_proj(x))))


def projected(layer, x, activation):
    """Queries, keys and values of a delta rule, before queries and keys are normalised."""
    named = {"silu": F.silu, "relu": torch.relu, "elu": lambda z: F.elu(z) + 1, "identity": lambda z: z}
    sequences = []
    for name in "qkv":
        y = getattr(layer, f"{name}_proj")(x)
        act = F.silu if name == "v" else named[activation]
        if layer.conv_size:
            conv = getattr(layer, f"{name}_conv1d")
            taps = conv.kernel_size
            padded = F.pad(y, (0, 0, taps - 1, 0))
            y = sum(conv.weight[:, 0, s] * padded[s : s + len(x)] for s in range(taps))
        sequences.append(act(y))
    return sequences


def delta_rule_of(layer, x, q, k, v, beta, decay):
    """The rule and the norm, head by head; ``beta`` and ``decay`` are ``(length, heads)``."""
    d_k, d_v = layer.head_key_dim, layer.head_value_dim
    y = torch.zeros(LENGTH, layer.num_heads, d_v, dtype=DOUBLE)
    for head in range(layer.num_heads):
        state = torch.zeros(d_k, d_v, dtype=DOUBLE)
        for t in range(LENGTH):
            query, key = q[t, part(head, d_k)], k[t, part(head, d_k)]
            if layer.qk_norm == "sum":
                query, key = query / query.sum(), key / key.sum()
            else:
                query, key = (z / (z.square().sum() + 1e-6).sqrt() for z in (query, key))
            state = decay[t, head] * state
            correction = beta[t, head] * (v[t, part(head, d_v)] - state.T @ key)
            state = state + torch.outer(key, correction)
            y[t, head] = rms_norm(state.T @ query / math.sqrt(d_k), layer.o_norm.weight)
    y = y.flatten(1)
    return layer.o_proj(y * F.silu(layer.g_proj(x)) if layer.output_gate else y)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conv_size": 0, "output_gate": True, "allow_neg_eigval": True},
        {"qk_activation": "elu", "qk_norm": "sum", "expand_k": 2.0, "expand_v": 0.5, "conv_size": 3},
        {"qk_activation": "relu", "use_beta": False},
        {"qk_activation": "identity", "conv_size": 0},
    ],
)
def test_delta_net_is_its_equation(options):
    layer = randomised(DeltaNet(DIM, num_heads=2, **options))
    x = tokens()
    q, k, v = projected(layer, x, options.get("qk_activation", "silu"))
    beta = torch.ones(LENGTH, 2, dtype=DOUBLE)
    if options.get("use_beta", True):
        beta = torch.sigmoid(layer.b_proj(x)) * (2 if options.get("allow_neg_eigval") else 1)
    check_equal(layer, x, delta_rule_of(layer, x, q, k, v, beta, torch.ones_like(beta)))


@pytest.mark.parametrize(
    "options", [{}, {"head_dim": 5, "expand_v": 1.0, "output_gate": False, "conv_size": 2}]
)
def test_gated_delta_net_is_its_equation(options):
    layer = randomised(GatedDeltaNet(DIM, num_heads=3, **options))
    x = tokens()
    decay = torch.exp(-layer.A_log.exp() * F.softplus(layer.a_proj(x) + layer.dt_bias))
    sequences = projected(layer, x, "silu")
    check_equal(layer, x, delta_rule_of(layer, x, *sequences, torch.sigmoid(layer.b_proj(x)), decay))


def before(x):
    """The token before each token, one by one."""
    return torch.stack([torch.zeros(DIM, dtype=DOUBLE) if t == 0 else x[t - 1] for t in range(len(x))])


def group_norm(y, weight, bias, eps):
    return (y - y.mean()) / (y.var(unbiased=False) + eps).sqrt() * weight + bias


def test_rwkv5_is_its_equation():
    heads, width = 2, 6
    layer = randomised(RWKV5(DIM, num_heads=heads, layer_index=2, num_layers=5))
    x = tokens()
    last = before(x)
    k, v, r, g = (
        proj(x * mix[0, 0] + last * (1 - mix[0, 0]))
        for proj, mix in (
            (layer.key, layer.time_mix_k),
            (layer.value, layer.time_mix_v),
            (layer.receptance, layer.time_mix_r),
            (layer.gate, layer.time_mix_g),
        )
    )
    y = torch.zeros(LENGTH, DIM, dtype=DOUBLE)
    for head in range(heads):
        channels = part(head, width)
        state = torch.zeros(width, width, dtype=DOUBLE)
        decay = torch.exp(-torch.exp(layer.time_decay[head]))
        for t in range(LENGTH):
            new = torch.outer(k[t, channels], v[t, channels])
            output = r[t, channels] @ (layer.time_faaaa[head][:, None] * new + state)
            state = decay[:, None] * state + new
            y[t, channels] = group_norm(
                output / 8, layer.ln_x.weight[channels], layer.ln_x.bias[channels], 1e-5
            )
    check_equal(layer, x, layer.output(y * F.silu(g)))


def test_rwkv7_is_its_equation():
    heads, width = 3, 4
    layer = randomised(RWKV7(DIM, num_heads=heads, decay_rank=2, rate_rank=3, gate_rank=5))
    x = tokens()
    change = before(x) - x
    x_r, x_w, x_k, x_v, x_a, x_g = (x + change * mix for mix in layer.x_x)
    decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(layer.w_lora[2](torch.tanh(layer.w_lora[0](x_w)))))
    rate = torch.sigmoid(layer.a_lora[2](layer.a_lora[0](x_a)))
    gate = layer.g_lora[2](torch.sigmoid(layer.g_lora[0](x_g)))
    r, raw, v = layer.r_proj(x_r), layer.k_proj(x_k), layer.v_proj(x_v)
    k = raw * (1 + (rate - 1) * layer.k_a)
    y = torch.zeros(LENGTH, DIM, dtype=DOUBLE)
    for head in range(heads):
        channels = part(head, width)
        state = torch.zeros(width, width, dtype=DOUBLE)
        for t in range(LENGTH):
            removal = raw[t, channels] * layer.k_k[channels]
            removal = removal / (removal.square().sum() + 1e-6).sqrt()
            state = (
                decay[t, channels][:, None] * state
                - torch.outer(removal * rate[t, channels], removal @ state)
                + torch.outer(k[t, channels], v[t, channels])
            )
            weight, bias = layer.g_norm.weight[channels], layer.g_norm.bias[channels]
            y[t, channels] = group_norm(state.T @ r[t, channels], weight, bias, width * 1e-5)
            y[t, channels] += (r[t, channels] * k[t, channels] * layer.r_k[head]).sum() * v[t, channels]
    check_equal(layer, x, layer.o_proj(y * gate))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_token_shift(length):
    x, last = torch.randn(2, length, 4, dtype=torch.bfloat16), torch.randn(2, 4)
    shifted, new_last = token_shift(x, last)
    rows = [last.bfloat16(), *x.unbind(1)]
    assert all(torch.equal(shifted[:, t], rows[t]) for t in range(length))
    assert torch.equal(new_last, rows[-1].float())


STRONG = [
    (lambda: GatedDeltaNet(DIM, num_heads=2), "dt_bias", 6.0),
    (lambda: RWKV5(DIM, num_heads=2), "time_decay", 9.0),
    (lambda: RWKV7(DIM, num_heads=2, decay_rank=4, rate_rank=4, gate_rank=4), "w_lora.2.bias", 20.0),
    (lambda: Retention(DIM, num_heads=2), None, 0.0),
    (lambda: LinearAttention(DIM, num_heads=2), None, 0.0),
]


@pytest.mark.parametrize(("make", "decay", "shift"), STRONG)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
def test_strong_decay_stays_near_double(make, decay, shift, dtype, tolerance):
    layer = randomised(make())
    if decay is not None:
        with torch.no_grad():
            layer.get_parameter(decay).add_(shift)
    x = torch.randn(2, 150, DIM)
    layer.to(dtype)
    y = layer(x.to(dtype).requires_grad_())
    layer.double()
    expected = layer(x.to(dtype).double())
    assert y.dtype == dtype
    assert y.isfinite().all()
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [  # the state_size that the authors' classes gave for these options, in elements
        ("delta_net", {"num_heads": 2}, 128),
        ("gated_delta_net", {"num_heads": 2, "output_gate": False}, 256),
        ("rwkv7", {"head_dim": 8}, 128),
        ("gated_linear_attention", {"num_heads": 2}, 64),
        ("mamba2", {"state_dim": 8, "head_dim": 8}, 256),
        ("based", {"num_heads": 2, "feature_dim": 4}, 270),
        ("linear_attention", {"num_heads": 2, "feature_dim": 4, "feature_map": "taylor"}, 270),
        ("linear_attention", {"num_heads": 2, "feature_dim": 4, "feature_map": "cosformer"}, 144),
        ("linear_attention", {"num_heads": 2, "feature_dim": 4, "feature_map": "performer"}, 72),
    ],
)
def test_published_state_sizes(name, options, size):
    assert gatework.create_mixer(name, 16, **options).published_state_size(128) == size


def test_unused_official_parameters_are_left_out():
    layer = GatedDeltaNet(DIM, num_heads=2)
    gatework.load_checkpoint(layer, {**layer.state_dict(), "D": torch.ones(2)})
    other = RWKV7(DIM, num_heads=2, decay_rank=4, rate_rank=4, gate_rank=4)
    official = {name.replace("_lora.", "_lora.lora."): tensor for name, tensor in other.state_dict().items()}
    official |= {"v_lora.lora.0.weight": torch.ones(16, DIM), "v_lora.lora.2.bias": torch.ones(DIM)}
    gatework.load_checkpoint(other, official)
    with pytest.raises(gatework.CheckpointError, match="1 unknown: E"):
        gatework.load_checkpoint(layer, {**layer.state_dict(), "E": torch.ones(2)})


def test_initial_values_are_the_authors():
    first, last = RWKV5(DIM, num_heads=2), RWKV5(DIM, num_heads=2, layer_index=11)
    torch.testing.assert_close(first.time_mix_k.flatten(), torch.arange(DIM) / DIM)
    assert last.time_mix_v[0, 0, 0] == 0.3
    for layer in (first, last):
        decay = layer.time_decay.flatten()
        assert decay[0] == -6
        assert decay[-1] == -1
    torch.testing.assert_close(
        last.time_faaaa.flatten()[:3], torch.tensor([1.0, 1 - 1 / 11 + 0.1, 1 - 2 / 11 - 0.1])
    )
    rwkv7 = RWKV7(DIM, num_heads=2)
    assert not any(getattr(rwkv7, name).any() for name in ("x_x", "k_k", "k_a", "r_k"))
    gated = GatedDeltaNet(256, num_heads=64)
    steps = F.softplus(gated.dt_bias)
    assert steps.min() >= 0.00099
    assert steps.max() <= 0.1001
    assert gated.A_log.max() <= math.log(16)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearAttention(DIM, feature_dim=0), "feature_dim must be at least 1, got 0"),
        (lambda: LinearAttention(DIM, num_heads=5), "num_heads must divide dim=12, got 5"),
        (lambda: Retention(DIM, num_heads=4), "heads must have an even number of key channels, got 3 from"),
        (lambda: DeltaNet(DIM, qk_norm="max"), "qk_norm must be one of l2, sum, got 'max'"),
        (lambda: DeltaNet(DIM, qk_activation="tanh"), "qk_activation must be one of silu, .*, got 'tanh'"),
        (lambda: DeltaNet(DIM, expand_k=0.01), "expand_k must leave at least one"),
        (lambda: DeltaNet(DIM, num_heads=5), r"divide dim \* expand_k=12, got 5"),
        (lambda: GatedDeltaNet(DIM, head_dim=0), "head_dim must be at least 1, got 0"),
        (lambda: RWKV5(DIM), "head_dim must divide dim=12, got 64"),
        (
            lambda: RWKV5(DIM, head_dim=4, layer_index=12),
            "layer_index must be between 0 and 11, got 12",
        ),
        (lambda: RWKV7(DIM, num_heads=2, head_dim=6), "give num_heads or head_dim, not both; got 2 and 6"),
        (lambda: RWKV7(DIM, num_heads=2, decay_rank=0), "decay_rank must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.bad_input
def test_wrong_states_are_named():
    layer = Retention(DIM, num_heads=2)
    x, state = torch.randn(3, 2, DIM), layer.initial_state(3)
    with pytest.raises(ValueError, match=r"state must hold \['memory', 'position'\], got \['memory'\]"):
        layer.prefill(x, {"memory": state["memory"]})
    with pytest.raises(
        ValueError, match=r"state\['memory'\] must have shape \(3, 2, 6, 12\), got \(2, 2, 6, 12\)"
    ):
        layer.step(x[:, 0], {**state, "memory": state["memory"][:2]})
    with pytest.raises(
        ValueError, match=r"state\['position'\] must be of a integer dtype, got torch.float32"
    ):
        layer.step(x[:, 0], {**state, "position": torch.zeros(3)})
