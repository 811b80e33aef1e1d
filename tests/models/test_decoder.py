"""The decoder as its users meet it: losses, generation, saving, and the widths that were published."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import gatework
from gatework import registry
from gatework.layers.sequence.mixer import Mixer
from gatework.models.language import zoology
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM, GateworkModel
from tests.layers.sequence.test_every_mixer import OPTIONS
from tests.warm_python import run_python

MIXERS = {name: {"name": name, **sets[0]} for name, sets in OPTIONS.items()}
every_mixer = pytest.mark.parametrize("mixer", sorted(MIXERS))


def tiny(mixers=("attention",), **options):
    options = {"vocab_size": 23, "hidden_size": 16, "context_length": 64, **options}
    return GateworkForCausalLM(GateworkConfig(mixers=list(mixers), **options))


def tokens(*shape, seed=0):
    return torch.randint(23, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _silent_transformers():
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@every_mixer
def test_loss_is_the_cross_entropy_at_labelled_positions(mixer):
    model = tiny([MIXERS[mixer]])
    x = tokens(3, 12)
    labels = x.clone()
    labels[:, 5:8] = -100
    output = model.eval()(x, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(x, shift_labels=shifted).loss, expected)
    training = model.train()(x, labels=labels)
    assert training.logits is None
    if mixer != "sigmoid_lookups":  # which attends elsewhere in training, and adds to the loss
        torch.testing.assert_close(training.loss, expected)
    logits, picked = model.labelled_logits(x, shifted)
    assert len(logits) == len(picked) == (shifted != -100).sum()


def test_hybrids_sample_and_search():
    model = (
        tiny([MIXERS["base_conv"], MIXERS["attention"], MIXERS["mamba2"]], num_hidden_layers=3)
        .double()
        .eval()
    )
    prompt = tokens(2, 5)
    beams = [
        model.generate(prompt, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*beams)
    samples = []
    for _ in range(2):
        torch.manual_seed(5)
        samples.append(model.generate(prompt, max_new_tokens=6, do_sample=True))
    assert torch.equal(*samples)


@every_mixer
def test_saving_and_loading(mixer, tmp_path):
    model = tiny([MIXERS[mixer]], learned_positions=64).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = GateworkForCausalLM.from_pretrained(tmp_path).eval()
    x = tokens(2, 9)
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    other = tiny([MIXERS[mixer]], learned_positions=64).eval()
    gatework.load_checkpoint(other, tmp_path / "model.safetensors")
    assert torch.equal(other(x).logits, model(x).logits)


def test_only_importing_hf_registers(tmp_path):
    tiny().save_pretrained(tmp_path)
    program = f"""
import gatework.models.language.decoder
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
try:
    AutoConfig.from_pretrained({str(tmp_path)!r})
except ValueError:
    pass
else:
    raise SystemExit("registered without importing gatework.hf")
import gatework.hf
assert type(AutoConfig.from_pretrained({str(tmp_path)!r})) is gatework.hf.GateworkConfig
assert type(AutoModel.from_pretrained({str(tmp_path)!r})) is gatework.hf.GateworkModel
assert type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})) is gatework.hf.GateworkForCausalLM
"""
    run_python(["-c", program], check=True)


def test_checkpointing_gives_equal_gradients():
    model = (
        tiny([MIXERS["gated_linear_attention"], MIXERS["attention"]], channel_mixer="glu").double().train()
    )
    x = tokens(2, 20)
    model(x, labels=x).loss.backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(x, labels=x).loss.backward()
    for ours, expected in zip([parameter.grad for parameter in model.parameters()], plain, strict=True):
        torch.testing.assert_close(ours, expected)


LEARNED = {"name": "sigmoid_lookups", "num_lookups": 1, "penalty": 3.0}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_auxiliary_losses_are_added_while_training(checkpointing):
    """The loss and its gradients are those of the cross-entropy and of every layer's own formula."""
    model = tiny([LEARNED, MIXERS["attention"], LEARNED], num_hidden_layers=3).double().train()
    x = tokens(2, 20)
    output = model.model(x, output_auxiliary_loss=True, output_hidden_states=True)
    cross_entropy = F.cross_entropy(
        model.lm_head(output.last_hidden_state)[:, :-1].flatten(0, 1), x[:, 1:].flatten()
    )
    extra = torch.zeros((), dtype=torch.float64)
    for index in (0, 2):
        layer = model.model.layers[index]
        scores = layer.mixer.selecting(layer.mixer_norm(output.hidden_states[index])).sigmoid()
        extra = extra + 3.0 * (scores.mean() - 1 / 20)
    expected = torch.autograd.grad(cross_entropy + extra, list(model.parameters()))
    assert extra > 1
    if checkpointing:
        model.activation_checkpointing_enable()
    loss = model(x, labels=x).loss
    torch.testing.assert_close(loss, cross_entropy + extra)
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(model.model(x, output_auxiliary_loss=True, return_dict=False)[-1], extra)
    assert "auxiliary_loss" not in model.model(x)


