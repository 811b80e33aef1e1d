"""The blocked engine: only the tiles a mask needs, forward and backward, in memory linear in the length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatework.masks import Full, Mask
from gatework.ops.attention import kernels
from gatework.ops.attention.blocked import has_kernels, plan_tiles, schedule_of
from gatework.ops.attention.constants import constant
from gatework.ops.attention.counting import flops
from gatework.ops.attention.plan import unpack
from gatework.ops.attention.planning import TileSize
from gatework.ops.attention.tiles import Scoring
from gatework.ops.sigmoid_attention import tiles
from gatework.ops.sigmoid_attention.options import SigmoidOptions

#: Sizes of tiles that are fastest, measured: with PyTorch's operators, and with compiled kernels.
_TORCH_TILES = TileSize(rows=128, columns=64, grid_rows=64, grid_overhead=64)
_KERNEL_TILES = TileSize(rows=128, columns=64, grid_rows=36, grid_overhead=8)


def blocked(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Compute sigmoid attention over the tiles that the mask needs, by the fastest means at hand."""
    return _attend(q, k, v, options, use_kernels=has_kernels() and _kernel_refusal(q, options) is None)


def blocked_torch(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Compute sigmoid attention over the tiles that the mask needs, with PyTorch's own operators."""
    return _attend(q, k, v, options, use_kernels=False)


def blocked_numba(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> Tensor:
    """Compute sigmoid attention over the tiles that the mask needs, with kernels compiled by numba."""
    return _attend(q, k, v, options, use_kernels=True)


def refusal(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> str | None:
    """Say what, of what is asked for, the blocked engine cannot do."""
    if q.device.type != "cpu":
        return f"computes on the CPU, got q on {q.device}"
    if isinstance(options.mask, Tensor):
        shape = tuple(options.mask.shape)
        return f"needs a mask whose structure it knows, a gatework.masks.Mask, got a tensor of shape {shape}"
    if options.slopes is not None and options.slopes.requires_grad:
        return "gives no gradient of alibi_slopes"
    return None


def numba_refusal(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions) -> str | None:
    """Say what, of what is asked for, the compiled kernels cannot do."""
    reason = refusal(q, k, v, options) or _kernel_refusal(q, options)
    if reason is None and not has_kernels():
        return "needs numba: pip install 'gatework[cpu]'"
    return reason


def _kernel_refusal(q: Tensor, options: SigmoidOptions) -> str | None:
    if q.dtype == torch.float64:
        return "computes in float32, got float64"
    if options.dropout_p:
        return f"knows no dropout, got dropout_p={options.dropout_p}"
    if options.pair_bias is not None and options.pair_bias.requires_grad:
        return "gives no gradient of a bias that differs from key to key"
    return None


def _attend(q: Tensor, k: Tensor, v: Tensor, options: SigmoidOptions, *, use_kernels: bool) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    seed = torch.randint(2**62, (), dtype=torch.int64) if options.dropout_p else None
    mask = Full() if options.mask is None else options.mask
    assert isinstance(mask, Mask), "refusal() lets no tensors in"
    size = _KERNEL_TILES if use_kernels else _TORCH_TILES
    y: Tensor = _forward_op(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        options.row_bias,
        None if options.pair_bias is None else options.pair_bias.to(dtype),
        None if options.slopes is None else options.slopes.to(dtype),
        seed,
        plan_tiles(constant(mask), int(q.shape[2]), int(k.shape[2]), size),
        options.scale,
        options.dropout_p,
        options.query_offset,
        use_kernels,
    )
    return y.to(v.dtype)


# --- the operator, as PyTorch sees it: tensors in, contiguous tensors out ---

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor row_bias, Tensor? pair_bias, Tensor? slopes, Tensor? seed, "
    "Tensor plan, float scale, float dropout_p, SymInt query_offset, bool use_kernels"
)


# The schemas are written out because annotations are wrapped where shapes are checked at run time.
@torch.library.custom_op(
    "gatework::sigmoid_attention", mutates_args=(), device_types="cpu", schema=f"({_INPUTS}) -> Tensor"
)
def _forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    plan: Tensor,
    scale: float,
    dropout_p: float,
    query_offset: int,
    use_kernels: bool,
) -> Tensor:
    dtype = row_bias.dtype
    queries, keys, values = (part.to(dtype) for part in (q, k, v))
    shift, scoring = _scoring(q, k, row_bias, pair_bias, slopes, seed, scale, dropout_p, query_offset)
    if _is_empty(q, k, v):
        y = q.new_zeros(*q.shape[:3], v.shape[3])
    elif use_kernels:
        y = kernels.sigmoid_forward(
            queries, keys, values, unpack(plan), shift=shift, **_kernel_options(scoring)
        )
    else:
        y = tiles.forward(queries, keys, values, shift, schedule_of(plan, q, k), scoring)
    return y.to(q.dtype)


@_forward_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])


