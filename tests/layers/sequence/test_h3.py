import math

import pytest
import torch

from gatework.layers.sequence.h3 import H3
from gatework.ops.long_conv import causal_conv_reference
from gatework.ops.recurrence.diagonal_ssm import diagonal_ssm_reference, discretize_bilinear, discretize_zoh
from tests.layers.sequence import streaming

DIM, LENGTH = 6, 13
OPTIONS = {
    "default": {"state_dim": 8},
    "heads": {"state_dim": 5, "head_dim": 3},
    "one head": {"state_dim": 4, "head_dim": 6},
    "shared": {"state_dim": 8, "head_dim": 2, "num_ssm": 1, "measure": "diag-inv", "dt_max": 0.5},
    "held input": {"state_dim": 30, "num_ssm": 3, "discretization": "zoh"},
    "bounded": {"state_dim": 8, "max_length": LENGTH},
    "bounded below the shift": {"state_dim": 40, "head_dim": 2, "max_length": 20},
}
options = pytest.mark.parametrize("option", OPTIONS)


def make(option="heads"):
    mixer = H3(DIM, **OPTIONS[option]).double()
    torch.nn.init.normal_(mixer.shift.B)  # starts as a unit vector, which would hide mistakes
    torch.nn.init.normal_(mixer.diagonal.B)
    return mixer


def shift_taps(mixer):
    """``K_t = sum_{n >= t} C_n B_{n - t}``, term by term."""
    B, C = mixer.shift.B, mixer.shift.C[0]
    N = B.shape[1]
    return torch.stack([(C[:, t:] * B[:, : N - t]).sum(1) for t in range(N)], 1)


def discrete(mixer):
    """One decay, input weight and output weight per head and mode, from the parameters."""
    d, copies = mixer.diagonal, mixer.num_heads // mixer.diagonal.B.shape[0]
    A = torch.complex(-d.inv_A_real.exp(), d.A_imag).repeat(copies, 1)
    B = torch.view_as_complex(d.B).repeat(copies, 1)
    rule = discretize_zoh if mixer.diagonal.discretize is discretize_zoh else discretize_bilinear
    return *rule(A, B, d.log_dt.exp()), torch.view_as_complex(d.C[0])


@options
def test_forward_is_the_equation(option):
    mixer, x = make(option), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    width, heads = mixer.head_dim, mixer.num_heads
    q, k, v = mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)
    k = causal_conv_reference(k, shift_taps(mixer)) + mixer.shift.D * k
    dA, dB, C = discrete(mixer)
    mixed = torch.zeros_like(x)
    for h in range(heads):
        ssm = [tensor[h : h + 1] for tensor in (dA, dB, C)]
        for i in range(width):
            for j in range(width):
                product = k[..., h * width + i] * v[..., h * width + j]
                y = diagonal_ssm_reference(product.unsqueeze(-1), *ssm)[0].squeeze(-1)
                mixed[..., j * heads + h] += q[..., h * width + i] * (y + mixer.diagonal.D[h] * product)
    torch.testing.assert_close(mixer(x), mixer.output_linear(mixed), rtol=0, atol=1e-11)


@options
def test_streaming(option):
    streaming.check_streaming(make(option), LENGTH)


@pytest.mark.parametrize("option", ["heads", "bounded"])
def test_steps_are_pure(option):
    streaming.check_step_is_pure(make(option))


@options
@pytest.mark.parametrize("at", [1, 8])
def test_causality(option, at):
    streaming.check_causality(make(option), LENGTH, at)


@options
def test_empty(option):
    streaming.check_empty(make(option))


def test_autocast():
    streaming.check_autocast(H3(DIM, state_dim=8, head_dim=2))


@pytest.mark.compile
def test_compiles():
    streaming.check_compiles(H3(DIM, state_dim=8, head_dim=2))


def test_state_in_half_precision_is_kept():
    mixer = H3(DIM, state_dim=8, head_dim=2)
    state = mixer.initial_state(2, dtype=torch.bfloat16)
    _, state = mixer.step(torch.randn(2, DIM), state)
    assert state["keys"].dtype == torch.bfloat16
    assert state["modes"].dtype == torch.float32  # summed over all tokens


