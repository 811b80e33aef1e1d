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

from gatework.files import FileError, read_json
from gatework.tasks.task import Quality

STUDY_FORMAT = "gatework.study/3"
#: What is read as well: before decoding was timed.
_OLDER_STUDY_FORMATS = ("gatework.study/2",)
STUDY_FILE = "study.json"
#: What a comparison may hold equal between mixers.
BUDGETS = ("steps", "tokens", "flops", "seconds")
#: Fields of a run that say what to measure on the trained model, and nothing of the training.
_MEASURED = frozenset({"decode_contexts"})


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

    ``decode_contexts``, which is measured on the trained model, is no part of that identity.

    Attributes:
        task: What is trained for, such as ``"recall"``.
        setting: The task's own options.
        setting_name: How the page names that setting, such as ``"N=64, 4 pairs"``.
        mixer: Label of the mixer or hybrid.
        layers: One object per layer: the mixer's ``name`` and its options.
        width: Number of channels.
        learning_rate: Peak learning rate.
        seed: Seed of weights and data order.
        training: Steps, batch size and whatever else the training takes.
        model: Options of the model around the mixers (positions, channel mixer, ...).
        decode_contexts: Lengths of context, growing, at which the trained model's decoding is timed.

    Raises:
        TypeError: If a field has another type, or holds something that is not JSON.
        ValueError: If a field is empty, out of range or not finite.
    """

    task: str
    setting: Mapping[str, Any]
    setting_name: str
    mixer: str
    layers: Sequence[Mapping[str, Any]]
    width: int
    learning_rate: float
    seed: int
    training: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    decode_contexts: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("task", "setting_name", "mixer"):
            _check_text(name, getattr(self, name))
        _check_integer("width", self.width, minimum=1)
        _check_integer("seed", self.seed, minimum=0)
        _check_rate(self.learning_rate)
        for name in ("setting", "training", "model"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a mapping, got {getattr(self, name)!r}")
        _check_layers(self.layers)
        _check_contexts(self.decode_contexts)
        # Plain copies: tuples become lists, and no later change by the caller can alter the identity.
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        for name in ("setting", "layers", "training", "model", "decode_contexts"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    @cached_property
    def run_id(self) -> str:
        """Sixteen hexadecimal digits that name this run: the hash of its content."""
        return spec_hash({name: value for name, value in self.to_json().items() if name not in _MEASURED})

    @property
    def label(self) -> str:
        """One line for progress and messages."""
        return (
            f"{self.mixer} · {self.setting_name} · width {self.width} · "
            f"lr {self.learning_rate:g} · seed {self.seed}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a JSON object, without what is to be measured if that is nothing."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value or name not in _MEASURED}

    @classmethod
    def from_json(cls, value: Any) -> RunSpec:
        """Make a spec from a JSON object with exactly its keys; older ones have no ``decode_contexts``.

        Raises:
            TypeError: If ``value`` is no object, or a field has another type.
            ValueError: If a key is missing or unknown, or a field is out of range.
        """
        _check_keys("spec", value, {entry.name for entry in fields(cls)} - _MEASURED, optional=_MEASURED)
        return cls(**value)


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
        runs: Every run of the grid, each once.
        notes: Sentences the page must show: data, what was fixed beforehand.
        budget: A sentence on what is held equal between the mixers.
        budget_kind: What that is, one of :data:`BUDGETS`.
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
    runs: Sequence[RunSpec]
    notes: Sequence[str] = ()
    budget: str = "the same training steps for every mixer"
    budget_kind: str = "steps"
    plugins: Sequence[str] = ()
    created: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for name in ("name", "task", "command", "title", "budget", "created"):
            _check_text(name, getattr(self, name))
        if self.budget_kind not in BUDGETS:
            raise ValueError(f"budget_kind must be one of {', '.join(BUDGETS)}, got {self.budget_kind!r}")
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
                raise ValueError(f"runs must differ, got twice: {run.label}")
            seen.add(run.run_id)

    def to_json(self) -> dict[str, Any]:
        """Return what ``study.json`` holds."""
        texts = ("name", "task", "command", "created", "title", "budget", "budget_kind")
        return {
            "format": STUDY_FORMAT,
            **{name: getattr(self, name) for name in texts},
            "quality": asdict(self.quality),
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
        _check_keys("study", value, {"format", *(entry.name for entry in fields(cls))})
        _check_keys("quality", value["quality"], {entry.name for entry in fields(Quality)})
        for name in ("runs", "notes", "plugins"):
            if not isinstance(value[name], list):
                raise TypeError(f"{name} must be a list, got {value[name]!r:.80}")
        quality = dict(value["quality"])
        if quality["range"] is not None:
            quality["range"] = tuple(quality["range"])
        content = {name: value[name] for name in value if name not in ("format", "quality", "runs")}
        runs = [RunSpec.from_json(run) for run in value["runs"]]
        return cls(**content, quality=Quality(**quality), runs=runs)

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


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {value!r:.80}")
    if not value.strip():
        raise ValueError(f"{name} must not be empty")


def _check_integer(name: str, value: Any, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r:.80}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def _check_rate(value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"learning_rate must be a number, got {value!r:.80}")
    if not (is_finite_number(value) and value > 0):
        raise ValueError(f"learning_rate must be positive and finite, got {value}")


def _check_layers(layers: Any) -> None:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise TypeError(f"layers must be a list of objects, got {layers!r:.80}")
    if not layers:
        raise ValueError("layers must hold at least one layer, got none")
    for layer in layers:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("name"), str):
            raise TypeError(f"every layer must be an object with a 'name', got {layer!r:.80}")


def _check_contexts(contexts: Any) -> None:
    if isinstance(contexts, str) or not isinstance(contexts, Sequence):
        raise TypeError(f"decode_contexts must be a list of lengths, got {contexts!r:.80}")
    for before, context in zip((1, *contexts), contexts, strict=False):
        _check_integer("decode_contexts", context, minimum=2)
        if context <= before:
            raise ValueError(f"decode_contexts must grow, got {context} after {before}")
