import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.masks import Neighborhood
from gatework.natten import na2d, token_permute, token_unpermute
from gatework.ops.attention import attention
from tests.ops.vision.neighborhood_cases import tensors

sizes = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(axes=sizes, batch=st.integers(0, 2), flip=st.booleans())
def test_there_and_back(axes, batch, flip):
    grid, tile, dilation = zip(*axes, strict=True)
    tokens = torch.arange(1.0, 1 + batch * math.prod(grid) * 6).reshape(batch, *grid, 2, 3)
    permuted, shape, layout = token_permute(tokens, tile, dilation, flip)
    assert shape == grid
    assert permuted.shape == (batch * math.prod(dilation), math.prod(layout), 2, 3)
    assert all(size % edge == 0 for size, edge in zip(layout, tile, strict=True))
    # Every token is there once, and the rest is zero.
    found = permuted[permuted != 0].sort().values
    assert torch.equal(found, tokens.flatten())
    assert torch.equal(token_unpermute(permuted, grid, tile, dilation, flip), tokens)


@settings(max_examples=60, deadline=None)
@given(axes=sizes.filter(lambda axes: all(length for length, _, _ in axes)), flip=st.booleans())
def test_where_a_token_goes(axes, flip):
    grid, tile, dilation = zip(*axes, strict=True)
    tokens = torch.arange(1.0, 1 + math.prod(grid)).reshape(1, *grid, 1, 1)
    permuted, _, layout = token_permute(tokens, tile, dilation, flip)
    order = -1 if flip else 1
    for number, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid))):
        parts = []
        for at, edge, gap, size in zip(place.tolist(), tile, dilation, layout, strict=True):
            within = at // gap
            parts.append(((at % gap, gap), (within // edge, size // edge), (within % edge, edge)))
        row, column, stride = 0, 0, 1
        for axis in parts[::order]:
            row = row * axis[0][1] + axis[0][0]
        for part in (2, 1):
            for axis in reversed(parts[::order]):
                column += stride * axis[part][0]
                stride *= axis[part][1]
        assert permuted[row, column, 0, 0] == number + 1


def test_one_axis_without_padding_stays_as_it_is():
    tokens = torch.randn(2, 12, 2, 3)
    assert torch.equal(token_permute(tokens, (4,))[0], tokens)


def test_attention_over_permuted_tokens():
    inputs = tensors((5, 7), groups=1)
    tile = (2, 4)
    permuted = {name: token_permute(tensor, tile)[0].transpose(1, 2) for name, tensor in inputs.items()}
    place = torch.arange(1, 36).reshape(1, 5, 7, 1, 1)
    where = token_permute(place, tile)[0].flatten()
    allowed = Neighborhood((5, 7), 3).to_dense(35, 35)[where.clamp(min=1) - 1][:, where.clamp(min=1) - 1]
    allowed = allowed & (where > 0)  # the padding is nobody's key
    y = attention(*permuted.values(), mask=allowed).transpose(1, 2)
    torch.testing.assert_close(token_unpermute(y, (5, 7), tile), na2d(**inputs, kernel_size=3))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: token_permute(torch.zeros(2, 3, 4), (1,)), r"one to three axes, got \(2, 3, 4\)"),
        (
            lambda: token_permute(torch.zeros(2, 3, 4, 5), (1, 1)),
            r"tile_shape must be 1 numbers.*got \(1, 1\)",
        ),
        (lambda: token_permute(torch.zeros(2, 3, 4, 5), (0,)), r"tile_shape must be 1 numbers.*got \(0,\)"),
        (
            lambda: token_permute(torch.zeros(2, 3, 4, 5), (2,), (0,)),
            r"dilation must be 1 numbers.*got \(0,\)",
        ),
        (lambda: token_unpermute(torch.zeros(2, 3, 4, 5), (), ()), "grid must have one to three axes, got 0"),
        (
            lambda: token_unpermute(torch.zeros(2, 3, 4, 5), (3,), (2,)),
            r"tensor must have shape \(batch \* 1, 4, heads, head_dim\) for grid=\(3,\).*got \(2, 3, 4, 5\)",
        ),
    ],
)
def test_wrong_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
