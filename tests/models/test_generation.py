"""Decoding through Transformers: every mixer continues as if it read all anew, with the memory it states."""

from __future__ import annotations

import pytest
import torch

from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.registry import create_mixer
from tests.layers.sequence.test_every_mixer import OPTIONS

MIXERS = {name: {"name": name, **sets[0]} for name, sets in OPTIONS.items()}
every_mixer = pytest.mark.parametrize("mixer", sorted(MIXERS))

PROMPT, NEW = 7, 10


@pytest.fixture(autouse=True)
def _silent_transformers():
    from transformers.utils import logging

    logging.set_verbosity_error()


def tiny(*mixers, **options):
    """A model with large random weights, whose choices differ from token to token."""
    options = {"vocab_size": 23, "hidden_size": 16, "context_length": 64, "initializer_range": 0.3, **options}
    config = GateworkConfig(mixers=list(mixers), num_hidden_layers=len(mixers), **options)
    return GateworkForCausalLM(config).double().eval()


def prompt(batch, length=PROMPT):
    return torch.randint(23, (batch, length), generator=torch.Generator().manual_seed(0))


@every_mixer
def test_greedy_choices_are_those_of_whole_sequences(mixer):
    model = tiny(MIXERS[mixer])
    cached = model.generate(prompt(2), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(
        cached, model.generate(prompt(2), max_new_tokens=NEW, do_sample=False, use_cache=False)
    )
    for end in range(PROMPT, PROMPT + NEW):
        assert torch.equal(model(cached[:, :end]).logits[:, -1].argmax(-1), cached[:, end])
    assert len(cached[:, PROMPT:].unique()) > 1


@every_mixer
def test_beam_search_reorders_the_states(mixer):
    model = tiny(MIXERS[mixer])
    beams = [
        model.generate(prompt(2), max_new_tokens=6, num_beams=3, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*beams)


@every_mixer
def test_the_cache_holds_what_is_stated(mixer):
    """As it grows: after the prompt, and after each further token."""
    model = tiny(MIXERS[mixer])
    ids = prompt(2, PROMPT + 4)
    output = model(ids[:, :PROMPT], use_cache=True)
    for length in range(PROMPT, PROMPT + 4):
        cache = output.past_key_values
        assert cache.get_seq_length() == length
        carried = sum(tensor.numel() for state in cache.states for tensor in state.values())
        assert carried == 2 * model.state_size(length)
        output = model(ids[:, length : length + 1], past_key_values=cache, use_cache=True)


@every_mixer
def test_a_stretch_may_follow_a_state(mixer):
    """As for speculative decoding: several tokens at once after some that were read."""
    model = tiny(MIXERS[mixer])
    ids = prompt(2, 12)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    output = model(ids[:, 5:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(output.logits, model(ids).logits[:, 5:], rtol=0, atol=1e-10)


def test_published_sizes_are_summed():
    nsa, attention = ({"name": name, **OPTIONS[name][0]} for name in ("nsa", "big_bird"))
    model = tiny(nsa, attention, nsa)
    sizes = [create_mixer(**{**spec, "dim": 16}).published_state_size(50) for spec in (nsa, attention, nsa)]
    assert model.published_state_size(50) == sum(sizes)
    assert tiny(nsa, {"name": "sigmoid_lookups"}).published_state_size(50) is None


def test_generation_ends_with_the_position_table():
    model = tiny({"name": "attention"}, learned_positions=10)
    assert model.generate(prompt(1), max_new_tokens=4, do_sample=False).shape == (1, 11)
    with pytest.raises(ValueError, match=r"sequence of 11 tokens is longer than .*learned_positions=10"):
        model.generate(prompt(1), max_new_tokens=5, do_sample=False)


def test_filters_end_as_documented():
    """Hyena's positions are those of its longest sequence; filters that are as long forget what is older."""
    model = tiny({"name": "hyena"}, context_length=9)
    assert model.generate(prompt(1), max_new_tokens=3, do_sample=False).shape == (1, 10)
    for call in (
        lambda: model.generate(prompt(1), max_new_tokens=5, do_sample=False),
        lambda: model(prompt(1, 12)),
    ):
        with pytest.raises(ValueError, match="max_length"):
            call()
    for name in ("long_conv", "implicit_long_conv"):
        model = tiny({"name": name}, context_length=9)
        cached = model.generate(prompt(2), max_new_tokens=NEW, do_sample=False)
        anew = model.generate(prompt(2), max_new_tokens=NEW, do_sample=False, use_cache=False)
        assert torch.equal(cached, anew)
