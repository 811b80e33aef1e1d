"""The selective scan's definition, its front door, and its single step.

Source: Mamba (arXiv:2312.00752), section 3; algorithm 2 without the projections around it.
"""

from __future__ import annotations

import functools
import importlib
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_shape, check_sizes
from gatework.ops.engines import checked_engine
from gatework.ops.recurrence import kernels as scan_kernels
from gatework.ops.recurrence.selective_scan.operator import scan

#: Every way to compute the scan, by the name that ``engine=`` takes.
ENGINES = ("reference", "chunked", "chunked-torch", "chunked-numba", "mamba_ssm")

#: Tokens per chunk: kernels need chunks for the backward pass alone, which recomputes one at a time.
_KERNEL_CHUNK, _CHUNK = 64, 32


def selective_scan_reference(
    x: Float[Tensor, "batch length channels"],
    dt: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "batch length states"],
    C: Float[Tensor, "batch length states"],
    D: Float[Tensor, " channels"] | None = None,
    *,
    initial_state: Float[Tensor, "batch channels states"] | None = None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels states"]]:
    """The definition: ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t`` and ``y_t = C_t . h_t + D x_t``."""
    state = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for x_t, dt_t, b_t, c_t in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C)), strict=True):
        decay = (dt_t[:, :, None] * A).exp()
        state = decay * state + (dt_t * x_t)[:, :, None] * b_t[:, None]
        outputs.append((state * c_t[:, None]).sum(-1))
    y = torch.stack(outputs, 1) if outputs else torch.zeros_like(x)
    return y if D is None else y + D * x, state


def selective_scan(
    x: Float[Tensor, "batch length channels"],
    dt: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "batch length states"],
    C: Float[Tensor, "batch length states"],
    D: Float[Tensor, " channels"] | None = None,
    *,
    initial_state: Float[Tensor, "batch channels states"] | None = None,
    chunk_size: int | None = None,
    engine: str | None = None,
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels states"]]:
    """Run a selective state-space model over sequences, in O(length) time and memory.

    Computes what :func:`selective_scan_reference` defines. States are kept for the backward pass once per
    chunk, and recomputed between.

    Args:
        x: Inputs, any floating dtype; half precisions are computed in float32.
        dt: Step of each token and channel, at least zero.
        A: Rates of decay, at most zero.
        B: What the inputs write to, shared by all channels.
        C: What the outputs read, likewise.
        D: Weight of the present input in the output; none by default.
        initial_state: State before the first token, zero by default.
        chunk_size: Tokens per chunk, chosen by the engine by default.
        engine: ``"reference"`` (the definition, token by token), ``"chunked"`` (in chunks, the default;
            ``"chunked-torch"`` with PyTorch's operators and ``"chunked-numba"`` with kernels compiled for
            float32 on a CPU, which it chooses between), or
            ``"mamba_ssm"`` (the authors' CUDA kernel where it is installed; it takes no initial state, and
            gives the last state no gradient).

    Returns:
        The outputs in the dtype of ``x``, and the state after the last token in the dtype it was computed in.

    Raises:
        ValueError: If shapes do not match, or the engine is unknown or cannot do what is asked for.
    """
    engine = checked_engine(engine, ENGINES)
    _check_shapes(x, dt, A, B, C, D, initial_state)
    if chunk_size is not None:
        check_sizes(chunk_size=chunk_size)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (x, dt, A, B, C)), torch.float32)
    use_kernels = scan_kernels.are_used(engine, x.device, dtype)
    with torch.autocast(x.device.type, enabled=False):
        if engine == "mamba_ssm":
            return _mamba_ssm_scan(x, dt, A, B, C, D, initial_state)
        if initial_state is None:
            initial_state = x.new_zeros(x.shape[0], *A.shape)
        tensors = [tensor.to(dtype) for tensor in (x, dt, A, B, C, initial_state)]
        if engine == "reference":
            inputs, steps, rates, b, c, state = tensors
            skip = None if D is None else D.to(dtype)
            y, state = selective_scan_reference(inputs, steps, rates, b, c, skip, initial_state=state)
            return y.to(x.dtype), state
        size = chunk_size or (_KERNEL_CHUNK if use_kernels else _CHUNK)
        y, state = scan(*tensors, chunk_size=size, use_kernels=use_kernels)
        if D is not None:
            y = torch.addcmul(y, D.to(dtype), tensors[0])
    return y.to(x.dtype), state


def selective_scan_step(
    x: Float[Tensor, "batch channels"],
    dt: Float[Tensor, "batch channels"],
    A: Float[Tensor, "channels states"],
    B: Float[Tensor, "batch states"],
    C: Float[Tensor, "batch states"],
    D: Float[Tensor, " channels"] | None,
    state: Float[Tensor, "batch channels states"],
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels states"]]:
    """One token of :func:`selective_scan_reference`: its output in the dtype of ``x``, the state after it."""
    dtype = state.dtype
    steps, inputs, b, c = (tensor.to(dtype) for tensor in (dt, x, B, C))
    decay = (steps.unsqueeze(-1) * A.to(dtype)).exp()
    state = decay * state + (steps * inputs).unsqueeze(-1) * b.unsqueeze(-2)
    y = (state * c.unsqueeze(-2)).sum(-1)
    if D is not None:
        y = y + D.to(dtype) * inputs
    return y.to(x.dtype), state


def _check_shapes(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None
) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must have shape (batch, length, channels), got {tuple(x.shape)}")
    batch, length, channels = x.shape
    if a.ndim != 2 or a.shape[0] != channels:
        raise ValueError(f"A must have shape (channels={channels}, states), got {tuple(a.shape)}")
    states = a.shape[1]
    expected = {
        "dt": (dt, (batch, length, channels)),
        "B": (b, (batch, length, states)),
        "C": (c, (batch, length, states)),
        "D": (d, (channels,)),
        "initial_state": (state, (batch, channels, states)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            check_shape(name, tensor, shape)


# --- the authors' engine ---


class _WithoutGradient(torch.autograd.Function):
    """Hand on a tensor; a gradient that arrives at it is an error instead of being lost."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("engine 'mamba_ssm' gives no gradient of its last state: use engine 'chunked'")


@functools.cache
def _mamba_ssm() -> Any | None:
    """Return the module of the authors' function, or ``None`` where it is not installed."""
    name = "mamba_ssm.ops.selective_scan_interface"
    return importlib.import_module(name) if find_spec("mamba_ssm") else None


def _mamba_ssm_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Let the authors' kernel compute: inputs of one dtype, rates in float32, the length last."""
    module = _mamba_ssm()
    if module is None:
        raise ValueError("engine 'mamba_ssm' needs the package mamba-ssm, which is not installed")
    if state is not None:
        raise ValueError("engine 'mamba_ssm' takes no initial_state: use engine 'chunked'")
    if x.dtype == torch.float64:
        raise ValueError("engine 'mamba_ssm' computes float32, bfloat16 and float16, got torch.float64")
    tokens = (tensor.to(x.dtype).mT for tensor in (x, dt))
    weights = (tensor.to(x.dtype).mT for tensor in (b, c))
    skip = None if d is None else d.float()
    y, last = module.selective_scan_fn(*tokens, a.float(), *weights, skip, return_last_state=True)
    return y.mT, _WithoutGradient.apply(last.float())
