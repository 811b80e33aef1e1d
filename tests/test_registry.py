"""Names to mixers."""

from __future__ import annotations

import pytest
import torch

import gatework
from gatework import registry
from gatework.layers.sequence.mixer import Mixer


class Copy(Mixer):
    """Passes its input on, some times over."""

    def __init__(self, dim, *, times=1):
        super().__init__(dim)
        self.times = times

    def forward(self, x):
        return x * self.times


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry.mixers, "_MIXERS", dict(registry.mixers._MIXERS))
    gatework.register_mixer("copy", Copy, summary="does nothing", source="here")


@pytest.mark.usefixtures("registered")
def test_a_mixer_of_ones_own():
    assert "copy" in gatework.list_mixers()
    assert gatework.create_mixer("copy", 4, times=3).times == 3
    assert registry.mixer_options("copy") == {"times"}
    gatework.register_mixer("later", "tests.test_registry:Copy")
    assert isinstance(gatework.create_mixer("later", 4), Mixer)
    with pytest.raises(ValueError, match="'copy' is already registered"):
        gatework.register_mixer("copy", Copy)


@pytest.mark.bad_input
def test_mistakes_are_named():
    with pytest.raises(ValueError, match="did you mean 'hyena'"):
        gatework.create_mixer("hyenas", 4)
    with pytest.raises(ValueError, match="known names are attention, base_conv"):
        gatework.create_mixer("zzz", 4)
    with pytest.raises(TypeError, match="no option 'num_head'; did you mean 'num_heads'"):
        gatework.create_mixer("attention", 4, num_head=2)


def test_names_are_sorted_and_lazy():
    assert gatework.list_mixers() == sorted(gatework.list_mixers())
    assert all(isinstance(registry.mixer_entry(name).target, str) for name in gatework.list_mixers())
    assert set(dir(gatework)) >= set(gatework.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gatework.nothing  # noqa: B018


def test_models_by_name():
    assert gatework.list_models() == sorted(gatework.list_models())
    assert set(gatework.list_models("language")) == set(gatework.list_models())
    assert gatework.list_models("vision") == []
    model = gatework.create_model("gatework", hidden_size=8, mixers=["base_conv"], vocab_size=16)
    assert (model.config.hidden_size, model.config.vocab_size) == (8, 16)
    with torch.device("meta"):
        model = gatework.create_model("zoology_attention_70m", vocab_size=100, context_length=64)
    assert (model.config.hidden_size, model.config.vocab_size, model.config.context_length) == (512, 128, 64)
    assert model.config.residual_init == "zoology"


@pytest.mark.parametrize("name", [name for name in gatework.list_models() if name != "gatework"])
def test_the_listed_counts_are_those_of_the_models(name):
    with torch.device("meta"):
        model = gatework.create_model(name)
    entry = registry.model_entry(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters


def test_vision_models_are_those_of_timm():
    model = gatework.create_model("test_vit", num_classes=3)
    assert type(model).__module__.startswith("timm.")
    assert registry.model_entry("test_vit").kind == "vision"


def test_a_model_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry.models, "_OWN_MODELS", {})
    gatework.register_model("tiny", torch.nn.Linear, kind="vision", parameters=6, license="MIT")
    assert gatework.create_model("tiny", in_features=2, out_features=2).weight.shape == (2, 2)
    assert gatework.list_models("vision") == ["tiny"]
    assert (registry.model_entry("tiny").family, registry.model_entry("tiny").license) == ("tiny", "MIT")
    for name in ("tiny", "gatework", "resnet18"):
        with pytest.raises(ValueError, match=f"model {name!r} is already registered"):
            gatework.register_model(name, torch.nn.Linear, kind="vision")


@pytest.mark.bad_input
def test_mistakes_about_models_are_named():
    with pytest.raises(ValueError, match="did you mean 'zoology_attention_70m'"):
        gatework.create_model("zoology_attention_70")
    with pytest.raises(ValueError, match=r"kind must be one of language, vision, .*got 'sound'"):
        gatework.list_models("sound")
    with pytest.raises(TypeError, match="model has no option 'hiden_size'; did you mean 'hidden_size'"):
        gatework.create_model("gatework", hiden_size=3)
    with pytest.raises(ValueError, match="name of a model must be text, got ''"):
        gatework.register_model("", torch.nn.Linear, kind="vision")
