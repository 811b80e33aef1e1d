"""Sigmoid attention, forward and backward: no maximum, no sum, and nothing to keep between the passes."""

from __future__ import annotations

from typing import Any

from gatework.ops.attention.kernels import layout as at
from gatework.ops.attention.kernels.chunks import (
    accumulate_dkdv,
    clear,
    gather_keys,
    gather_queries,
    load_item,
    matmul_pv,
    matmul_qk,
    next_chunk,
    scatter_queries,
    thread_params,
)  # fmt: skip
from gatework.ops.attention.kernels.gradients import finish_part, start_part
from gatework.ops.attention.kernels.scores import score_chunk
from gatework.ops.cpu.machine import fetch_add, floats, integers, jit, sigmoid2


@jit
def apply_sigmoid(p: Any, w: Any) -> None:
    """Turn scores of base 2, shifted by what belongs to their row, into sigmoids: exactly 0 where masked."""
    shifts = floats(p[at.M_BUFFER])
    for r in range(w[at.ROWS]):
        score, shift = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r), shifts[r]
        for c in range(w[at.PADDED]):
            score[c] = sigmoid2(score[c] + shift)


@jit
def sigmoid_grad(p: Any, w: Any) -> None:
    """Gradients ``g`` of weights ``a`` become those of the scores, ``a * (1 - a) * g``; add up each row's."""
    totals = floats(p[at.L_BUFFER])
    for r in range(w[at.ROWS]):
        row = 4 * w[at.STEP] * r
        weight, gradient = floats(p[at.S_BUFFER] + row), floats(p[at.G_BUFFER] + row)
        for c in range(w[at.PADDED]):
            gradient[c] *= weight[c] * (at.ONE - weight[c])
        if p[at.SHIFT_GRAD]:
            total = at.ZERO
            for c in range(w[at.COLUMNS]):
                total += gradient[c]
            totals[r] += total


@jit
def load_item_rows(p: Any, w: Any, item: int) -> None:
    """Load an item into the workspace, and its queries and the shifts of their scores into buffers."""
    load_item(p, w, item)
    scale = floats(p[at.SCALARS])[at.Q_SCALE]
    gather_queries(p, w, p[at.Q_BUFFER], p[at.Q], p[at.Q_BATCH], p[at.Q_HEAD], p[at.Q_ROW], p[at.DIM], scale)
    steps = p[at.SHIFT_BATCH], p[at.SHIFT_HEAD], p[at.SHIFT_ROW]
    gather_queries(p, w, p[at.M_BUFFER], p[at.SHIFT], steps[0], steps[1], steps[2], 1, at.LOG2E)


@jit
def forward_item(p: Any, w: Any, item: int) -> None:
    """Attend with some queries: chunk by chunk of their keys."""
    load_item_rows(p, w, item)
    kv_head = w[at.HEAD] // (p[at.HEADS] // p[at.KV_HEADS])
    k = p[at.K] + 4 * (w[at.SEQUENCE] * p[at.K_BATCH] + kv_head * p[at.K_HEAD])
    v = p[at.V] + 4 * (w[at.SEQUENCE] * p[at.V_BATCH] + kv_head * p[at.V_HEAD])
    dim = p[at.VALUE_DIM]
    column = 0
    while next_chunk(p, w):
        if not w[at.DIRECT]:
            gather_keys(p, w, p[at.K_BUFFER], k, p[at.K_ROW], p[at.DIM])
            gather_keys(p, w, p[at.V_BUFFER], v, p[at.V_ROW], dim)
        score_chunk(p, w, k, column, 0)
        apply_sigmoid(p, w)
        beta = at.ZERO if column == 0 else at.ONE
        matmul_pv(p, w, p[at.O_BUFFER], p[at.S_BUFFER], v, p[at.V_ROW], p[at.V_BUFFER], dim, at.ONE, beta)
        column += w[at.COLUMNS]
    if column == 0:
        clear(p[at.O_BUFFER], w[at.ROWS] * dim)
    scatter_queries(p, w, p[at.OUT], p[at.O_BUFFER], dim)


@jit
def backward_item(p: Any, w: Any, item: int, dk: int, dv: int) -> None:
    """Add what some queries give to the gradients of their keys; write the queries' own."""
    load_item_rows(p, w, item)
    kv_head = w[at.HEAD] // (p[at.HEADS] // p[at.KV_HEADS])
    k = p[at.K] + 4 * (w[at.SEQUENCE] * p[at.K_BATCH] + kv_head * p[at.K_HEAD])
    v = p[at.V] + 4 * (w[at.SEQUENCE] * p[at.V_BATCH] + kv_head * p[at.V_HEAD])
    scalars, dim, value_dim = floats(p[at.SCALARS]), p[at.DIM], p[at.VALUE_DIM]
    steps = p[at.GRAD_BATCH], p[at.GRAD_HEAD], p[at.GRAD_ROW]
    gather_queries(p, w, p[at.O_BUFFER], p[at.GRAD], steps[0], steps[1], steps[2], value_dim, at.ONE)
    clear(p[at.L_BUFFER], w[at.ROWS])
    column = 0
    while next_chunk(p, w):
        if not w[at.DIRECT]:
            gather_keys(p, w, p[at.K_BUFFER], k, p[at.K_ROW], dim)
            gather_keys(p, w, p[at.V_BUFFER], v, p[at.V_ROW], value_dim)
        score_chunk(p, w, k, column, 0)
        apply_sigmoid(p, w)
        matmul_qk(p, w, p[at.G_BUFFER], p[at.O_BUFFER], value_dim, v, p[at.V_ROW], p[at.V_BUFFER])
        sigmoid_grad(p, w)
        accumulate_dkdv(p, w, dv, p[at.S_BUFFER], p[at.O_BUFFER], value_dim, at.ONE, p[at.DV_BUFFER])
        accumulate_dkdv(p, w, dk, p[at.G_BUFFER], p[at.Q_BUFFER], dim, scalars[at.DK_SCALE], p[at.DK_BUFFER])
        beta = at.ZERO if column == 0 else at.ONE
        factor = scalars[at.DQ_SCALE]
        matmul_pv(p, w, p[at.D_BUFFER], p[at.G_BUFFER], k, p[at.K_ROW], p[at.K_BUFFER], dim, factor, beta)
        column += w[at.COLUMNS]
    if column == 0:
        clear(p[at.D_BUFFER], w[at.ROWS] * dim)
    scatter_queries(p, w, p[at.DQ], p[at.D_BUFFER], dim)
    if p[at.SHIFT_GRAD]:
        scatter_queries(p, w, p[at.SHIFT_GRAD], p[at.L_BUFFER], 1)


def sigmoid_forward(params: int, scratch: int) -> None:
    """Take work items until none is left."""
    p = thread_params(params, scratch)
    w = integers(p[at.WORKSPACE])
    item = fetch_add(p[at.COUNTER])
    while item < p[at.COUNT]:
        forward_item(p, w, p[at.COUNT] - 1 - item)  # a causal mask's largest items are a head's last
        item = fetch_add(p[at.COUNTER])


def sigmoid_backward(params: int, scratch: int) -> None:
    """Take parts of heads until none is left."""
    p = thread_params(params, scratch)
    w = integers(p[at.WORKSPACE])
    part = fetch_add(p[at.COUNTER])
    while part < p[at.COUNT]:
        fields = integers(p[at.PARTS] + 64 * part)
        dk, dv = start_part(p, part)
        for item in range(fields[0], fields[1]):
            backward_item(p, w, item, dk, dv)
        finish_part(p, part)
        part = fetch_add(p[at.COUNTER])
