"""WKV, the token mixing of RWKV-4: means of values whose weights decay exponentially, one rate per channel.

Source: RWKV (arXiv:2305.13048), section 3.1.2 and appendix D.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gatework.checks import check_shape, check_sizes
from gatework.ops.engines import checked_engine
from gatework.ops.recurrence import kernels as scan_kernels
from gatework.ops.recurrence import wkv_chunks

#: Every way to compute WKV, by the name that ``engine=`` takes.
ENGINES = ("reference", "chunked", "chunked-torch", "chunked-numba")

#: Tokens per chunk: kernels need chunks for the backward pass alone, which recomputes one at a time.
_KERNEL_CHUNK, _CHUNK = 64, 32

#: Mean of the values read so far, and the logarithm of the sum of their weights; -inf before the first.
WKVState = tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels"]]


def wkv_reference(
    k: Float[Tensor, "batch length channels"],
    v: Float[Tensor, "batch length channels"],
    w: Float[Tensor, " channels"],
    u: Float[Tensor, " channels"],
    *,
    initial_state: WKVState | None = None,
) -> tuple[Float[Tensor, "batch length channels"], WKVState]:
    """The definition, token by token.

    ``y_t`` is the mean of ``v_i`` with weights ``exp((t - 1 - i) w + k_i)`` for ``i < t`` and
    ``exp(u + k_t)`` for the present. With ``M`` the mean of the past and ``s`` the logarithm of its weight
    that is ``y_t = M + sigmoid(u + k_t - s) (v_t - M)``.
    """
    mean, log_weight = _empty_state(k) if initial_state is None else initial_state
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        outputs.append(mean + torch.sigmoid(u + k_t - log_weight) * (v_t - mean))
        mean = mean + torch.sigmoid(k_t - (w + log_weight)) * (v_t - mean)
        log_weight = torch.logaddexp(w + log_weight, k_t)
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(v)), (mean, log_weight)


def wkv(
    k: Float[Tensor, "batch length channels"],
    v: Float[Tensor, "batch length channels"],
    w: Float[Tensor, " channels"],
    u: Float[Tensor, " channels"],
    *,
    initial_state: WKVState | None = None,
    chunk_size: int | None = None,
    engine: str | None = None,
) -> tuple[Float[Tensor, "batch length channels"], WKVState]:
    """Average values under exponentially decaying weights, in O(length) time and memory.

    Computes what :func:`wkv_reference` defines, with a running maximum of the exponents, so that large keys
    and strong decay neither overflow nor lose the mean.

    Args:
        k: Logarithms of the weights, any floating dtype; half precisions are computed in float32.
        v: Values.
        w: Logarithm of the factor by which weights decay at each token, at most zero.
        u: Added to ``k`` of the present token.
        initial_state: State before the first token, empty by default.
        chunk_size: Tokens per chunk, chosen by the engine by default.
        engine: ``"reference"`` (the definition, token by token) or ``"chunked"`` (in chunks, the default;
            ``"chunked-torch"`` with PyTorch's operators and ``"chunked-numba"`` with kernels compiled for
            float32 on a CPU, which it chooses between).

    Returns:
        The means in the dtype of ``v``, and the state after the last token in the dtype it was computed in.

    Raises:
        ValueError: If shapes do not match, or the engine is unknown or cannot do what is asked for.
    """
    engine = checked_engine(engine, ENGINES)
    _check_shapes(k, v, w, u, initial_state)
    if chunk_size is not None:
        check_sizes(chunk_size=chunk_size)
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (k, v, w, u)), torch.float32)
    use_kernels = scan_kernels.are_used(engine, k.device, dtype)
    with torch.autocast(k.device.type, enabled=False):
        mean, log_weight = (part.to(dtype) for part in initial_state or _empty_state(k))
        tensors = [tensor.to(dtype) for tensor in (k, v, w, u)]
        if k.shape[1] == 0:
            return v * 0, (mean, log_weight)
        if engine == "reference":
            y, state = wkv_reference(*tensors, initial_state=(mean, log_weight))
            return y.to(v.dtype), state
        size = chunk_size or (_KERNEL_CHUNK if use_kernels else _CHUNK)
        y, mean, log_weight, _ = _forward_op(*tensors, mean, log_weight, size, use_kernels)
    return y.to(v.dtype), (mean, log_weight)


def wkv_step(
    k: Float[Tensor, "batch channels"],
    v: Float[Tensor, "batch channels"],
    w: Float[Tensor, " channels"],
    u: Float[Tensor, " channels"],
    state: WKVState,
) -> tuple[Float[Tensor, "batch channels"], WKVState]:
    """One token of :func:`wkv_reference`: its output in the dtype of ``v``, and the state after it."""
    dtype = state[1].dtype
    keys, values, decay, bonus = (tensor.to(dtype) for tensor in (k, v, w, u))
    y, state = wkv_reference(keys.unsqueeze(1), values.unsqueeze(1), decay, bonus, initial_state=state)
    return y.squeeze(1).to(v.dtype), state


def _empty_state(k: Tensor) -> tuple[Tensor, Tensor]:
    shape = (k.shape[0], k.shape[2])
    return k.new_zeros(shape), k.new_full(shape, -torch.inf)


def _check_shapes(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: WKVState | None) -> None:
    if k.ndim != 3:
        raise ValueError(f"k must have shape (batch, length, channels), got {tuple(k.shape)}")
    batch, _, channels = k.shape
    mean, log_weight = state or (None, None)
    expected = {
        "v": (v, tuple(k.shape)),
        "w": (w, (channels,)),
        "u": (u, (channels,)),
        "initial_state[0]": (mean, (batch, channels)),
        "initial_state[1]": (log_weight, (batch, channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            check_shape(name, tensor, shape)


# --- the operator, as PyTorch sees it ---

_INPUTS = (
    "Tensor k, Tensor v, Tensor w, Tensor u, Tensor mean, Tensor log_weight, int chunk_size, bool use_kernels"
)


# The schemas are written out because annotations are wrapped where shapes are checked at run time.
@torch.library.custom_op(
    "gatework::wkv", mutates_args=(), schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _forward_op(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, mean: Tensor, log_weight: Tensor, chunk_size: int,
    use_kernels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if k.numel() == 0:
        return torch.zeros_like(v), mean.clone(), log_weight.clone(), k.new_zeros(0)
    start = torch.stack([mean, torch.ones_like(mean), log_weight], 1)
    tensors = [tensor.contiguous() for tensor in (k, v, w, u, start)]
    if use_kernels:
        from gatework.ops.recurrence.kernels import call

        y, last, kept = call.wkv_forward(*tensors, chunk=chunk_size)
    else:
        y, last, kept = wkv_chunks.forward(*tensors, size=chunk_size)
    # One axis: compilers would take a number of chunks that happens to be 1 for a constant.
    return y, last[:, 0] / last[:, 1], last[:, 2] + last[:, 1].log(), kept.flatten()


@_forward_op.register_fake
def _(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, mean: Tensor, log_weight: Tensor, chunk_size: int,
    use_kernels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    chunks = (k.shape[1] + chunk_size - 1) // chunk_size
    kept = k.new_empty(3 * k.shape[0] * k.shape[2] * chunks)
    return k.new_empty(k.shape), mean.new_empty(mean.shape), mean.new_empty(mean.shape), kept


@torch.library.custom_op(
    "gatework::wkv_backward",
    mutates_args=(),
    schema="(Tensor y_grad, Tensor last_grad, Tensor kept, Tensor k, Tensor v, Tensor w, Tensor u, "
    "int chunk_size, bool use_kernels) -> Tensor[]",
)
def _backward_op(
    y_grad: Tensor, last_grad: Tensor, kept: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    chunk_size: int, use_kernels: bool,
) -> list[Tensor]:  # fmt: skip
    if k.numel() == 0:
        return [torch.zeros_like(tensor) for tensor in (k, v, w, u)] + [last_grad.clone()]
    kept = kept.view(k.shape[0], -1, 3, k.shape[2])
    tensors = [tensor.contiguous() for tensor in (y_grad, last_grad, kept, k, v, w, u)]
    if use_kernels:
        from gatework.ops.recurrence.kernels import call

        return call.wkv_backward(*tensors, chunk=chunk_size)
    return wkv_chunks.backward(*tensors, size=chunk_size)


@_backward_op.register_fake
def _(
    y_grad: Tensor, last_grad: Tensor, kept: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor,
    chunk_size: int, use_kernels: bool,
) -> list[Tensor]:  # fmt: skip
    return [tensor.new_empty(tensor.shape) for tensor in (k, v, w, u, last_grad)]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.chunk_size, ctx.use_kernels = inputs
    _, *last, kept = output
    ctx.save_for_backward(*tensors, *last, kept)
    ctx.mark_non_differentiable(kept)


def _backward(
    ctx: Any, y_grad: Tensor, mean_grad: Tensor, weight_grad: Tensor, _: Tensor | None
) -> tuple[Any, ...]:
    k, v, w, u, mean, log_weight, last_mean, last_weight, kept = ctx.saved_tensors
    # Of the sums behind a mean M = a / b and a logarithm s = log b: da = dM / b, db = (ds - M dM) / b.
    last_grad = torch.stack([mean_grad, weight_grad - mean_grad * last_mean, -last_weight], 1)
    *grads, first_grad = _backward_op(y_grad, last_grad, kept, k, v, w, u, ctx.chunk_size, ctx.use_kernels)
    sum_grad, weights_grad, exponent = first_grad.unbind(1)
    weight = (exponent + log_weight).exp()
    return (*grads, weight * sum_grad, weight * (sum_grad * mean + weights_grad), None, None)


_forward_op.register_autograd(_backward, setup_context=_keep_for_backward)
