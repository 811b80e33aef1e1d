"""One call of the kernels: tensors and plan are described to them, and threads run them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from gatework.ops.attention.kernels import layout as at
from gatework.ops.attention.kernels.compiled import kernel
from gatework.ops.cpu import blas, threads

if TYPE_CHECKING:
    from gatework.ops.attention.plan import Plan

#: Scores in a buffer, and most columns of a chunk: they and the chunk's keys should stay in the second cache.
MAX_SCORES, MAX_COLUMNS = 65536, 1024
#: Parts of the backward pass for each thread where there are too few heads.
PARTS_PER_THREAD = 3
#: Products of pairs and dimensions below which other threads cost more than they help.
LEAST_SHARED = 1_000_000

Integers = NDArray[np.int64]


class ScoreOptions(NamedTuple):
    """What the scores are, besides products of queries and keys; see ``forward``."""

    scale: float
    softcap: float | None
    bias: Tensor | None
    slopes: Tensor | None
    query_offset: int


class Work(NamedTuple):
    """How a call is divided.

    Attributes:
        items: Work items, ``(items, 6)``: sequence, head, heads, tile, first and last query of the tile.
        costs: Pairs of queries and keys of each item.
        rows: Most rows of queries in an item.
        threads: How many to use.
    """

    items: NDArray[np.int32]
    costs: Integers
    rows: int
    threads: int


def run_forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: ScoreOptions) -> tuple[Tensor, Tensor]:
    """See :func:`gatework.ops.attention.kernels.forward`."""
    if q.shape[3] == 0:
        return run_forward(pad(q, (0, 1)), pad(k, (0, 1)), v, plan, options)
    if v.shape[3] == 0:
        out, lse = run_forward(q, k, pad(v, (0, 1)), plan, options)
        return out[..., :0], lse
    out, lse = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(-math.inf)
    q, k, v = _rows(q), _rows(k), _rows(v)
    work = _divide(q, k, v, plan)
    params, kept = _describe(q, k, v, plan, options, work)
    params[at.OUT], params[at.LSE], params[at.COUNT] = out.data_ptr(), lse.data_ptr(), len(work.items)
    _run("forward", params, work, backward=False, keep_tanh=False)
    del kept
    return out, lse


def run_backward(
    grad: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    plan: Plan,
    options: ScoreOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`gatework.ops.attention.kernels.backward`."""
    if q.shape[3] == 0:
        q, k = pad(q, (0, 1)), pad(k, (0, 1))
        dq, dk, dv = run_backward(grad, delta, q, k, v, lse, plan, options)
        return dq[..., :0], dk[..., :0], dv
    if v.shape[3] == 0:
        dq, dk, dv = run_backward(pad(grad, (0, 1)), delta, q, k, pad(v, (0, 1)), lse, plan, options)
        return dq, dk, dv[..., :0]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    q, k, v, grad = _rows(q), _rows(k), _rows(v), _rows(grad)
    lse, delta = lse.contiguous(), delta.contiguous()
    work = _divide(q, k, v, plan)
    params, kept = _describe(q, k, v, plan, options, work)
    partial = _part(params, q, k, v, plan, work)
    _put(params, at.GRAD, grad)
    params[at.DELTA : at.DV + 1] = [x.data_ptr() for x in (delta, dq, dk, dv)]
    params[at.LSE] = lse.data_ptr()
    _run("backward", params, work, backward=True, keep_tanh=bool(options.softcap))
    del kept, partial
    return dq, dk, dv


def run_sigmoid_forward(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: ScoreOptions, shift: Tensor
) -> Tensor:
    """See :func:`gatework.ops.attention.kernels.sigmoid_forward`."""
    out = q.new_empty(*q.shape[:3], v.shape[3])
    q, k, v, shift = _rows(q), _rows(k), _rows(v), shift.expand(q.shape[:3])
    work = _divide(q, k, v, plan)
    params, kept = _describe(q, k, v, plan, options, work)
    _put(params, at.SHIFT, shift)
    params[at.OUT], params[at.COUNT] = out.data_ptr(), len(work.items)
    _run("sigmoid_forward", params, work, backward=False, keep_tanh=False)
    del kept
    return out


