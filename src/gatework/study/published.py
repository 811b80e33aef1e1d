"""Published results, to be drawn beside those of a study that measures the same thing.

Source: Zoology, arXiv:2312.04927. Figure 2: accuracy on multi-query associative recall against model width,
for four pairs of sequence length and number of key-value pairs; the numbers were read off the figure, to
about 0.02. Its table of language models: perplexity on AR hits and on other tokens, and the share of the gap
to attention that lies on AR hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatework.models.language.zoology_language_models import ZOOLOGY_LANGUAGE_MODELS
from gatework.study.summary import Summary

#: Model widths along the published curves.
PUBLISHED_WIDTHS = (64, 128, 256, 512)

#: Published accuracy: (sequence length, key-value pairs) -> model -> one number per width.
FIGURE_2: dict[tuple[int, int], dict[str, tuple[float, float, float, float]]] = {
    (64, 4): {
        "Attention": (1.0, 1.0, 1.0, 1.0),
        "Hyena": (0.52, 0.75, 0.85, 0.87),
        "H3": (0.93, 1.0, 0.99, 0.99),
        "BaseConv": (0.70, 0.95, 0.97, 1.0),
    },
    (128, 8): {
        "Attention": (1.0, 1.0, 1.0, 1.0),
        "Hyena": (0.18, 0.64, 0.74, 0.84),
        "H3": (0.25, 0.74, 0.91, 0.76),
        "BaseConv": (0.38, 0.61, 0.85, 0.97),
    },
    (256, 16): {
        "Attention": (1.0, 1.0, 1.0, 1.0),
        "Hyena": (0.05, 0.13, 0.54, 0.69),
        "H3": (0.07, 0.64, 0.62, 0.67),
        "BaseConv": (0.14, 0.34, 0.81, 0.94),
    },
    (512, 64): {
        "Attention": (1.0, 1.0, 1.0, 1.0),
        "Hyena": (0.02, 0.03, 0.09, 0.17),
        "H3": (0.02, 0.02, 0.02, 0.08),
        "BaseConv": (0.02, 0.02, 0.05, 0.71),
    },
}

#: What a recall setting is where it does not say: the defaults of :class:`gatework.data.mqar.MQARConfig`,
#: repeated here because importing that imports PyTorch.
MQAR_DEFAULTS: dict[str, Any] = {
    "vocab_size": 8192,
    "input_seq_len": 64,
    "num_kv_pairs": 8,
    "num_passes": 1,
    "variant": "mqar",
}


@dataclass(frozen=True)
class PublishedGap:
    """One language model of the paper (the Pile, 10 billion tokens).

    Attributes:
        model: What the paper calls it.
        parameters: Millions of parameters.
        perplexity: On all tokens, on AR hits, and on the others.
        share: Share of its gap to attention of about that size that lies on AR hits, 1 at most.
    """

    model: str
    parameters: int
    perplexity: tuple[float, float, float]
    share: float


def _language_models() -> dict[str, tuple[PublishedGap, ...]]:
    """The paper's language models with a share of the gap, by the mixer of all their layers."""
    found: dict[str, tuple[PublishedGap, ...]] = {}
    for model in ZOOLOGY_LANGUAGE_MODELS.values():
        (overall, hits, other), percent = model.perplexity, model.gap_share
        if overall is None or hits is None or other is None or percent is None or len(model.mixers) > 1:
            continue
        gap = PublishedGap(
            model.title, model.published_millions, (overall, hits, other), round(percent / 100, 3)
        )
        name = model.mixers[0]["name"]
        found[name] = (*found.get(name, ()), gap)
    return found


#: Mixer, alone in all layers -> the paper's language models of it.
LANGUAGE_MODELS = _language_models()
_PUBLISHED_VOCABULARY = 8192
_MODELS = {"attention": "Attention", "hyena": "Hyena", "h3": "H3"}


@dataclass(frozen=True)
class PublishedCurve:
    """One published curve that belongs to a mixer and a setting of a study.

    Attributes:
        mixer: Label of the study's mixer.
        setting: Name of the study's setting.
        model: What the paper calls the mixer.
        widths: Model widths.
        values: Published accuracy at each of them.
    """

    mixer: str
    setting: str
    model: str
    widths: Sequence[int]
    values: Sequence[float]


