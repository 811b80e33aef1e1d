"""The names of parameters in Zoology's checkpoints, and ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from gatework.layers.sequence.mixer import Mixer

#: Zoology's names (patterns) and ours, outside the sequence mixers.
_NAMES = (
    (r"^backbone\.embeddings\.word_embeddings\.", "model.embed_tokens."),
    (r"^backbone\.embeddings\.position_embeddings\.", "model.embed_positions."),
    (r"^backbone\.layers\.(\d+)\.norm1?\.", r"model.layers.\1.mixer_norm."),
    (r"^backbone\.layers\.(\d+)\.norm2\.", r"model.layers.\1.channel_norm."),
    (r"^backbone\.layers\.(\d+)\.state_mixer\.", r"model.layers.\1.channel_mixer."),
    (r"^backbone\.ln_f\.", "model.norm."),
)


def convert_zoology(state_dict: Mapping[str, Tensor], mixers: Sequence[Mixer]) -> dict[str, Tensor]:
    """Map a state dict of Zoology's ``LanguageModel`` to that of our decoder.

    Args:
        state_dict: Theirs.
        mixers: The sequence mixer of each layer of ours, which knows the authors' names of its own.
    """
    converted: dict[str, Tensor] = {}
    per_layer: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state_dict.items():
        match = re.fullmatch(
            r"backbone\.layers\.(\d+)\.(?:sequence_mixer\.mixer|sequence_mixer|mixer)\.(.+)", name
        )
        if match and int(match[1]) < len(mixers):
            per_layer.setdefault(int(match[1]), {})[match[2]] = tensor
            continue
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        converted[name] = tensor
    for index, weights in per_layer.items():
        for name, tensor in mixers[index].convert_official(weights).items():
            converted[f"model.layers.{index}.mixer.{name}"] = tensor
    return converted
