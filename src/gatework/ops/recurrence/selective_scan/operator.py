"""The selective scan as PyTorch sees it: one operator, differentiable, for any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatework.ops.recurrence.selective_scan import chunked

_INPUTS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor state, int chunk_size, bool use_kernels"


def scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    *,
    chunk_size: int,
    use_kernels: bool,
) -> tuple[Tensor, Tensor]:
    """Scan tensors of one dtype, at least float32; return outputs and last state."""
    y, last, _ = _forward_op(x, dt, a, b, c, state, chunk_size, use_kernels)
    return y, last


# The schemas are written out because annotations are wrapped where shapes are checked at run time.
@torch.library.custom_op(
    "gatework::selective_scan", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
def _forward_op(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk_size: int, use_kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0 or a.shape[1] == 0:
        return torch.zeros_like(x), state.clone(), x.new_zeros(0)
    tensors = [tensor.contiguous() for tensor in (x, dt, a, b, c, state)]
    if use_kernels:
        from gatework.ops.recurrence.kernels import call

        y, last, kept = call.selective_forward(*tensors, chunk=chunk_size)
    else:
        y, last, kept = chunked.forward(*tensors, size=chunk_size)
    # One axis: compilers would take a number of chunks that happens to be 1 for a constant.
    return y, last, kept.flatten()


@_forward_op.register_fake
def _(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk_size: int, use_kernels: bool
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = (x.shape[1] + chunk_size - 1) // chunk_size
    kept = x.new_empty(chunks * state.numel())
    return x.new_empty(x.shape), state.new_empty(state.shape), kept


@torch.library.custom_op(
    "gatework::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor y_grad, Tensor state_grad, Tensor kept, Tensor x, Tensor dt, Tensor A, Tensor B, "
    "Tensor C, int chunk_size, bool use_kernels) -> Tensor[]",
)
def _backward_op(
    y_grad: Tensor, state_grad: Tensor, kept: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    chunk_size: int, use_kernels: bool,
) -> list[Tensor]:  # fmt: skip
    if x.numel() == 0 or a.shape[1] == 0:
        return [torch.zeros_like(tensor) for tensor in (x, dt, a, b, c)] + [state_grad.clone()]
    kept = kept.view(x.shape[0], -1, *a.shape)
    tensors = [tensor.contiguous() for tensor in (y_grad, state_grad, kept, x, dt, a, b, c)]
    if use_kernels:
        from gatework.ops.recurrence.kernels import call

        return call.selective_backward(*tensors, chunk=chunk_size)
    return chunked.backward(*tensors, size=chunk_size)


@_backward_op.register_fake
def _(
    y_grad: Tensor, state_grad: Tensor, kept: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    chunk_size: int, use_kernels: bool,
) -> list[Tensor]:  # fmt: skip
    return [tensor.new_empty(tensor.shape) for tensor in (x, dt, a, b, c, state_grad)]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, _, ctx.chunk_size, ctx.use_kernels = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, y_grad: Tensor, state_grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    *tensors, kept = ctx.saved_tensors
    grads = _backward_op(y_grad, state_grad, kept, *tensors, ctx.chunk_size, ctx.use_kernels)
    return (*grads, None, None)


_forward_op.register_autograd(_backward, setup_context=_keep_for_backward)
