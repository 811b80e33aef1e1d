import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.masks import Grid, Windows
from gatework.ops import attention
from gatework.ops.vision.window import (
    grid_attention,
    grid_attention_reference,
    relative_position_bias,
    window_attention,
    window_attention_reference,
    window_partition,
    window_reverse,
)

DOUBLE = torch.float64
lengths = st.integers(0, 9)
sizes = st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5)))


def randn(*shape, dtype=DOUBLE):
    return torch.randn(shape, dtype=DOUBLE).to(dtype)


def pair(size):
    return (size, size) if isinstance(size, int) else size


def maps(batch, heads, height, width, value_dim=2):
    return [randn(batch, heads, height, width, dim).requires_grad_() for dim in (3, 3, value_dim)]


def assert_same_with_gradients(function, reference, inputs):
    outputs = [each(*inputs) for each in (function, reference)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-11)  # float64, sums in another order
    if not outputs[0].numel():
        return
    cotangent = randn(*outputs[0].shape)
    gradients = [torch.autograd.grad((y * cotangent).sum(), inputs) for y in outputs]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 2), height=lengths, width=lengths, size=sizes, data=st.data())
def test_windows_are_the_definition(batch, height, width, size, data):
    down, across = pair(size)
    shift = data.draw(st.tuples(st.integers(0, down - 1), st.integers(0, across - 1)))
    bias = randn(data.draw(st.sampled_from([1, 2])), down * across, down * across).requires_grad_()
    with_bias = data.draw(st.booleans()) and height * width > 0

    def call(function):
        return lambda q, k, v, *b: function(
            q, k, v, window_size=size, shift=shift, bias=b[0] if b else None, scale=0.7
        )

    inputs = [*maps(batch, 2, height, width), *([bias] if with_bias else [])]
    assert_same_with_gradients(call(window_attention), call(window_attention_reference), inputs)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(0, 2), height=lengths, width=lengths, size=sizes, with_bias=st.booleans())
def test_grids_are_the_definition(batch, height, width, size, with_bias):
    down, across = pair(size)

    def call(function):
        return lambda q, k, v, *b: function(q, k, v, grid_size=size, bias=b[0] if b else None)

    inputs = maps(batch, 2, height, width)
    if with_bias and height * width:
        inputs.append(randn(2, down * across, down * across).requires_grad_())
    assert_same_with_gradients(call(grid_attention), call(grid_attention_reference), inputs)


def rolled_windows(q, k, v, window, shift, bias):
    """Swin as its paper draws it: roll the map, cut windows, mask what was not beside each other."""
    height, width = q.shape[2:4]
    region = torch.zeros(1, height, width, 1)
    numbers = iter(range(9))
    for rows in (
        slice(0, height - window),
        slice(height - window, height - shift),
        slice(height - shift, None),
    ):
        for columns in (
            slice(0, width - window),
            slice(width - window, width - shift),
            slice(width - shift, None),
        ):
            region[:, rows, columns] = next(numbers)
    region = window_partition(region, window).flatten(1)
    bias = bias.masked_fill((region[:, None, :, None] != region[:, None, None, :]), -torch.inf)

    def windows(x):
        x = x.roll((-shift, -shift), (2, 3)).permute(0, 2, 3, 1, 4)
        return (
            window_partition(x.flatten(3), window)
            .flatten(1, 2)
            .unflatten(2, (q.shape[1], -1))
            .transpose(1, 2)
        )

    y = attention(windows(q), windows(k), windows(v), bias=bias.repeat(len(q), 1, 1, 1))
    y = window_reverse(y.transpose(1, 2).flatten(2).unflatten(1, (window, window)), height, width)
    return y.unflatten(3, (q.shape[1], -1)).permute(0, 3, 1, 2, 4).roll((shift, shift), (2, 3))