@options
def test_every_parameter_learns(option):
    mixer = make(option)
    mixer(torch.randn(2, LENGTH, DIM, dtype=torch.float64)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bounded_filters_are_cut():
    mixer, x = H3(DIM, state_dim=8, max_length=5).double(), torch.randn(1, 14, DIM, dtype=torch.float64)
    y = mixer(x)
    unbounded = H3(DIM, state_dim=8).double()
    unbounded.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(y[:, :5], unbounded(x)[:, :5], rtol=0, atol=1e-12)
    assert (y[:, 5:] - unbounded(x)[:, 5:]).abs().amax() > 1e-4
    # An input reaches five tokens through the shift and five through the diagonal model, the present shared.
    changed = x.clone()
    changed[:, 0] += 1
    difference = (mixer(changed) - y).abs().amax((0, 2))
    assert difference[:9].min() > 1e-6
    assert difference[9:].max() < 1e-12


def test_bounded_streaming_ends_where_the_filters_are_cut():
    mixer, x = make("bounded"), torch.randn(2, LENGTH + 1, DIM, dtype=torch.float64)
    message = f"max_length={LENGTH} cuts its filters.*got {LENGTH + 1} tokens"
    with pytest.raises(ValueError, match=message):
        mixer.prefill(x)
    _, state = mixer.prefill(x[:, :LENGTH])
    with pytest.raises(ValueError, match=message):
        mixer.step(x[:, -1], state)
    _, state = mixer.prefill(x[:1, :4])
    ahead = {name: torch.cat([tensor, tensor]) for name, tensor in state.items()}
    ahead["position"][1] = LENGTH
    with pytest.raises(ValueError, match=message):
        mixer.step(x[:, -1], ahead)


@pytest.mark.parametrize(
    ("measure", "frequency"),
    [
        ("diag-lin", lambda n: math.pi * n),
        ("diag-inv", lambda n: 12 / math.pi * (12 / (2 * n + 1) - 1)),
    ],
)
def test_initialisation(measure, frequency):
    mixer = H3(200, state_dim=12, measure=measure, dt_min=0.01, dt_max=0.2)
    expected = torch.tensor([[frequency(n) for n in range(6)]] * 200)
    torch.testing.assert_close(mixer.diagonal.A_imag, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(mixer.diagonal.inv_A_real.exp(), torch.full((200, 6), 0.5))
    dt = mixer.diagonal.log_dt.exp()
    assert 0.01 <= dt.min() < 0.015
    assert 0.15 < dt.max() <= 0.2
    torch.testing.assert_close(mixer.shift.taps(), mixer.shift.C[0], rtol=0, atol=1e-6)
    assert abs(mixer.diagonal.C.square().sum(-1).mean() - 1) < 0.1


def test_authors_names_become_ours():
    mixer = make()
    names = {ours: theirs for theirs, ours in mixer.official_names.items()}
    official = {names.get(name, name): tensor for name, tensor in mixer.state_dict().items()}
    assert {"D", "ssm_k_D", "kernel.kernel.log_dt", "ssm_k_kernel.kernel.B"} <= official.keys()
    assert mixer.convert_official(official).keys() == mixer.state_dict().keys()


def test_parameter_count_of_the_published_sweep():
    mixer = H3(128, state_dim=256, head_dim=2)
    # Two layers of arXiv:2312.04927's code, without their five layer norms.
    assert 2 * sum(p.numel() for p in mixer.parameters()) == 363_264 - 5 * 2 * 128


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"head_dim": 4}, "head_dim must divide dim=6, got 4"),
        ({"state_dim": 1}, "state_dim must be at least 2.*got 1"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"dt_min": 0.0}, r"dt_min must be positive, got 0\.0"),
        ({"dt_min": 0.2}, r"dt_max must be at least dt_min=0\.2, got 0\.1"),
        ({"measure": "legs"}, "measure must be one of diag-lin, diag-inv, got 'legs'"),
        ({"discretization": "dss"}, "discretization must be one of bilinear, zoh, got 'dss'"),
        ({"head_dim": 2, "num_ssm": 2}, "num_ssm must divide dim/head_dim=3, got 2"),
    ],
)
def test_impossible_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        H3(DIM, **option)
