"""States of every mixer: what does not fit is refused by name, lengths beyond a limit as documented."""

from __future__ import annotations

import re

import pytest
import torch

import gatework
from tests.layers.sequence.test_every_mixer import DIM, first_options, make

BATCH = 2


def after_some_tokens(name, options):
    """A mixer, its state after five tokens, and the keywords of more tokens."""
    mixer = make(name, options)
    x = torch.randn(BATCH, 5, DIM, dtype=torch.float64)
    _, state = mixer.prefill(x, **token_ids(mixer, 5))
    return mixer, state


def token_ids(mixer, *length):
    """The keywords of mixers that read the token ids as well; of one step without a length."""
    return {"tokens": torch.zeros(BATCH, *length, dtype=torch.int64)} if mixer.reads_tokens else {}


def check_refused(mixer, state, message):
    """``prefill`` and ``step`` refuse ``state``, and leave it as it was."""
    x = torch.randn(BATCH, 3, DIM, dtype=torch.float64)
    for length in (3, 0):
        with pytest.raises(ValueError, match=message):
            mixer.prefill(x[:, :length], state, **token_ids(mixer, length))
    with pytest.raises(ValueError, match=message):
        mixer.step(x[:, 0], state, **token_ids(mixer))


@pytest.mark.bad_input
@first_options
def test_a_state_lacks_a_tensor_or_has_another(name, options):
    mixer, state = after_some_tokens(name, options)
    names = re.escape(str(sorted(state)))
    for key in state:
        rest = {other: tensor for other, tensor in state.items() if other != key}
        check_refused(mixer, rest, f"state must hold {names}, got {re.escape(str(sorted(rest)))}")
    check_refused(mixer, {**state, "extra": state[key]}, f"state must hold {names}, got .*'extra'")


@pytest.mark.bad_input
@first_options
def test_a_state_is_of_other_sequences(name, options):
    mixer, state = after_some_tokens(name, options)
    for key, tensor in state.items():
        larger = torch.cat([tensor, tensor[:1]])
        message = rf"state\['{key}'\] must have shape \({BATCH}.*got \({BATCH + 1}"
        check_refused(mixer, {**state, key: larger}, message)


@pytest.mark.bad_input
@first_options
def test_a_state_has_another_shape(name, options):
    mixer, state = after_some_tokens(name, options)
    for key, layout in mixer.state_layout().items():
        tensor = state[key]
        for axis, size in enumerate(layout.shape, 1):
            if size is not None:
                wrong = tensor.new_zeros([*tensor.shape[:axis], size + 1, *tensor.shape[axis + 1 :]])
                shape = re.escape(str(tuple(wrong.shape)))
                message = rf"state\['{key}'\] must have shape \(.*\), got {shape}"
                check_refused(mixer, {**state, key: wrong}, message)
        check_refused(mixer, {**state, key: tensor.unsqueeze(-1)}, rf"state\['{key}'\] must have shape")


@pytest.mark.bad_input
@first_options
def test_a_state_holds_another_kind_of_numbers(name, options):
    mixer, state = after_some_tokens(name, options)
    for key, tensor in state.items():
        if tensor.is_floating_point():
            kind, wrong = "floating", tensor.abs().long()
        else:
            kind, wrong = "integer", tensor.double()
        message = rf"state\['{key}'\] must be of a {kind} dtype, got {wrong.dtype}"
        check_refused(mixer, {**state, key: wrong}, message)


@first_options
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_keeps_its_dtypes(name, options, dtype):
    """States may be kept in half precision below parameters in single precision; sums never are."""
    mixer = make(name, options, torch.float32)
    start = mixer.initial_state(BATCH, dtype=dtype)
    kinds = {key: tensor.dtype for key, tensor in start.items()}
    for key, layout in mixer.state_layout().items():
        if layout.dtype in ("same", "wide"):
            assert kinds[key] == (dtype if layout.dtype == "same" else torch.float32)
    x = torch.randn(BATCH, 5, DIM)
    y, state = mixer.prefill(x, start, **token_ids(mixer, 5))
    assert y.dtype == torch.float32
    assert {key: tensor.dtype for key, tensor in state.items()} == kinds
    y, state = mixer.step(x[:, 0], state, **token_ids(mixer))
    assert y.dtype == torch.float32
    assert {key: tensor.dtype for key, tensor in state.items()} == kinds


