"""What every registered mixer promises: no future, one result in all forms, the state it says it carries."""

from __future__ import annotations

import copy

import pytest
import torch

import gatework
from gatework.registry import mixer_entry
from tests.layers import streaming

DIM = 16

#: Option sets of every mixer; a registered name that is absent here fails ``test_every_mixer_is_here``.
OPTIONS = {
    "attention": [
        {},
        {"num_heads": 4, "num_kv_heads": 2, "rope": True, "qkv_bias": False},
    ],
    "sliding_window": [{"window_size": 5}, {"window_size": 70, "num_heads": 2, "rope": True}],
    "base_conv": [
        {},
        {"kernel_size": -1, "max_length": 80},
        {"kernel_size": None, "implicit": False, "activation": True, "max_length": 80},
    ],
    "long_conv": [{"max_length": 80}],
    "implicit_long_conv": [{"max_length": 80}, {"max_length": 80, "emb_dim": 5}],
    "hyena": [{"max_length": 80}, {"max_length": 80, "short_filter_order": 4, "normalized": True}],
    "h3": [{"state_dim": 4}, {"state_dim": 6, "head_dim": 2, "max_length": 80}],
    "based": [{"feature_dim": 3}, {"feature_dim": 4, "num_heads": 4}],
    "gated_linear_attention": [
        {},
        {"num_heads": 4, "num_kv_heads": 2, "conv_size": 3, "output_gate": "sigmoid", "feature_map": "silu"},
        {"num_heads": 2, "output_gate": None, "min_log_decay": -0.05, "gate_logit_normalizer": 1.0},
    ],
    "mamba2": [
        {"state_dim": 4, "head_dim": 8},
        {"state_dim": 4, "head_dim": 4, "num_groups": 2, "skip_per_channel": True, "norm_before_gate": True},
        {"state_dim": 4, "head_dim": 8, "ssm_dim": 16, "norm": False, "bias": True, "dt_limit": (0.01, 0.1)},
    ],
}  # fmt: skip
CASES = [
    pytest.param(name, options, id=f"{name}-{index}")
    for name, sets in OPTIONS.items()
    for index, options in enumerate(sets)
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)
first_options = pytest.mark.parametrize(
    ("name", "options"), [(name, sets[0]) for name, sets in OPTIONS.items()]
)


def make(name, options, dtype=torch.float64):
    """A mixer all of whose parameters are random: zeros would hide a forgotten term."""
    mixer = gatework.create_mixer(name, DIM, **options).to(dtype)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return mixer


def test_every_mixer_is_here():
    assert sorted(OPTIONS) == gatework.list_mixers()


@every_case
@pytest.mark.parametrize("length", [2, 65, 75])
def test_no_output_sees_the_future(name, options, length):
    for at in (1, length // 2, length - 1):
        streaming.check_causality(make(name, options), length, at)


@every_case
@pytest.mark.parametrize("length", [5, 17, 71])
def test_steps_and_chunks_equal_the_whole(name, options, length):
    streaming.check_streaming(make(name, options), length)


@every_case
def test_the_state_is_as_large_as_it_says(name, options):
    mixer = make(name, options)
    state = mixer.initial_state(2)
    for length in range(9):
        assert sum(tensor[0].numel() for tensor in state.values()) == mixer.state_size(length)
        _, state = mixer.step(torch.randn(2, DIM, dtype=torch.float64), state)


@every_case
def test_a_step_leaves_its_state_alone(name, options):
    streaming.check_step_is_pure(make(name, options))


@every_case
def test_empty_batches_and_sequences(name, options):
    streaming.check_empty(make(name, options))


@first_options
def test_bfloat16_autocast(name, options):
    streaming.check_autocast(gatework.create_mixer(name, DIM, **options))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
@first_options
def test_one_graph(name, options):
    torch.compiler.reset()
    streaming.check_compiles(gatework.create_mixer(name, DIM, **options))


@every_case
def test_weights_round_trip(name, options):
    mixer, other = make(name, options), make(name, options)
    gatework.load_checkpoint(other, copy.deepcopy(mixer.state_dict()))
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    torch.testing.assert_close(other(x), mixer(x), rtol=0, atol=0)


@every_case
def test_every_parameter_learns(name, options):
    mixer = make(name, options)
    mixer(torch.randn(2, 12, DIM, dtype=torch.float64)).square().sum().backward()
    silent = [key for key, parameter in mixer.named_parameters() if parameter.grad is None]
    assert not silent


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["attention", "sliding_window", "based", "gated_linear_attention"])
def test_heads_that_do_not_divide_are_named(name):
    with pytest.raises(ValueError, match=r"num_heads must be positive and divide .*, got 3"):
        gatework.create_mixer(name, DIM, num_heads=3)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_mistakes_are_named(name):
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        gatework.create_mixer(name, 0)
    with pytest.raises(TypeError, match=f"mixer '{name}' has no option 'wdith'"):
        gatework.create_mixer(name, DIM, wdith=3)


def test_sources_are_said():
    for name in gatework.list_mixers():
        assert "arXiv:" in mixer_entry(name).source
        assert mixer_entry(name).summary
