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

if TYPE_CHECKING:
    from gatework.models.language.decoder import GateworkConfig

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
        """What the ``model`` section of a recipe says of the shape."""
        return {
            "mixers": [dict(mixer) for mixer in self.mixers],
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden_size,
            # Rounded up, because the width is rounded down to a whole number of channels.
            "mlp_ratio": math.ceil(1e4 * self.mlp_width / self.hidden_size) / 1e4,
            "tie_word_embeddings": self.tied,
            "pad_vocab_size_multiple": _MULTIPLE,
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


def _model(
    name: str,
    title: str,
    published: int,
    shape: tuple[int, int, int],
    mixers: Sequence[dict[str, Any]],
    perplexity: tuple[float | None, float | None, float | None] = (None, None, None),
    gap_share: float | None = None,
    *,
    tied: bool = True,
    nominal: bool = False,
    billion_tokens: int = 10,
) -> ZoologyLanguageModel:
    return ZoologyLanguageModel(
        name,
        title,
        published,
        nominal,
        billion_tokens,
        perplexity,
        gap_share,
        *shape,
        tuple(mixers),
        tied,
    )


#: Every model by name: the 17 of section 3 by size, then the five of section 5. ``shape`` is channels, blocks
#: and width of the MLP; perplexities are those of tables 1 and 2.
ZOOLOGY_LANGUAGE_MODELS: dict[str, ZoologyLanguageModel] = {
    model.name: model
    for model in (
        _model(
            "attention_70m",
            "Attention",
            70,
            (512, 6, 2048),
            _attention(8),
            (None, 2.41, None),
            tied=False,
            nominal=True,
        ),
        _model("long_conv_70m", "Long Conv", 70, (512, 6, 2048), _LONG_CONV, tied=False, nominal=True),
        _model("h3_70m", "H3", 70, (512, 6, 1920), _H3, tied=False, nominal=True),
        _model("hyena_70m", "Hyena", 70, (512, 9, 896), _HYENA, tied=False, nominal=True),
        _model("rwkv_70m", "RWKV", 70, (512, 6, 2048), _RWKV, tied=False, nominal=True),
        _model("attention_125m", "Attention", 125, (768, 12, 3136), _attention(12), (11.01, 2.16, 12.45)),
        _model("long_conv_128m", "Long Conv", 128, (768, 14, 3136), _LONG_CONV, (16.98, 25.62, 16.46), 40.1),
        _model("h3_168m", "H3", 168, (768, 12, 3200), _H3, (12.06, 6.75, 12.60), 88.4, tied=False),
        _model("hyena_158m", "Hyena", 158, (864, 18, 1856), _HYENA, (11.60, 5.00, 12.28), 100.0),
        _model("rwkv_169m", "RWKV", 169, (768, 12, 3456), _RWKV, (11.64, 5.70, 12.29), 100.0, tied=False),
        _model("attention_360m", "Attention", 360, (1024, 24, 4224), _attention(16), (9.44, 1.98, 10.62)),
        _model("long_conv_360m", "Long Conv", 360, (1024, 30, 3968), _LONG_CONV, (13.13, 13.27, 13.12), 40.5),
        _model("h3_357m", "H3", 357, (1024, 24, 4032), _H3, (10.38, 4.81, 11.00), 65.8),
        _model("hyena_358m", "Hyena", 358, (1024, 36, 2048), _HYENA, (10.07, 3.83, 10.75), 98.2),
        _model("rwkv_351m", "RWKV", 351, (1024, 24, 4032), _RWKV, (9.79, 3.82, 10.51), 100.0),
        _model(
            "attention_1b4",
            "Attention",
            1400,
            (2048, 24, 8064),
            _attention(16),
            tied=False,
            nominal=True,
            billion_tokens=50,
        ),
        _model(
            "hyena_1b4",
            "Hyena",
            1400,
            (2048, 36, 3968),
            _HYENA,
            (None, 3.43, None),
            tied=False,
            nominal=True,
            billion_tokens=50,
        ),
        _model("base_conv_354m", "BaseConv", 354, (1024, 48, 2560), (_SHORT, _LONG), (11.01, 5.98, 11.52)),
        _model(
            "base_conv_random_365m",
            "BaseConv + random selection",
            365,
            (1024, 48, 2560),
            _base_conv_with({"name": "random_lookups", "num_heads": 16}),
            (12.94, 6.17, 13.62),
        ),
        _model(
            "base_conv_programmatic_365m",
            "BaseConv + programmatic selection",
            365,
            (1024, 48, 2560),
            _base_conv_with({"name": "programmatic_lookups", "num_heads": 16}),
            (9.54, 2.35, 10.50),
        ),
        _model(
            "base_conv_learned_351m",
            "BaseConv + learned selection",
            351,
            (1024, 48, 2432),
            _base_conv_with({"name": "sigmoid_lookups", "num_heads": 16}),
            (9.59, 2.61, 10.58),
        ),
        _model(
            "base_conv_attention_351m",
            "BaseConv + attention in 3 layers",
            351,
            (1024, 48, 2432),
            _base_conv_with(*_attention(16)),
            (8.59, 1.95, 8.91),
        ),
    )
}