def published_curves(summary: Summary) -> list[PublishedCurve]:
    """Find the published curves of the mixers and settings of a study.

    A setting matches if its test data are MQAR of a published length and number of pairs; a mixer matches by
    its layers. A study at one width gets only what was published at that width.
    """
    if summary.study.task != "recall" or summary.quality.name != "accuracy":
        return []
    widths = [width for width in PUBLISHED_WIDTHS if len(summary.widths) > 1 or width in summary.widths]
    curves = []
    for setting in summary.settings:
        options = next(run.spec.setting for run in summary.runs if run.spec.setting_name == setting)
        pair = _pair(_segments(options, "test"))
        panel = next((found for published, found in FIGURE_2.items() if published == pair), {})
        for mixer in summary.mixers:
            layers = next(run.spec.layers for run in summary.runs if run.spec.mixer == mixer)
            model = _model(layers)
            if widths and model in panel:
                values = [panel[model][PUBLISHED_WIDTHS.index(width)] for width in widths]
                curves.append(PublishedCurve(mixer, setting, model, widths, values))
    return curves


def published_gaps(summary: Summary) -> dict[str, tuple[PublishedGap, ...]]:
    """Return the paper's language models for each mixer of a study: alone, or beside gated convolutions."""
    layers = {
        run.spec.mixer: {layer["name"] for layer in run.spec.layers} - {"base_conv"} for run in summary.runs
    }
    return {
        mixer: LANGUAGE_MODELS[name]
        for mixer, names in layers.items()
        if len(names) == 1 and (name := next(iter(names))) in LANGUAGE_MODELS
    }


def published_caption(summary: Summary, curves: Sequence[PublishedCurve]) -> str:
    """Say where the published curves come from and what was different there."""
    names = {curve.setting for curve in curves}
    settings = [run.spec.setting for run in summary.runs if run.spec.setting_name in names]
    segments = [segment for setting in settings for segment in _segments(setting, "test")]
    here = list(dict.fromkeys(str(segment["vocab_size"]) for segment in segments))
    vocabulary = "" if here == [str(_PUBLISHED_VOCABULARY)] else f" (here {', '.join(here)})"
    mixed = any(_pair(_segments(setting, "train")) is None for setting in settings)
    training = " Here the training data hold other lengths or numbers of pairs as well." if mixed else ""
    symbols = "Hollow symbols on dashed lines" if len(summary.widths) > 1 else "Hollow symbols"
    return (
        f"{symbols} are published results (arXiv:2312.04927, figure 2, read off the figure to about 0.02). "
        f"They were made with a vocabulary of {_PUBLISHED_VOCABULARY}{vocabulary}, 100,000 training "
        "examples, up to 64 epochs, and the best of four learning rates on the reported data: "
        f"compare order and shape, not numbers.{training}"
    )


def _segments(setting: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """The segments of one split, with every option that matters here; none if it has no such thing."""
    if "train" in setting or "test" in setting:
        found = setting.get(split, [])
        segments = found if isinstance(found, list) else []
    else:
        segments = [setting]
    return [{**MQAR_DEFAULTS, **segment} for segment in segments if isinstance(segment, Mapping)]


def _pair(segments: Sequence[Mapping[str, Any]]) -> tuple[Any, Any] | None:
    """Length and number of pairs as stored, if all segments are plain MQAR and agree on them."""
    if any(segment["variant"] != "mqar" or segment["num_passes"] != 1 for segment in segments):
        return None
    pairs = [(segment["input_seq_len"], segment["num_kv_pairs"]) for segment in segments]
    return pairs[0] if pairs and all(pair == pairs[0] for pair in pairs) else None


def _model(layers: Sequence[Mapping[str, Any]]) -> str | None:
    """What the paper calls a model of these layers."""
    names = {layer["name"] for layer in layers}
    if names == {"base_conv"}:
        kernels = [layer.get("kernel_size", 3) or -1 for layer in layers]
        return "BaseConv" if kernels == [3, -1] else None
    return _MODELS.get(names.pop()) if len(names) == 1 else None
