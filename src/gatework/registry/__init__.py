"""Names to factories: what exists, and how to make it, without importing it.

Listing imports no PyTorch; making something imports the one module that is needed.

- :mod:`gatework.registry.mixers`: sequence mixers.
- :mod:`gatework.registry.models`: models, with what is known of each: family, paper, parameters, licence.
- :mod:`gatework.registry.plugins`: modules of the user's own, which add to both.
"""

from gatework.registry.mixers import (
    MixerEntry,
    create_mixer,
    list_mixers,
    mixer_entry,
    mixer_options,
    register_mixer,
)
from gatework.registry.models import ModelEntry, create_model, list_models, model_entry, register_model
from gatework.registry.plugins import ENTRY_POINTS, load_entry_points, load_plugins, loaded_plugins

__all__ = [
    "ENTRY_POINTS",
    "MixerEntry",
    "ModelEntry",
    "create_mixer",
    "create_model",
    "list_mixers",
    "list_models",
    "load_entry_points",
    "load_plugins",
    "loaded_plugins",
    "mixer_entry",
    "mixer_options",
    "model_entry",
    "register_mixer",
    "register_model",
]
