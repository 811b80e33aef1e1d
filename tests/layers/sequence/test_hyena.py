import math

import pytest
import torch

from gatework.layers.sequence.hyena import Hyena
from gatework.ops.long_conv import causal_conv_reference
from gatework.ops.short_conv import short_conv_reference
from tests.layers.sequence import streaming

DIM, LENGTH = 6, 13
OPTIONS = {
    "default": {},
    "exact length": {"max_length": LENGTH},
    "small network": {"filter_order": 5, "emb_dim": 7, "num_inner_mlps": 0, "sine_frequency": 4.0},
    "linear": {"linear_filter": True, "emb_dim": 5, "filter_bias": False},
    "normalized": {"normalized": True, "shift": 0.2, "short_filter_order": 1},
    "no window": {"modulate": False, "short_filter_order": 6},
    "slow window": {"fast_decay": 0.5, "slow_decay": 4.0, "decay_target": 0.1},
}
options = pytest.mark.parametrize("option", OPTIONS)


def make(option="default"):
    return Hyena(DIM, **{"max_length": 40, **OPTIONS[option]}).double()


@options
def test_forward_is_the_equation(option):
    mixer, x = make(option), torch.randn(2, LENGTH, DIM, dtype=torch.float64)
    u = x @ mixer.in_proj.weight.T + mixer.in_proj.bias
    u = short_conv_reference(u, mixer.short_filter.weight[:, 0], mixer.short_filter.bias)
    x1, x2, v = u.split(DIM, -1)
    y = causal_conv_reference(x1 * v, mixer.taps(LENGTH))
    y = y if mixer.D is None else y + mixer.D * x1 * v
    expected = (x2 * y) @ mixer.out_proj.weight.T + mixer.out_proj.bias
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-11)


@options
def test_taps_are_the_network_of_the_position_under_a_window(option):
    mixer = make(option)
    settings = {"fast_decay": 0.3, "slow_decay": 1.5, "decay_target": 0.01, "shift": 0.0, **OPTIONS[option]}
    fastest, slowest = (
        math.log(settings["decay_target"]) / settings[name] for name in ("fast_decay", "slow_decay")
    )
    for t in (0, 1, LENGTH - 1):
        h = mixer.filter_layers[0](mixer.positions[0, t])
        for layer in mixer.filter_layers[1:]:
            h = layer(torch.sin(mixer.freq[0] * h))
        if mixer.modulate:
            rates = [slowest + (fastest - slowest) * c / (DIM - 1) for c in range(DIM)]
            rates = torch.tensor(rates, dtype=torch.float64).abs()
            h = h * (torch.exp(-rates * t / (mixer.max_length - 1)) + settings["shift"])
        if mixer.normalized:
            h = h / h.abs().sum()
        torch.testing.assert_close(mixer.taps(LENGTH)[:, t], h, rtol=0, atol=1e-6)


@options
def test_streaming(option):
    streaming.check_streaming(make(option), LENGTH)


def test_steps_are_pure():
    streaming.check_step_is_pure(make())


@options
@pytest.mark.parametrize("at", [1, 8])
def test_causality(option, at):
    streaming.check_causality(make(option), LENGTH, at)


@options
def test_empty(option):
    streaming.check_empty(make(option))


def test_autocast():
    streaming.check_autocast(Hyena(DIM, max_length=40))


@pytest.mark.compile
def test_compiles():
    streaming.check_compiles(Hyena(DIM, max_length=40, filter_order=8))


@options
def test_every_parameter_learns(option):
    mixer = make(option)
    mixer(torch.randn(2, LENGTH, DIM, dtype=torch.float64)).square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_window_and_times_are_saved_but_not_trained():
    mixer = make()
    trained = dict(mixer.named_parameters())
    assert "positions" in trained
    for name in ("times", "deltas"):
        assert name in mixer.state_dict()
        assert name not in trained


def test_parameter_count_of_the_published_sweep():
    mixer = Hyena(128, max_length=256)
    # Two layers of arXiv:2312.04927's code, without their five layer norms.
    assert 2 * sum(p.numel() for p in mixer.parameters()) == 171_904 - 5 * 2 * 128


def official(mixer):
    """The state dict of ``mixer`` in the authors' layout, where each sine owns the shared frequency."""
    names = {ours: theirs for theirs, ours in mixer.official_names.items()}
    layout = {}
    for name, tensor in mixer.state_dict().items():
        if name.startswith("filter_layers."):
            _, index, kind = name.split(".")
            layout[f"filter_fn.implicit_filter.{2 * int(index)}.{kind}"] = tensor
        elif name == "freq":
            for index in range(len(mixer.filter_layers) - 1):
                layout[f"filter_fn.implicit_filter.{2 * index + 1}.freq"] = tensor.clone()
        else:
            layout[names.get(name, name)] = tensor
    return layout


@options
def test_authors_layout_becomes_ours(option):
    mixer = make(option)
    layout = official(mixer)
    layout.setdefault("filter_fn.bias", torch.randn(DIM))  # theirs exists even where it is switched off
    converted = mixer.convert_official(layout)
    assert converted.keys() == mixer.state_dict().keys()
    for name, tensor in mixer.state_dict().items():
        assert torch.equal(converted[name], tensor), name


def test_differing_copies_of_the_shared_sine_are_refused():
    mixer = make()
    layout = official(mixer)
    layout["filter_fn.implicit_filter.3.freq"] += 1
    with pytest.raises(ValueError, match=r"filter_fn.implicit_filter.3.freq differs"):
        mixer.convert_official(layout)


def test_longer_sequences_are_refused():
    mixer, x = make("exact length"), torch.randn(1, LENGTH + 1, DIM, dtype=torch.float64)
    message = f"max_length={LENGTH} tokens, got {LENGTH + 1}"
    with pytest.raises(ValueError, match=message):
        mixer(x)
    with pytest.raises(ValueError, match=message):
        mixer.state_size(LENGTH + 1)
    _, state = mixer.prefill(x[:, :LENGTH])
    with pytest.raises(ValueError, match=message):
        mixer.step(x[:, -1], state)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"emb_dim": 2}, "emb_dim must be odd and at least 3.*got 2"),
        ({"filter_order": 0}, "filter_order must be at least 1, got 0"),
        ({"num_inner_mlps": -1}, "num_inner_mlps must be at least 0, got -1"),
        ({"short_filter_order": 0}, "short_filter_order must be at least 1, got 0"),
        ({"fast_decay": 0.0}, "fast_decay must be positive, got 0"),
        ({"slow_decay": -1.0}, "slow_decay must be positive, got -1"),
        ({"decay_target": 0.0}, "decay_target must be positive, got 0"),
    ],
)
def test_impossible_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        Hyena(4, **option)