@torch.library.custom_op(
    "gatework::sigmoid_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_INPUTS}, bool needs_row_grad, bool needs_pair_grad) -> Tensor[]",
)
def _backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    plan: Tensor,
    scale: float,
    dropout_p: float,
    query_offset: int,
    use_kernels: bool,
    needs_row_grad: bool,
    needs_pair_grad: bool,
) -> list[Tensor]:
    dtype = row_bias.dtype
    grad, queries, keys, values = (part.to(dtype) for part in (grad, q, k, v))
    shift, scoring = _scoring(q, k, row_bias, pair_bias, slopes, seed, scale, dropout_p, query_offset)
    rows: Tensor | None = None
    pairs: Tensor | None = None
    if _is_empty(q, k, v):
        grads = [part.new_zeros(part.shape) for part in (queries, keys, values)]
        rows = row_bias.new_zeros(q.shape[:3])
        pairs = None if pair_bias is None else torch.zeros_like(pair_bias)
    elif use_kernels:
        *grads, rows = kernels.sigmoid_backward(
            grad,
            queries,
            keys,
            values,
            unpack(plan),
            shift=shift,
            needs_shift_grad=needs_row_grad,
            **_kernel_options(scoring),
        )
    else:
        *grads, rows, pairs = tiles.backward(
            grad,
            queries,
            keys,
            values,
            shift,
            schedule_of(plan, q, k),
            scoring,
            needs_row_grad=needs_row_grad,
            bias=pair_bias if needs_pair_grad else None,
        )
    found = [part.to(q.dtype) for part in grads]
    if needs_row_grad and rows is not None:
        found.append(rows.sum_to_size(row_bias.shape).contiguous())
    if needs_pair_grad and pairs is not None:
        found.append(pairs)
    return found


@_backward_op.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, row_bias: Tensor, pair_bias: Tensor | None, *rest: Any
) -> list[Tensor]:
    found = [part.new_empty(part.shape) for part in (q, k, v)]
    if rest[-2]:
        found.append(row_bias.new_empty(row_bias.shape))
    if rest[-1]:
        assert pair_bias is not None, "there is no gradient of what is not there"
        found.append(pair_bias.new_empty(pair_bias.shape))
    return found


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_row_grad, needs_pair_grad = (bool(ctx.needs_input_grad[place]) for place in (3, 4))
    found = iter(_backward_op(grad, *ctx.saved_tensors, *ctx.options, needs_row_grad, needs_pair_grad))
    grads = [next(found) for _ in range(3)]
    rows = next(found) if needs_row_grad else None
    pairs = next(found) if needs_pair_grad else None
    return (*grads, rows, pairs, *([None] * 7))


_forward_op.register_autograd(_backward, setup_context=_keep_for_backward)


def _is_empty(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is no pair of a query and a key, or nothing to mix."""
    return q.shape[0] * q.shape[2] * k.shape[2] * v.shape[3] == 0


def _scoring(
    q: Tensor,
    k: Tensor,
    row_bias: Tensor,
    pair_bias: Tensor | None,
    slopes: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
    query_offset: int,
) -> tuple[Tensor, Scoring]:
    """What is added to rows, and everything else that makes scores, at full size without copies."""
    if pair_bias is not None:
        pair_bias = pair_bias.expand(*q.shape[:3], k.shape[2])
    if slopes is not None:
        slopes = slopes.expand(q.shape[:2])
    number = 0 if seed is None else int(seed)
    scoring = Scoring(scale, None, pair_bias, slopes, query_offset, dropout_p, number)
    return row_bias.expand(q.shape[:3]), scoring


def _kernel_options(scoring: Scoring) -> dict[str, Any]:
    """The options of the kernels' functions."""
    return {name: getattr(scoring, name) for name in ("scale", "bias", "slopes", "query_offset")}


@torch.utils.flop_counter.register_flop_formula(torch.ops.gatework.sigmoid_attention, get_raw=True)
def _forward_flops(q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
    """Scores and outputs."""
    return flops(q, v, rest[4], 2)


@torch.utils.flop_counter.register_flop_formula(torch.ops.gatework.sigmoid_attention_backward, get_raw=True)
def _backward_flops(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any, out_val: Any = None) -> int:
    """Scores once more, and the four products of the gradients."""
    return flops(q, v, rest[4], 5)
