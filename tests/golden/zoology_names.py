"""What the adapters of zoology's mixers share: official options to ours, and one mixer as a golden case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import gatework
from tests.golden.case import Adapter, Case

Options = Mapping[str, Any]

#: Arguments of the official classes that change no number: they are accepted and dropped.
WITHOUT_EFFECT = {"layer_idx", "dropout", "attention_dropout", "name"}
#: What makes our name and options of those of an official class.
Translate = Callable[[Options], tuple[str, dict[str, Any]]]


def renamed(options: Options, names: Mapping[str, str], ignored: set[str] | None = None) -> dict[str, Any]:
    """Our names for the given official options; one that is neither named nor ignored is a mistake."""
    ignored = WITHOUT_EFFECT | (ignored or set())
    unknown = options.keys() - names.keys() - ignored
    assert not unknown, f"adapter does not know the official options {sorted(unknown)}"
    return {names[name]: value for name, value in options.items() if name in names}


def mixer_adapter(translate: Translate) -> Adapter:
    def adapter(case: Case) -> dict[str, Tensor]:
        name, options = translate({key: value for key, value in case.kwargs.items() if key != "d_model"})
        mixer = case.load(gatework.create_mixer(name, case.kwargs["d_model"], **options))
        return {"y": mixer(case.inputs["x"])}

    return adapter