@first_options
def test_the_layout_is_that_of_the_state(name, options):
    mixer, state = after_some_tokens(name, options)
    layout = mixer.state_layout()
    initial = mixer.initial_state(BATCH)
    assert state.keys() == initial.keys() == layout.keys()
    for key, tensor in layout.items():
        tensor.check(key, state[key], BATCH)
        tensor.check(key, initial[key], BATCH)
        grown = [axis for axis, size in enumerate(tensor.shape, 1) if size is None]
        assert all(initial[key].shape[axis] == 0 for axis in grown)


@pytest.mark.bad_input
def test_hyena_reads_no_further_than_its_filter():
    mixer = gatework.create_mixer("hyena", DIM, max_length=8)
    x = torch.randn(1, 9, DIM)
    message = "Hyena reads at most max_length=8 tokens, got 9"
    with pytest.raises(ValueError, match=message):
        mixer(x)
    _, state = mixer.prefill(x[:, :8])
    with pytest.raises(ValueError, match=message):
        mixer.prefill(x[:, 8:], state)
    with pytest.raises(ValueError, match=message):
        mixer.step(x[:, 8], state)
    with pytest.raises(ValueError, match=message):
        mixer.state_size(9)


@pytest.mark.bad_input
def test_h3_streams_no_further_than_its_cut_filters():
    mixer = gatework.create_mixer("h3", DIM, max_length=8)
    x = torch.randn(1, 9, DIM)
    assert mixer(x).shape == x.shape
    _, state = mixer.prefill(x[:, :8])
    with pytest.raises(ValueError, match=r"max_length=8 cuts its filters .*got 9 tokens; max_length=None"):
        mixer.step(x[:, 8], state)


@pytest.mark.parametrize("name", ["long_conv", "implicit_long_conv", "base_conv"])
def test_long_convolutions_forget_what_their_filter_does_not_reach(name):
    options = {"kernel_size": None} if name == "base_conv" else {}
    mixer = make(name, {"max_length": 8, **options})
    x = torch.randn(1, 20, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, :5] += 1
    torch.testing.assert_close(mixer(x)[:, 12:], mixer(changed)[:, 12:], rtol=0, atol=1e-12)
    assert (mixer(x)[:, 5:12] - mixer(changed)[:, 5:12]).abs().max() > 1e-3
    assert mixer.state_size(20) == mixer.state_size(7) == 7 * DIM


@pytest.mark.parametrize(
    ("name", "options", "bytes_of_two_layers"),
    [
        ("attention", {}, 524_288),
        ("hyena", {"max_length": 256}, 262_144),
        ("h3", {"state_dim": 256, "head_dim": 2}, 262_144),
    ],
)
def test_published_states_are_those_of_the_paper(name, options, bytes_of_two_layers):
    """Two layers of 128 channels after 256 tokens, in single precision, as Zoology's table counts them."""
    mixer = gatework.create_mixer(name, 128, **options)
    assert 2 * 4 * mixer.published_state_size(256) == bytes_of_two_layers


def test_published_states_of_convolutions_and_windows():
    short, long = (gatework.create_mixer("base_conv", 128, kernel_size=size) for size in (3, -1))
    assert 4 * (short.published_state_size(256) + long.published_state_size(256)) == 132_608
    assert gatework.create_mixer("long_conv", 128).published_state_size(256) == 256 * 128
    window = gatework.create_mixer("sliding_window", 128, window_size=64)
    assert window.published_state_size(256) == window.published_state_size(8) == 2 * 64 * 128
