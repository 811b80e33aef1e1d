"""A recipe of one training: all that its numbers follow from, as a YAML file says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatework.checks import check_names, check_number, check_seed
from gatework.files import FileError
from gatework.training.options import CHANGE_NOTHING, FitTraining, TrainerOptions, option_names
from gatework.yaml_values import read_yaml, read_yaml_file, write_yaml


@dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        task: Name of the task.
        setting: Options of the task.
        model: Options of the model, see :meth:`gatework.tasks.task.Task.build_model`.
        learning_rate: Peak learning rate.
        seed: Seed of the weights, the order of the data and everything random.
        training: Optimizer, schedule and length.
        trainer: Devices, precision and so on.
        callbacks: What else happens, see :mod:`gatework.training.callbacks`.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is impossible.
    """

    task: str
    setting: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.003
    seed: int = 0
    training: FitTraining = field(default_factory=FitTraining)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    callbacks: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, above=0)
        check_seed(self.seed)
        if self.training.evaluations > self.training.steps:
            raise ValueError("training.evaluations must be at most training.steps")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as YAML holds it."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """Return the recipe as text."""
        return write_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Make a recipe from what YAML holds.

        Raises:
            TypeError: If there is no such option, or a value has the wrong type.
            ValueError: If a value is impossible.
        """
        known = [own.name for own in dataclasses.fields(cls)]
        check_names("a recipe has no", values, known)
        if not isinstance(values.get("task"), str):
            raise TypeError(f"task must be the name of a task, got {values.get('task')!r}")
        options = dict(values)
        for name, kind in (("training", FitTraining), ("trainer", TrainerOptions)):
            options[name] = _options(name, kind, options.get(name, {}))
        for name in ("setting", "model"):
            if not isinstance(options.get(name, {}), dict):
                raise TypeError(f"{name} must be a mapping, got {options[name]!r}")
        if not isinstance(options.get("callbacks", []), list):
            raise TypeError(f"callbacks must be a list, got {options['callbacks']!r}")
        return cls(**options)


def _options(name: str, kind: type[Any], values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping, got {values!r}")
    check_names(f"{name} has no option", values, option_names(kind))
    return kind(**values)


def read_recipe(path: Path) -> Recipe:
    """Read the recipe that a training has written; nothing that it names is imported.

    Raises:
        FileError: If the file cannot be read or is no YAML mapping.
        TypeError: If there is no such option, or a value has the wrong type.
        ValueError: If a value is impossible.
    """
    if not path.is_file():
        raise FileError(f"{path} does not exist; a training writes it when it begins")
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise FileError(f"{path} holds no mapping but a {type(values).__name__}")
    return Recipe.from_dict(values)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Return what differs between two recipes and could change a number, as ``key: old -> new``."""
    before, after = (_flat(_normal(recipe.to_dict())) for recipe in (old, new))
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key}: {before.get(key, 'unset')!r} -> {after.get(key, 'unset')!r}"
        for key in keys
        if before.get(key, _UNSET) != after.get(key, _UNSET)
        and key.removeprefix("trainer.") not in CHANGE_NOTHING
    ]


_UNSET = object()


def _normal(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` as they come back from a file (tuples are lists)."""
    normal: dict[str, Any] = read_yaml(write_yaml(values))
    return normal


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