def test_a_shift_is_the_cyclic_shift_with_its_mask():
    q, k, v = maps(2, 2, 8, 12)
    bias = relative_position_bias(randn(49, 2), 4)
    ours = window_attention(q, k, v, window_size=4, shift=2, bias=bias)
    torch.testing.assert_close(ours, rolled_windows(q, k, v, 4, 2, bias))


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
def test_windows_are_their_mask(shift):
    q, k, v = maps(2, 2, 7, 10)
    ours = window_attention(q, k, v, window_size=(3, 4), shift=shift)
    mask = Windows((7, 10), (3, 4), shift=shift)
    theirs = attention(*(x.flatten(2, 3) for x in (q, k, v)), mask=mask, engine="reference")
    torch.testing.assert_close(ours.flatten(2, 3), theirs)


def test_grids_are_their_mask():
    q, k, v = maps(2, 2, 6, 10)
    ours = grid_attention(q, k, v, grid_size=(3, 5))
    theirs = attention(*(x.flatten(2, 3) for x in (q, k, v)), mask=Grid((6, 10), (3, 5)), engine="reference")
    torch.testing.assert_close(ours.flatten(2, 3), theirs)


@given(batch=st.integers(0, 2), height=st.integers(1, 9), width=st.integers(1, 9), size=sizes)
def test_windows_come_apart_and_together(batch, height, width, size):
    x = randn(batch, height, width, 2)
    windows = window_partition(x, size)
    down, across = pair(size)
    assert windows.shape == (batch * -(-height // down) * -(-width // across), down, across, 2)
    assert torch.equal(window_reverse(windows, height, width), x)
    assert windows.sum() == pytest.approx(x.sum().item())  # the rest is zeros


def test_the_bias_depends_on_the_offset_alone():
    table = randn(5 * 7, 2)
    bias = relative_position_bias(table, (3, 4)).view(2, 3, 4, 3, 4)
    for y, x, j, i in [(0, 0, 0, 0), (2, 3, 0, 0), (0, 1, 2, 3), (1, 2, 2, 0)]:
        assert torch.equal(bias[:, y, x, j, i], table[(y - j + 2) * 7 + x - i + 3])


def test_gradients():
    inputs = [*maps(1, 1, 3, 3, 1), randn(9, 1).requires_grad_()]

    def windows(q, k, v, table):
        return window_attention(q, k, v, window_size=2, shift=1, bias=relative_position_bias(table, 2))

    def grid(q, k, v, table):
        return grid_attention(q, k, v, grid_size=2, bias=relative_position_bias(table, 2))

    assert torch.autograd.gradcheck(windows, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(grid, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lower_precisions(dtype):
    q, k, v = (x.detach().to(dtype) for x in maps(2, 2, 7, 7))
    y = window_attention(q, k, v, window_size=4, shift=1)
    assert y.dtype == dtype
    wanted = window_attention_reference(q.double(), k.double(), v.double(), window_size=4, shift=1)
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        ({"window_size": (2, 3), "shift": (1, 3)}, r"shift must be less than window_size=\(2, 3\)"),
        ({"window_size": 2, "shift": -1}, "shift must be at least 0"),
        ({"window_size": 2, "bias": torch.zeros(2, 4, 5)}, r"bias must have shape \(heads, 4, 4\)"),
        ({"window_size": 2, "bias": torch.zeros(3, 4, 4)}, "bias must have 1 head or heads=2, got 3"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        window_attention(*maps(1, 2, 4, 4), **given)


@pytest.mark.bad_input
def test_wrong_tensors_are_named():
    q, k, v = maps(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"q must have shape .*got \(2, 4, 4, 3\)"):
        window_attention(q[0], k, v, window_size=2)
    with pytest.raises(ValueError, match="maps of one size"):
        grid_attention(q, k[:, :, :3], v, grid_size=2)
    with pytest.raises(TypeError, match=r"grid_size must be an integer, got 2\.0"):
        grid_attention(q, k, v, grid_size=2.0)
    with pytest.raises(ValueError, match=r"table must have 9 rows .*got \(8, 2\)"):
        relative_position_bias(torch.zeros(8, 2), 2)
    with pytest.raises(ValueError, match=r"windows must be a multiple of 2 \* 2"):
        window_reverse(torch.zeros(3, 2, 2, 1), 4, 4)
    with pytest.raises(ValueError, match="x must have shape"):
        window_partition(torch.zeros(4, 4, 1), 2)
