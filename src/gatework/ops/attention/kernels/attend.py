"""The forward pass: softmax with a running maximum (online softmax, arXiv:1805.02867)."""

from __future__ import annotations

import math
from typing import Any

from gatework.ops.attention.kernels import layout as at
from gatework.ops.attention.kernels.chunks import (
    gather_keys,
    gather_queries,
    load_item,
    matmul_pv,
    next_chunk,
    thread_params,
)
from gatework.ops.attention.kernels.scores import score_chunk
from gatework.ops.cpu.machine import exp2, fetch_add, floats, indices, integers, jit, larger


@jit
def online_softmax(p: Any, w: Any, first: bool) -> None:
    """Turn scores into ``exp2(score - maximum so far)``; rescale sums and outputs if the maximum grew."""
    maxima, sums, dim = floats(p[at.M_BUFFER]), floats(p[at.L_BUFFER]), p[at.VALUE_DIM]
    for r in range(w[at.ROWS]):
        score = floats(p[at.S_BUFFER] + 4 * w[at.STEP] * r)
        before = at.INITIAL_MAX if first else maxima[r]
        top = before
        for c in range(w[at.PADDED]):
            top = larger(score[c], top)
        total = at.ZERO
        for c in range(w[at.PADDED]):
            weight = exp2(score[c] - top)
            score[c] = weight
            total += weight
        maxima[r] = top
        if first:
            sums[r] = total
        else:
            rescale = exp2(before - top)
            sums[r] = sums[r] * rescale + total
            if rescale != 1:
                output = floats(p[at.O_BUFFER] + 4 * dim * r)
                for d in range(dim):
                    output[d] *= rescale


@jit
def store_outputs(p: Any, w: Any, first: bool) -> None:
    """Divide by the sums, and write outputs and log-sum-exp to their places."""
    maxima, sums, dim, n = floats(p[at.M_BUFFER]), floats(p[at.L_BUFFER]), p[at.VALUE_DIM], w[at.NUM_QUERIES]
    query = indices(p[at.QUERY] + 4 * (indices(p[at.TILE_QUERY])[w[at.TILE]] + w[at.FIRST]))
    for r in range(w[at.ROWS]):
        head = w[at.SEQUENCE] * p[at.HEADS] + w[at.HEAD] + r // n
        place = head * p[at.Q_LENGTH] + query[r % n]
        output, row = floats(p[at.OUT] + 4 * dim * place), floats(p[at.O_BUFFER] + 4 * dim * r)
        if first or sums[r] == 0:
            floats(p[at.LSE])[place] = -math.inf
            for d in range(dim):
                output[d] = 0
        else:
            floats(p[at.LSE])[place] = (maxima[r] + math.log2(sums[r])) * at.LN2
            inverse = at.ONE / sums[r]
            for d in range(dim):
                output[d] = row[d] * inverse


@jit
def forward_item(p: Any, w: Any, item: int) -> None:
    """Attend with some queries: chunk by chunk of their keys, with a running maximum."""
    load_item(p, w, item)
    kv_head = w[at.HEAD] // (p[at.HEADS] // p[at.KV_HEADS])
    k = p[at.K] + 4 * (w[at.SEQUENCE] * p[at.K_BATCH] + kv_head * p[at.K_HEAD])
    v = p[at.V] + 4 * (w[at.SEQUENCE] * p[at.V_BATCH] + kv_head * p[at.V_HEAD])
    scale, dim = floats(p[at.SCALARS])[at.Q_SCALE], p[at.VALUE_DIM]
    gather_queries(p, w, p[at.Q_BUFFER], p[at.Q], p[at.Q_BATCH], p[at.Q_HEAD], p[at.Q_ROW], p[at.DIM], scale)
    column = 0
    while next_chunk(p, w):
        if not w[at.DIRECT]:
            gather_keys(p, w, p[at.K_BUFFER], k, p[at.K_ROW], p[at.DIM])
            gather_keys(p, w, p[at.V_BUFFER], v, p[at.V_ROW], dim)
        score_chunk(p, w, k, column, 0)
        online_softmax(p, w, column == 0)
        beta = at.ZERO if column == 0 else at.ONE
        matmul_pv(p, w, p[at.O_BUFFER], p[at.S_BUFFER], v, p[at.V_ROW], p[at.V_BUFFER], dim, at.ONE, beta)
        column += w[at.COLUMNS]
    store_outputs(p, w, column == 0)


def forward(params: int, scratch: int) -> None:
    """Take work items until none is left."""
    p = thread_params(params, scratch)
    w = integers(p[at.WORKSPACE])
    item = fetch_add(p[at.COUNTER])
    while item < p[at.COUNT]:
        forward_item(p, w, p[at.COUNT] - 1 - item)  # a causal mask's largest items are a head's last
        item = fetch_add(p[at.COUNTER])
