"""What an option may hold and how it is read: the rule of :mod:`gatework.yaml_values`, then its own type.

jsonargparse reads values by rules of its own and takes a mapping with ``class_path`` for a class, which it
imports: a recipe could run code. Here every option has a type that jsonargparse does not know from within
(:func:`value_type`), so that this module alone decides what it holds, and nothing is ever imported.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from jsonargparse import set_loader
from jsonargparse.typing import register_type

from gatework.checks import suggestion
from gatework.yaml_values import YamlError, read_yaml

#: The mode of jsonargparse's parsers in which texts become values as everywhere else here.
MODE = "gatework"


class PlainValue:
    """The type of a value that is whatever YAML holds: ``dict[str, PlainValue]`` for ``dict[str, Any]``."""


class OptionError(ValueError):
    """A value that an option cannot have; the message names the option, the value and what was expected."""


class _Text(str):
    """A text that has been read already: read again, ``"1e-6"`` in quotes would become a number."""

    __slots__ = ()


class _Named(type):
    """Kind of the types below, whose names are what the help shows."""

    def __repr__(cls) -> str:
        return cls.__name__


def value_type(name: str, annotation: Any) -> Any:
    """Return the type of an option for jsonargparse.

    Args:
        name: The option, as errors name it: ``"training.steps"``.
        annotation: What it holds: ``int``, ``float``, ``bool``, ``str``, None, :class:`PlainValue`, a
            ``Literal`` of texts, lists and mappings of these, or several of them.
    """
    if isinstance(annotation, _Named):
        return annotation
    kind = _Named(_shown(annotation), (), {})

    def deserialize(value: Any) -> Any:
        return conform(name, value, annotation)

    register_type(kind, serializer=plain, deserializer=deserialize, type_check=_never)
    return kind


def _never(value: Any, kind: Any) -> bool:
    return False


def plain(value: Any) -> Any:
    """Return a parsed value without the marks that this module needs while it is parsed."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def read_option(name: str, text: str) -> Any:
    """Return the value of an option that holds anything.

    Raises:
        OptionError: If the text is no valid YAML.
    """
    try:
        return _marked(read_yaml(text))
    except YamlError as error:
        hint = "; a text needs quotes of its own there" if error.is_syntax else ""
        raise OptionError(f"--{name} must be valid YAML, got {text!r:.200}: {error}{hint}") from error


def holds_options(annotation: Any) -> bool:
    """Whether the keys of a mapping are options rather than labels of the user's: ``dict[str, Any]``."""
    kinds = [kind for kind in _kinds(annotation) if kind is not type(None)]
    return len(kinds) == 1 and _is_mapping(kinds[0]) and typing.get_args(kinds[0])[1:] in ((PlainValue,), ())


def holds_mapping(annotation: Any) -> bool:
    """Whether an option can be a mapping, so that ``--option.key`` names a part of it."""
    return any(_is_mapping(kind) for kind in _kinds(annotation))


def _load(text: str) -> Any:
    return _marked(read_yaml(text))


set_loader(MODE, _load, exceptions=(YamlError,))


def _marked(value: Any) -> Any:
    if isinstance(value, str):
        return _Text(value)
    if isinstance(value, dict):
        return {key: _marked(entry) for key, entry in value.items()}
    return [_marked(entry) for entry in value] if isinstance(value, list) else value


def conform(name: str, value: Any, annotation: Any) -> Any:
    """Return a value of the annotation's type.

    A ``str`` is a word of the command line; what stood in a file, or has been read before, is marked.

    Raises:
        OptionError: If it is of another type.
    """
    kinds = _kinds(annotation)
    if type(value) is not str:
        return _fit(name, value, annotation, value)
    if str in kinds and all(kind in (str, type(None)) for kind in kinds):
        return _Text(value)  # as it is written, also if it looks like a number
    if value in _choices(kinds):
        return _Text(value)
    try:
        read = read_option(name, value)
        return _fit(name, read, annotation, value)
    except OptionError:
        if str in kinds:
            return _Text(value)
        raise


