import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatework.ops import long_conv
from gatework.ops.long_conv import _fft_size, causal_conv, causal_conv_reference, causal_conv_tail

cases = given(
    batch=st.integers(0, 3),
    length=st.integers(0, 37),
    channels=st.integers(1, 5),
    taps=st.integers(1, 50),
    seed=st.integers(0, 99),
)


def draw(batch, length, channels, taps, seed, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, channels, generator=gen, dtype=torch.float64)
    return x.to(dtype), torch.randn(channels, taps, generator=gen, dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@cases
def test_fast_path_equals_definition(batch, length, channels, taps, seed):
    x, kernel = draw(batch, length, channels, taps, seed)
    torch.testing.assert_close(causal_conv(x, kernel), causal_conv_reference(x, kernel), rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@cases
def test_with_gradients_it_equals_the_definition(batch, length, channels, taps, seed):
    x, kernel = draw(batch, length, channels, taps, seed)
    expected = causal_conv_reference(x, kernel)
    torch.testing.assert_close(causal_conv(x.requires_grad_(), kernel), expected, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 7),
    rows=st.integers(1, 9),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_blocks_of_any_size_cover_everything(batch, channels, rows, threads, seed):
    x, kernel = draw(batch, 11, channels, 11, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_conv, "_BLOCK_POINTS", 1)
        patch.setattr(long_conv, "_LEAST_ROWS", rows)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        y = causal_conv(x, kernel)
    torch.testing.assert_close(y, causal_conv_reference(x, kernel), rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@cases
def test_tail_is_the_end_of_the_whole(batch, length, channels, taps, seed):
    x, kernel = draw(batch, length, channels, taps, seed)
    whole = causal_conv_reference(x, kernel)
    for count in {0, min(1, length), length // 2, length}:
        tail = causal_conv_tail(x, kernel, count)
        torch.testing.assert_close(tail, whole[:, length - count :], rtol=0, atol=1e-11)


@pytest.mark.parametrize("taps", [3, 7, 9])
def test_gradients(taps):
    inputs = [tensor.requires_grad_() for tensor in draw(2, 7, 3, taps, 0)]
    assert torch.autograd.gradcheck(causal_conv, inputs)
    assert torch.autograd.gradgradcheck(causal_conv, inputs)
    assert torch.autograd.gradcheck(lambda x, kernel: causal_conv_tail(x, kernel, 1), inputs)


def test_no_output_sees_the_future():
    x, kernel = draw(1, 16, 2, 40, 1)
    changed = x.clone()
    changed[:, 10:] += 1
    before, after = causal_conv(x, kernel), causal_conv(changed, kernel)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-13)
    assert (before[:, 10:] - after[:, 10:]).abs().min() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_convolved_in_float32(dtype):
    x, kernel = draw(2, 300, 3, 300, 2, dtype)
    expected = causal_conv_reference(x.double(), kernel.double())
    for y in (causal_conv(x, kernel), causal_conv_tail(x, kernel, 1)):
        assert y.dtype == dtype
        # One rounding of the result, no more: half precision throughout would be off by whole units.
        torch.testing.assert_close(
            y.double(), expected[:, -y.shape[1] :].to(dtype).double(), rtol=0.01, atol=1e-3
        )


def test_transform_sizes_waste_little():
    for minimum in range(1, 3000):
        size = _fft_size(minimum)
        assert minimum <= size <= max(4, minimum * 1.25)
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        assert size == 1


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_compiles_to_one_graph():
    compiled = torch.compile(causal_conv, fullgraph=True)
    x, kernel = draw(2, 12, 3, 12, 3, torch.float32)
    torch.testing.assert_close(compiled(x, kernel), causal_conv(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.bad_input
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("shape", [(3, 5), (4, 0), (4, 1, 3)])
def test_wrong_kernels_are_named(shape, count):
    expected = rf"kernel must have shape \(channels=4, taps>=1\).*got \({', '.join(map(str, shape))}\)"
    with pytest.raises(ValueError, match=expected):
        causal_conv_tail(torch.randn(1, 8, 4), torch.randn(shape), count)


@pytest.mark.bad_input
@pytest.mark.parametrize("count", [-1, 9])
def test_wrong_counts_are_named(count):
    with pytest.raises(ValueError, match=f"count must be between 0 and 8, got {count}"):
        causal_conv_tail(torch.randn(1, 8, 4), torch.randn(4, 3), count)
