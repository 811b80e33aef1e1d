"""Layers beside attention at growing lengths: how their time grows, and from where on they are faster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from _timing import take_turns


def against_attention(
    layers: Mapping[str, torch.nn.Module], dim: int, lengths: list[int], turns: int, *, train: bool
) -> dict[str, Any]:
    """Milliseconds by length, the exponent of their growth, and the first length with less than attention's.

    Args:
        layers: What to time, by name; one is called ``attention``.
        dim: Their channels.
        lengths: Lengths of one sequence.
        turns: Turns of each layer and length.
        train: Whether to time a forward and a backward pass instead of a forward pass without gradients.
    """
    results: dict[str, Any] = {name: {"ms": {}} for name in layers}
    for length in lengths:
        x = torch.randn(1, length, dim)
        sides = {name: partial(_pass, layer, x, train=train) for name, layer in layers.items()}
        for name, timing in take_turns(sides, turns).items():
            results[name]["ms"][length] = timing.median
    for result in results.values():
        times = result["ms"]
        result["exponent"] = float(np.polyfit(np.log(lengths), np.log(list(times.values())), 1)[0])
        faster = [length for length in lengths if times[length] < results["attention"]["ms"][length]]
        result["crossover"] = min(faster, default=None)
    return results


def _pass(layer: torch.nn.Module, x: torch.Tensor, *, train: bool) -> None:
    with torch.set_grad_enabled(train):
        y = layer(x)
        if train:
            y.sum().backward()
