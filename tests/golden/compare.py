"""Our outputs and gradients of a case beside the stored ones."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from tests.golden.case import Adapter, Case, relative_error


def compare(case: Case, adapter: Adapter, allowed: Callable[[str], float]) -> None:
    """Fail where an output or a gradient is missing, or further off than ``allowed("out/NAME")``."""
    outputs = adapter(case)
    stored = case.part("out")
    assert stored.keys() <= outputs.keys(), f"outputs not given: {sorted(stored.keys() - outputs.keys())}"
    for name, expected in stored.items():
        _check(f"out/{name}", outputs[name], expected, allowed(f"out/{name}"))
    if not case.part("grad"):
        return
    case.backward(outputs)
    for name in case.part("grad"):
        _check(f"grad/{name}", *case.gradient(name), allowed(f"grad/{name}"))


def _check(name: str, ours: Tensor | None, expected: Tensor, allowed: float) -> None:
    assert ours is not None, f"{name}: no gradient reached it"
    error = relative_error(ours, expected)
    assert math.isfinite(error), f"{name}: shape or exact values differ, {tuple(ours.shape)}"
    assert error <= allowed, f"{name}: error {error:.2e} exceeds {allowed:.0e}"
