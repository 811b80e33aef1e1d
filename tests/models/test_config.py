"""A configuration of the decoder: every impossible value is an error, every unknown key a warning."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import AutoConfig

import gatework.hf  # noqa: F401 (registers)
from gatework.models.language.decoder import GateworkConfig, create_decoder

NAN, INF = float("nan"), float("inf")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "context_length", "pad_vocab_size_multiple")
POSITIVE = ("mlp_ratio", "norm_eps", "final_norm_eps")
RATES = ("embed_dropout", "resid_dropout", "drop_path_rate")
FLAGS = ("init_linear", "train_embeddings", "tie_word_embeddings", "use_cache")

pytestmark = pytest.mark.bad_input


@pytest.mark.parametrize("name", [*SIZES, "learned_positions"])
def test_sizes_are_whole_numbers(name):
    for value in (1.5, 8.0, NAN, INF, True, "8", None):
        with pytest.raises(TypeError, match=f"^{name} must be an integer, got "):
            GateworkConfig(**{name: value})
    least = 0 if name == "learned_positions" else 1
    for value in (least - 1, -8):
        with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {value}$"):
            GateworkConfig(**{name: value})


@pytest.mark.parametrize("name", [*POSITIVE, "initializer_range", *RATES])
def test_numbers_are_in_their_range(name):
    for value in (True, "0.1", None, [0.1]):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
            GateworkConfig(**{name: value})
    wrong = {
        "initializer_range": (-1,),
        **dict.fromkeys(POSITIVE, (0, -1)),
        **dict.fromkeys(RATES, (-0.1, 1)),
    }
    for value in (*wrong[name], NAN, INF):
        with pytest.raises(ValueError, match=f"^{name} must be .*got {value}$"):
            GateworkConfig(**{name: value})


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_true_or_false(name):
    for value in (1, "false", None):
        with pytest.raises(TypeError, match=f"^{name} must be True or False, got "):
            GateworkConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"norm": "layer"}, ValueError, "norm must be one of layernorm, rmsnorm, got 'layer'; did you mean"),
        ({"norm": 3}, TypeError, "norm must be one of layernorm, rmsnorm, got 3"),
        ({"mlp_ratio": 1e-3}, ValueError, "mlp_ratio must leave at least one of dim=128 channels, got 0.001"),
        ({"mixers": "attention"}, TypeError, "mixers must be a list of names or of dicts"),
        ({"mixers": ["attention", 3]}, TypeError, r"mixers\[1\] must be a name or a dict"),
        ({"mixers": [{"name": 3}]}, TypeError, r"mixers\[0\]\['name'\] must be text, got 3"),
        ({"mixers": [{"name": "attention", "heads": 2}]}, TypeError, "'heads'; did you mean 'num_heads'"),
        ({"mixers": [{"name": "attention", "num_heads": 0}]}, ValueError, "num_heads must be at least 1"),
        ({"mixers": [{"name": "attention", "num_heads": 3}]}, ValueError, "num_heads must divide dim=128"),
        ({"mixers": ["attention", {"name": "based", "feature_dim": -1}]}, ValueError, "feature_dim must be"),
    ],
)
def test_mistakes_are_named_where_the_config_is_made(options, error, message):
    with pytest.raises(error, match=f"{message}"):
        GateworkConfig(**options)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("norm_epss", "norm_eps"), ("num_hiden_layers", "num_hidden_layers"), ("mixer", "mixers")],
)
def test_an_unknown_key_is_a_warning_with_the_nearest(key, meant):
    with pytest.warns(UserWarning, match=f"GateworkConfig has no option '{key}', .*did you mean '{meant}'"):
        config = GateworkConfig(**{key: 1})
    assert getattr(config, key) == 1  # as with any configuration of Transformers
    with pytest.raises(TypeError, match=f"model has no option '{key}'; did you mean '{meant}'"):
        create_decoder(**{key: 1})


def test_keys_of_transformers_are_known(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GateworkConfig()
        GateworkConfig(
            torch_dtype="float32",
            attn_implementation="eager",
            num_labels=3,
            output_hidden_states=True,
            max_length=20,
            temperature=0.5,
            architectures=["GateworkForCausalLM"],
            transformers_version="5.0.0",
            auto_map={"AutoConfig": "x.y"},
            quantization_config={"quant_method": "x"},
            _name_or_path="somewhere",
            torchscript=False,
        )
        create_decoder(vocab_size=8, hidden_size=8).save_pretrained(tmp_path)
        for load in (GateworkConfig, AutoConfig):
            config = load.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
            assert config.hidden_size == 8
        config.save_pretrained(tmp_path)
        again = GateworkConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
        assert again.to_diff_dict().keys() == config.to_diff_dict().keys()


def test_a_saved_config_is_checked_too(tmp_path):
    GateworkConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    with pytest.raises(ValueError, match="norm_eps must be positive, got -1"):
        GateworkConfig.from_pretrained(tmp_path, norm_eps=-1)
    for change, message in (
        ({"norm_eps": -1}, "norm_eps must be positive, got -1"),
        ({"hidden_size": 2.5}, "hidden_size must be an integer, got 2.5"),
        ({"mixers": [{"name": "attention", "num_heads": 0}]}, "num_heads must be at least 1"),
    ):
        path.write_text(json.dumps(saved | change))
        with pytest.raises((TypeError, ValueError), match=message):
            GateworkConfig.from_pretrained(tmp_path)
        with pytest.raises((TypeError, ValueError), match=message):
            AutoConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps(saved | {"norm_epss": 1}))
    with pytest.warns(UserWarning, match="norm_epss"):
        GateworkConfig.from_pretrained(tmp_path)
