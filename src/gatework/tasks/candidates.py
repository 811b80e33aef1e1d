"""What a comparison compares: one line each, read from whatever form a user gives."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gatework.checks import check_number

if TYPE_CHECKING:
    from gatework.tasks.declaration import Axis


@dataclass(frozen=True)
class Candidate:
    """One line of a comparison.

    Attributes:
        label: Its name on the page.
        definition: What the task builds it from, as JSON: a list of layers, or an object with a name.
        learning_rates: Its own learning rates; ``None`` for those of the study.
        model: Its own model options, on top of those of the study.
    """

    label: str
    definition: Any
    learning_rates: tuple[float, ...] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)


def parse_candidates(value: Any, axis: Axis) -> list[Candidate]:
    """Read candidates that have a name and options of their own.

    Args:
        value: Names; or labels, each with a name or an object: ``name`` (by default the label) and options,
            beside which ``learning_rates`` and ``model`` are the candidate's own.
        axis: What they are called.

    Raises:
        ValueError: If there is none.
        TypeError: If ``value`` has another form.
    """
    check_candidates(value, axis)
    if not isinstance(value, Mapping):
        return [Candidate(str(name), {"name": str(name)}) for name in value]
    return [_candidate(str(label), entry, axis) for label, entry in value.items()]


def check_candidates(value: Any, axis: Axis) -> None:
    """Refuse what is neither a list nor a mapping of candidates, and an empty one.

    Raises:
        ValueError: If there is none.
        TypeError: If ``value`` has another form.
    """
    if isinstance(value, str) or not isinstance(value, Sequence | Mapping):
        raise TypeError(f"{axis.plural} must be a list of names or a mapping of labels, got {value!r}")
    if not value:
        raise ValueError(f"{axis.plural} must name at least one {axis.name}, got none")
    if not isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or not name.strip():
                raise TypeError(f"{axis.plural} must hold names, got {name!r}")


def effort_of_size(setting: Mapping[str, Any], size: int) -> float:
    """Estimate that a step takes as long as its size."""
    return float(size)


def check_nothing(definition: Any) -> None:
    """Take any definition: what it names is known wherever the task is."""


def own_rates(value: Any, label: str, axis: Axis) -> tuple[float, ...] | None:
    """Read the learning rates of one candidate.

    Raises:
        TypeError: If they are no list of numbers.
        ValueError: If one is not positive.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"learning_rates of {axis.name} {label!r} must be a list, got {value!r}")
    for rate in value:
        check_number(f"learning_rates of {axis.name} {label!r}", rate, above=0)
    return tuple(value)


def own_model(value: Any, label: str, axis: Axis) -> Mapping[str, Any]:
    """Read the model options of one candidate.

    Raises:
        TypeError: If they are no mapping.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"model of {axis.name} {label!r} must be a mapping, got {value!r}")
    return value or {}


def _candidate(label: str, value: Any, axis: Axis) -> Candidate:
    if isinstance(value, str):
        return Candidate(label, {"name": value})
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{axis.name} {label!r} must be a name or a mapping of options, got {value!r}")
    options = dict(value or {})
    rates = own_rates(options.pop("learning_rates", None), label, axis)
    model = own_model(options.pop("model", None), label, axis)
    name = options.pop("name", label)
    if not isinstance(name, str):
        raise TypeError(f"name of {axis.name} {label!r} must be text, got {name!r}")
    return Candidate(label, {"name": name, **options}, rates, model)


def definition_text(definition: Any) -> str:
    """Write a definition on one line: ``base_conv(kernel_size=3) → attention``."""
    parts = (
        definition if isinstance(definition, Sequence) and not isinstance(definition, str) else [definition]
    )
    return " → ".join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    if not isinstance(part, Mapping):
        return _option_text(part)
    options = ", ".join(f"{name}={_option_text(value)}" for name, value in part.items() if name != "name")
    name = str(part.get("name", ""))
    return f"{name}({options})" if options else name


def _option_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
