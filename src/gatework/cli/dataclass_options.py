"""Options of a command from the fields of a dataclass, so that what can be chosen is said in one place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from gatework.cli.plain_values import PlainValue


def add_dataclass_options(
    parser: Any,
    kind: type[Any],
    *,
    prefix: str = "",
    skip: Collection[str] = (),
    switches: Collection[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Add an option for each field of a dataclass: its name, type and default, and its line in the docstring.

    Args:
        parser: Where they are added: a parser, or a group of its arguments.
        kind: The dataclass. Its docstring has a line for each field under ``Attributes:`` or ``Args:``, in
            plain text.
        prefix: Name of the section that the options are in, ``"training"`` for ``--training.steps``. Sections
            are listed apart, below the first line of the docstring.
        skip: Fields that become no options.
        switches: Fields that are False by default, whose options take no value and make them True.
        choices: Fields with a choice of texts, and what it is.
    """
    text = inspect.cleandoc(kind.__doc__ or "")
    hints, lines = typing.get_type_hints(kind), _lines(text)
    fields = [field for field in dataclasses.fields(kind) if field.init and field.name not in skip]
    unexplained = [field.name for field in fields if field.name not in lines]
    assert not unexplained, f"{kind.__name__} has no line for {unexplained} under Attributes"
    group = parser
    if prefix:
        group = parser.add_argument_group(f"{prefix}: {text.splitlines()[0].rstrip('.')}")
    for field in fields:
        name = f"--{prefix}.{field.name}" if prefix else f"--{field.name}"
        if field.name in switches:
            assert field.default is False, f"{kind.__name__}.{field.name} is not False by default"
            group.add_argument(name, action="store_true", help=lines[field.name])
        elif choices and field.name in choices:
            chosen = list(choices[field.name])
            group.add_argument(name, choices=chosen, help=lines[field.name], **_default_of(field))
        else:
            kind_of_value = option_type(hints[field.name])
            group.add_argument(name, type=kind_of_value, help=lines[field.name], **_default_of(field))


def option_type(annotation: Any) -> Any:
    """Return the type of an option for a field: lists for sequences, plain values for whatever YAML holds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(option_type(entry) for entry in arguments if entry is not Path)
        return functools.reduce(operator.or_, kinds)
    if origin is Sequence:
        return list[option_type(arguments[0])]  # type: ignore[misc]
    if origin is Mapping:
        return dict[str, option_type(arguments[1])]  # type: ignore[misc]
    return PlainValue if annotation is Any else annotation


def _lines(text: str) -> dict[str, str]:
    """What a docstring says of each field."""
    section = re.search(r"^(?:Attributes|Args):\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    found = re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(line.split()) for name, line in found}


def _default_of(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    if field.default is dataclasses.MISSING:
        return {"required": True}
    return {"default": list(field.default) if isinstance(field.default, tuple) else field.default}