def run_sigmoid_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    options: ScoreOptions,
    shift: Tensor,
    *,
    needs_shift_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See :func:`gatework.ops.attention.kernels.sigmoid_backward`."""
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    row_sums = q.new_empty(q.shape[:3]) if needs_shift_grad else None
    q, k, v, grad, shift = _rows(q), _rows(k), _rows(v), _rows(grad), shift.expand(q.shape[:3])
    work = _divide(q, k, v, plan)
    params, kept = _describe(q, k, v, plan, options, work)
    partial = _part(params, q, k, v, plan, work)
    _put(params, at.GRAD, grad)
    _put(params, at.SHIFT, shift)
    params[at.DQ : at.DV + 1] = [x.data_ptr() for x in (dq, dk, dv)]
    if row_sums is not None:
        params[at.SHIFT_GRAD] = row_sums.data_ptr()
    _run("sigmoid_backward", params, work, backward=True, keep_tanh=False)
    del kept, partial
    return dq, dk, dv, row_sums


def _rows(x: Tensor) -> Tensor:
    """Return a tensor whose rows are contiguous and do not overlap, as BLAS requires."""
    if x.stride(3) == 1 and x.stride(2) >= x.shape[3]:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _divide(q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Work:
    """List the work items, and say how many threads are worth it."""
    parts = (plan.pattern_of, plan.pattern_tile, plan.tile_query, plan.tile_run, plan.run_length)
    arguments = [*(part.numpy() for part in parts), q.shape[0], q.shape[1], k.shape[1]]
    list_items = kernel("list_items")
    costs, summary = np.empty(0, np.int64), np.empty(2, np.int64)
    size = list_items(*arguments, np.empty((0, 6), np.int32), costs, summary)
    items, costs = np.empty((size, 6), np.int32), np.empty(size, np.int64)
    list_items(*arguments, items, costs, summary)
    total, rows = summary.tolist()
    shared = total * (q.shape[3] + v.shape[3]) >= LEAST_SHARED
    return Work(items, costs, rows, min(threads.count(), size) if shared else 1)


def _part(params: Integers, q: Tensor, k: Tensor, v: Tensor, plan: Plan, work: Work) -> list[Any]:
    """Cut heads into parts with gradients of their own, if there are too few; return what to keep alive."""
    batch, kv_heads = k.shape[:2]
    units = batch * kv_heads
    slots = -(-PARTS_PER_THREAD * work.threads // units) if work.threads > 1 else 1
    parts, parts_done = np.empty((units * slots, 8), np.int64), np.zeros(units, np.int64)
    runs = plan.tile_run.numpy(), plan.run_start.numpy(), plan.run_length.numpy()
    group = q.shape[1] // kv_heads
    rows = kernel("list_parts")(work.items, work.costs, *runs, kv_heads, group, slots, parts)
    partial = q.new_empty(rows * (k.shape[3] + v.shape[3]))
    params[at.PARTS], params[at.COUNT] = parts.ctypes.data, len(parts)
    params[at.PARTS_DONE] = parts_done.ctypes.data
    params[at.PARTIAL_DK] = partial.data_ptr()
    params[at.PARTIAL_DV] = partial.data_ptr() + 4 * rows * k.shape[3]
    return [parts, parts_done, partial]


def _put(params: Integers, field: int, tensor: Tensor) -> None:
    """Describe a tensor: address, and strides of its first three axes."""
    params[field : field + 4] = (tensor.data_ptr(), *tensor.stride()[:3])


def _describe(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, options: ScoreOptions, work: Work
) -> tuple[Integers, list[Any]]:
    """Fill in the block of integers that both passes need; also return what must outlive the call."""
    params = np.zeros(at.END, np.int64)
    kept: list[Any] = [work, plan]
    params.view(np.float32)[2 * at.FACTORS : 2 * at.FACTORS + 4] = _factors(options)
    params[at.ITEMS] = work.items.ctypes.data
    params[at.MAX_SCORES], params[at.MAX_COLUMNS] = MAX_SCORES, MAX_COLUMNS
    params[at.DIM : at.Q] = (q.shape[3], v.shape[3], q.shape[1], k.shape[1], q.shape[2], k.shape[2])
    _put(params, at.Q, q)
    _put(params, at.K, k)
    _put(params, at.V, v)
    params[at.TILE_QUERY : at.POOL + 1] = [part.data_ptr() for part in plan[2:]]
    if options.bias is not None:
        bias = options.bias if options.bias.stride(3) == 1 else options.bias.contiguous()
        kept.append(bias)
        _put(params, at.BIAS, bias.expand(*q.shape[:2], -1, -1))
    if options.slopes is not None:
        slopes = options.slopes.expand(q.shape[:2]).contiguous()
        kept.append(slopes)
        params[at.SLOPES], params[at.OFFSET] = slopes.data_ptr(), options.query_offset
    return params, kept


def _factors(options: ScoreOptions) -> tuple[float, float, float, float]:
    """Return the numbers at ``SCALARS`` that make scores of base 2, and gradients of them."""
    scale, cap, log2e = options.scale, options.softcap, math.log2(math.e)
    if cap:
        return scale / cap, cap * log2e, scale, cap
    return scale * log2e, 0.0, scale, 1 / log2e


def _run(name: str, params: Integers, work: Work, *, backward: bool, keep_tanh: bool) -> None:
    """Lay out the scratch memory of a thread, and run."""
    source = blas.provider()
    assert source is not None, "is_available() looks for one"
    params[at.BLAS] = source.sgemm
    size = _lay_out(params, work.rows, backward, keep_tanh)
    threads.run(kernel(name), params.ctypes.data, size, work.threads, source)


def _lay_out(params: Integers, rows: int, backward: bool, keep_tanh: bool) -> int:
    """Say where each buffer of a thread's scratch memory begins; return the bytes of all."""
    dim, value_dim = params[at.DIM : at.HEADS].tolist()
    scores = max(MAX_SCORES, 128 * rows) + 48 * rows
    sizes = (  # in the order of the layout
        64, 8 * MAX_COLUMNS, 2 * MAX_COLUMNS, scores, scores * backward, scores * keep_tanh,
        rows * dim, rows * value_dim, rows * dim * backward, rows, rows,
        MAX_COLUMNS * dim, MAX_COLUMNS * value_dim,
        MAX_COLUMNS * dim * backward, MAX_COLUMNS * value_dim * backward,
    )  # fmt: skip
    place, places = 8 * at.END, []
    for size in sizes:
        place += -place % 64
        places.append(place)
        place += 4 * size
    params[at.WORKSPACE :] = places
    return place
