"""Checks that every task description makes of its own fields."""

from __future__ import annotations

import operator
from numbers import Real

#: numpy's legacy generator, whose stream the recall tasks follow, takes seeds below this.
SEED_LIMIT = 2**32


def check_int(name: str, value: int, *, at_least: int) -> None:
    """Refuse anything but an integer of at least ``at_least``.

    Raises:
        TypeError: If ``value`` is not an integer (a bool is not one).
        ValueError: If it is too small.
    """
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if operator.index(value) < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_number(name: str, value: object) -> None:
    """Refuse anything but a real number.

    Raises:
        TypeError: If ``value`` is not a number (a bool is not one).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Refuse anything but True or False.

    Raises:
        TypeError: If ``value`` is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is not one of ``choices``.

    Raises:
        ValueError: If it is another.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_seed(seed: int) -> None:
    """Refuse what cannot seed numpy's legacy generator.

    Raises:
        TypeError: If ``seed`` is not an integer.
        ValueError: If it is negative or does not fit in 32 bits.
    """
    check_int("seed", seed, at_least=0)
    if seed >= SEED_LIMIT:
        raise ValueError(f"seed must be below 2**32, got {seed}")
