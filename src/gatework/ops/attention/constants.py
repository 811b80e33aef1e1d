"""Masks as constants of compiled graphs: what planning takes where ``torch.compile`` traces the call."""

from __future__ import annotations

from typing import Any

import torch

from gatework.masks import Mask

#: A mask, or its class and its fields, in which masks are likewise taken apart.
Constant = Mask | tuple[type[Mask], tuple[Any, ...]]


def constant(mask: Mask) -> Constant:
    """Return what a function with constant arguments can be given for a mask while a graph is traced.

    A mask that was made before is a constant itself. One that is made in the graph is not, but its numbers
    are: so masks of numbers are taken apart. Elsewhere the mask is returned as it is.
    """
    if not torch.compiler.is_compiling() or not _is_plain(mask):
        return mask
    return type(mask), tuple([constant(x) if isinstance(x, Mask) else x for x in _fields(mask)])


def rebuilt(value: Constant) -> Mask:
    """Return the mask that :func:`constant` took apart."""
    if isinstance(value, Mask):
        return value
    kind, fields = value
    mask = object.__new__(kind)
    for name, field in zip(kind.__dataclass_fields__, fields, strict=True):  # type: ignore[attr-defined]
        is_mask = isinstance(field, tuple) and len(field) == 2 and isinstance(field[0], type)
        object.__setattr__(mask, name, rebuilt(field) if is_mask else field)
    return mask


def _is_plain(mask: Mask) -> bool:
    """Whether a mask is made of numbers, tuples of them, and such masks."""
    if not hasattr(type(mask), "__dataclass_fields__"):
        return False
    for x in _fields(mask):
        if isinstance(x, Mask):
            if not _is_plain(x):
                return False
        elif not isinstance(x, (int, float, str, tuple)) and x is not None:
            return False
    return True


def _fields(mask: Mask) -> list[Any]:
    return [getattr(mask, name) for name in type(mask).__dataclass_fields__]  # type: ignore[attr-defined]
