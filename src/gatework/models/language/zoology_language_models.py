"""Zoology's language models (arXiv:2312.04927): what the paper prints of each, and a shape of ours for it.

Seventeen models of five families, from 70M to 1.4B parameters (section 3), and five of BaseConv with few
look-ups or attention layers at about 360M (section 5). The paper prints no table of layers: widths, depths
and options here are ours, chosen so that the number of parameters is within 1 % of the printed one. They
follow configurations that others have published for the same families and sizes, where there are such:
GPT-NeoX's for attention and RWKV-4, and those of Hyena's and H3's authors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gatework.published import read_published

if TYPE_CHECKING:
    from gatework.models.language.decoder import GateworkConfig, GateworkForCausalLM

#: Tokens of GPT-2, which the embedding pads to a multiple of 128: 50304 rows.
_VOCAB_SIZE, _MULTIPLE = 50257, 128
#: Tokens per training sequence.
ZOOLOGY_LENGTH = 2048


@dataclass(frozen=True)
class ZoologyLanguageModel:
    """One language model of the paper.

    Attributes:
        name: What its recipe is called.
        title: Family, and what is added to it.
        published_millions: Number of parameters that the paper states, in millions.
        nominal: Whether that is only how the paper calls the size: its count could not be confirmed.
        billion_tokens: Tokens of the Pile that the authors trained on.
        perplexity: Printed perplexity on all tokens, on AR hits and on the others; None where it could not be
            confirmed.
        gap_share: Printed share of the gap to attention that lies in AR hits, in percent.
        hidden_size: Channels. This and all that follows is ours.
        layers: Number of blocks.
        mlp_width: Hidden channels of each block's MLP.
        mixers: Sequence mixers, repeated over the blocks.
        tied: Whether embedding and head are one matrix.
    """

    name: str
    title: str
    published_millions: int
    nominal: bool
    billion_tokens: int
    perplexity: tuple[float | None, float | None, float | None]
    gap_share: float | None
    hidden_size: int
    layers: int
    mlp_width: int
    mixers: tuple[dict[str, Any], ...]
    tied: bool

    @property
    def model_options(self) -> dict[str, Any]:
        """What the ``model`` section of a recipe says: the shape, and Zoology's rule for initial weights."""
        return {
            "mixers": [dict(mixer) for mixer in self.mixers],
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden_size,
            # Rounded up, because the width is rounded down to a whole number of channels.
            "mlp_ratio": math.ceil(1e4 * self.mlp_width / self.hidden_size) / 1e4,
            "tie_word_embeddings": self.tied,
            "pad_vocab_size_multiple": _MULTIPLE,
            "residual_init": "zoology",
        }

    def config(self, *, vocab_size: int = _VOCAB_SIZE, length: int = ZOOLOGY_LENGTH) -> GateworkConfig:
        """Return the model's configuration.

        Args:
            vocab_size: Tokens of the tokenizer, before padding.
            length: Longest sequence, to which long filters reach.
        """
        # Imported here, so that a page that shows the printed numbers needs no PyTorch.
        from gatework.models.language.decoder import GateworkConfig

        return GateworkConfig(vocab_size=vocab_size, context_length=length, **self.model_options)


def zoology_language_model(name: str, *, length: int = ZOOLOGY_LENGTH) -> GateworkConfig:
    """Return the configuration of one of :data:`ZOOLOGY_LANGUAGE_MODELS`.

    Args:
        name: Such as ``"attention_125m"``.
        length: Longest sequence, to which long filters reach.

    Raises:
        ValueError: If there is no such model; the message lists those there are.
    """
    if name not in ZOOLOGY_LANGUAGE_MODELS:
        raise ValueError(f"name must be one of {', '.join(ZOOLOGY_LANGUAGE_MODELS)}, got {name!r}")
    return ZOOLOGY_LANGUAGE_MODELS[name].config(length=length)


def create_language_model(
    *, name: str, vocab_size: int = _VOCAB_SIZE, context_length: int = ZOOLOGY_LENGTH, **options: Any
) -> GateworkForCausalLM:
    """Make one of :data:`ZOOLOGY_LANGUAGE_MODELS`, with random weights.

    Args:
        name: Such as ``"attention_125m"``.
        vocab_size: Tokens of the tokenizer, before padding.
        context_length: Longest sequence, to which long filters reach.
        **options: Those of :class:`~gatework.models.language.decoder.GateworkConfig` in place of the model's.

    Raises:
        TypeError: If there is no such option.
        ValueError: If there is no such model, or a value is impossible.
    """
    from gatework.models.language.decoder import create_decoder

    if name not in ZOOLOGY_LANGUAGE_MODELS:
        raise ValueError(f"name must be one of {', '.join(ZOOLOGY_LANGUAGE_MODELS)}, got {name!r}")
    shape = ZOOLOGY_LANGUAGE_MODELS[name].model_options
    return create_decoder(**{**shape, "vocab_size": vocab_size, "context_length": context_length, **options})


