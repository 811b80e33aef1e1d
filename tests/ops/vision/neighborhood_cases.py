"""Random calls of neighbourhood attention for the tests: grids, windows and tensors that fit each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

DOUBLE = torch.float64


class Windows(NamedTuple):
    """A grid, and windows on it in the order of the functions' arguments."""

    grid: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]


@st.composite
def windows(draw, odd: bool = False, num_axes: int | None = None) -> Windows:
    """Any windows that a small grid can have; with ``odd`` those of the older functions, without stride."""
    num_axes = draw(st.integers(1, 3)) if num_axes is None else num_axes
    largest = {1: 9, 2: 5, 3: 3}[num_axes]
    axes = []
    for _ in range(num_axes):
        window = draw(st.sampled_from(range(3, largest + 1, 2)) if odd else st.integers(2, largest))
        dilation = draw(st.integers(1, 3 if num_axes < 3 else 2))
        stride = 1 if odd else draw(st.integers(1, window))
        length = window * dilation + draw(st.integers(0, {1: 12, 2: 4, 3: 1}[num_axes]))
        axes.append((length, window, stride, dilation, draw(st.booleans())))
    return Windows(*zip(*axes, strict=True))


def tensors(
    grid: tuple[int, ...], batch=2, kv_heads=1, groups=2, dim=3, value_dim=3, extra=None, seed=0, dtype=DOUBLE
) -> dict[str, Tensor]:
    """Queries, keys, values and, unless ``extra`` is None, additional ones; heads last."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "query": (batch, *grid, kv_heads * groups, dim),
        "key": (batch, *grid, kv_heads, dim),
        "value": (batch, *grid, kv_heads, value_dim),
    }
    if extra is not None:
        shapes["additional_keys"] = (batch, extra, kv_heads, dim)
        shapes["additional_values"] = (batch, extra, kv_heads, value_dim)
    made = {name: torch.randn(*s, generator=generator, dtype=DOUBLE) for name, s in shapes.items()}
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def outputs_and_gradients(function, tensors: dict[str, Tensor], **options) -> list[Tensor]:
    """Outputs of a call and the gradients of all of its tensors, for fixed random cotangents."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=DOUBLE)
    for output in outputs:
        total = total + (output * torch.randn(output.shape, generator=generator, dtype=DOUBLE)).sum()
    total.backward()
    return [output.detach() for output in outputs] + [leaf.grad for leaf in leaves.values()]