def test_auxiliary_losses_stay_out_of_evaluation():
    model = tiny([LEARNED]).eval()
    x = tokens(2, 20)
    output = model(x, labels=x)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    assert "auxiliary_loss" not in tiny().train().model(x, output_auxiliary_loss=True)


def test_mixers_that_read_tokens_get_them():
    model = tiny([MIXERS["programmatic_lookups"], MIXERS["attention"]]).double().eval()
    mixer = model.model.layers[0].mixer
    x = tokens(2, 9)
    seen = []
    mixer.register_forward_hook(lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True)
    model(x)
    assert torch.equal(seen[0]["tokens"], x)
    state = model(x, use_cache=True).past_key_values.states[0]
    assert torch.equal(state["tokens"], x)
    with pytest.raises(
        ValueError, match="inputs_embeds were given, but layer 0, a ProgrammaticLookups, reads"
    ):
        model(inputs_embeds=model.model.embed_tokens(x))
    train = tiny([MIXERS["programmatic_lookups"]]).train()
    train.activation_checkpointing_enable()
    train(x, labels=x).loss.backward()


def test_right_padding_is_harmless_and_left_padding_is_refused():
    model = tiny([MIXERS["mamba2"]]).eval()
    x = tokens(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, 5:] = 0
    padded = x.clone()
    padded[0, 5:] = 0
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[0, :5], model(x).logits[0, :5])
    with pytest.raises(ValueError, match="equal length"):
        model(padded, attention_mask=mask, use_cache=True)
    with pytest.raises(ValueError, match="attention_mask pads on the left"):
        model(x, attention_mask=mask.flip(1))


def test_positions_are_learned_and_end():
    model = tiny(learned_positions=10).eval()
    x = tokens(1, 10)
    swapped = x[:, [1, 0, *range(2, 10)]]
    assert not torch.allclose(model(x).logits[:, -1], model(swapped).logits[:, -1], atol=1e-9)
    with pytest.raises(ValueError, match=r"sequence of 11 tokens is longer than .*learned_positions=10"):
        model(tokens(1, 11))


def test_dropout_only_while_training():
    model = tiny(embed_dropout=0.2, resid_dropout=0.2, drop_path_rate=0.5)
    x = tokens(2, 6)
    assert not torch.equal(model.train()(x).logits, model(x).logits)
    assert torch.equal(model.eval()(x).logits, model(x).logits)


