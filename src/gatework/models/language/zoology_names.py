"""The layout of Zoology's checkpoints: their ``LanguageModel`` around mixers in their authors' layouts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gatework.layers.sequence.mixer import Mixer
from gatework.layouts import Layout, layouts_of, to_ours

_NAMES = {
    "backbone.embeddings.word_embeddings.{rest}": "model.embed_tokens.{rest}",
    "backbone.embeddings.position_embeddings.{rest}": "model.embed_positions.{rest}",
    "backbone.layers.{i}.norm.{rest}": "model.layers.{i}.mixer_norm.{rest}",
    "backbone.layers.{i}.norm1.{rest}": "model.layers.{i}.mixer_norm.{rest}",
    "backbone.layers.{i}.norm2.{rest}": "model.layers.{i}.channel_norm.{rest}",
    "backbone.layers.{i}.state_mixer.{rest}": "model.layers.{i}.channel_mixer.{rest}",
    "backbone.layers.{i}.sequence_mixer.mixer.{rest}": "model.layers.{i}.mixer.{rest}",
    "backbone.layers.{i}.sequence_mixer.{rest}": "model.layers.{i}.mixer.{rest}",
    "backbone.layers.{i}.mixer.{rest}": "model.layers.{i}.mixer.{rest}",
    "backbone.ln_f.{rest}": "model.norm.{rest}",
}


def zoology_layout(mixers: Sequence[Mixer]) -> Layout:
    """Return the layout of a decoder with these sequence mixers, which know those of their own weights."""

    def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        converted = dict(weights)
        for index, mixer in enumerate(mixers):
            prefix = f"model.layers.{index}.mixer."
            names = [name for name in weights if name.startswith(prefix)]
            own = to_ours(
                layouts_of(mixer), {name.removeprefix(prefix): converted.pop(name) for name in names}
            )
            converted |= {prefix + name: tensor for name, tensor in own.items()}
        return converted

    marks = ("backbone.embeddings.word_embeddings.weight",)
    return Layout("zoology", marks=marks, renames=_NAMES, convert=convert)
