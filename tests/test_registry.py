"""Names to mixers."""

from __future__ import annotations

import pytest

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
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
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
