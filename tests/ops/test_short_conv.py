import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gatework.ops.short_conv import short_conv, short_conv_reference


def draw(batch, length, channels, taps, seed, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, channels, generator=gen, dtype=torch.float64).to(dtype)
    weight = torch.randn(channels, taps, generator=gen, dtype=torch.float64).to(dtype)
    return x, weight, torch.randn(channels, generator=gen, dtype=torch.float64).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 23),
    channels=st.integers(1, 5),
    taps=st.integers(1, 30),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_path_equals_definition(batch, length, channels, taps, biased, seed):
    x, weight, bias = draw(batch, length, channels, taps, seed)
    bias = bias if biased else None
    expected = short_conv_reference(x, weight, bias)
    torch.testing.assert_close(short_conv(x, weight, bias), expected, rtol=0, atol=1e-12)


def test_definition_is_a_cropped_conv1d():
    x, weight, bias = draw(2, 11, 4, 3, 0)
    conv1d = F.conv1d(x.mT, weight.unsqueeze(1), bias, padding=2, groups=4)[..., :11].mT
    torch.testing.assert_close(short_conv_reference(x, weight, bias), conv1d, rtol=0, atol=1e-12)


def test_channels_that_are_not_innermost():
    x, weight, bias = draw(2, 5, 7, 3, 1)
    x = x.mT.contiguous().mT
    torch.testing.assert_close(short_conv(x, weight, bias), short_conv_reference(x, weight, bias))


@pytest.mark.parametrize("biased", [True, False])
def test_gradients(biased):
    inputs = [tensor.requires_grad_() for tensor in draw(2, 6, 3, 4, 2)[: 3 if biased else 2]]
    assert torch.autograd.gradcheck(short_conv, inputs)
    assert torch.autograd.gradgradcheck(short_conv, inputs)


def test_no_output_sees_the_future():
    x, weight, bias = draw(1, 16, 2, 40, 3)
    changed = x.clone()
    changed[:, 10:] += 1
    before, after = short_conv(x, weight, bias), short_conv(changed, weight, bias)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=0)
    assert (before[:, 10:] != after[:, 10:]).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.005)])
def test_half_precision_is_rounded_once(dtype, tolerance):
    x, weight, bias = draw(2, 50, 3, 4, 4, dtype)
    y = short_conv(x, weight, bias)
    expected = short_conv_reference(x.double(), weight.double(), bias.double())
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.compile
def test_compiles_to_one_graph():
    compiled = torch.compile(short_conv, fullgraph=True, backend="aot_eager")
    inputs = draw(2, 9, 4, 3, 5, torch.float32)
    torch.testing.assert_close(compiled(*inputs), short_conv(*inputs))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ((3, 5), None, r"weight must have shape \(channels=4, taps>=1\).*got \(3, 5\)"),
        ((4, 0), None, r"taps>=1.*got \(4, 0\)"),
        ((4, 1, 3), None, r"got \(4, 1, 3\)"),
        ((4, 3), (5,), r"bias must have shape \(channels=4,\).*got \(5,\)"),
    ],
)
def test_wrong_shapes_are_named(weight, bias, message):
    with pytest.raises(ValueError, match=message):
        short_conv(torch.randn(1, 8, 4), torch.randn(weight), None if bias is None else torch.randn(bias))