def _fit(name: str, value: Any, annotation: Any, written: Any) -> Any:
    """Return what was read as one of the kinds of the annotation; ``written`` is what the error shows."""
    kinds = _kinds(annotation)
    if PlainValue in kinds or (value is None and type(None) in kinds):
        return value
    if isinstance(value, bool):
        if bool in kinds:
            return value
    elif isinstance(value, int | float):
        if type(value) in kinds:
            return value
        if isinstance(value, int) and float in kinds:
            return _as_float(name, value)
    elif isinstance(value, str):
        if str in kinds or value in _choices(kinds):
            return _Text(value)
    else:
        for kind in kinds:
            if isinstance(value, list) and typing.get_origin(kind) is list:
                (inner,) = typing.get_args(kind)
                if any(isinstance(entry, list) for entry in value) != (typing.get_origin(inner) is list):
                    inner = _list_of_lists(kinds) or inner
                return [_fit(f"{name}[{n}]", entry, inner, entry) for n, entry in enumerate(value)]
            if isinstance(value, dict) and _is_mapping(kind):
                inner = (*typing.get_args(kind), PlainValue, PlainValue)[1]
                return {key: _fit(f"{name}.{key}", entry, inner, entry) for key, entry in value.items()}
    raise OptionError(_refusal(name, value, kinds, written))


def _list_of_lists(kinds: tuple[Any, ...]) -> Any:
    """What the lists hold, of the alternative whose entries are lists."""
    inner = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is list]
    return next((kind for kind in inner if typing.get_origin(kind) is list), None)


def _as_float(name: str, value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"--{name} must be a number that a float can hold, got {value!r:.40}...") from None


def _refusal(name: str, value: Any, kinds: tuple[Any, ...], written: Any) -> str:
    """Say what an option was given and what it takes."""
    shown = written if type(written) is str else plain(value)
    text = f"--{name} must be {_words(kinds)}, got {_as_yaml(shown):.200}"
    choices = _choices(kinds)
    if isinstance(value, str) and choices:
        hint = suggestion(value, choices)
        return text + (hint if "did you mean" in hint else "")
    if isinstance(value, float) and int in kinds and value.is_integer() and abs(value) < 1e18:
        return f"{text}; written {int(value)}, it is one"
    if isinstance(value, str) and bool in kinds and value.lower() in ("yes", "on", "y", "no", "off", "n"):
        return f"{text}, which is a text"
    if isinstance(value, int | float) and str in kinds:
        return f"{text}; in quotes it is a text"
    if isinstance(value, str) and value != shown and type(written) is str:
        return f"{text}, which in quotes is a text"
    return text


def _as_yaml(value: Any) -> str:
    """A value as the user would write it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for entry in typing.get_args(annotation) for kind in _kinds(entry))
    return (type(None),) if annotation is None else (annotation,)


def _choices(kinds: tuple[Any, ...]) -> tuple[str, ...]:
    """The texts that literals among the alternatives allow."""
    return tuple(
        choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)
    )


def _is_mapping(kind: Any) -> bool:
    return kind is dict or typing.get_origin(kind) in (dict, Mapping)


_NOUNS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def _words(kinds: tuple[Any, ...], *, several: bool = False) -> str:
    """What an option takes, in words: ``"a list of integers or null"``."""
    words = []
    choices = _choices(kinds)
    if choices:
        words.append(f"one of {', '.join(choices)}" if len(choices) > 1 else repr(choices[0]))
    for kind in sorted(kinds, key=lambda kind: kind is type(None)):
        if typing.get_origin(kind) is list:
            (inner,) = typing.get_args(kind)
            words.append(f"a list of {_plurals(_kinds(inner))}")
        elif _is_mapping(kind):
            words.append("a mapping")
        elif kind in _NOUNS:
            words.append(_NOUNS[kind])
    return " or ".join(dict.fromkeys(words)) or "a value"


def _plurals(kinds: tuple[Any, ...]) -> str:
    plurals = {int: "integers", float: "numbers", str: "texts", bool: "true and false", PlainValue: "values"}
    return " or ".join(plurals.get(kind, "lists") for kind in kinds)


def _shown(annotation: Any) -> str:
    """What the help calls a type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_shown, typing.get_args(annotation)))
    if typing.get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, typing.get_args(annotation)))}]"
    if typing.get_origin(annotation) in (list, dict):
        return (
            f"{typing.get_origin(annotation).__name__}[{', '.join(map(_shown, typing.get_args(annotation)))}]"
        )
    if annotation in (None, type(None)):
        return "null"
    return "any" if annotation is PlainValue else str(getattr(annotation, "__name__", annotation))
