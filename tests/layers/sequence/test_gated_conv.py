import math

import pytest
import torch
from torch.nn import functional as F

from gatework.layers.sequence.gated_conv import (
    BaseConv,
    ImplicitLongConvolution,
    LongConvolution,
    filter_positions,
)
from gatework.ops.long_conv import causal_conv_reference
from gatework.ops.short_conv import short_conv_reference
from tests.layers.sequence import streaming

DIM, LENGTH = 6, 13
MIXERS = {
    "base_conv short": lambda: BaseConv(DIM),
    "base_conv one tap": lambda: BaseConv(DIM, kernel_size=1),
    "base_conv silu": lambda: BaseConv(DIM, kernel_size=5, activation=True),
    "base_conv implicit": lambda: BaseConv(DIM, kernel_size=-1, max_length=40),
    "base_conv explicit": lambda: BaseConv(DIM, kernel_size=None, implicit=False, max_length=40),
    "long": lambda: LongConvolution(DIM, max_length=40),
    "long, exact": lambda: LongConvolution(DIM, max_length=LENGTH),
    "long, outgrown": lambda: LongConvolution(DIM, max_length=5),
    "long, one tap": lambda: LongConvolution(DIM, max_length=1),
    "implicit": lambda: ImplicitLongConvolution(DIM, max_length=40, emb_dim=5, hidden_dim=7),
    "implicit, outgrown": lambda: ImplicitLongConvolution(DIM, max_length=5),
}
mixers = pytest.mark.parametrize("name", MIXERS)


def make(name):
    return MIXERS[name]().double()


@mixers
def test_streaming(name):
    streaming.check_streaming(make(name), LENGTH)


@mixers
def test_steps_are_pure(name):
    streaming.check_step_is_pure(make(name))


@mixers
@pytest.mark.parametrize("at", [1, 8])
def test_causality(name, at):
    mixer = make(name)
    streaming.check_causality(mixer, LENGTH, at)


@mixers
def test_empty(name):
    streaming.check_empty(make(name))


@pytest.mark.parametrize("name", ["base_conv silu", "base_conv implicit", "long"])
def test_autocast(name):
    streaming.check_autocast(MIXERS[name]())


@pytest.mark.compile
@pytest.mark.parametrize("name", ["base_conv silu", "base_conv implicit", "long"])
def test_compiles(name):
    streaming.check_compiles(MIXERS[name]())


def test_base_conv_is_the_equation():
    mixer, x = BaseConv(DIM, kernel_size=4).double(), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    conv = short_conv_reference(x, mixer.conv.weight[:, 0], mixer.conv.bias)
    expected = conv * (x @ mixer.projection.weight.T + mixer.projection.bias) + x
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


def test_base_conv_activates_both_factors():
    plain, x = BaseConv(DIM).double(), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    activated = BaseConv(DIM, activation=True).double()
    activated.load_state_dict(plain.state_dict())
    expected = F.silu(plain.conv(x)) * F.silu(plain.projection(x)) + x
    torch.testing.assert_close(activated(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["long", "long, outgrown", "implicit", "implicit, outgrown"])
def test_long_convolutions_are_the_equation(name):
    mixer, x = make(name), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    expected = causal_conv_reference(x, mixer.taps(LENGTH)) + x
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-11)


def test_implicit_taps_are_the_network_of_the_position():
    mixer = ImplicitLongConvolution(3, max_length=9, emb_dim=5, hidden_dim=4).double()
    inner, outer = mixer.mlp[0], mixer.mlp[2]
    for t in range(9):
        turn = 2 * math.pi * t / 9
        angles = (1e-4 * turn, turn)
        features = [t / 8, *(math.cos(angle) for angle in angles), *(-math.sin(angle) for angle in angles)]
        p = torch.tensor(features, dtype=torch.float64)
        expected = outer.weight @ F.relu(inner.weight @ p + inner.bias) + outer.bias
        torch.testing.assert_close(mixer.taps(9)[:, t], expected, rtol=0, atol=1e-6)


def test_positions_of_one_token():
    torch.testing.assert_close(filter_positions(1, 3), torch.tensor([[[0.0, 1.0, 0.0]]]))


def test_authors_names_become_ours():
    for kernel_size, theirs in ((3, "conv.conv.weight"), (-1, "conv.pos_emb.z")):
        mixer = BaseConv(DIM, kernel_size=kernel_size)
        names = {ours: name for name, ours in mixer.official_names.items()}
        official = {names.get(name, name): tensor for name, tensor in mixer.state_dict().items()}
        assert theirs in official
        assert mixer.convert_official(official).keys() == mixer.state_dict().keys()


def test_positions_are_saved_but_not_trained():
    mixer = ImplicitLongConvolution(DIM)
    assert "positions" in mixer.state_dict()
    assert "positions" not in dict(mixer.named_parameters())


def test_parameter_counts_of_the_published_sweep():
    short, long = BaseConv(128), BaseConv(128, kernel_size=-1, max_length=256)
    mixers_only = sum(p.numel() for mixer in (short, long) for p in mixer.parameters())
    assert mixers_only == 37_056 - 5 * 2 * 128  # arXiv:2312.04927's code, without its five layer norms


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BaseConv(0), "dim must be at least 1, got 0"),
        (lambda: BaseConv(4, kernel_size=0), "kernel_size must be at least 1, got 0"),
        (lambda: BaseConv(4, kernel_size=-2), "kernel_size must be at least 1, got -2"),
        (lambda: BaseConv(4, max_length=0), "max_length must be at least 1, got 0"),
        (lambda: LongConvolution(4, max_length=0), "max_length must be at least 1, got 0"),
        (lambda: ImplicitLongConvolution(4, max_length=-1), "max_length must be at least 1, got -1"),
        (lambda: ImplicitLongConvolution(4, emb_dim=4), "emb_dim must be odd and at least 3.*got 4"),
        (lambda: ImplicitLongConvolution(4, emb_dim=1), "emb_dim must be odd and at least 3.*got 1"),
        (lambda: ImplicitLongConvolution(4, hidden_dim=0), "hidden_dim must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