def test_drop_path_drops_a_branch_of_whole_sequences():
    drop = tiny(drop_path_rate=0.25).train().model.layers[0].drop_path
    x = torch.randn(400, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    y = drop(x)
    kept = y.abs().sum((1, 2)) > 0
    assert 0.68 < kept.double().mean() < 0.82
    torch.testing.assert_close(y, x * kept[:, None, None] / 0.75)
    assert drop.eval()(x) is x
    assert tiny(drop_path_rate=0.25).state_dict().keys() == tiny().state_dict().keys()


@pytest.mark.bad_input
@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan")])
def test_a_rate_that_leaves_nothing_is_refused(rate):
    with pytest.raises(ValueError, match=f"drop_path_rate must be .*, got {rate}"):
        tiny(drop_path_rate=rate)


def test_without_drop_path_timm_is_not_imported():
    program = """
import sys
from gatework import create_model
model = create_model("gatework", vocab_size=8, hidden_size=16)
assert "timm" not in sys.modules, "imported for nothing"
"""
    run_python(["-c", program], check=True)


def test_initial_weights():
    model = tiny(hidden_size=256, num_hidden_layers=8, mixers=["hyena"])
    layer = model.model.layers[0]
    for weight, expected in (
        (layer.mixer.in_proj.weight, 0.02),
        (layer.mixer.out_proj.weight, 0.02 / 4),
        (layer.channel_mixer.fc2.weight, 0.02 / 4),
    ):
        assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert layer.mixer.in_proj.bias.abs().max() == 0
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)
    rows = tiny(embedding_init="spherical").model.embed_tokens.weight.norm(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    frozen = tiny(train_embeddings=False)
    assert not frozen.model.embed_tokens.weight.requires_grad
    assert frozen.lm_head.weight is not frozen.model.embed_tokens.weight


def linear_layers(module):
    """Every Linear layer by its name."""
    return {name: each for name, each in module.named_modules() if isinstance(each, torch.nn.Linear)}


@pytest.mark.parametrize("channel_mixer", ["mlp", "glu"])
@every_mixer
def test_declared_outputs_start_smaller(mixer, channel_mixer):
    torch.manual_seed(0)
    options = {"hidden_size": 64, "num_hidden_layers": 8, "channel_mixer": channel_mixer}
    block = tiny([MIXERS[mixer]], **options).model.layers[5]
    declared = {f"mixer.{name}" for name in block.mixer.residual_outputs}
    declared.add("channel_mixer.fc2" if channel_mixer == "mlp" else "channel_mixer.fc3")
    for name, layer in linear_layers(block).items():
        spread = layer.weight.std().item()
        if name in declared:
            assert spread == pytest.approx(0.02 / 4, rel=0.05), name
        else:
            assert spread > 0.02 / 2, name
    assert declared <= linear_layers(block).keys()


@pytest.mark.parametrize(
    ("mixer", "output"),
    [
        ("attention", "out_proj"),
        ("gated_linear_attention", "o_proj"),
        ("based", "proj_o"),
        ("rwkv4", "output"),
        ("h3", "output_linear"),
    ],
)
def test_output_projections_start_smaller_whatever_their_name(mixer, output):
    torch.manual_seed(0)
    block = tiny([mixer], hidden_size=64, num_hidden_layers=8, channel_mixer="glu").model.layers[0]
    assert block.mixer.get_submodule(output).weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.channel_mixer.fc2.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.channel_mixer.fc3.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


@every_mixer
def test_declared_outputs_divide_what_the_mixer_draws(mixer):
    torch.manual_seed(0)
    options = {"hidden_size": 64, "num_hidden_layers": 8, "channel_mixer": "none", "init_linear": False}
    ours = tiny([MIXERS[mixer]], **options).model.layers[5].mixer
    alone = linear_layers(gatework.create_mixer(dim=64, **MIXERS[mixer]))
    for name, layer in linear_layers(ours).items():
        divisor = 8**0.5 if name in ours.residual_outputs else 1
        expected = alone[name].weight.std().item() / divisor
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05 if divisor > 1 else 0.5), name


@pytest.mark.parametrize("init_linear", [True, False])
@every_mixer
def test_the_rule_of_zoology_goes_by_the_name(mixer, init_linear):
    options = {"hidden_size": 64, "num_hidden_layers": 8, "channel_mixer": "glu", "init_linear": init_linear}
    torch.manual_seed(0)
    block = tiny([MIXERS[mixer]], residual_init="zoology", **options).model.layers[0]
    layers = linear_layers(block)
    by_name = {name for name in layers if name.endswith(("out_proj", "fc2"))}
    assert "channel_mixer.fc2" in by_name
    assert {name for name, layer in layers.items() if hasattr(layer, "writes_to_stream")} == by_name
    if init_linear:
        assert {name for name, layer in layers.items() if layer.weight.std() < 0.02 / 2} == by_name


@pytest.mark.parametrize("make", [zoology.zoology_attention, zoology.zoology_h3, zoology.zoology_based])
def test_the_published_recall_models_follow_the_rule_of_zoology(make):
    assert make(64).residual_init == "zoology"


