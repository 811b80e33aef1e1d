"""Rows of scratch memory: one number for each channel of a group, whole vectors of the processor."""

from __future__ import annotations

from typing import Any

from gatework.ops.cpu.machine import floats, jit
from gatework.ops.recurrence.kernels import layout as at

WIDTH = at.WIDTH


@jit
def load(s: Any, row: int, address: int, width: int) -> None:
    """Copy one number per channel to a row."""
    source = floats(address)
    if width == WIDTH:  # a loop of known length is a few vectors; others would end number by number
        for w in range(WIDTH):
            s[row + w] = source[w]
    else:
        for w in range(width):
            s[row + w] = source[w]


@jit
def store(s: Any, row: int, address: int, width: int) -> None:
    """Copy a row to where it belongs."""
    target = floats(address)
    if width == WIDTH:
        for w in range(WIDTH):
            target[w] = s[row + w]
    else:
        for w in range(width):
            target[w] = s[row + w]
