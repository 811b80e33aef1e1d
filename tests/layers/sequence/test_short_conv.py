import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gatework.layers.sequence.short_conv import ShortConvolution

OPTIONS = {
    "plain": {"kernel_size": 3},
    "silu": {"kernel_size": 4, "bias": False, "activation": "silu"},
    "one tap": {"kernel_size": 1},
    "longer than the input": {"kernel_size": 30},
}
options = pytest.mark.parametrize("option", OPTIONS)


def make(option):
    return ShortConvolution(5, **OPTIONS[option]).double()


@options
def test_forward_is_a_causal_conv1d(option):
    conv, x = make(option), torch.randn(2, 11, 5, dtype=torch.float64)
    y = F.conv1d(x.mT, conv.weight, conv.bias, padding=conv.kernel_size - 1, groups=5)[..., :11].mT
    expected = F.silu(y) if conv.activation else y
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-12)


@options
@pytest.mark.parametrize("sizes", [[1] * 11, [4, 0, 1, 6], [11]])
def test_streaming_is_the_forward_pass(option, sizes):
    conv, x = make(option), torch.randn(2, 11, 5, dtype=torch.float64)
    state, outputs = conv.initial_state(2), []
    for chunk in x.split(sizes, 1):
        y, state = conv.prefill(chunk, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), conv(x), rtol=0, atol=1e-12)
    assert state[0].numel() == conv.state_size
    stepped, steps_state = [], conv.initial_state(2)
    for token in x.unbind(1):
        y, steps_state = conv.step(token, steps_state)
        stepped.append(y)
    torch.testing.assert_close(torch.stack(stepped, 1), conv(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(steps_state, state)


@options
def test_prefill_from_the_start_needs_no_state(option):
    conv, x = make(option), torch.randn(2, 6, 5, dtype=torch.float64)
    y, state = conv.prefill(x)
    expected, expected_state = conv.prefill(x, conv.initial_state(2))
    assert torch.equal(y, expected)
    assert torch.equal(state, expected_state)


@options
@pytest.mark.parametrize(("batch", "length"), [(0, 4), (2, 0)])
def test_empty_inputs(option, batch, length):
    conv, x = make(option), torch.randn(batch, length, 5, dtype=torch.float64)
    y, state = conv.prefill(x)
    assert conv(x).shape == y.shape == x.shape
    y, _ = conv.step(torch.randn(batch, 5, dtype=torch.float64), state)
    assert y.shape == (batch, 5)


def test_parameters_are_those_of_conv1d():
    torch.manual_seed(3)
    ours = ShortConvolution(400, 4)
    theirs = nn.Conv1d(400, 400, 4, groups=400)
    theirs.load_state_dict(ours.state_dict())
    for name, tensor in ours.named_parameters():
        assert 0.48 < tensor.abs().max() <= 0.5, name
        assert abs(tensor.std() - 0.5 / 3**0.5) < 0.02, name


def test_state_takes_dtype_and_device():
    state = ShortConvolution(5, 3).initial_state(2, dtype=torch.bfloat16, device=torch.device("meta"))
    assert state.dtype == torch.bfloat16
    assert state.device.type == "meta"


def test_autocast_rounds_only():
    conv, x = ShortConvolution(8, 4, activation="silu"), torch.randn(2, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(x.bfloat16()).float(), conv(x), rtol=0.03, atol=0.03)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, None), "dim must be at least 1, got 0"),
        ((4, 0, None), "kernel_size must be at least 1, got 0"),
        ((4, 3, "swish"), "activation must be one of None, silu, got 'swish'"),
    ],
)
def test_impossible_options_are_named(arguments, message):
    dim, kernel_size, activation = arguments
    with pytest.raises(ValueError, match=message):
        ShortConvolution(dim, kernel_size, activation=activation)


@pytest.mark.bad_input
def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"channels=6.*got \(4, 3\)"):
        ShortConvolution(4, 3)(torch.randn(1, 8, 6))
