"""The checker of annotations that the tests switch on: beartype, where a whole number also is a float."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from typing import Any

import jaxtyping
import jaxtyping._decorator
from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

_WITH_SHAPES = jaxtyping._decorator.jaxtyped


def check_shapes_only_where_there_are_any() -> None:
    """Let jaxtyping's import hook leave functions without shapes to the checker alone.

    Comparing shapes costs more than checking types, and most functions name no shape.
    """
    jaxtyping.jaxtyped = jaxtyping._decorator.jaxtyped = _jaxtyped


def _jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """Stand for :func:`jaxtyping.jaxtyped`."""
    if fn is None:
        return functools.partial(_jaxtyped, typechecker=typechecker)
    if not isinstance(fn, types.FunctionType):
        return _WITH_SHAPES(fn, typechecker=typechecker)
    try:
        return _checked(fn, typechecker)
    except NameError:  # an annotation names what the module defines below
        pass
    except Exception:  # it cannot be evaluated: what has no brackets when it runs
        return _WITH_SHAPES(fn, typechecker=typechecker)
    made: list[Any] = []

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if not made:
            try:
                made.append(_checked(fn, typechecker))
            except Exception:  # it names what is imported for type checkers alone
                made.append(_WITH_SHAPES(fn, typechecker=typechecker))
        return made[0](*args, **kwargs)

    return wrapped


def _checked(fn: types.FunctionType, typechecker: Any) -> Any:
    hints = inspect.get_annotations(fn, eval_str=True).values()
    # What the checker makes looks names up where the function does, and there ``list`` is a module.
    if fn.__module__ == "gatework.cli" or any(map(_has_shape, hints)):
        return _WITH_SHAPES(fn, typechecker=typechecker)
    checked = typechecker(fn)

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (fn if jaxtyping.config.jaxtyping_disable else checked)(*args, **kwargs)

    return wrapped


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return isinstance(hint, typing.TypeVar) or any(map(_has_shape, typing.get_args(hint)))
