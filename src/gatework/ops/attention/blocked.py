"""The blocked engine: only the tiles a mask needs, forward and backward, in memory linear in the length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatework.masks import Full, Mask
from gatework.ops.attention import kernels, tiles
from gatework.ops.attention.constants import Constant, constant, rebuilt
from gatework.ops.attention.options import Alibi, Options, Result
from gatework.ops.attention.plan import digest, unpack
from gatework.ops.attention.planning import TileSize, packed_plan
from gatework.ops.attention.steps import Schedule, schedule
from gatework.ops.attention.tiles import Scoring

#: Sizes of tiles that are fastest, measured: with PyTorch's operators, and with compiled kernels.
_TORCH_TILES = TileSize(rows=256, columns=64, grid_rows=64, grid_overhead=64)
_KERNEL_TILES = TileSize(rows=64, columns=64, grid_rows=36, grid_overhead=8)


def blocked(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute attention over the tiles that the mask needs, by the fastest means at hand."""
    return _attend(q, k, v, options, use_kernels=has_kernels() and _kernel_refusal(q, options) is None)


def blocked_torch(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute attention over the tiles that the mask needs, with PyTorch's own operators."""
    return _attend(q, k, v, options, use_kernels=False)


def blocked_numba(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Result:
    """Compute attention over the tiles that the mask needs, with kernels compiled by numba."""
    return _attend(q, k, v, options, use_kernels=True)


def refusal(q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
    """Say what, of what is asked for, the blocked engine cannot do."""
    if q.device.type != "cpu":
        return f"computes on the CPU, got q on {q.device}"
    if isinstance(options.mask, Tensor):
        shape = tuple(options.mask.shape)
        return f"needs a mask whose structure it knows, a gatework.masks.Mask, got a tensor of shape {shape}"
    return None


def numba_refusal(q: Tensor, k: Tensor, v: Tensor, options: Options) -> str | None:
    """Say what, of what is asked for, the compiled kernels cannot do."""
    reason = refusal(q, k, v, options) or _kernel_refusal(q, options)
    if reason is None and not has_kernels():
        return "needs numba: pip install 'gatework[cpu]'"
    return reason


def tile_size(use_kernels: bool) -> TileSize:
    """Return the size of tiles for compiled kernels, or for PyTorch's operators."""
    return _KERNEL_TILES if use_kernels else _TORCH_TILES


def _kernel_refusal(q: Tensor, options: Options) -> str | None:
    if q.dtype == torch.float64:
        return "computes in float32, got float64"
    if options.dropout_p:
        return f"knows no dropout, got dropout_p={options.dropout_p}"
    if isinstance(options.bias, Tensor) and options.bias.requires_grad:
        return "gives no gradient of a bias"
    return None


def _attend(q: Tensor, k: Tensor, v: Tensor, options: Options, *, use_kernels: bool) -> Result:
    dtype = torch.promote_types(q.dtype, torch.float32)
    bias, slopes, query_offset = _bias(q, options.bias, dtype)
    seed = None
    if options.dropout_p:
        seed = torch.randint(2**62, (), dtype=torch.int64)
    mask = Full() if options.mask is None else options.mask
    assert isinstance(mask, Mask), "refusal() lets no tensors in"
    plan = plan_tiles(constant(mask), int(q.shape[2]), int(k.shape[2]), tile_size(use_kernels))
    y, lse = _forward_op(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        bias,
        slopes,
        seed,
        plan,
        options.scale,
        options.softcap,
        options.dropout_p,
        query_offset,
        use_kernels,
    )
    if options.sinks is not None:
        y, lse = with_sinks(y, lse, options.sinks)
    return y.to(v.dtype), lse if options.return_lse else None


def with_sinks(y: Tensor, lse: Tensor, sinks: Tensor) -> Result:
    """Let one logit per head, without a value, take part in a softmax that is already computed."""
    sinks = sinks.to(lse.dtype)[:, None]
    share = torch.sigmoid(lse - sinks)
    return (y * share[..., None]).to(y.dtype), torch.logaddexp(lse, sinks.expand_as(lse))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernels() -> bool:
    """Whether kernels can be compiled."""
    return kernels.is_available()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # a compiled graph holds the plan, not the planning
def plan_tiles(mask: Constant, q_length: int, kv_length: int, size: TileSize) -> Tensor:
    """Return the packed plan for a mask."""
    return packed_plan(rebuilt(mask), q_length, kv_length, size)


def _bias(
    q: Tensor, bias: Tensor | Alibi | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, int]:
    """A bias of rank 4, or slopes and the position of the first query."""
    if isinstance(bias, Alibi):
        return None, torch.tensor(bias.slopes, dtype=dtype), bias.query_offset
    if bias is None:
        return None, None, 0
    return bias.to(dtype)[(None,) * (4 - bias.ndim)], None, 0


# --- the operator, as PyTorch sees it: tensors in, contiguous tensors out ---


#: Elements up to which PyTorch's threads are not called: for milliseconds after a call they wait busily, and
#: take the processor from the kernels' threads.
_SMALL = 1 << 21

_OPTIONS = (
    "Tensor? bias, Tensor? slopes, Tensor? seed, Tensor plan, float scale, float? softcap, float dropout_p, "
    "SymInt query_offset, bool use_kernels"
)


# The schemas are written out because annotations are wrapped where shapes are checked at run time.
@torch.library.custom_op(
    "gatework::blocked_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)",
)
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    plan: Tensor,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    query_offset: int,
    use_kernels: bool,
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = (part.to(dtype) for part in (q, k, v))
    scoring = _scoring(q, k, bias, slopes, seed, scale, softcap, dropout_p, query_offset)
    if _is_empty(q, k):
        y, lse = keys.new_zeros(*q.shape[:3], v.shape[3]), keys.new_full(q.shape[:3], -torch.inf)
    elif use_kernels:
        y, lse = kernels.forward(queries, keys, values, unpack(plan), **_kernel_options(scoring))
    else:
        y, lse = tiles.forward(queries, keys, values, schedule_of(plan, q, k), scoring)
    return y.to(q.dtype), lse


@_forward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(*q.shape[:3], v.shape[3]), lse


@torch.library.custom_op(
    "gatework::blocked_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor grad, Tensor grad_lse, Tensor y, Tensor lse, Tensor q, Tensor k, Tensor v, "
    f"{_OPTIONS}, bool needs_bias_grad) -> Tensor[]",
)
def _backward_op(
    grad: Tensor,
    grad_lse: Tensor,
    y: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    plan: Tensor,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    query_offset: int,
    use_kernels: bool,
    needs_bias_grad: bool,
) -> list[Tensor]:
    grad = grad.to(lse.dtype)
    rows = grad, _delta(grad, grad_lse, y.to(lse.dtype), lse)
    queries, keys, values = (part.to(lse.dtype) for part in (q, k, v))
    scoring = _scoring(q, k, bias, slopes, seed, scale, softcap, dropout_p, query_offset)
    of = (q, k, v) if bias is None or not needs_bias_grad else (q, k, v, bias)
    if _is_empty(q, k):
        grads = [part.new_zeros(part.shape) for part in of]
    elif use_kernels:
        grads = list(
            kernels.backward(*rows, queries, keys, values, lse, unpack(plan), **_kernel_options(scoring))
        )
    else:
        grads = tiles.backward(
            *rows,
            queries,
            keys,
            values,
            lse,
            schedule_of(plan, q, k),
            scoring,
            bias if needs_bias_grad else None,
        )
    return [part.to(q.dtype) for part in grads[:3]] + grads[3:]


@_backward_op.register_fake
def _(
    grad: Tensor, grad_lse: Tensor, y: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> list[Tensor]:
    grads = [part.new_empty(part.shape) for part in (q, k, v)]
    return [*grads, rest[0].new_empty(rest[0].shape)] if rest[-1] else grads


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.options = inputs[7:]


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, bias, slopes, seed, plan, y, lse = ctx.saved_tensors
    needs_bias_grad = bool(ctx.needs_input_grad[3])
    grads = _backward_op(
        grad, grad_lse, y, lse, q, k, v, bias, slopes, seed, plan, *ctx.options, needs_bias_grad
    )
    return (*grads, *([None] * (12 - len(grads))))


_forward_op.register_autograd(_backward, setup_context=_keep_for_backward)


def _is_empty(q: Tensor, k: Tensor) -> bool:
    """Whether there is no pair of a query and a key."""
    return q.shape[0] * q.shape[2] * k.shape[2] == 0


def _delta(grad: Tensor, grad_lse: Tensor, y: Tensor, lse: Tensor) -> Tensor:
    """``grad_i . y_i`` less the gradient of ``lse_i``: what is subtracted from the gradients of row ``i``."""
    if grad.numel() <= _SMALL:
        delta = torch.from_numpy(np.einsum("bhnd,bhnd->bhn", grad.numpy(), y.numpy()))
    else:
        delta = (grad * y).sum(-1)
    # Where nothing is allowed, lse is -inf and what arrives as its gradient may be anything.
    return torch.where(lse.isneginf(), 0.0, delta - grad_lse)


def _scoring(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    query_offset: int,
) -> Scoring:
    if bias is not None:
        bias = bias.expand(*q.shape[:3], k.shape[2])
    if slopes is not None:
        slopes = slopes.expand(q.shape[:2])
    number = 0 if seed is None else int(seed)
    return Scoring(scale, softcap, bias, slopes, query_offset, dropout_p, number)


def _kernel_options(scoring: Scoring) -> dict[str, Any]:
    """The options of the kernels' functions."""
    return {name: getattr(scoring, name) for name in ("scale", "softcap", "bias", "slopes", "query_offset")}


def schedule_of(plan: Tensor, q: Tensor, k: Tensor) -> Schedule:
    """Return the steps of PyTorch's operators for a packed plan."""
    return schedule(plan, digest(plan), q.shape[0], q.shape[1], k.shape[1])
