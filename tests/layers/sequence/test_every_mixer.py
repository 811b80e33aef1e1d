"""What every registered mixer promises: no future, one result in all forms, the state it says it carries."""

from __future__ import annotations

import copy

import pytest
import torch

import gatework
from gatework.layers.channel_mixers import GLU, MLP
from gatework.registry import mixer_entry
from tests.layers.sequence import streaming

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
    "big_bird": [
        {"block_size": 4},
        {"block_size": 2, "num_random": 2, "num_heads": 4, "num_kv_heads": 2, "rope": True},
    ],
    "nsa": [
        {"block_size": 4, "num_selected_blocks": 2, "window_size": 5},
        {"num_heads": 4, "num_kv_heads": 2, "block_size": 3, "heads_share_blocks": False, "num_memory": 2},
        {"num_heads": 4, "num_kv_heads": 1, "block_size": 8, "num_selected_blocks": 0, "norm": False},
    ],
    "sigmoid_lookups": [{}, {"num_heads": 4, "num_lookups": 3, "qkv_bias": False}],
    "random_lookups": [{}, {"num_heads": 2, "share": 0.4, "seed": 3}, {"num_lookups": 4}],
    "programmatic_lookups": [{}, {"num_heads": 2, "order": 2}],
    "ttt_linear": [
        {"num_heads": 2},
        {"num_heads": 4, "mini_batch_size": 5, "gate": True, "share_qk": True, "conv_size": 3},
    ],
    "ttt_mlp": [
        {"num_heads": 2},
        {"num_heads": 1, "mini_batch_size": 4, "base_rate": 0.5, "share_qk": True},
    ],
    "linear_attention": [
        {"feature_dim": 3},
        {"feature_dim": 4, "num_heads": 2, "feature_map": "cosformer", "max_length": 50},
        {"feature_dim": 8, "feature_map": "all_poly", "num_features": 5, "normalize": False},
        {"feature_dim": 4, "feature_map": "performer", "num_features": 10},
    ],
    "retention": [{"num_heads": 2}, {"num_heads": 4, "expand_k": 0.5, "expand_v": 1.0, "norm_affine": False}],
    "delta_net": [
        {"num_heads": 2},
        {"num_heads": 4, "expand_k": 0.5, "expand_v": 2.0, "conv_size": 0, "output_gate": True},
        {"qk_activation": "elu", "qk_norm": "sum", "allow_neg_eigval": True, "conv_size": 3},
        {"num_heads": 2, "qk_activation": "relu", "use_beta": False, "conv_size": 2},
    ],
    "gated_delta_net": [
        {"num_heads": 2},
        {"head_dim": 6, "expand_v": 1.5, "output_gate": False, "conv_size": 0},
    ],
    "mamba": [
        {"state_dim": 4},
        {"state_dim": 3, "conv_size": 2, "expand": 3, "dt_rank": 5, "conv_bias": False, "bias": True},
        {"state_dim": 1, "conv_size": 1, "expand": 1, "dt_init": "constant", "dt_scale": 0.5},
    ],
    "rwkv4": [{}, {"layer_index": 3, "num_layers": 4}],
    "rwkv5": [{"num_heads": 2}, {"head_dim": 4, "layer_index": 3, "num_layers": 4}],
    "rwkv7": [
        {"num_heads": 2, "decay_rank": 4, "rate_rank": 4, "gate_rank": 4},
        {"head_dim": 4, "norm_affine": False},
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
        _, state = streaming.step(mixer, torch.randn(2, DIM, dtype=torch.float64), state, at=length)


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


class OneStep(torch.nn.Module):
    """A decoding step as a module of its own."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x, state, told):
        return self.mixer.step(x, state, **told)


def dynamic_batch(inputs):
    """The first axis of every tensor may have any size."""
    return torch.utils._pytree.tree_map(lambda tensor: {0: torch.export.Dim.DYNAMIC}, inputs)


@pytest.mark.compile
@first_options
def test_the_whole_sequence_is_exported(name, options):
    mixer = make(name, options).eval()
    inputs = (torch.randn(3, 21, DIM, dtype=torch.float64),)
    told = streaming.reads(mixer, 3, 0, 21)
    program = torch.export.export(
        mixer,
        inputs,
        told,
        dynamic_shapes=(*dynamic_batch(inputs), *dynamic_batch(told).values()),
        strict=False,
    )
    x = torch.randn(2, 21, DIM, dtype=torch.float64)
    y = program.module()(x, **streaming.reads(mixer, 2, 0, 21))
    torch.testing.assert_close(y, streaming.call(mixer, x))


@pytest.mark.compile
@torch.no_grad()
@first_options
def test_a_step_is_exported(name, options):
    """For any number of sequences, and any number of tokens read where the state grows with these."""
    mixer = make(name, options).eval()
    cases = []
    for batch, length in ((3, 9), (2, 12)):
        _, state = streaming.prefill(mixer, torch.randn(batch, length, DIM, dtype=torch.float64))
        told = {key: ids.squeeze(1) for key, ids in streaming.reads(mixer, batch, length, length + 1).items()}
        cases.append((torch.randn(batch, DIM, dtype=torch.float64), state, told))
    dynamic = torch.utils._pytree.tree_map(
        lambda *pair: {
            axis: torch.export.Dim.DYNAMIC
            for axis, (size, other) in enumerate(zip(*(tensor.shape for tensor in pair), strict=True))
            if size != other
        },
        *cases,
    )
    program = torch.export.export(OneStep(mixer), cases[0], dynamic_shapes=dynamic, strict=False).module()
    for case in cases:
        torch.testing.assert_close(program(*case), OneStep(mixer)(*case))


@every_case
def test_weights_round_trip(name, options):
    mixer, other = make(name, options), make(name, options)
    gatework.load_checkpoint(other, copy.deepcopy(mixer.state_dict()))
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    torch.testing.assert_close(streaming.call(other, x), streaming.call(mixer, x), rtol=0, atol=0)


@every_case
def test_every_parameter_learns(name, options):
    mixer = make(name, options)
    streaming.call(mixer, torch.randn(2, 12, DIM, dtype=torch.float64)).square().sum().backward()
    silent = [key for key, parameter in mixer.named_parameters() if parameter.grad is None]
    assert not silent


def writes_to_stream(module, names, x, call):
    """Whether multiplying what the named layers give by a matrix multiplies what the module adds by it.

    What it adds is its output, without its input where the module passes this on. A matrix, because numbers
    commute with everything linear: means of values, say, are as many times as large as the values are.
    """
    changed, matrix = copy.deepcopy(module), torch.randn(DIM, DIM, dtype=torch.float64)
    with torch.no_grad():
        for name in names:
            layer = changed.get_submodule(name)
            layer.weight.copy_(matrix @ layer.weight)
            if layer.bias is not None:
                layer.bias.copy_(matrix @ layer.bias)
    before, after = call(module, x), call(changed, x)
    assert (before - x).abs().max() > 1e-3
    return any(torch.allclose(after - passed, (before - passed) @ matrix.T) for passed in (0, x))


def check_residual_outputs(module, call=streaming.call):
    """The declared layers write all that the module adds to the stream, and no other layer does."""
    x = torch.randn(2, 12, DIM, dtype=torch.float64)
    declared = module.residual_outputs
    assert isinstance(declared, tuple)
    assert all(isinstance(module.get_submodule(name), torch.nn.Linear) for name in declared)
    assert not declared or writes_to_stream(module, declared, x, call)
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == DIM and name not in declared:
            assert not writes_to_stream(module, [name], x, call), f"{name} is not declared"


@every_case
def test_what_writes_to_the_stream_is_declared(name, options):
    check_residual_outputs(make(name, options))


@pytest.mark.parametrize("kind", [MLP, GLU])
def test_what_a_channel_mixer_writes_is_declared(kind):
    check_residual_outputs(kind(DIM, DIM).double(), lambda module, x: module(x))


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["attention", "sliding_window", "based", "gated_linear_attention"])
def test_heads_that_do_not_divide_are_named(name):
    with pytest.raises(ValueError, match=r"num_heads must divide dim.*, got 3"):
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
