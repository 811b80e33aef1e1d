import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.layers.positions import rotary_embedding

DOUBLE = torch.float64


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(0, 9),
    pairs=st.integers(1, 4),
    start=st.integers(0, 1000),
    theta=st.sampled_from([1e4, 7.0]),
)
def test_pairs_turn_as_complex_numbers(length, pairs, start, theta):
    x = torch.randn(2, 3, length, 2 * pairs, dtype=DOUBLE)
    wanted = torch.complex(x[..., :pairs], x[..., pairs:])
    for t in range(length):
        for i in range(pairs):
            angle = torch.tensor((start + t) * theta ** (-i / pairs), dtype=DOUBLE)
            wanted[:, :, t, i] *= torch.polar(torch.ones((), dtype=DOUBLE), angle)
    y = rotary_embedding(x, start=start, theta=theta)
    torch.testing.assert_close(torch.complex(y[..., :pairs], y[..., pairs:]), wanted, rtol=0, atol=1e-11)


def test_products_depend_on_distances_only():
    q, k = torch.randn(1, 1, 5, 8, dtype=DOUBLE), torch.randn(1, 1, 5, 8, dtype=DOUBLE)
    near = rotary_embedding(q) @ rotary_embedding(k).mT
    far = rotary_embedding(q, start=300) @ rotary_embedding(k, start=300).mT
    torch.testing.assert_close(near, far, rtol=0, atol=1e-11)
    assert not torch.allclose(near, rotary_embedding(q, start=1) @ rotary_embedding(k).mT)


def test_sequences_may_start_at_positions_of_their_own():
    x, starts = torch.randn(3, 2, 5, 4, dtype=DOUBLE), [0, 7, 900]
    y = rotary_embedding(x, start=torch.tensor(starts))
    for row, start in enumerate(starts):
        torch.testing.assert_close(y[row : row + 1], rotary_embedding(x[row : row + 1], start=start))


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(1, 1, 40, 8, dtype=torch.bfloat16)
    y = rotary_embedding(x, start=2000)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y, rotary_embedding(x.double(), start=2000).to(torch.bfloat16), rtol=1e-2, atol=1e-2
    )


def test_gradients():
    x = torch.randn(1, 2, 3, 4, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotary_embedding(x, start=5), x)


@pytest.mark.bad_input
def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="head_dim must be even to be rotated in pairs, got 3"):
        rotary_embedding(torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"theta must be positive, got -1\.0"):
        rotary_embedding(torch.zeros(1, 1, 2, 4), theta=-1.0)