def _attention(heads: int) -> tuple[dict[str, Any], ...]:
    return ({"name": "attention", "num_heads": heads, "rope": True},)


_LONG_CONV = ({"name": "long_conv"},)
_H3 = ({"name": "h3", "state_dim": 64},)
_HYENA = ({"name": "hyena", "emb_dim": 33, "sine_frequency": 14.0},)
_RWKV = ({"name": "rwkv4"},)
_SHORT = {"name": "base_conv", "kernel_size": 3}
_LONG = {"name": "base_conv", "kernel_size": -1}


def _base_conv_with(mixer: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Sixteen layers, one of them ``mixer``: in 48 layers it is there three times, in 6.3 % of them."""
    return (*(_SHORT, _LONG) * 4, mixer, _LONG, *(_SHORT, _LONG) * 3)


def _with_selection(name: str) -> tuple[dict[str, Any], ...]:
    return _base_conv_with({"name": name, "num_heads": 16})


@dataclass(frozen=True)
class _Shape:
    """Our shape of a published model."""

    hidden_size: int
    layers: int
    mlp_width: int
    mixers: Sequence[dict[str, Any]]
    tied: bool = True


#: All of it ours, by the model's name: channels, blocks, width of the MLP, mixers.
_SHAPES = {
    "attention_70m": _Shape(512, 6, 2048, _attention(8), tied=False),
    "long_conv_70m": _Shape(512, 6, 2048, _LONG_CONV, tied=False),
    "h3_70m": _Shape(512, 6, 1920, _H3, tied=False),
    "hyena_70m": _Shape(512, 9, 896, _HYENA, tied=False),
    "rwkv_70m": _Shape(512, 6, 2048, _RWKV, tied=False),
    "attention_125m": _Shape(768, 12, 3136, _attention(12)),
    "long_conv_128m": _Shape(768, 14, 3136, _LONG_CONV),
    "h3_168m": _Shape(768, 12, 3200, _H3, tied=False),
    "hyena_158m": _Shape(864, 18, 1856, _HYENA),
    "rwkv_169m": _Shape(768, 12, 3456, _RWKV, tied=False),
    "attention_360m": _Shape(1024, 24, 4224, _attention(16)),
    "long_conv_360m": _Shape(1024, 30, 3968, _LONG_CONV),
    "h3_357m": _Shape(1024, 24, 4032, _H3),
    "hyena_358m": _Shape(1024, 36, 2048, _HYENA),
    "rwkv_351m": _Shape(1024, 24, 4032, _RWKV),
    "attention_1b4": _Shape(2048, 24, 8064, _attention(16), tied=False),
    "hyena_1b4": _Shape(2048, 36, 3968, _HYENA, tied=False),
    "base_conv_354m": _Shape(1024, 48, 2560, (_SHORT, _LONG)),
    "base_conv_random_365m": _Shape(1024, 48, 2560, _with_selection("random_lookups")),
    "base_conv_programmatic_365m": _Shape(1024, 48, 2560, _with_selection("programmatic_lookups")),
    "base_conv_learned_351m": _Shape(1024, 48, 2432, _with_selection("sigmoid_lookups")),
    "base_conv_attention_351m": _Shape(1024, 48, 2432, _base_conv_with(*_attention(16))),
}


def _model(printed: dict[str, Any]) -> ZoologyLanguageModel:
    """Join what the paper prints of a model and our shape for it."""
    shape = _SHAPES[printed["name"]]
    return ZoologyLanguageModel(
        **{**printed, "perplexity": tuple(printed["perplexity"])},
        hidden_size=shape.hidden_size,
        layers=shape.layers,
        mlp_width=shape.mlp_width,
        mixers=tuple(shape.mixers),
        tied=shape.tied,
    )


#: Every model by name: the 17 of section 3 by size, then the five of section 5. What is published of them
#: comes from :mod:`gatework.published`, the shapes are those above.
ZOOLOGY_LANGUAGE_MODELS: dict[str, ZoologyLanguageModel] = {
    printed["name"]: _model(printed) for printed in read_published("zoology_language_models")["models"]
}
