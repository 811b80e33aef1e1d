"""One call of the kernels: tensors are described to them, and threads run them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatework.ops.cpu import threads
from gatework.ops.cpu.blas import Provider
from gatework.ops.recurrence.kernels import layout as at
from gatework.ops.recurrence.kernels.compiled import kernel

#: The kernels multiply no matrices.
_NO_PRODUCTS = Provider("none", 0)
#: Updated numbers below which other threads cost more than they help.
_LEAST_SHARED = 200_000
#: Rows of one number per channel that a kernel needs beside those of the states; no kernel has more.
_ROWS = 20

Integers = NDArray[np.int64]


def selective_forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and the state before each chunk, for contiguous float32 tensors, none empty."""
    y, last = torch.empty_like(x), torch.empty_like(state)
    kept = x.new_empty(x.shape[0], -(-x.shape[1] // chunk), *a.shape)
    params = _describe(x, a.shape[1], chunk)
    _put(params, at.X, x, dt, a, b, c, state, y, last, kept)
    _run("selective_forward", params, x, a.shape[1], history=0)
    return y, last, kept


def selective_backward(
    y_grad: Tensor, last_grad: Tensor, kept: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    *, chunk: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of ``x, dt, A, B, C`` and of the initial state."""
    x_grad, dt_grad, start_grad = torch.empty_like(x), torch.empty_like(dt), torch.empty_like(last_grad)
    a_grad = torch.empty_like(last_grad)  # of each sequence
    params = _describe(x, a.shape[1], chunk)
    b_grad, c_grad = (x.new_empty(*x.shape[:2], int(params[at.BLOCKS]), a.shape[1]) for _ in range(2))
    _put(params, at.X, x, dt, a, b, c)
    _put(params, at.KEPT, kept, y_grad, last_grad, x_grad, dt_grad, a_grad, b_grad, c_grad, start_grad)
    _run("selective_backward", params, x, a.shape[1], history=min(chunk, x.shape[1]) + 1)
    return [x_grad, dt_grad, a_grad.sum(0), b_grad.sum(2), c_grad.sum(2), start_grad]


def wkv_forward(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, start: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and the state before each chunk, for contiguous float32 tensors, none empty."""
    y, last = torch.empty_like(v), torch.empty_like(start)
    kept = k.new_empty(k.shape[0], -(-k.shape[1] // chunk), 3, k.shape[2])
    params = _describe(k, 1, chunk)
    _put(params, at.K, k, v, decay, bonus)
    _put(params, at.START, start, y, last, kept)
    _run("wkv_forward", params, k, 1, history=0)
    return y, last, kept


def wkv_backward(
    y_grad: Tensor, last_grad: Tensor, kept: Tensor, k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor,
    *, chunk: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients of ``k, v, w, u`` and, as a triple, of the initial state."""
    k_grad, v_grad, start_grad = torch.empty_like(k), torch.empty_like(v), torch.empty_like(last_grad)
    decay_grad, bonus_grad = (k.new_empty(k.shape[0], k.shape[2]) for _ in range(2))  # of each sequence
    params = _describe(k, 1, chunk)
    _put(params, at.K, k, v, decay, bonus, k_grad, v_grad, decay_grad, bonus_grad)
    _put(params, at.KEPT, kept, y_grad, last_grad)
    _put(params, at.START_GRAD, start_grad)
    _run("wkv_backward", params, k, 1, history=3 * min(chunk, k.shape[1]))
    return [k_grad, v_grad, decay_grad.sum(0), bonus_grad.sum(0), start_grad]


def _describe(x: Tensor, states: int, chunk: int) -> Integers:
    """Fill in the sizes of a call."""
    params = np.zeros(at.END, np.int64)
    batch, length, channels = x.shape
    blocks = -(-channels // at.WIDTH)
    params[at.COUNT : at.BLOCKS + 1] = batch * blocks, length, channels, states, chunk, blocks
    return params


def _put(params: Integers, field: int, *tensors: Tensor) -> None:
    """Write the addresses of tensors to consecutive fields."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    params[field : field + len(tensors)] = [tensor.data_ptr() for tensor in tensors]


def _run(name: str, params: Integers, x: Tensor, states: int, *, history: int) -> None:
    """Run a kernel; ``history`` is how many states of a group it remembers."""
    size = 4 * at.WIDTH * (_ROWS + (4 + history) * states)
    shared = x.numel() * states >= _LEAST_SHARED
    number = min(threads.count(), int(params[at.COUNT])) if shared else 1
    threads.run(kernel(name), params.ctypes.data, size, number, _NO_PRODUCTS)
