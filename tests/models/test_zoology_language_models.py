"""Zoology's language models: as large as published, trainable, and what their recipes and their page say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from gatework.layers.sequence.gated_conv import BaseConv
from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM
from gatework.models.language.zoology_language_models import (
    ZOOLOGY_LANGUAGE_MODELS,
    zoology_language_model,
)
from gatework.training.recipe import read_recipe
from tests.recipe_files import LANGUAGE_MODELS, language_models

PAGE = Path(__file__).parents[2] / "docs" / "systems" / "zoology_language_models.md"
MODELS = list(ZOOLOGY_LANGUAGE_MODELS.values())


@pytest.fixture(scope="module")
def script():
    """The program beside the recipes that writes them."""
    spec = importlib.util.spec_from_file_location("make_recipes", LANGUAGE_MODELS / "make_recipes.py")
    module = sys.modules["make_recipes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_recipes"]


def test_there_are_seventeen_and_five():
    families = [model.title for model in MODELS[:17]]
    assert {family: families.count(family) for family in families} == {
        "Attention": 4,
        "Long Conv": 3,
        "H3": 3,
        "Hyena": 4,
        "RWKV": 3,
    }
    assert all(model.title.startswith("BaseConv") for model in MODELS[17:])
    assert len(MODELS) == 22


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_recipe_is_written_from_the_table_and_has_the_published_size(model, script):
    path = LANGUAGE_MODELS / f"{model.name}.yaml"
    assert path.read_text() == script.recipe(model), f"run {script.__file__}"
    recipe = read_recipe(path)
    config = GateworkConfig(vocab_size=50257, context_length=recipe.setting["length"], **recipe.model)
    network = script.network(model.name)
    assert network.config.to_dict() == config.to_dict()
    assert all(parameter.is_meta for parameter in network.parameters())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(model.published_millions, rel=0.01)
    assert network.lm_head.weight.shape == (50304, model.hidden_size)
    assert (network.lm_head.weight is network.model.embed_tokens.weight) == model.tied
    blocks = network.model.layers
    assert {block.channel_mixer.fc1.out_features for block in blocks} == {model.mlp_width}
    if model in MODELS[18:]:  # "6.3 % of the layers"
        assert len(blocks) == 48
        assert [isinstance(block.mixer, BaseConv) for block in blocks].count(False) == 3


def test_there_is_no_other_recipe():
    assert {path.stem for path in language_models()} == set(ZOOLOGY_LANGUAGE_MODELS)


@pytest.mark.parametrize("model", [*MODELS[5:10], *MODELS[17:]], ids=lambda model: model.name)
def test_a_narrow_one_trains_every_parameter(model):
    options = model.model_options | {"hidden_size": 48 if model.hidden_size == 768 else 64, "mlp_ratio": 1}
    options["num_hidden_layers"] = max(2, len(model.mixers))
    network = GateworkForCausalLM(GateworkConfig(vocab_size=40, context_length=32, **options))
    tokens = torch.randint(40, (2, 32))
    network(tokens, labels=tokens).loss.backward()
    idle = [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()]
    assert idle == []


def test_the_page_shows_the_tables(script, monkeypatch):
    """All of both tables but the count of operations, which takes half a minute for all models."""
    monkeypatch.setattr(script, "forward_flops", lambda model: 0.0)
    cells = re.compile(r"\| [\d.]+ (\| [\d.]+M \|)$")
    page = [cells.sub(r"\1", line) for line in PAGE.read_text().splitlines()]
    for line in script.tables().splitlines():
        assert cells.sub(r"\1", line) in page, f"run {script.__file__} --tables"


@pytest.mark.parametrize("name", ["attention_70m", "hyena_70m"])
def test_the_page_shows_the_operations(name, script):
    model = ZOOLOGY_LANGUAGE_MODELS[name]
    counted = script.forward_flops(model) / 1e9
    (line,) = re.findall(rf"^\| `{name}` \| \d.*$", PAGE.read_text(), re.MULTILINE)
    assert float(line.split(" | ")[-2]) == pytest.approx(counted, abs=6e-4)
    # Two operations per weight of the blocks and the head (fewer per weight of a filter), others on top.
    weights = script.num_parameters(model) - 50304 * model.hidden_size * (not model.tied)
    assert 1.9 * weights < counted * 1e9 < 2.5 * weights


@pytest.mark.bad_input
def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"attention_70m, .* got 'attention_2b'"):
        zoology_language_model("attention_2b")
