"""What a task says of itself before anything heavy is imported: its axes, units, costs and report sections.

Studies, trainings and the command line take all their words and choices from here: none of them knows what
is trained. A study keeps a copy in its ``study.json``, so that its page can be written without the task.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from gatework.checks import check_choice
from gatework.tasks.candidates import Candidate, check_nothing, effort_of_size, parse_candidates

#: Columns of the tables of runs and cells, and options of ``compare``, that every study has.
COLUMNS = frozenset(
    {
        "run_id",
        "task",
        "setting",
        "learning_rate",
        "seed",
        "status",
        "quality",
        "loss",
        "validation_quality",
        "validation_loss",
        "message",
        "started",
        "mean",
        "std",
        "low",
        "high",
        "num_seeds",
        "num_diverged",
        "validation",
        "seconds",
    }
)
OPTIONS = frozenset(
    {
        "task",
        "config",
        "learning_rates",
        "seeds",
        "setting",
        "settings",
        "training",
        "model",
        "measure",
        "budget",
        "budget_amount",
        "title",
        "notes",
        "output",
        "executor",
        "workers",
        "ray_address",
        "plugin",
        "plugins",
        "progress",
        "command",
    }
)

#: How a cost is written: bytes with a binary unit, counts and operations with a decimal one, durations.
Format = Literal["bytes", "count", "flops", "seconds"]


def _check_key(name: str, value: Any) -> None:
    """Refuse what cannot be an option, a column or a key of a result."""
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{name} must be one word of letters, digits and underscores, got {value!r}")


def _check_template(name: str, value: Any) -> None:
    """Refuse a text in which another number than the one stands, or none at all."""
    if not isinstance(value, str) or value.count("{}") != 1 or value.count("{") + value.count("}") != 2:
        raise ValueError(f"{name} must be a text with one {{}} for the number, got {value!r}")


@dataclass(frozen=True)
class Axis:
    """One of the two axes of a comparison that a task declares: what is compared, and at which sizes.

    Attributes:
        name: What one of its values is called, such as ``"mixer"``.
        plural: Its name as an option of ``compare``; ``name`` with an s by default.
        title: What stands at a figure's axis, such as ``"model width (channels)"``; ``name`` by default.
        about: What the option takes, for ``--help``.
        default: The values if none are given; none means that some must be.
    """

    name: str
    plural: str = ""
    title: str = ""
    about: str = ""
    default: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        _check_key("name", self.name)
        object.__setattr__(self, "plural", self.plural or f"{self.name}s")
        _check_key("plural", self.plural)
        object.__setattr__(self, "title", self.title or self.name)
        object.__setattr__(self, "default", tuple(self.default))


@dataclass(frozen=True)
class Unit:
    """What the work of a training is counted in: budgets and throughput are in this unit.

    Attributes:
        name: Such as ``"token"`` or ``"image"``.
        plural: ``name`` with an s by default.
        example: What a batch holds a number of, such as ``"sequence"``; ``name`` by default.
    """

    name: str
    plural: str = ""
    example: str = ""

    def __post_init__(self) -> None:
        _check_key("name", self.name)
        object.__setattr__(self, "plural", self.plural or f"{self.name}s")
        _check_key("plural", self.plural)
        object.__setattr__(self, "example", self.example or self.name)

    @property
    def rate(self) -> str:
        """Key of the throughput among the costs of a run: ``"tokens_per_second"``."""
        return f"{self.plural}_per_second"

    @property
    def total(self) -> str:
        """Key of the work of a whole training: ``"training_tokens"``."""
        return f"training_{self.plural}"

    @property
    def flops(self) -> str:
        """Key of the arithmetic for one unit: ``"flops_per_token"``."""
        return f"flops_per_{self.name}"


@dataclass(frozen=True)
class Cost:
    """A counted cost of a model, the smaller the better.

    Attributes:
        key: Its name in results and tables, such as ``"state_bytes"``.
        title: What a page calls it, such as ``"decoding state"``.
        format: How it is written.
        noun: What a sentence calls it, as in "the smallest ..."; ``title`` by default.
        instead_of: Key of a cost that this is another count of: a figure shows one or the other.
        switch: What that choice is called on the page.
    """

    key: str
    title: str
    format: Format = "count"
    noun: str = ""
    instead_of: str = ""
    switch: str = ""

    def __post_init__(self) -> None:
        _check_key("key", self.key)
        object.__setattr__(self, "noun", self.noun or self.title)


PARAMETERS = Cost("parameters", "parameters", noun="number of parameters")
ACTIVATIONS = Cost("activation_bytes", "activation memory", "bytes")
TRAINING_FLOPS = Cost("training_flops", "training compute", "flops")


@dataclass(frozen=True)
class ScalingCurve:
    """One number of a :class:`Scaling`, and one panel of its figure.

    Attributes:
        key: Its name in results, such as ``"tokens_per_second"``.
        heading: Title of the panel.
        title: What stands at its axis.
        format: How it is written there.
        hover: What is said of a point, with ``{}`` for the number: ``"generates {} tokens/s"``.
        is_timed: Whether it is a speed, which differs each time that it is measured.
    """

    key: str
    heading: str
    title: str
    format: Format = "count"
    hover: str = "{}"
    is_timed: bool = False

    def __post_init__(self) -> None:
        _check_key("key", self.key)
        _check_template("hover", self.hover)


@dataclass(frozen=True)
class Scaling:
    """What is measured of a trained model at growing points: contexts in tokens, resolutions in pixels.

    Attributes:
        key: Its name in results, such as ``"decoding"``.
        option: The option of ``compare`` that lists the points, such as ``"decode_contexts"``.
        point: What a point is called in results, such as ``"context"``.
        curves: What is measured at each of them; the first stands in the tables too.
        default: The points if none are given.
        least: The smallest point that can be asked for.
        about: What the option takes, for ``--help``.
        question: Heading of the figure.
        caption: What stands below it.
        title: What stands at the axis of the points.
        hover: What is said of a point, with ``{}`` for it: ``"context of {} tokens"``.
        column: Heading of a table's column, with ``{}`` for the point.
    """

    key: str
    option: str
    point: str
    curves: tuple[ScalingCurve, ...]
    default: tuple[int, ...] = ()
    least: int = 1
    about: str = ""
    question: str = ""
    caption: str = ""
    title: str = ""
    hover: str = "{}"
    column: str = "{}"

    def __post_init__(self) -> None:
        for name in ("key", "option", "point"):
            _check_key(name, getattr(self, name))
        for name in ("hover", "column"):
            _check_template(name, getattr(self, name))
        if not self.curves:
            raise ValueError(f"curves of scaling {self.key!r} must hold at least one, got none")

    def columns(self, measured: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """Return a table's columns of what was measured: ``"decoding tokens_per_second at 64"`` and so on."""
        first = self.curves[0].key
        return {f"{self.key} {first} at {row[self.point]}": row[first] for row in measured}