class Wrong(Mixer):
    """A mixer that declares what it has not."""

    def __init__(self, dim, *, declares):
        super().__init__(dim)
        self.norm, self.proj_o = torch.nn.LayerNorm(dim), torch.nn.Linear(dim, dim)
        self.residual_outputs = declares


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("declares", "message"),
    [
        (("proj_o", "out_proj"), "Wrong.residual_outputs must name .* 'out_proj', which is not a submodule"),
        (("norm",), "Wrong.residual_outputs must name .* 'norm', which is of type LayerNorm"),
        (("",), "Wrong.residual_outputs must name .* '', which is of type Wrong"),
        ("proj_o", "Wrong.residual_outputs must be a tuple of names, got the string 'proj_o'"),
    ],
)
def test_a_wrong_declaration_is_named(declares, message, monkeypatch):
    monkeypatch.setattr(registry.mixers, "_MIXERS", dict(registry.mixers._MIXERS))
    gatework.register_mixer("wrong", Wrong)
    with pytest.raises(TypeError, match=message):
        tiny([{"name": "wrong", "declares": declares}])


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (zoology.zoology_attention, [574592, 1214720, 2691584, 6431744]),
        (zoology.zoology_hyena, [586880, 1220480, 2684288, 6398336]),
        (zoology.zoology_base_conv, [534656, 1085632, 2236736, 4735552]),
        (zoology.zoology_h3, [673152, 1411840, 3085824, 7220224]),
        (zoology.zoology_based, [538560, 1101696, 2301696, 4996608]),
    ],
)
def test_published_parameter_counts(make, published):
    for dim, expected in zip((64, 128, 256, 512), published, strict=True):
        with torch.device("meta"):
            model = GateworkForCausalLM(make(dim))
        model.tie_weights()
        unique = {
            id(parameter): parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        }
        assert sum(unique.values()) == expected


@every_mixer
def test_bfloat16(mixer):
    model = tiny([MIXERS[mixer]]).eval()
    x = tokens(2, 10)
    expected = model(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(x).logits
    assert (under_autocast.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.compile
def test_one_graph():
    torch.compiler.reset()
    model = tiny([MIXERS["base_conv"], MIXERS["attention"]]).eval()
    x = tokens(2, 10)
    compiled = torch.compile(lambda ids: model(ids).logits, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x).logits)


def test_hidden_states_and_embeddings():
    model = tiny(num_hidden_layers=3).eval()
    x = tokens(2, 6)
    output = model(x, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    embedded = model.model.embed_tokens(x)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, output.logits)
    assert torch.equal(model(x, logits_to_keep=2).logits, output.logits[:, -2:])
    assert model(x, return_dict=False)[0].shape == output.logits.shape
    assert isinstance(copy.deepcopy(model), GateworkForCausalLM)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": ["atention"]}, "did you mean 'attention'"),
        ({"mixers": []}, "mixers must name at least one"),
        ({"mixers": [{"num_heads": 2}]}, "must have a 'name'"),
        ({"channel_mixer": "conv"}, "channel_mixer must be one of"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"residual_init": "names"}, "residual_init must be one of declared, zoology, got 'names'"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
        ({"hidden_size": 6, "mixers": [{"name": "attention", "num_heads": 4}]}, "divide dim=6, got 4"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.bad_input
def test_wrong_calls_are_named():
    model = GateworkModel(GateworkConfig(vocab_size=23, hidden_size=8))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="not both"):
        tiny()(tokens(1, 3), labels=tokens(1, 3), shift_labels=tokens(1, 3))


@pytest.mark.parametrize("mixer", ["rwkv4", "rwkv5"])
def test_initial_values_follow_the_depth(mixer):
    options = {"head_dim": 8} if mixer == "rwkv5" else {}
    config = GateworkConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=14, mixers=[{"name": mixer, **options}]
    )
    first, second = (config.mixer_of_layer(index) for index in (0, 13))
    assert not torch.equal(first.time_decay, second.time_decay)
    for index in (0, 13):
        alone = gatework.create_mixer(mixer, 16, layer_index=index, num_layers=14, **options)
        assert torch.equal(config.mixer_of_layer(index).time_decay, alone.time_decay)
