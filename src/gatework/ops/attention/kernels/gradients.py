"""The backward pass, from the log-sum-exp of the forward pass: five matrix products for each chunk."""

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
from gatework.ops.attention.kernels.scores import score_chunk
from gatework.ops.cpu.machine import exp2, fetch_add, floats, integers, jit


@jit
def softmax_grad(p: Any, w: Any) -> None:
    """Scores become weights ``a``; gradients ``g`` of those, ``a * (g - delta)``, of the raw scores."""
    logs, deltas, cap = floats(p[at.L_BUFFER]), floats(p[at.M_BUFFER]), floats(p[at.SCALARS])[at.CAP]
    for r in range(w[at.ROWS]):
        row = 4 * w[at.STEP] * r
        score, gradient = floats(p[at.S_BUFFER] + row), floats(p[at.G_BUFFER] + row)
        log, delta = logs[r], deltas[r]
        for c in range(w[at.PADDED]):
            weight = exp2(score[c] - log)
            score[c] = weight
            gradient[c] = weight * (gradient[c] - delta)
        if cap != 0:
            tanh = floats(p[at.T_BUFFER] + row)
            for c in range(w[at.COLUMNS]):
                gradient[c] *= at.ONE - tanh[c] * tanh[c]


@jit
def backward_item(p: Any, w: Any, item: int, dk: int, dv: int) -> None:
    """Add what some queries give to the gradients of their keys; write the queries' own."""
    load_item(p, w, item)
    kv_head = w[at.HEAD] // (p[at.HEADS] // p[at.KV_HEADS])
    k = p[at.K] + 4 * (w[at.SEQUENCE] * p[at.K_BATCH] + kv_head * p[at.K_HEAD])
    v = p[at.V] + 4 * (w[at.SEQUENCE] * p[at.V_BATCH] + kv_head * p[at.V_HEAD])
    scalars, dim, value_dim = floats(p[at.SCALARS]), p[at.DIM], p[at.VALUE_DIM]
    gather_queries(
        p, w, p[at.Q_BUFFER], p[at.Q], p[at.Q_BATCH], p[at.Q_HEAD], p[at.Q_ROW], dim, scalars[at.Q_SCALE]
    )
    steps = p[at.GRAD_BATCH], p[at.GRAD_HEAD], p[at.GRAD_ROW]
    gather_queries(p, w, p[at.O_BUFFER], p[at.GRAD], steps[0], steps[1], steps[2], value_dim, at.ONE)
    rows = p[at.HEADS] * p[at.Q_LENGTH]
    gather_queries(p, w, p[at.L_BUFFER], p[at.LSE], rows, p[at.Q_LENGTH], 1, 1, at.LOG2E)
    gather_queries(p, w, p[at.M_BUFFER], p[at.DELTA], rows, p[at.Q_LENGTH], 1, 1, at.ONE)
    logs = floats(p[at.L_BUFFER])
    for r in range(w[at.ROWS]):
        logs[r] = -at.MASKED if logs[r] < at.INITIAL_MAX else logs[r]  # nothing allowed: all weights are 0
    column = 0
    while next_chunk(p, w):
        if not w[at.DIRECT]:
            gather_keys(p, w, p[at.K_BUFFER], k, p[at.K_ROW], dim)
            gather_keys(p, w, p[at.V_BUFFER], v, p[at.V_ROW], value_dim)
        score_chunk(p, w, k, column, p[at.T_BUFFER])
        matmul_qk(p, w, p[at.G_BUFFER], p[at.O_BUFFER], value_dim, v, p[at.V_ROW], p[at.V_BUFFER])
        softmax_grad(p, w)
        accumulate_dkdv(p, w, dv, p[at.S_BUFFER], p[at.O_BUFFER], value_dim, at.ONE, p[at.DV_BUFFER])
        accumulate_dkdv(p, w, dk, p[at.G_BUFFER], p[at.Q_BUFFER], dim, scalars[at.DK_SCALE], p[at.DK_BUFFER])
        beta = at.ZERO if column == 0 else at.ONE
        factor = scalars[at.DQ_SCALE]
        matmul_pv(p, w, p[at.D_BUFFER], p[at.G_BUFFER], k, p[at.K_ROW], p[at.K_BUFFER], dim, factor, beta)
        column += w[at.COLUMNS]
    if column == 0:
        clear(p[at.D_BUFFER], w[at.ROWS] * dim)
    scatter_queries(p, w, p[at.DQ], p[at.D_BUFFER], dim)


@jit
def sum_parts(p: Any, part: int) -> None:
    """Add the partial gradients of all later parts of a head to those of its first part, in order."""
    slots = integers(p[at.PARTS] + 64 * part)[7]
    for slot in range(1, slots):
        fields = integers(p[at.PARTS] + 64 * (part + slot))
        unit, low, high, offset = fields[2], fields[4], fields[5], fields[6]
        for side in range(2):
            dim = p[at.DIM] if side == 0 else p[at.VALUE_DIM]
            source = floats((p[at.PARTIAL_DK] if side == 0 else p[at.PARTIAL_DV]) + 4 * dim * offset)
            base = p[at.DK] if side == 0 else p[at.DV]
            target = floats(base + 4 * dim * (unit * p[at.KV_LENGTH] + low))
            for i in range((high - low) * dim):
                target[i] += source[i]


@jit
def start_part(p: Any, part: int) -> tuple[int, int]:
    """Clear the gradients of a part's keys and values; return where those of key 0 would be."""
    fields = integers(p[at.PARTS] + 64 * part)
    low, high, start = fields[4], fields[5], fields[6]
    dk, dv = p[at.PARTIAL_DK], p[at.PARTIAL_DV]
    if fields[3] == 0:  # the first part of a head writes to the result itself
        dk, dv, start, low, high = p[at.DK], p[at.DV], fields[2] * p[at.KV_LENGTH], 0, p[at.KV_LENGTH]
    clear(dk + 4 * p[at.DIM] * start, (high - low) * p[at.DIM])
    clear(dv + 4 * p[at.VALUE_DIM] * start, (high - low) * p[at.VALUE_DIM])
    return dk + 4 * p[at.DIM] * (start - low), dv + 4 * p[at.VALUE_DIM] * (start - low)


@jit
def finish_part(p: Any, part: int) -> None:
    """Say that a part is done; whoever does the last part of a head adds them up."""
    fields = integers(p[at.PARTS] + 64 * part)
    unit, slot, slots = fields[2], fields[3], fields[7]
    if slots > 1 and fetch_add(p[at.PARTS_DONE] + 8 * unit) == slots - 1:
        sum_parts(p, part - slot)


def backward(params: int, scratch: int) -> None:
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
