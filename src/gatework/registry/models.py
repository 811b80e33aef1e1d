"""Models by name, with what is known of each. Light: listing reads tables, making one imports its module.

Vision models are timm models: their names are registered with timm, and made by it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, get_args

from gatework.checks import suggestion
from gatework.registry.plugins import load_entry_points

if TYPE_CHECKING:
    from torch import nn

#: What a model answers.
Kind = Literal["language", "vision", "segmentation", "detection", "grounding", "scanpath"]


@dataclass(frozen=True)
class ModelEntry:
    """One registered model.

    Attributes:
        name: What users type.
        kind: What it answers.
        family: The system it belongs to: its page is ``docs/systems/FAMILY.md``.
        target: ``"module:function"``, which makes it of options by keyword and is imported for that, or the
            function itself. None for a vision model, which timm makes under the same name.
        summary: One line for listings.
        paper: Where it comes from, such as ``"arXiv:2312.04927"``.
        parameters: Number of parameters, counted.
        macs: Multiply-adds of one forward pass at the size that it was published for; None where that depends
            on the input, as in language models.
        license: Licence of published weights; empty if there are none.
        options: What the function is called with, below the caller's options.
    """

    name: str
    kind: Kind
    family: str
    target: str | Callable[..., nn.Module] | None
    summary: str = ""
    paper: str = ""
    parameters: int | None = None
    macs: int | None = None
    license: str = ""
    options: tuple[tuple[str, Any], ...] = ()

    def load(self) -> Callable[..., nn.Module]:
        """Import and return the function that makes it."""
        if self.target is None:
            return _timm_factory(self.name)
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
        return factory


#: Models that users have registered, by name.
_OWN_MODELS: dict[str, ModelEntry] = {}


@cache
def _built_in() -> Mapping[str, ModelEntry]:
    """The models of this package: the configurable decoder, and Zoology's language models."""
    decoder = ModelEntry(
        "gatework",
        "language",
        "zoology",
        "gatework.models.language.decoder:create_decoder",
        "a decoder whose mixers are named in its options, those of GateworkConfig",
    )
    table = json.loads((files("gatework.registry") / "zoology_language_models.json").read_text("utf-8"))
    zoology = [
        ModelEntry(
            f"zoology_{name}",
            "language",
            "zoology",
            "gatework.models.language.zoology_language_models:create_language_model",
            about["summary"],
            "arXiv:2312.04927",
            about["parameters"],
            options=(("name", name),),
        )
        for name, about in table.items()
    ]
    return {entry.name: entry for entry in (decoder, *zoology)}


def list_models(kind: Kind | None = None) -> list[str]:
    """Return the names that :func:`create_model` knows so far, sorted.

    Args:
        kind: Only models of this kind. timm's own models are not listed.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind is not None and kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    known = {**_built_in(), **_OWN_MODELS}
    return sorted(name for name, entry in known.items() if kind in (None, entry.kind))


def model_entry(name: str) -> ModelEntry:
    """Return the registry entry of a model; if it is not known, ask the installed plugins and timm for it.

    Raises:
        ValueError: If there is no such model; the message suggests the nearest names.
    """
    if name not in list_models():
        load_entry_points()
    if name in _OWN_MODELS:
        return _OWN_MODELS[name]
    if name in _built_in():
        return _built_in()[name]
    if _is_timm_model(name):
        return ModelEntry(name, "vision", "timm", None, "a model of timm")
    raise ValueError(f"model {name!r} is not registered{suggestion(str(name), list_models())}")


def create_model(name: str, **options: Any) -> nn.Module:
    """Make the model ``name``, with random weights unless its options say otherwise.

    Args:
        name: One of :func:`list_models`, or a model of timm.
        **options: Options of that model: for language models those of
            :class:`~gatework.models.language.decoder.GateworkConfig`, for vision models those of
            ``timm.create_model``.

    Raises:
        ValueError: If the name is unknown, or an option has an impossible value.
        TypeError: If the model has no such option.
    """
    entry = model_entry(name)
    return entry.load()(**{**dict(entry.options), **options})


def register_model(
    name: str,
    target: str | Callable[..., nn.Module],
    *,
    kind: Kind,
    family: str = "",
    summary: str = "",
    paper: str = "",
    parameters: int | None = None,
    macs: int | None = None,
    license: str = "",
) -> None:
    """Add a model of your own, so that commands can name it.

    Args:
        name: The new name; one that exists already, here or in timm, is refused.
        target: What makes it of options by keyword, or ``"module:function"`` to import it later.
        kind: What it answers.
        family: The system it belongs to, ``name`` by default.
        summary: One line for listings.
        paper: Where it comes from.
        parameters: Number of parameters.
        macs: Multiply-adds of one forward pass.
        license: Licence of published weights.

    Raises:
        ValueError: If the name is taken, or there is no such kind.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"name of a model must be text, got {name!r}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if name in list_models() or _is_timm_model(name):
        taken = model_entry(name)
        raise ValueError(f"model {name!r} is already registered as {taken.target or 'a model of timm'!r}")
    entry = ModelEntry(name, kind, family or name, target, summary, paper)
    _OWN_MODELS[name] = replace(entry, parameters=parameters, macs=macs, license=license)


def _is_timm_model(name: Any) -> bool:
    """Whether timm knows the name; with a tag behind a dot, it is that of the weights."""
    if not isinstance(name, str):
        return False
    # Imported here: it takes seconds, and only a name that is not ours needs it.
    import timm

    return bool(timm.is_model(name.partition(".")[0]))


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    import timm

    def make(**options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, **options)
        return model

    return make
