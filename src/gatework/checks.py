"""What every floor asks of the values it is given, said in one way: ``NAME must be WHAT, got VALUE``.

A value of the wrong type raises ``TypeError``, one of the right type that is out of range ``ValueError``. The
checks look at Python's numbers only, so that they cost nothing beside a tensor's work, and a compiler that
follows them into a graph leaves nothing of them there.
"""

from __future__ import annotations

import difflib
import operator
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

#: numpy's legacy generator, whose stream the recall tasks follow, takes seeds below this.
SEED_LIMIT = 2**32
#: Largest number; an integer beyond it is none of those that can be computed with.
_LARGEST = sys.float_info.max


def check_int(name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """Return an integer within bounds: Python's, numpy's as one of Python's, or a compiler's size as it is.

    Args:
        name: What the caller knows the value as.
        value: The value.
        at_least: Least one allowed.
        at_most: Greatest one allowed.

    Raises:
        TypeError: If ``value`` is not an integer (a bool and a float are none).
        ValueError: If it is out of bounds.
    """
    if type(value) is not int:
        if not _is_integer(value):
            raise TypeError(f"{name} must be an integer, got {value!r:.200}")
        if isinstance(value, Integral):
            value = operator.index(value)
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        raise ValueError(f"{name} must be {_range(None, at_least, None, at_most)}, got {_shown(value)}")
    return value  # type: ignore[no-any-return]


def check_ints(name: str, values: Any, *, at_least: int | None = None) -> tuple[int, ...]:
    """Return the integers of a list, a tuple, or a tensor or array of rank 1.

    Args:
        name: What the caller knows the row as; an error names the place in it too, as ``name[2]``.
        values: The row.
        at_least: Least integer allowed.

    Raises:
        TypeError: If ``values`` is something else, or holds something else than integers.
        ValueError: If one is less than ``at_least``.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, list | tuple):
        raise TypeError(f"{name} must be integers in one row, got {values!r:.200}")
    return tuple(check_int(f"{name}[{place}]", each, at_least=at_least) for place, each in enumerate(listed))


def check_per_axis(name: str, value: Any, axes: int, *, at_least: int = 1) -> tuple[int, ...]:
    """Return one integer for each axis, of as many in a row or of one for all.

    Args:
        name: What the caller knows the value as.
        value: An integer, or a list or tuple of them.
        axes: Number of axes.
        at_least: Least integer allowed.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is less than ``at_least``, or there are another number of them.
    """
    if not isinstance(value, list | tuple):
        return (check_int(name, value, at_least=at_least),) * axes
    if len(value) != axes:
        raise ValueError(f"{name} must be one number or {axes}, one for each axis, got {value!r:.200}")
    return check_ints(name, value, at_least=at_least)


def check_sizes(**sizes: Any) -> None:
    """Refuse a size, given by its name, that is not an integer of at least 1.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is below 1.
    """
    for name, size in sizes.items():
        check_int(name, size, at_least=1)


def check_counts(**counts: Any) -> None:
    """Refuse a count, given by its name, that is not an integer of at least 0.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is negative.
    """
    for name, count in counts.items():
        check_int(name, count, at_least=0)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> float:
    """Return a real number within bounds.

    Args:
        name: What the caller knows the value as.
        value: The value; an integer is a number too.
        above: All allowed are greater than this.
        at_least: Least one allowed.
        below: All allowed are less than this.
        at_most: Greatest one allowed.
        finite: Whether infinities are refused; what is not a number (NaN) always is.

    Raises:
        TypeError: If ``value`` is not a number (a bool is not one).
        ValueError: If it is out of bounds, or not finite.
    """
    if type(value) is not float and type(value) is not int:
        if not _is_number(value):
            raise TypeError(f"{name} must be a number, got {value!r:.200}")
        if isinstance(value, Real):  # numpy's, say, but no size that a compiler has not fixed
            value = float(value)
    if not (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    ):
        raise ValueError(f"{name} must be {_range(above, at_least, below, at_most)}, got {_shown(value)}")
    if finite and not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} must be finite, got {_shown(value)}")
    if value != value:  # NaN, where infinities are allowed
        raise ValueError(f"{name} must be a number, got {value}")
    return value  # type: ignore[no-any-return]


def check_positive(**numbers: Any) -> None:
    """Refuse a number, given by its name, that is not positive and finite.

    Raises:
        TypeError: If one is not a number.
        ValueError: If one is 0, negative or not finite.
    """
    for name, number in numbers.items():
        check_number(name, number, above=0)


def check_not_below(name: str, value: Any, least_name: str, least: float) -> None:
    """Refuse a number that is less than another one, which has a name too.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is less than ``least``, or not finite.
    """
    if check_number(name, value) < least:
        raise ValueError(f"{name} must be at least {least_name}={least}, got {value}")


def check_probability(name: str, value: Any) -> None:
    """Refuse a probability of dropping something that does not lie in ``[0, 1)``.

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it is negative, or leaves nothing.
    """
    check_number(name, value, at_least=0, below=1)


def check_bool(name: str, value: Any) -> None:
    """Refuse anything but True or False.

    Raises:
        TypeError: If ``value`` is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r:.200}")


