import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops.recurrence.diagonal_ssm import (
    diagonal_ssm,
    diagonal_ssm_kernel,
    diagonal_ssm_kernel_reference,
    diagonal_ssm_reference,
    diagonal_ssm_step,
    discretize_bilinear,
    discretize_zoh,
)

CLOSE = {"rtol": 0, "atol": 1e-11}


def draw(channels, modes, seed=0):
    """Decays anywhere in the unit disc, and weights."""
    gen = torch.Generator().manual_seed(seed)
    radius = torch.rand(channels, modes, generator=gen, dtype=torch.float64)
    angle = 6.3 * torch.rand(channels, modes, generator=gen, dtype=torch.float64)
    dB, C = torch.randn(2, channels, modes, 2, generator=gen, dtype=torch.float64).unbind(0)
    return torch.polar(radius, angle), torch.view_as_complex(dB), torch.view_as_complex(C.clone())


sizes = {
    "length": st.sampled_from([0, 1, 2, 3, 4, 5, 7, 16, 17, 31, 64, 65, 100]),
    "channels": st.integers(1, 4),
    "modes": st.integers(0, 5),
    "seed": st.integers(0, 99),
}


@settings(max_examples=50, deadline=None)
@given(**sizes)
def test_kernel_equals_definition(length, channels, modes, seed):
    ssm = draw(channels, modes, seed)
    expected = diagonal_ssm_kernel_reference(*ssm, length)
    torch.testing.assert_close(diagonal_ssm_kernel(*ssm, length), expected, **CLOSE)


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(0, 3), started=st.booleans(), **sizes)
def test_parallel_form_equals_recurrence(batch, started, length, channels, modes, seed):
    ssm = draw(channels, modes, seed)
    x = torch.randn(batch, length, channels, dtype=torch.float64)
    state = torch.randn(batch, channels, modes, dtype=torch.complex128) if started else None
    y, end = diagonal_ssm(x, *ssm, state)
    expected, expected_end = diagonal_ssm_reference(x, *ssm, state)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(end, expected_end, **CLOSE)


def test_kernel_is_the_impulse_response():
    ssm = draw(3, 4)
    impulse = torch.zeros(1, 20, 3, dtype=torch.float64)
    impulse[:, 0] = 1
    response, _ = diagonal_ssm_reference(impulse, *ssm)
    torch.testing.assert_close(diagonal_ssm_kernel_reference(*ssm, 20), response[0].T, **CLOSE)


@pytest.mark.parametrize("discretize", [discretize_bilinear, discretize_zoh])
def test_small_steps_follow_the_differential_equation(discretize):
    A, B = torch.tensor([[-0.5 + 3j]], dtype=torch.complex128), torch.ones(1, 1, dtype=torch.complex128)
    steps = 4000
    dA, dB = discretize(A, B, torch.tensor([1 / steps], dtype=torch.float64))
    state = torch.zeros(1, 1, 1, dtype=torch.complex128)
    for _ in range(steps):
        _, state = diagonal_ssm_step(torch.ones(1, 1, dtype=torch.float64), dA, dB, dB, state)
    exact = B * (torch.exp(A) - 1) / A  # s(1) of s' = A s + B from rest
    torch.testing.assert_close(state[0], exact, rtol=1e-6, atol=0)


def test_discretizations_are_the_formulas():
    A, B = torch.tensor([[-1 + 2j]], dtype=torch.complex128), torch.tensor([[3 - 1j]], dtype=torch.complex128)
    dt = torch.tensor([0.25], dtype=torch.float64)
    dA, dB = discretize_bilinear(A, B, dt)
    torch.testing.assert_close(dA, (1 + A * 0.125) / (1 - A * 0.125))
    torch.testing.assert_close(dB, 0.25 * B / (1 - A * 0.125))
    dA, dB = discretize_zoh(A, B, dt)
    torch.testing.assert_close(dA, torch.exp(A * 0.25))
    torch.testing.assert_close(dB, B * (torch.exp(A * 0.25) - 1) / A)


@pytest.mark.parametrize("length", [1, 7, 17])
def test_gradients(length):
    ssm = [tensor.requires_grad_() for tensor in draw(2, 2)]
    x = torch.randn(2, length, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, 2, 2, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *ssm: diagonal_ssm_kernel(*ssm, length), ssm)
    assert torch.autograd.gradcheck(diagonal_ssm, (x, *ssm, state))


def test_vanishing_and_undamped_modes_stay_finite():
    dA = torch.tensor([[0, 1e-200, 1, -1, 1j]], dtype=torch.complex128, requires_grad=True)
    dB, C = torch.ones(2, 1, 5, dtype=torch.complex128)
    kernel = diagonal_ssm_kernel(dA, dB, C, 1000)
    torch.testing.assert_close(kernel, diagonal_ssm_kernel_reference(dA, dB, C, 1000), **CLOSE)
    kernel.sum().backward()
    assert torch.isfinite(torch.view_as_real(dA.grad)).all()


def test_single_precision_keeps_its_phase():
    """Late taps are as right as early ones, because powers are formed in double precision."""
    dA, dB, C = draw(4, 8)
    dA = dA / dA.abs() * 0.9999
    kernel = diagonal_ssm_kernel(dA, dB, C.to(torch.complex64), 5000)
    assert kernel.dtype == torch.float32
    expected = diagonal_ssm_kernel_reference(dA, dB, C, 5000).float()
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_autocast_does_not_round_the_sums():
    dA, dB, C = draw(3, 4)
    ssm = (dA, dB, C.to(torch.complex64))
    x = torch.randn(2, 20, 3)
    state = torch.randn(2, 3, 4, dtype=torch.complex64)
    y, end = diagonal_ssm(x, *ssm, state)
    with torch.autocast("cpu", torch.bfloat16):
        y_autocast, end_autocast = diagonal_ssm(x, *ssm, state)
    assert torch.equal(y_autocast, y)
    assert torch.equal(end_autocast, end)


@pytest.mark.bad_input
def test_negative_length_is_named():
    with pytest.raises(ValueError, match="length must be at least 0, got -3"):
        diagonal_ssm_kernel(*draw(1, 1), -3)
