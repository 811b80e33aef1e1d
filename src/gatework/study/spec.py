"""What a run is and what a study is: plain JSON, where a run's name is the hash of its content."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gatework.checks import check_int, check_number, check_text
from gatework.files import FileError, read_json
from gatework.tasks import list_tasks, task_declaration
from gatework.tasks.declaration import Axis, Declaration
from gatework.tasks.language import LANGUAGE
from gatework.tasks.task import Quality

STUDY_FORMAT = "gatework.study/4"
#: What is read as well: before tasks declared what they compare, when all of them were on tokens.
_OLDER_STUDY_FORMATS = ("gatework.study/2", "gatework.study/3")
STUDY_FILE = "study.json"
#: Fields of a run by the names they had in those formats. Runs are hashed under these names: a study that was
#: begun then goes on, and nothing in it is trained again.
_FIRST_NAMES = {"candidate": "mixer", "definition": "layers", "size": "width"}
#: What to measure on the trained model is no part of a run's identity; neither was its name in old formats.
_MEASURE, _OLD_MEASURE = "measure", "decode_contexts"


class StudyError(FileError):
    """A study cannot start or go on; the message is one line that says what to do."""


def canonical_json(value: Any) -> str:
    """Return the one text of a JSON value: sorted keys, no spaces, ASCII only.

    Raises:
        ValueError: If a number in it is not finite.
        TypeError: If something in it is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_hash(spec: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of ``spec`` as canonical JSON."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:16]


def is_finite_number(value: Any) -> bool:
    """Return whether ``value`` is a number (True and False are none) that a float can hold."""
    # Comparing is exact for integers of any size, where math.isfinite overflows.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the result of one training: equal specs are the same run.

    ``measure``, which concerns the trained model, is no part of that identity.

    Attributes:
        task: What is trained for, such as ``"recall"``.
        setting: The task's own options.
        setting_name: How the page names that setting, such as ``"N=64, 4 pairs"``.
        candidate: Label of what is compared: a mixer, a model.
        definition: What the task builds it from, such as one object per layer.
        size: At which size: a width, a resolution.
        learning_rate: Peak learning rate.
        seed: Seed of weights and data order.
        training: Steps, batch size and whatever else the training takes.
        model: Options that all models share.
        measure: Points at which something is measured on the trained model, by the option that lists them
            (:attr:`gatework.tasks.declaration.Scaling.option`).

    Raises:
        TypeError: If a field has another type, or holds something that is not JSON.
        ValueError: If a field is empty, out of range or not finite.
    """

    task: str
    setting: Mapping[str, Any]
    setting_name: str
    candidate: str
    definition: Any
    size: int
    learning_rate: float
    seed: int
    training: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("task", "setting_name", "candidate"):
            check_text(name, getattr(self, name))
        check_int("size", self.size, at_least=1)
        check_int("seed", self.seed, at_least=0)
        check_number("learning_rate", self.learning_rate, above=0)
        for name in ("setting", "training", "model", "measure"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping, got {getattr(self, name)!r}")
        _check_definition(self.definition)
        for option, points in self.measure.items():
            check_points(str(option), points)
        # Plain copies: tuples become lists, and no later change by the caller can alter the identity.
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        for name in ("setting", "definition", "training", "model", "measure"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    @cached_property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits that name this run: the hash of its content."""
        return spec_hash(self.identity())

    def identity(self, **others: Any) -> dict[str, Any]:
        """Return what decides the result as the JSON that is hashed, with ``others`` in place of fields."""
        values = {**self.to_json(), **others}
        return {_FIRST_NAMES.get(name, name): value for name, value in values.items() if name != _MEASURE}

    def label(self, sizes: Axis) -> str:
        """Return one line for progress and messages."""
        return (
            f"{self.candidate} · {self.setting_name} · {sizes.name} {self.size} · "
            f"lr {self.learning_rate:g} · seed {self.seed}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a JSON object, without what is to be measured if that is nothing."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value or name != _MEASURE}

    @classmethod
    def from_json(cls, value: Any) -> RunSpec:
        """Make a spec from a JSON object with exactly its keys, or those of an older format.

        Raises:
            TypeError: If ``value`` is no object, or a field has another type.
            ValueError: If a key is missing or unknown, or a field is out of range.
        """
        names = [entry.name for entry in fields(cls) if entry.name != _MEASURE]
        is_old = (
            isinstance(value, Mapping) and "candidate" not in value and _FIRST_NAMES["candidate"] in value
        )
        if not is_old:
            _check_keys("spec", value, set(names), optional=frozenset({_MEASURE}))
            return cls(**value)
        first = {_FIRST_NAMES.get(name, name): name for name in names}
        _check_keys("spec", value, set(first), optional=frozenset({_OLD_MEASURE}))
        contexts = value.get(_OLD_MEASURE, ())
        measure = {_OLD_MEASURE: contexts} if contexts else {}
        return cls(**{name: value[key] for key, name in first.items()}, measure=measure)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class StudySpec:
    """A comparison: the whole grid of runs, and the facts that its page must state.

    Attributes:
        name: Name of the study and, usually, of its directory.
        task: The one task of all its runs.
        command: The command line that made it, and that resumes it.
        title: Heading of the page.
        quality: The headline number.
        declaration: What the task says of its axes, units, costs and report sections.
        runs: Every run of the grid, each once.
        notes: Sentences the page must show: data, what was fixed beforehand.
        budget: A sentence on what is held equal between the candidates.
        budget_kind: What that is, one of the declaration's ``budgets``.
        plugins: Modules of the user's own that workers import before the first run.
        created: When, in ISO 8601.

    Raises:
        ValueError: If there is no run, one run twice, or a run of another task.
    """

    name: str
    task: str
    command: str
    title: str
    quality: Quality
    declaration: Declaration
    runs: Sequence[RunSpec]
    notes: Sequence[str] = ()
    budget: str = "the same training steps for all"
    budget_kind: str = "steps"
    plugins: Sequence[str] = ()
    created: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for name in ("name", "task", "command", "title", "budget", "created"):
            check_text(name, getattr(self, name))
        budgets = self.declaration.budgets
        if self.budget_kind not in budgets:
            raise ValueError(f"budget_kind must be one of {', '.join(budgets)}, got {self.budget_kind!r}")
        if not self.runs:
            raise ValueError("runs must hold at least one run, got none")
        for name in ("notes", "plugins"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) for value in values):
                raise TypeError(f"{name} must be a list of texts, got {values!r}")
        seen: set[str] = set()
        for run in self.runs:
            if run.task != self.task:
                raise ValueError(f"runs must all have the study's task {self.task!r}, got {run.task!r}")
            if run.run_id in seen:
                raise ValueError(f"runs must differ, got twice: {run.label(self.declaration.sizes)}")
            seen.add(run.run_id)

    def to_json(self) -> dict[str, Any]:
        """Return what ``study.json`` holds."""
        texts = ("name", "task", "command", "created", "title", "budget", "budget_kind")
        return {
            "format": STUDY_FORMAT,
            **{name: getattr(self, name) for name in texts},
            "quality": asdict(self.quality),
            "declaration": self.declaration.to_json(),
            "notes": list(self.notes),
            "plugins": list(self.plugins),
            "runs": [run.to_json() for run in self.runs],
        }

    @classmethod
    def from_json(cls, value: Any) -> StudySpec:
        """Make a study from the content of ``study.json``.

        Raises:
            TypeError: If something in it has another type.
            ValueError: If it has another format, or something in it is missing, unknown or out of range.
        """
        formats = (STUDY_FORMAT, *_OLDER_STUDY_FORMATS)
        if not isinstance(value, Mapping) or value.get("format") not in formats:
            found = value.get("format") if isinstance(value, Mapping) else value
            known = " or ".join(map(repr, formats))
            raise ValueError(f"format must be {known}, got {found!r:.80}")
        is_old = value["format"] != STUDY_FORMAT
        keys = {"format", *(entry.name for entry in fields(cls))} - ({"declaration"} if is_old else set())
        _check_keys("study", value, keys)
        _check_keys("quality", value["quality"], {entry.name for entry in fields(Quality)})
        for name in ("runs", "notes", "plugins"):
            if not isinstance(value[name], list):
                raise TypeError(f"{name} must be a list, got {value[name]!r:.80}")
        quality = dict(value["quality"])
        if quality["range"] is not None:
            quality["range"] = tuple(quality["range"])
        apart = ("format", "quality", "declaration", "runs")
        content = {name: value[name] for name in value if name not in apart}
        runs = [RunSpec.from_json(run) for run in value["runs"]]
        installed = task_declaration(value["task"]) if value["task"] in list_tasks() else None
        declared = installed or LANGUAGE
        if not is_old:
            declared = Declaration.from_json(value["declaration"], installed)
        return cls(**content, quality=Quality(**quality), declaration=declared, runs=runs)

    @classmethod
    def read(cls, directory: Path) -> StudySpec:
        """Read ``study.json`` of a study directory.

        Raises:
            StudyError: If it is missing, broken, or no study of this version.
        """
        path = directory / STUDY_FILE
        if not path.exists():
            raise StudyError(f"{directory} holds no study: it has no {STUDY_FILE}")
        remedy = "restore it from a copy, or choose another directory"
        try:
            return cls.from_json(read_json(path, remedy=remedy))
        except FileError:
            raise
        except (TypeError, ValueError) as error:
            raise StudyError(f"{path} is no valid study: {error}; {remedy}") from error