def check_flags(**flags: Any) -> None:
    """Refuse a flag, given by its name, that is neither True nor False.

    Raises:
        TypeError: If one is not a bool.
    """
    for name, flag in flags.items():
        check_bool(name, flag)


def check_flag_per_axis(name: str, value: Any, axes: int) -> tuple[bool, ...]:
    """Return one flag for each axis, of as many in a row or of one for all.

    Raises:
        TypeError: If one is neither True nor False.
        ValueError: If there are another number of them.
    """
    if not isinstance(value, list | tuple):
        check_bool(name, value)
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{name} must be one flag or {axes}, one for each axis, got {value!r:.200}")
    for place, flag in enumerate(value):
        check_bool(f"{name}[{place}]", flag)
    return tuple(value)


def check_choice(name: str, value: Any, choices: Iterable[T]) -> T:
    """Return a value that is one of ``choices``.

    Raises:
        TypeError: If it has the type of none of them.
        ValueError: If it is another; the message names the nearest.
    """
    choices = tuple(choices)
    is_of_their_type = any(type(value) is type(choice) for choice in choices) or (
        isinstance(value, tuple(map(type, choices))) and not isinstance(value, bool)
    )
    if is_of_their_type and value in choices:
        return value  # type: ignore[no-any-return]
    text = f"{name} must be one of {', '.join(map(str, choices))}, got {value!r:.200}"
    if not is_of_their_type:
        raise TypeError(text)
    near = _nearest(value, choices, likeness=0.6) if isinstance(value, str) else []
    raise ValueError(text + (_did_you_mean(near) if near else ""))


def check_compat(compat: Any) -> bool:
    """Whether the authors' variant is asked for, with ``compat="official"``; None is ours.

    Raises:
        TypeError: If ``compat`` is neither text nor None.
        ValueError: If it is another text.
    """
    check_choice("compat", compat, (None, "official"))
    return compat is not None


def check_divides(name: str, value: Any, whole_name: str, whole: int) -> int:
    """Return ``whole // value``, how much each of ``value`` equal parts has.

    Args:
        name: What the caller knows the number of parts as.
        value: The number of parts.
        whole_name: What the caller knows the whole as.
        whole: What is divided.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If it is less than 1, or does not divide the whole.
    """
    check_int(name, value, at_least=1)
    if whole % value:
        raise ValueError(f"{name} must divide {whole_name}={whole}, got {value}")
    return whole // value  # type: ignore[no-any-return]


def check_seed(seed: Any, name: str = "seed") -> None:
    """Refuse what cannot seed numpy's legacy generator.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is negative or does not fit in 32 bits.
    """
    check_int(name, seed, at_least=0)
    if seed >= SEED_LIMIT:
        raise ValueError(f"{name} must be below 2**32, got {seed}")


