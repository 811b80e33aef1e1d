"""What the adapters of zoology's mixers share: official options to ours, and one mixer as a golden case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import gatework
from tests.golden.case import Adapter, Case

Options = Mapping[str, Any]

#: What the authors' configurations give to classes that take any argument (``**kwargs``) and drop it.
DROPPED = ("l_max", "dropout", "attention_dropout", "layer_idx")
#: What makes our name and options of those of an official class, its width apart.
Translate = Callable[[Options], tuple[str, dict[str, Any]]]


def renamed(arguments: Options, **names: str) -> dict[str, Any]:
    """Our options by our names: ``names`` says which official argument each of them is."""
    return {ours: arguments[theirs] for ours, theirs in names.items()}


def mixer_adapter(translate: Translate, width: int | None = None) -> Adapter:
    """A mixer of the official width, ``width`` where the case gives none."""

    def adapter(case: Case) -> dict[str, Tensor]:
        options = dict(case.kwargs)
        dim = options.pop("d_model", width)
        if dim is None:
            raise TypeError("the official class needs the argument d_model")
        name, ours = translate(options)
        mixer = case.load(gatework.create_mixer(name, dim, **ours))
        return {"y": mixer(case.inputs["x"])}

    return adapter