def _plain(name: str, value: Any) -> Any:
    """Return ``value`` as it will read back from JSON."""
    try:
        return json.loads(canonical_json(_as_lists(value)))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must be plain, finite JSON, got {value!r:.80} ({error})") from error


def _as_lists(value: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists."""
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise TypeError(f"keys must be text, not {wrong!r}")
        return {key: _as_lists(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_as_lists(entry) for entry in value]
    return value


def _check_keys(what: str, value: Any, expected: set[str], *, optional: frozenset[str] = frozenset()) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be an object, got {value!r:.80}")
    if missing := sorted(expected - set(value)):
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    if unknown := sorted(map(repr, set(value) - expected - optional)):
        raise ValueError(f"{what} has unknown keys {', '.join(unknown):.80}")


def _check_definition(definition: Any) -> None:
    if isinstance(definition, str) or not isinstance(definition, Mapping | Sequence):
        raise TypeError(f"definition must be an object, or a list of objects, got {definition!r:.80}")
    if not definition:
        raise ValueError("definition must say what is built, got nothing")
    parts = [definition] if isinstance(definition, Mapping) else definition
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("name"), str):
            raise TypeError(f"every part of a definition must be an object with a 'name', got {part!r:.80}")


def check_points(option: str, points: Any, *, least: int = 1) -> None:
    """Refuse points to measure at that are no growing whole numbers.

    Raises:
        TypeError: If they are no list of whole numbers.
        ValueError: If one is below ``least``, or does not grow.
    """
    if isinstance(points, str) or not isinstance(points, Sequence):
        raise TypeError(f"{option} must be a list, got {points!r:.80}")
    for before, point in zip((least - 1, *points), points, strict=False):
        check_int(option, point, at_least=least)
        if point <= before:
            raise ValueError(f"{option} must grow, got {point} after {before}")