def check_text(name: str, value: Any) -> None:
    """Refuse anything but text that says something.

    Raises:
        TypeError: If ``value`` is not text.
        ValueError: If it is empty.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text, got {value!r:.200}")
    if not value.strip():
        raise ValueError(f"{name} must not be empty, got {value!r}")


def check_texts(name: str, values: Any) -> tuple[str, ...]:
    """Return the texts of a list or tuple.

    Raises:
        TypeError: If ``values`` is something else (a text is no list), or holds something else than texts.
        ValueError: If one is empty.
    """
    if not isinstance(values, list | tuple):
        raise TypeError(f"{name} must be a list of texts, got {values!r:.200}")
    for place, value in enumerate(values):
        check_text(f"{name}[{place}]", value)
    return tuple(values)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str = "") -> None:
    """Refuse a tensor of another shape than ``shape``, whose axes ``meaning`` names.

    Raises:
        ValueError: If the shape differs.
    """
    if tensor.shape != shape:
        equals = f"{meaning}=" if meaning else ""
        raise ValueError(f"{name} must have shape {equals}{tuple(shape)}, got {tuple(tensor.shape)}")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype, meaning: str) -> None:
    """Refuse a tensor of another dtype than ``dtype``, which ``meaning`` says in words.

    Raises:
        TypeError: If the dtype differs.
    """
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {meaning}, got {tensor.dtype}")


def check_names(what: str, given: Iterable[Any], known: Collection[str]) -> None:
    """Refuse a name that is not one of the ``known`` ones.

    Args:
        what: Whose names they are and what they are names of, as in ``"trainer has no option"``.
        given: The names that the caller gave.
        known: Those there are.

    Raises:
        TypeError: If one does not exist; the message names the nearest.
    """
    for name in given:
        if name not in known:
            raise TypeError(f"{what} {name!r:.200}{suggestion(str(name), sorted(known))}")


@contextmanager
def named_in(section: str, options: Collection[str]) -> Iterator[None]:
    """Let an error about one of some options name their section too: ``model.hidden_size must be ...``.

    Args:
        section: What the options are of.
        options: Their names.

    Raises:
        TypeError: As raised in the block.
        ValueError: As raised in the block.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        name = re.match(r"\w*", message)
        if name is None or name[0] not in options:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{section}.{message}") from error


def suggestion(name: str, known: Iterable[str]) -> str:
    """Say which of the ``known`` names the caller may have meant, as the end of an error message."""
    known = tuple(known)
    near = _nearest(name, known)
    return _did_you_mean(near) if near else "; known names are " + ", ".join(known)


def _nearest(name: str, known: Iterable[Any], *, likeness: float = 0.5) -> list[str]:
    names = [each for each in known if isinstance(each, str)]
    return difflib.get_close_matches(name, names, n=3, cutoff=likeness)


def _did_you_mean(near: list[str]) -> str:
    return "; did you mean " + " or ".join(repr(candidate) for candidate in near) + "?"


def _is_integer(value: Any) -> bool:
    """Python's and numpy's integers, and the sizes that a compiler has not fixed; no bool, no tensor."""
    if isinstance(value, bool):
        return False
    return isinstance(value, Integral) or (isinstance(value, SupportsIndex) and not hasattr(value, "__len__"))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ == "bool":  # the latter is numpy's
        return False
    return isinstance(value, Real) or (isinstance(value, SupportsFloat) and not hasattr(value, "__len__"))


def _shown(value: Any) -> str:
    """A number as text that fits a line."""
    if isinstance(value, int) and abs(value) > _LARGEST:  # Python may refuse to write it
        return f"an integer of {value.bit_length()} bits"
    return str(value)


def _range(above: float | None, at_least: float | None, below: float | None, at_most: float | None) -> str:
    """Bounds in words: ``"at least 0 and below 1"``."""
    if at_least is not None and at_most is not None:
        return f"between {at_least} and {at_most}"
    words = []
    if above is not None:
        words.append("positive" if above == 0 else f"above {above}")
    if at_least is not None:
        words.append(f"at least {at_least}")
    if below is not None:
        words.append(f"below {below}")
    if at_most is not None:
        words.append(f"at most {at_most}")
    return " and ".join(words)
