"""Published results, to be drawn beside those of a study that measures the same thing.

The numbers are those of Zoology (arXiv:2312.04927), and lie with their source in :mod:`gatework.published`:
accuracy on multi-query associative recall against model width (figure 2), and perplexity of language models
on AR hits and on other tokens, with the share of the gap to attention that lies on AR hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gatework.models.language.zoology_language_models import ZOOLOGY_LANGUAGE_MODELS
from gatework.published import read_published
from gatework.study.summary import Summary

_RECALL = read_published("zoology_recall")
#: The task whose settings the figure has.
_RECALL_TASK = "recall"

#: Model widths along the published curves.
PUBLISHED_WIDTHS: tuple[int, ...] = tuple(_RECALL["widths"])

#: Published accuracy: (sequence length, key-value pairs) -> model -> one number per width.
FIGURE_2: dict[tuple[int, int], dict[str, tuple[float, ...]]] = {
    (panel["input_seq_len"], panel["num_kv_pairs"]): {
        model: tuple(values) for model, values in panel["accuracy"].items()
    }
    for panel in _RECALL["panels"]
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
_PUBLISHED_VOCABULARY: int = _RECALL["vocab_size"]
_MODELS = {"attention": "Attention", "hyena": "Hyena", "h3": "H3"}


@dataclass(frozen=True)
class PublishedCurve:
    """One published curve that belongs to a mixer and a setting of a study.

    Attributes:
        candidate: Label of the study's mixer.
        setting: Name of the study's setting.
        model: What the paper calls the mixer.
        sizes: Model widths.
        values: Published accuracy at each of them.
    """

    candidate: str
    setting: str
    model: str
    sizes: Sequence[int]
    values: Sequence[float]


def published_curves(summary: Summary) -> list[PublishedCurve]:
    """Find the published curves of the mixers and settings of a study.

    A setting matches if its test data are MQAR of a published length and number of pairs; a mixer matches by
    its layers. A study at one width gets only what was published at that width.
    """
    if summary.study.task != _RECALL_TASK or summary.quality.name != "accuracy":
        return []
    widths = [width for width in PUBLISHED_WIDTHS if len(summary.sizes) > 1 or width in summary.sizes]
    curves = []
    for setting in summary.settings:
        options = next(run.spec.setting for run in summary.runs if run.spec.setting_name == setting)
        pair = _pair(_segments(options, "test"))
        panel = next((found for published, found in FIGURE_2.items() if published == pair), {})
        for mixer in summary.candidates:
            model = _model(summary.definitions[mixer])
            if widths and model in panel:
                values = [panel[model][PUBLISHED_WIDTHS.index(width)] for width in widths]
                curves.append(PublishedCurve(mixer, setting, model, widths, values))
    return curves


def published_gaps(summary: Summary) -> dict[str, tuple[PublishedGap, ...]]:
    """Return the paper's language models for each mixer of a study: alone, or beside gated convolutions."""
    layers = {
        mixer: {layer["name"] for layer in summary.definitions[mixer]} - {"base_conv"}
        for mixer in summary.candidates
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
    symbols = "Hollow symbols on dashed lines" if len(summary.sizes) > 1 else "Hollow symbols"
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
