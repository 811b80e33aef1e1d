"""The arguments of an official class or function: all of them, with its defaults, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Stands in a signature for an argument without a default.
REQUIRED = object()


def official(
    of: str, given: Mapping[str, Any], /, unused: Iterable[str] = (), **signature: Any
) -> dict[str, Any]:
    """Every argument of ``signature``: what is given, else the official default.

    Args:
        of: The official class or function, for messages.
        given: The arguments of a case.
        unused: Further names that it takes in ``**kwargs`` and drops, as far as its authors pass them.
        **signature: Its arguments with their defaults.

    Raises:
        TypeError: If an argument is none of these, or one without a default is missing.
    """
    unknown = given.keys() - signature.keys() - set(unused)
    if unknown:
        raise TypeError(f"{of} has no argument {', '.join(sorted(unknown))}")
    arguments = {name: given.get(name, default) for name, default in signature.items()}
    missing = [name for name, value in arguments.items() if value is REQUIRED]
    if missing:
        raise TypeError(f"{of} needs the argument {', '.join(missing)}")
    return arguments


def only(of: str, arguments: Mapping[str, Any], /, **expressible: Any) -> None:
    """Refuse what ours cannot express: each argument must have the value given, or one of a tuple of values.

    Raises:
        NotImplementedError: Naming the first argument that has another value.
    """
    for name, values in expressible.items():
        value = arguments[name]
        if value not in (values if isinstance(values, tuple) else (values,)):
            raise NotImplementedError(f"{of}: {name}={value!r} is not here, only {values!r}")