@dataclass(frozen=True)
class Companion:
    """A study of another task that accompanies one of this task: the same candidates, a training of its own.

    Attributes:
        option: The option of ``compare`` that asks for it, and the folder it is in.
        task: Its task.
        about: What the option takes, for ``--help``.
    """

    option: str
    task: str
    about: str = ""

    def __post_init__(self) -> None:
        _check_key("option", self.option)


@dataclass(frozen=True)
class Declaration:
    """Everything that studies, trainings and the command line know of a task.

    Attributes:
        candidates: What is compared: mixers, models.
        sizes: Whole numbers at which each candidate is trained: widths, resolutions.
        unit: What work is counted in.
        definition: What the definition of a candidate is called in tables, such as ``"layers"``.
        costs: Counted costs beside parameters, arithmetic, activation memory and throughput.
        lean: Key of the cost that a study names the smallest of.
        scalings: What is measured of a trained model at growing points.
        sections: Names of the report sections that the task brings, see :mod:`gatework.study.sections`.
        companion: The study that may accompany one of this task.
        predict_options: A dataclass of the task's own options of ``predict``, explained in its docstring.
        parse: Reads the candidates of a study from what a user gives, see
            :func:`~gatework.tasks.candidates.parse_candidates`.
        check: Refuses, by a ValueError, a definition that names what this process does not know.
        about: Says in words what a candidate is, given its definition.
        effort: Estimates how long a step on one example takes, in no unit, given a setting and a size: long
            runs are begun first.

    Raises:
        ValueError: If a name is no plain word or taken, two options share one, or ``lean`` is no cost.
    """

    candidates: Axis
    sizes: Axis
    unit: Unit
    definition: str = "definition"
    costs: tuple[Cost, ...] = ()
    lean: str = "parameters"
    scalings: tuple[Scaling, ...] = ()
    sections: tuple[str, ...] = ()
    companion: Companion | None = None
    predict_options: type[Any] | None = None
    parse: Callable[[Any, Axis], list[Candidate]] = parse_candidates
    check: Callable[[Any], None] = check_nothing
    about: Callable[[Any], str] | None = None
    effort: Callable[[Mapping[str, Any], int], float] = effort_of_size

    def __post_init__(self) -> None:
        _check_key("definition", self.definition)
        named = (self.candidates.name, self.sizes.name, self.definition)
        if taken := sorted(COLUMNS.intersection(named) | OPTIONS.intersection(self.options())):
            raise ValueError(f"every study has a column or an option {taken[0]!r}: choose another name")
        taken = self.options()
        if twice := sorted({name for name in taken if taken.count(name) > 1}):
            raise ValueError(f"options of a task must differ, got twice: {', '.join(twice)}")
        known = [cost.key for cost in self.all_costs]
        check_choice("lean", self.lean, known)

    @property
    def all_costs(self) -> tuple[Cost, ...]:
        """Every counted cost: the task's own between those that all tasks have."""
        return (PARAMETERS, *self.costs, ACTIVATIONS, TRAINING_FLOPS)

    @property
    def lean_cost(self) -> Cost:
        """The cost that a study names the smallest of."""
        return next(cost for cost in self.all_costs if cost.key == self.lean)

    @property
    def budgets(self) -> tuple[str, ...]:
        """What a comparison may hold equal between candidates."""
        return ("steps", self.unit.plural, "flops", "seconds")

    def options(self) -> list[str]:
        """Return the options of ``compare`` that this task names."""
        named = [self.candidates.plural, self.sizes.plural, *(scaling.option for scaling in self.scalings)]
        return named if self.companion is None else [*named, self.companion.option]

    def to_json(self) -> dict[str, Any]:
        """Return the words of a declaration, without its functions, as a JSON object."""
        words = {name: getattr(self, name) for name in _WORDS}
        return {name: _plain(value) for name, value in words.items()}

    @classmethod
    def from_json(cls, value: Any, known: Declaration | None = None) -> Declaration:
        """Make a declaration of stored words; its functions are those of ``known``, or the general ones.

        Raises:
            TypeError: If something in it has another type.
            ValueError: If something in it is missing, unknown or out of range.
        """
        hints = typing.get_type_hints(cls)
        if not isinstance(value, Mapping) or set(value) != set(_WORDS):
            raise ValueError(f"declaration must be an object with {', '.join(_WORDS)}, got {value!r:.80}")
        words = {name: _read(f"declaration.{name}", hints[name], value[name]) for name in _WORDS}
        return cls(**words) if known is None else replace(known, **words)


#: The attributes of a declaration that a study stores.
_WORDS = (
    "candidates",
    "sizes",
    "unit",
    "definition",
    "costs",
    "lean",
    "scalings",
    "sections",
    "companion",
)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(entry) for name, entry in asdict(value).items()}
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def _read(name: str, kind: Any, value: Any) -> Any:
    """Make a value of a declared type from JSON.

    Raises:
        TypeError: If the value is of another type.
        ValueError: If an object has other keys than the type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} must be one of {', '.join(arguments)}, got {value!r:.80}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(name, next(entry for entry in arguments if entry is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {value!r:.80}")
        return tuple(_read(f"{name}[{index}]", arguments[0], entry) for index, entry in enumerate(value))
    if is_dataclass(kind):
        known = [field.name for field in fields(kind)]
        if not isinstance(value, Mapping) or set(value) != set(known):
            raise ValueError(f"{name} must be an object with {', '.join(known)}, got {value!r:.80}")
        hints = typing.get_type_hints(kind)
        made = {key: _read(f"{name}.{key}", hints[key], value[key]) for key in known}
        return typing.cast("type[Any]", kind)(**made)
    if type(value) is not kind:
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r:.80}")
    return value
